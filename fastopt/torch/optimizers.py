"""The optimizers: each says how torch's options make one of fastopt's rules, and what torch calls its state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import SettingError, raised_by
from fastopt.groups import changed, settings_of
from fastopt.kernels import rules
from fastopt.kernels.rules.rule import is_rule, require_rule
from fastopt.torch.adapter import Adapter
from fastopt.torch.device_numbers import Symbol
from fastopt.torch.state import StateNames

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}


class SGD(Adapter, torch.optim.SGD):
    """torch.optim.SGD, with momentum, dampening and Nesterov's form."""

    names: ClassVar = StateNames({"m": "momentum_buffer"}, counted=False)

    def _rule(self, options: dict[str, Any]) -> Any:
        lr, decay = options["lr"], options["weight_decay"]
        if not options["momentum"]:
            return rules.SGD(lr, decay)
        beta, dampening, nesterov = options["momentum"], options["dampening"], options["nesterov"]
        return rules.Momentum(lr, beta, dampening=dampening, nesterov=nesterov, weight_decay=decay)


class RMSprop(Adapter, torch.optim.RMSprop):
    """torch.optim.RMSprop, centred and with momentum too."""

    names: ClassVar = StateNames({"v": "square_avg", "a": "grad_avg", "m": "momentum_buffer"})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.RMSprop(**options)


class Adam(Adapter, torch.optim.Adam):
    """torch.optim.Adam: weight decay is L2 unless decoupled_weight_decay=True."""

    names: ClassVar = StateNames(MOMENTS)

    def _rule(self, options: dict[str, Any]) -> Any:
        decoupled = options.pop("decoupled_weight_decay", False)
        return rules.Adam(**options, decoupled=decoupled)


class AdamW(Adapter, torch.optim.AdamW):
    """torch.optim.AdamW: weight decay is decoupled, 0.01 by default."""

    names: ClassVar = StateNames(MOMENTS)

    def _rule(self, options: dict[str, Any]) -> Any:
        decoupled = options.pop("decoupled_weight_decay", True)  # an option of torch's from 2.7 on
        return rules.Adam(**options, decoupled=decoupled)


class Adagrad(Adapter, torch.optim.Adagrad):
    """torch.optim.Adagrad, dense."""

    names: ClassVar = StateNames({"v": "sum"})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.Adagrad(**options)


class Adadelta(Adapter, torch.optim.Adadelta):
    """torch.optim.Adadelta."""

    names: ClassVar = StateNames({"v": "square_avg", "u": "acc_delta"})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.Adadelta(**options)


class Adamax(Adapter, torch.optim.Adamax):
    """torch.optim.Adamax."""

    names: ClassVar = StateNames({"m": "exp_avg", "u": "exp_inf"})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.Adamax(**options)


@dataclass(frozen=True)
class NAdamAfter(rules.NAdam):
    """NAdam with the product Πₜ of the momenta up to step t as a setting: in torch it is state."""

    product: float = 1.0

    def scalars(self, t: int) -> dict[str, float]:  # noqa: D102
        return self.scalars_after(t, self.product)


NAdamAfter.__name__ = "NAdam"  # in errors and in names of kernels


class NAdam(Adapter, torch.optim.NAdam):
    """torch.optim.NAdam, whose product of momenta is state: betas and momentum_decay may change on the way."""

    names: ClassVar = StateNames(MOMENTS, {"mu_product": 1.0})

    def _rule(self, options: dict[str, Any]) -> Any:
        return NAdamAfter(**options)

    def _advance(self, rule: Any, t: int, entries: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own = rule
        while hasattr(own, "rule"):
            own = own.rule
        kind = np.float64 if torch.get_default_dtype() == torch.float64 else np.float32  # in which torch multiplies
        momentum, before = float(kind(own.momentum(t))), entries["mu_product"]
        # Zero, which it comes to in the end, would be another kernel, and counts for no more than the least number.
        if isinstance(before, Symbol):
            product = (before * momentum).rounded(kind)
            now = dataclasses.replace(own, product=product.at_least(5e-324))
        else:
            product = float(kind(before * momentum))  # in float64 that of two float32 is exact
            now = dataclasses.replace(own, product=product or 5e-324)
        return _with_inner(rule, now), {"mu_product": product}


def _with_inner(rule: Any, inner: Any) -> Any:
    """Return a rule with another one in place of its innermost."""
    return dataclasses.replace(rule, rule=_with_inner(rule.rule, inner)) if hasattr(rule, "rule") else inner


class RAdam(Adapter, torch.optim.RAdam):
    """torch.optim.RAdam."""

    names: ClassVar = StateNames(MOMENTS)

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.RAdam(**options)


class Rprop(Adapter, torch.optim.Rprop):
    """torch.optim.Rprop."""

    names: ClassVar = StateNames({"previous": "prev", "size": "step_size"})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.Rprop(**options)


class ASGD(Adapter, torch.optim.ASGD):
    """torch.optim.ASGD; the entries "eta" and "mu" in its state follow from the step, and are written but not read."""

    names: ClassVar = StateNames({}, {"eta": 0.0, "mu": 1.0})

    def _rule(self, options: dict[str, Any]) -> Any:
        return rules.ASGD(**options)

    def _advance(self, rule: Any, t: int, entries: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own = rule
        while hasattr(own, "rule"):
            own = own.rule
        following = own.scalars(t + 1)
        return rule, {"eta": following["eta"], "mu": following["mu"]}


class Fused(Adapter):
    """Any rule of fastopt's, or the user's own, as a torch optimizer.

    The rule's numbers and choices, those of rules inside it too, are the options of a group: param_groups may have
    their own, and torch's LR schedulers change "lr". State goes by the rule's own names.

    Args:
        params: parameters, or groups of them, as for torch's optimizers.
        rule: the rule, for example `fastopt.GradientNoise(fastopt.Adam(lr=1e-3))`. A setting that is a schedule of
            fastopt's stays one, and is no option.
        maximize: climb instead of descend.
        own: flatten, storage, seed, max_norm, skip_nonfinite, ema, and capturable for steps that a CUDA graph can
            repeat.

    """

    def __init__(self, params: Any, rule: Any, *, maximize: bool = False, **own: Any):
        with raised_by("Fused"):
            require_rule(rule)
            self._own_rule = rule
            options = {name: value for name, value in settings_of(rule).items() if is_option(value)}
            if taken := {"params", "maximize"} & options.keys():
                what = f"a setting of the rule is called {min(taken)!r}, which means something else in a group."
                raise SettingError(what, do="rename it")
        super().__init__(params, {**options, "maximize": maximize}, **own)

    def _rule(self, options: dict[str, Any]) -> Any:
        return changed(self._own_rule, options) if options else self._own_rule

    def __getstate__(self) -> dict[str, Any]:
        return {"_own_rule": self._own_rule, **super().__getstate__()}


def is_option(value: Any) -> bool:
    """Whether a setting of a rule can be an option of a group."""
    if isinstance(value, tuple):
        return all(map(is_option, value))
    return value is None or (isinstance(value, Real | str) and not is_rule(value))

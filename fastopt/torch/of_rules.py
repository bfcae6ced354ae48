"""Optimizers that torch does not have: each has the settings of its rule."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from fastopt.checks import choice
from fastopt.errors import SettingError, raised_by, suggest
from fastopt.kernels import rules
from fastopt.torch.adapter import Adapter
from fastopt.torch.averaging import Averaging
from fastopt.torch.optimizers import MOMENTS
from fastopt.torch.state import StateNames

_OWN = "flatten, storage, seed, max_norm, skip_nonfinite, ema, and capturable for steps that a CUDA graph can repeat"


_ARGUMENTS = ("flatten", "storage", "seed", "max_norm", "skip_nonfinite", "ema", "capturable")


class OfRule(Adapter):
    """An optimizer whose arguments are the settings of `rule`, in the same order and with the same defaults."""

    rule: ClassVar[Any]
    names: ClassVar = StateNames(MOMENTS)

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        if "rule" not in cls.__dict__:
            return
        kind = inspect.Parameter
        settings = [kind(n, kind.POSITIONAL_OR_KEYWORD, default=p.default)
                    for n, p in inspect.signature(cls.rule).parameters.items()]  # fmt: skip
        ends = [kind("maximize", kind.KEYWORD_ONLY, default=False), kind("own", kind.VAR_KEYWORD)]
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [kind("params", kind.POSITIONAL_OR_KEYWORD), *settings, *ends]
        )
        cls.__doc__ = (
            f"{cls.rule.__name__} for torch: see `fastopt.{cls.rule.__name__}` for its settings.\n\n"
            f"    maximize climbs instead of descending. Beside that: {_OWN}.\n    "
        )

    def __init__(self, params: Any, *settings: Any, maximize: bool = False, **given: Any):
        theirs = inspect.signature(self.rule)
        named = {name: given.pop(name) for name in list(given) if name in theirs.parameters}
        with raised_by(type(self).__name__):
            for name in given:
                if name not in _ARGUMENTS:
                    do = suggest(name, [*theirs.parameters, *_ARGUMENTS])
                    raise SettingError(f"there is no argument {name!r}.", do=do)
            choice("maximize", maximize)
            try:
                bound = theirs.bind(*settings, **named)
            except TypeError as error:
                what = "these are not the settings of the rule."
                raise SettingError(what, got=str(error), expected=", ".join(theirs.parameters)) from error
            bound.apply_defaults()
            self.rule(**bound.arguments)  # which checks them
        super().__init__(params, {**bound.arguments, "maximize": maximize}, **given)

    def _rule(self, options: dict[str, Any]) -> Any:
        return self.rule(**options)


class Lion(OfRule):  # noqa: D101 — `OfRule` writes it
    rule = rules.Lion


class AdaBelief(OfRule):  # noqa: D101
    rule = rules.AdaBelief


class Yogi(OfRule):  # noqa: D101
    rule = rules.Yogi


class AdEMAMix(OfRule):  # noqa: D101
    rule = rules.AdEMAMix


class ADOPT(OfRule):  # noqa: D101
    rule = rules.ADOPT


class Adan(OfRule):  # noqa: D101
    rule = rules.Adan


class LaProp(OfRule):  # noqa: D101
    rule = rules.LaProp


class Signum(OfRule):  # noqa: D101
    rule = rules.Signum


class SophiaG(OfRule):  # noqa: D101
    rule = rules.SophiaG


class QHAdam(OfRule):  # noqa: D101
    rule = rules.QHAdam


class MADGRAD(OfRule):  # noqa: D101
    rule = rules.MADGRAD


class LAMB(OfRule):  # noqa: D101
    rule = rules.LAMB


class LARS(OfRule):  # noqa: D101
    rule = rules.LARS


class StableAdamW(OfRule):  # noqa: D101
    rule = rules.StableAdamW


class MARS(OfRule):  # noqa: D101
    rule = rules.MARS


class NovoGrad(OfRule):  # noqa: D101
    rule = rules.NovoGrad


class Prodigy(OfRule):  # noqa: D101
    rule = rules.Prodigy


class ScheduleFreeSGD(Averaging, OfRule):  # noqa: D101
    rule = rules.ScheduleFreeSGD


class ScheduleFreeAdamW(Averaging, OfRule):  # noqa: D101
    rule = rules.ScheduleFreeAdamW


class GPAAdamW(Averaging, OfRule):  # noqa: D101
    rule = rules.GPAAdamW

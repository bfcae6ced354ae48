"""Muon, with a rule for everything that is no matrix of a hidden layer in a group of its own."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch  # pyright: ignore[reportMissingImports]
from torch.nn.parameter import is_lazy  # pyright: ignore[reportMissingImports]

from fastopt.errors import LayoutError, SettingError, raised_by, suggest
from fastopt.groups import changed, settings_of
from fastopt.kernels import rules
from fastopt.kernels.rules.muon import COEFFICIENTS
from fastopt.torch.adapter import Adapter
from fastopt.torch.optimizers import MOMENTS, is_option
from fastopt.torch.state import StateNames


class Muon(Adapter):
    """torch.optim.Muon, for tensors of more than two dimensions too, and with another rule for all that is no matrix.

    A group of parameters becomes two: its matrices, and what goes to `aux`, whose group has `aux`'s own options
    (`lr` among them, which schedulers change) and says "aux": True. So does a group that is given with "aux": True.

    Args:
        params: parameters, or groups of them, as for torch's optimizers; with names where `aux_for` is given, as from
            `model.named_parameters()`.
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: as in torch.optim.Muon.
        ns_dtype: "bfloat16" computes the products of matrices in it, as torch.optim.Muon does; None in the precision
            of the step, which on a CPU without instructions for bfloat16 is faster.
        aux: a rule of fastopt, for example `fastopt.Adam(lr=3e-4)`, for parameters of fewer than two dimensions and
            those that `aux_for` names.
        aux_for: patterns of names, for example `("*embed*", "head.*")`.
        maximize: climb instead of descend.
        own: flatten, storage, seed, max_norm, skip_nonfinite, ema.

    Raises:
        SettingError: an option is out of its range, or a pattern fits no parameter.
        LayoutError: a parameter is no matrix, and there is no `aux`.

    """

    names: ClassVar = StateNames({**MOMENTS, "m": "momentum_buffer"})
    _aux: Any = None
    _aux_for: tuple[str, ...] = ()

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
        aux: Any = None,
        aux_for: Sequence[str] = (),
        maximize: bool = False,
        **own: Any,
    ):
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "ns_dtype": ns_dtype,
        }
        with raised_by("Muon"):
            if isinstance(aux_for, str):
                raise SettingError("aux_for is a tuple of patterns.", got=repr(aux_for), do=f"pass ({aux_for!r},)")
            self._aux, self._aux_for, self._own_options = aux, tuple(aux_for or ()), tuple(options)
            rules.Muon(aux=aux, aux_for=self._aux_for)
            if aux is not None:
                options["aux"] = False
                # Those of aux are options of its groups alone: what is in `defaults` says, for example to OneCycleLR,
                # whether there is a momentum or there are betas.
                theirs = [name for name in self._settings_of_aux() if name not in options]
                self._options, self._optional = (*options, "maximize", *theirs), frozenset(theirs)
        super().__init__(params, {**options, "maximize": maximize}, **own)
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        for pattern in self._aux_for:
            if not any(fnmatchcase(name, pattern) for name in names):
                what = f"the pattern {pattern!r} of aux_for fits no parameter."
                do = suggest(pattern, names) if names else "pass model.named_parameters(), so that they have names"
                raise SettingError(what, do=do, where="Muon")

    def _settings_of_aux(self) -> dict[str, Any]:
        return {name: value for name, value in settings_of(self._aux).items() if is_option(value)}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; one that has matrices and others, as two.

        Raises:
            SettingError: such a group has options of its own, which could be for either part.
            LayoutError: see `torch`'s optimizers here; or a parameter is no matrix, and there is no `aux`.

        """
        given, marked = param_group["params"], param_group.get("aux", False)
        if not isinstance(marked, bool) or (marked and self._aux is None):
            what = '"aux" of a group says whether it goes to the rule aux, and there is none.'
            raise SettingError(what, got=f'"aux": {marked!r}', do="pass aux=fastopt.Adam(…)", where="Muon")
        if self._aux is None or isinstance(given, set) or param_group.get("aux") is False:
            super().add_param_group(param_group)
            return
        entries = [given] if isinstance(given, torch.Tensor) else list(given)
        others = [entry for entry in entries if self._is_for_aux(entry)]
        own = {name: value for name, value in param_group.items() if name not in ("params", "aux")}
        if param_group.get("aux") or (others and len(others) == len(entries)):
            super().add_param_group({**self._settings_of_aux(), **own, "params": entries, "aux": True})
            return
        if others and own:
            what = "a group has matrices and other parameters, and options that could be for either."
            raise SettingError(what, got=", ".join(own), do='make two groups, one with "aux": True', where="Muon")
        kept, count = {id(entry) for entry in others}, len(self.param_groups)
        super().add_param_group({**own, "params": [x for x in entries if id(x) not in kept], "aux": False})
        try:
            if others:
                super().add_param_group({**self._settings_of_aux(), "params": others, "aux": True})
        except BaseException:
            del self.param_groups[count:]
            raise

    def _is_for_aux(self, entry: Any) -> bool:
        name, p = entry if isinstance(entry, tuple) else ("", entry)
        if is_lazy(p):
            what = "a lazy parameter has no shape yet, by which Muon or aux is chosen."
            raise LayoutError(what, do="run a forward pass first", where="Muon")
        return (isinstance(p, torch.Tensor) and p.dim() < 2) or any(fnmatchcase(name, x) for x in self._aux_for)

    def _rule(self, options: dict[str, Any]) -> Any:
        if options.get("aux"):
            return changed(self._aux, {name: options[name] for name in self._settings_of_aux() if name in options})
        return rules.Muon(**{name: options[name] for name in self._own_options})

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("_aux", "_aux_for", "_own_options", "_optional")}
        return {**own, **super().__getstate__()}

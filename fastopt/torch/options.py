"""From the options of a group to a rule, the same object as long as nobody changes an option."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import SettingError
from fastopt.kernels.rules import ScaledGradient
from fastopt.kernels.rules.rule import Rule
from fastopt.schedules import Constant
from fastopt.torch.device_numbers import FACTOR, LR, ROUNDING, Symbol

_REFUSED = ("differentiable",)
_HINTS = ("foreach", "fused", "maximize", "initial_lr", "capturable", *_REFUSED)


class GroupRules:
    """The rules of some groups, whose options have these names; `kind` is the name of the optimizer's class."""

    def __init__(self, names: Iterable[str], groups: int, kind: str, optional: frozenset[str] = frozenset()):
        self._names, self._kind, self._optional = tuple(names), kind, optional
        self._read = tuple(dict.fromkeys((*self._names, *_REFUSED, "maximize", "capturable")))
        self._known: list[tuple[Any, Any, Any]] = [(None, None, None)] * groups  # values, key, rule

    def current(self, k: int, group: dict[str, Any], unscale: Any, make: Callable[[dict], Any]) -> Rule:
        """Return the rule of group k as its options are now; `make` makes it, `unscale` is a factor on gradients."""
        known_values, known_key, rule = self._known[k]
        on_device = group.get("capturable")
        if on_device and unscale is not None:
            unscale = FACTOR
        values = [unscale, *map(group.get, self._read)]
        if on_device and "lr" in self._read:
            values[1 + self._read.index("lr")] = LR
        if values == known_values and torch.Tensor not in map(type, values):
            return rule
        options = numbers(group, self._names, self._kind, self._optional)
        if on_device:
            factor = 1.0 if unscale is None and not group.get("maximize") else FACTOR
        else:
            factor = (-1.0 if group.get("maximize") else 1.0) * (1.0 if unscale is None else unscale)
        key = (factor, *options.values())
        if key != known_key:
            rule = make(options)
            if factor is FACTOR or factor != 1.0:
                rule = ScaledGradient(rule, factor)
        fixed = all(map(_is_fixed, values))  # others may write to what is not
        self._known[k] = (values if fixed else None), key, rule
        return rule


def numbers(
    group: dict[str, Any], names: Iterable[str], kind: str, optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return a group's options as numbers, or raise a SettingError for those that are not supported.

    `optional` are those that only some of the groups have.
    """
    names = [name for name in names if name in group or name not in optional]
    for name in _REFUSED:
        if group.get(name):
            what = f"{name}=True is not supported: the step is a compiled kernel that takes numbers from the host."
            raise SettingError(what, do=f"leave {name}=False, or use torch.optim.{kind}")
    given = {**group, "lr": LR} if group.get("capturable") else group  # which a graph reads on the device
    options = {name: _number(name, given[name]) for name in names if name not in _HINTS}
    lr = options.get("lr")
    if isinstance(lr, Real) and -ROUNDING < float(lr) <= 0:  # a rule's number that is zero is another kernel
        options["lr"] = Constant(0.0)
    return options


def _number(name: str, value: Any) -> Any:
    """Return an option's value, of a tensor the number in it."""
    if isinstance(value, tuple | list):
        return tuple([_number(name, x) for x in value])
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            what = f"{name} is a tensor on a device, and reading it waits for the device."
            raise SettingError(what, got=str(value.device), do="pass a number, or capturable=True")
        return value.item()
    return value


def _is_fixed(value: Any) -> bool:
    """Whether a value cannot change while it is the same object."""
    if type(value) is tuple:
        return all(map(_is_fixed, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic | Symbol)

"""What the options of a group make: a rule, the same object as long as nobody changes an option."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import SettingError, explain
from fastopt.kernels.rules import ScaledGradient
from fastopt.schedules import Constant

_REFUSED = ("capturable", "differentiable")
_HINTS = ("foreach", "fused", "maximize", "initial_lr", *_REFUSED)


class _Known(NamedTuple):
    """The rule of a group, the options that made it, and the values that these were read from."""

    given: list[Any] | None = None
    key: tuple | None = None
    rule: Any = None


class Rules:
    """The rules of some groups, whose options have these names; `where` is what errors call the optimizer."""

    def __init__(self, names: Iterable[str], groups: int, where: str):
        self._names, self._where = tuple(names), where
        self._read = tuple(dict.fromkeys((*self._names, *_REFUSED, "maximize")))
        self._known = [_Known()] * groups

    def current(self, k: int, group: dict[str, Any], unscale: float | None, make: Callable[[dict], Any]) -> Any:
        """Give the rule of group k as its options are now; `make` makes it, `unscale` is a factor on gradients."""
        known = self._known[k]
        given = [unscale, *map(group.get, self._read)]
        if given == known.given and torch.Tensor not in map(type, given):
            return known.rule
        options = numbers(group, self._names, self._where)
        factor = (-1.0 if group.get("maximize") else 1.0) * (1.0 if unscale is None else unscale)
        key, rule = (factor, *options.values()), known.rule
        if key != known.key:
            rule = make(options)
            if factor != 1.0:
                rule = ScaledGradient(rule, factor)
        fixed = all(map(_is_fixed, given))  # what is not, others may write to
        self._known[k] = _Known(given if fixed else None, key, rule)
        return rule


def numbers(group: dict[str, Any], names: Iterable[str], where: str) -> dict[str, Any]:
    """Give a group's options as numbers, or raise a SettingError for those that are not supported."""
    for name in _REFUSED:
        if group.get(name):
            what = f"{name}=True is not supported: the step is a compiled kernel that takes numbers from the host."
            raise SettingError(explain(where, what, do=f"leave {name}=False, or use torch.optim.{where}"))
    options = {name: _number(name, group[name]) for name in names if name not in _HINTS}
    if options.get("lr") == 0:  # as at the end of a schedule: a rule's number that is zero is another kernel
        options["lr"] = Constant(0.0)
    return options


def _number(name: str, value: Any) -> Any:
    """Give an option's value, of a tensor the number in it."""
    if isinstance(value, tuple | list):
        return tuple([_number(name, x) for x in value])
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            what, do = f"{name} is a tensor on a device, and reading it waits for that.", "pass a number"
            raise SettingError(explain("step", what, got=str(value.device), do=do))
        return value.item()
    return value


def _is_fixed(value: Any) -> bool:
    """Whether a value cannot change while it is the same object."""
    if type(value) is tuple:
        return all(map(_is_fixed, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic)

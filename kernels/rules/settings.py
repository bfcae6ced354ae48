"""The settings of a rule: the check of their ranges, and schedules among them.

A rule is a frozen dataclass. Its fields are of two kinds. *Numbers* (lr, betas, eps, …) reach `update` only as
keyword-only scalars, which `scalars(t)` computes on the host, so changing one never makes another kernel; a number
may be a callable of t instead. *Choices* (nesterov, amsgrad, …) and the question whether a number is zero or absent
decide which kernel is made: the rule's specialization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Real
from operator import attrgetter
from typing import Any, TypeAlias

from fastopt.checks import DECAY_RATE, FINITE, NONNEGATIVE, POSITIVE, UNIT, Interval, choice, to_float
from fastopt.errors import SettingError
from fastopt.kernels.rules.rule import Rule, is_rule

__all__ = [
    "DECAY_RATE",
    "FINITE",
    "NONNEGATIVE",
    "POSITIVE",
    "UNIT",
    "Interval",
    "Setting",
    "check",
]  # for files of rules

Setting: TypeAlias = Any
"""A number, or a callable of t (a schedule) that returns one, as `check` makes sure."""


def check(rule: Any, **ranges: Interval) -> None:
    """Check the named settings of `rule` against their ranges and turn them into Python floats.

    Called from a rule's `__post_init__`. A callable (a schedule) passes here; what it returns is checked at each step.
    A tuple has each of its entries checked. `None` passes where it is the field's default. The settings that are True
    or False by default are checked without being named.

    Raises:
        SettingError: a setting is out of its range, not finite, or not a number; or a choice is not True or False.

    """
    try:
        for name in _choices(type(rule)):
            choice(name, getattr(rule, name))
        fields = rule.__dataclass_fields__
        for name, interval in ranges.items():
            value: Any = getattr(rule, name)
            default = fields[name].default
            if type(value) is type(default) is float and value in interval:
                continue  # the usual case, short because a rule with a schedule is made anew at each step
            if value is None and default is None:
                continue
            if isinstance(default, tuple):
                entries = _entries(name, value, default, interval)
                checked: Any = tuple(_number(f"{name}[{k}]", x, interval) for k, x in enumerate(entries))
            else:
                checked = _number(name, value, interval)
            object.__setattr__(rule, name, checked)
    except SettingError as error:
        error.where = type(rule).__name__
        raise


@lru_cache(maxsize=1024)
def _choices(rule: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(rule) if isinstance(f.default, bool))


def _entries(name: str, value: Any, default: tuple, interval: Interval) -> Sequence[Any]:
    if isinstance(value, tuple | list) and len(value) == len(default):
        return value
    raise SettingError(
        f"the setting {name} is a tuple of {len(default)} numbers.",
        got=f"{name}={value!r}",
        expected=f"{len(default)} numbers, each {interval}",
        do=f"pass for example {name}={default!r}",
    )


def _number(name: str, value: Any, interval: Interval) -> Any:
    if type(value) is float and value in interval:
        return value
    if callable(value):
        return value
    if not isinstance(value, bool) and (found := to_float(value)) in interval:
        return found
    what, expected = f"the setting {name} is out of its range.", f"{interval}, or a callable of t that returns one"
    raise SettingError(what, got=f"{name}={value!r}", expected=expected)


_PLAIN = frozenset([float, bool, int, str, type(None)])


def _has_schedule(value: Any) -> bool:
    if type(value) in _PLAIN:
        return False
    if isinstance(value, tuple):
        for x in value:  # noqa: SIM110 — a generator costs more than the rest
            if type(x) not in _PLAIN and callable(x):
                return True
        return False
    return is_scheduled(value) if is_rule(value) else callable(value)


@lru_cache(maxsize=1024)
def _fields_of(rule: type) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of a rule's fields, and of those that its `__post_init__` computes."""
    fields = dataclasses.fields(rule)
    return tuple(f.name for f in fields), frozenset(f.name for f in fields if not f.init)


@lru_cache(maxsize=1024)
def _reader(rule: type) -> Callable[[Any], tuple]:
    """Return the function that reads all fields of such a rule in one call."""
    names = _fields_of(rule)[0]
    return attrgetter(*names) if len(names) > 1 else lambda made: tuple([getattr(made, name) for name in names])


def is_scheduled(rule: Rule) -> bool:
    """Whether a setting of `rule` is, or contains, a callable of t: asked at each `update`."""
    for value in _reader(type(rule))(rule):  # noqa: SIM110 — a generator costs more than the rest
        if type(value) not in _PLAIN and _has_schedule(value):
            return True
    return False


def follow(rule: Rule) -> Callable[[int], Rule]:
    """Return the function of t that is `rule` with its callable settings replaced by their checked values.

    That function raises SettingError where a schedule returns no number, or one out of the setting's range.
    """
    names, computed = _fields_of(type(rule))
    moving_names = [name for name in names if _has_schedule(getattr(rule, name))]
    if not moving_names:
        return lambda t: rule
    derived = [name for name in moving_names if name in computed]
    fixed = [(name, getattr(rule, name)) for name in names if name not in moving_names]
    moving = [(name, _follow(type(rule).__name__, getattr(rule, name))) for name in moving_names]

    def at_step(t: int) -> Any:
        now = object.__new__(type(rule))  # as dataclasses.replace, in a third of its time: it happens at every step
        for name, setting in fixed:
            object.__setattr__(now, name, setting)
        for name, value_at in moving:
            object.__setattr__(now, name, value_at(t))
        if hasattr(now, "__post_init__"):
            now.__post_init__()  # type: ignore[attr-defined]
        for name in derived:  # what __post_init__ computed may be a schedule again
            object.__setattr__(now, name, _follow(type(rule).__name__, getattr(now, name))(t))
        return now

    return at_step


def _follow(where: str, setting: Any) -> Callable[[int], Any]:
    if is_rule(setting):
        return follow(setting)
    if isinstance(setting, tuple):
        entries = [_follow(where, x) for x in setting]
        return lambda t: tuple([entry(t) for entry in entries])
    if not callable(setting):
        return lambda t: setting

    def number(t: int) -> float:
        answer: Any = setting(t)
        if type(answer) is float:
            return answer
        if isinstance(answer, Real) or getattr(answer, "shape", None) == ():  # an array or a tensor of one number
            return to_float(answer)
        raise SettingError(f"a schedule returns no number at t={t}.", got=repr(answer)[:60], where=where)

    return number

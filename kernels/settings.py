"""The settings of a rule: their ranges, which of them choose a kernel, and schedules among them.

A rule is a frozen dataclass. Its fields are of two kinds. *Numbers* (lr, betas, eps, …) reach `update` only as
keyword-only scalars, which `scalars(t)` computes on the host, so changing one never makes another kernel; a number
may be a callable of t instead. *Choices* (nesterov, amsgrad, …) and the question whether a number is zero or absent
decide which kernel is made: together they are the rule's form (see `form`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from fastopt.errors import RuleError, SettingError, explain
from fastopt.kernels.form import is_rule

Setting: TypeAlias = Any
"""A number, or a callable of t (a schedule) that gives one: what `check` makes sure of."""


class Interval(NamedTuple):
    """A range of finite numbers; `closed` says whether the upper end belongs to it."""

    low: float
    high: float
    closed: bool

    def __contains__(self, x: object) -> bool:
        low, high, closed = self
        return isinstance(x, float) and (low <= x < high or (closed and x == high))

    def __str__(self) -> str:
        return f"a finite number in [{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


NONNEGATIVE = Interval(0.0, math.inf, closed=False)
UNIT = Interval(0.0, 1.0, closed=True)
DECAY_RATE = Interval(0.0, 1.0, closed=False)  # the β of a running average: at 1 it would never move


def check(rule: Any, **ranges: Interval) -> None:
    """Check the named settings of `rule` against their ranges and turn them into Python floats.

    Called from a rule's `__post_init__`. A callable (a schedule) passes here; what it returns is checked at each step.
    A tuple has each of its entries checked. `None` passes where it is the field's default. The settings that are True
    or False by default are checked without being named.

    Raises:
        SettingError: a setting is out of its range, not finite, or not a number; or a choice is not True or False.

    """
    for name in _choices(type(rule)):
        value = getattr(rule, name)
        if type(value) is not bool:
            what = f"the setting {name} is neither True nor False."
            raise SettingError(explain(type(rule).__name__, what, got=f"{name}={value!r}", expected="True or False"))
    fields = rule.__dataclass_fields__
    for name, interval in ranges.items():
        value, default = getattr(rule, name), fields[name].default
        if type(value) is type(default) is float and value in interval:
            continue  # the usual case, kept short because a rule with a schedule is made anew at each step
        if value is None and default is None:
            continue
        if isinstance(default, tuple):
            if not isinstance(value, tuple | list) or len(value) != len(default):
                raise SettingError(
                    explain(
                        f"{type(rule).__name__}",
                        f"the setting {name} is a tuple of {len(default)} numbers.",
                        got=f"{name}={value!r}",
                        expected=f"{len(default)} numbers, each {interval}",
                        do=f"pass for example {name}={default!r}",
                    )
                )
            checked: Any = tuple(_number(rule, f"{name}[{k}]", x, interval) for k, x in enumerate(value))
        else:
            checked = _number(rule, name, value, interval)
        object.__setattr__(rule, name, checked)


@lru_cache(maxsize=1024)
def _choices(rule: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(rule) if isinstance(f.default, bool))


def _number(rule: Any, name: str, value: Any, interval: Interval) -> Any:
    if type(value) is float and value in interval:
        return value
    if callable(value):
        return value
    if isinstance(value, Real) and not isinstance(value, bool) and to_float(value) in interval:
        return float(value)
    raise SettingError(
        explain(
            type(rule).__name__,
            f"the setting {name} is out of its range.",
            got=f"{name}={value!r}",
            expected=f"{interval}, or a callable of t that returns one",
        )
    )


def to_float(value: Any) -> float:
    """Give a number as a float, and as NaN whatever is no real number or an integer beyond the largest float."""
    if getattr(value, "shape", None) == ():  # an array without dimensions, or a number of NumPy's
        value = value.item()
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.nan


def initial(rule: Any) -> dict[str, float]:
    """Give the values at which state buffers start, by name; those not named start at zero.

    Raises:
        RuleError: the rule's `initial()` does not give numbers by name.

    """
    values = rule.initial() if hasattr(rule, "initial") else {}
    if not isinstance(values, dict) or any(math.isnan(to_float(x)) for x in values.values()):
        what, expected = "initial() gives numbers by name of a state buffer.", 'for example {"v": 0.1}'
        raise RuleError(explain(f"{type(rule).__name__}.initial", what, got=repr(values)[:60], expected=expected))
    return {name: to_float(value) for name, value in values.items()}


def _has_schedule(value: Any) -> bool:
    if is_rule(value):
        return bool(scheduled(value))
    return callable(value) or (isinstance(value, tuple) and any(callable(x) for x in value))


@lru_cache(maxsize=1024)
def scheduled(rule: Any) -> tuple[str, ...]:
    """Name the settings of `rule` that are, or contain, callables of t."""
    return tuple(f.name for f in dataclasses.fields(rule) if _has_schedule(getattr(rule, f.name)))


def follow(rule: Any) -> Callable[[int], Any]:
    """Give the function of t that is `rule` with its callable settings replaced by their checked values.

    That function raises SettingError where a schedule gives no number, or one out of the setting's range.
    """
    names = scheduled(rule)
    if not names:
        return lambda t: rule
    own = [(f.name, getattr(rule, f.name)) for f in dataclasses.fields(rule)]
    derived = [f.name for f in dataclasses.fields(rule) if not f.init and f.name in names]
    fixed = [(name, setting) for name, setting in own if name not in names]
    moving = [(name, _follow(type(rule).__name__, setting)) for name, setting in own if name in names]

    def at_step(t: int) -> Any:
        now = object.__new__(type(rule))  # as dataclasses.replace, in a third of its time: it happens at every step
        for name, setting in fixed:
            object.__setattr__(now, name, setting)
        for name, value_at in moving:
            object.__setattr__(now, name, value_at(t))
        if hasattr(now, "__post_init__"):
            now.__post_init__()
        for name in derived:  # what that made anew may be a schedule again
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
        if isinstance(answer, Real):
            return to_float(answer)
        raise SettingError(explain(where, f"a schedule does not give a number at t={t}.", got=repr(answer)[:60]))

    return number

"""The settings of a rule: their ranges, which of them choose a kernel, and schedules among them.

A rule is a frozen dataclass. Its fields are of two kinds. *Numbers* (lr, betas, eps, …) reach `update` only as
keyword-only scalars, which `scalars(t)` computes on the host, so changing one never makes another kernel; a number
may be a callable of t instead. *Choices* (nesterov, amsgrad, …) and the question whether a number is zero or absent
decide which kernel is made: together they are the rule's `form`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from fastopt.errors import RuleError, SettingError, explain

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
    A tuple has each of its entries checked. `None` passes where it is the field's default.

    Raises:
        SettingError: a setting is out of its range, not finite, or not a number.

    """
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


def _number(rule: Any, name: str, value: Any, interval: Interval) -> Any:
    if type(value) is float and value in interval:
        return value
    if callable(value):
        return value
    if isinstance(value, Real) and not isinstance(value, bool) and float(value) in interval:
        return float(value)
    raise SettingError(
        explain(
            type(rule).__name__,
            f"the setting {name} is out of its range.",
            got=f"{name}={value!r}",
            expected=f"{interval}, or a callable of t that returns one",
        )
    )


def is_rule(value: Any) -> bool:
    """Whether `value` is an instance of a frozen dataclass with an `update`."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "update")


def require_rule(rule: Any, where: str) -> None:
    """Raise a RuleError unless `rule` is a rule: a frozen dataclass instance with `scalars` and `update`."""
    what = None
    if isinstance(rule, type):
        what = "a rule's class arrived instead of a rule."
    elif not dataclasses.is_dataclass(rule) or not rule.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        what = "a rule is an instance of a frozen dataclass."
    elif not callable(getattr(rule, "update", None)) or not callable(getattr(rule, "scalars", None)):
        what = "a rule has the methods scalars(t) and update(p, g, …, *, …)."
    if what:
        name = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        do = f"pass {name}(…)" if isinstance(rule, type) else "decorate the class with @dataclass(frozen=True)"
        raise RuleError(explain(where, what, got=repr(rule), expected="for example fastopt.Adam(lr=1e-3)", do=do))


class Number:
    """What `update` sees of a number while it is traced: whether it is zero, and nothing else.

    A rule that reads its numbers inside `update` would bake them into a kernel and need another one for every value.
    """

    __slots__ = ("name", "nonzero")

    def __init__(self, name: str, nonzero: bool):
        self.name, self.nonzero = name, nonzero

    def __bool__(self) -> bool:
        return self.nonzero

    def __repr__(self) -> str:
        return f"{self.name}{'≠' if self.nonzero else '='}0"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and (self.name, self.nonzero) == (other.name, other.nonzero)

    def __hash__(self) -> int:
        return hash((self.name, self.nonzero))

    def _refuse(self, *_: object, **__: object) -> Any:
        raise RuleError(
            explain(
                "update",
                f"the rule reads the number self.{self.name} inside update.",
                expected="numbers as keyword-only parameters; self only to choose a form (`if self.nesterov:`)",
                do=f"return {self.name.split('[')[0]} from scalars(t) and take it as a keyword-only parameter",
            )
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __float__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __array_ufunc__ = __array__ = _refuse


def form_of(name: str, value: Any) -> Any:
    """Give what is left of one setting in a rule's form."""
    if is_rule(value):
        return form(value)
    if callable(value):
        return Number(name, True)
    if isinstance(value, float):
        return Number(name, value != 0.0)
    if isinstance(value, tuple):
        return tuple(form_of(f"{name}[{k}]", x) for k, x in enumerate(value))
    return value


@lru_cache(maxsize=1024)
def form(rule: Any) -> Any:
    """Give a copy of `rule` that keeps its choices and knows of each number only whether it is zero.

    Two rules of equal form have the same kernel.
    """
    copy = object.__new__(type(rule))
    for f in dataclasses.fields(rule):
        object.__setattr__(copy, f.name, form_of(f.name, getattr(rule, f.name)))
    return copy


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

    def value(x: Any, t: int) -> Any:
        if is_rule(x):
            return follow(x)(t)
        if isinstance(x, tuple):
            return tuple([value(entry, t) for entry in x])
        if not callable(x):
            return x
        answer: Any = x(t)
        if isinstance(answer, Real):
            return float(answer)
        raise SettingError(
            explain(type(rule).__name__, f"a schedule does not give a number at t={t}.", got=repr(answer)[:60])
        )

    def at_step(t: int) -> Any:
        now = object.__new__(type(rule))  # as dataclasses.replace, in a third of its time: it happens at every step
        for name, setting in own:
            object.__setattr__(now, name, value(setting, t) if name in names else setting)
        if hasattr(now, "__post_init__"):
            now.__post_init__()
        return now

    return at_step

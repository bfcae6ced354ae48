# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""What a schedule is, the checks of its settings, and the schedules that are made of others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from operator import itemgetter
from typing import Any, TypeAlias

from fastopt.checks import DECAY_RATE, NONNEGATIVE, POSITIVE, integer, number
from fastopt.errors import SettingError, raised_by

Check: TypeAlias = Callable[[str, Any], Any]
"""Checks a setting: (name, value) → the value to store, or a SettingError."""

ANY: Check = number
RATE: Check = partial(number, interval=NONNEGATIVE)
POSITIVE_NUMBER: Check = partial(number, interval=POSITIVE)
FRACTION: Check = partial(number, interval=DECAY_RATE)
COUNT: Check = partial(integer, low=0)
STEPS: Check = partial(integer, low=1)


def check(schedule: Any, /, **checks: Check) -> None:
    """Check the named settings of `schedule` and replace them by what the checks return."""
    with raised_by(type(schedule).__name__):
        for name, check_setting in checks.items():
            object.__setattr__(schedule, name, check_setting(name, getattr(schedule, name)))


def schedule_or_number(name: str, value: Any) -> Schedule:
    """Check that a value is a schedule or a number, which becomes a constant one."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Real):
        return Constant(number(name, value))
    expected = "a schedule, for example Cosine(1e-3, steps=1000), or a number"
    raise SettingError(f"{name} is not a schedule.", got=f"{name}={value!r}", expected=expected)


def value_at(schedule: Schedule, t: int) -> float:
    """Evaluate a schedule at t as a float, or raise a SettingError if it returns no number."""
    value: Any = schedule.at(t)
    if type(value) is float:
        return value
    if isinstance(value, Real):
        return float(value)
    what = f"the value at t={t} is not a number."
    raise SettingError(what, got=repr(value)[:60], expected="a float", where=repr(schedule))


class Schedule(ABC):
    """What all schedules share: the call, which checks t and the value, and the operators that compose them.

    `schedule(t)` takes an integer t ≥ 0 and returns a Python float. Operands of `*` and `+` are schedules and numbers.

    >>> from fastopt.schedules import Cosine, Warmup
    >>> schedule = Warmup(10) * Cosine(0.1, steps=100)
    >>> [round(schedule(t), 6) for t in (1, 5, 10, 50, 100)]
    [0.009998, 0.049692, 0.097553, 0.05, 0.0]

    Raises:
        SettingError: a setting is not in the range that its class states, when the schedule is made; t is not an
            integer ≥ 0, or the value at t is not finite, when it is called.

    """

    __array_ufunc__ = None  # NumPy's numbers leave `number * schedule` to the schedule

    @abstractmethod
    def at(self, t: int) -> float:
        """Evaluate the schedule at t, which has been checked; what a class defines to be a schedule."""

    def __call__(self, t: int) -> float:
        try:
            t = COUNT("t", t)
        except SettingError as error:
            error.where = type(self).__name__
            raise
        try:
            value = value_at(self, t)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise SettingError(f"the value at t={t} is not finite.", got=value, where=repr(self))
        return value

    def __mul__(self, other: Schedule | float) -> Product:
        return Product(self, other) if isinstance(other, Schedule | Real) else NotImplemented

    def __rmul__(self, other: float) -> Product:
        return Product(Constant(other), self) if isinstance(other, Real) else NotImplemented

    def __add__(self, other: Schedule | float) -> Sum:
        return Sum(self, other) if isinstance(other, Schedule | Real) else NotImplemented

    def __radd__(self, other: float) -> Sum:
        return Sum(Constant(other), self) if isinstance(other, Real) else NotImplemented

    def delayed(self, steps: int) -> Delayed:
        """Return this schedule `steps` later: its value at t − steps, and its value at 0 until then; steps ≥ 0.

        >>> from fastopt.schedules import Polynomial
        >>> schedule = Polynomial(1.0, steps=4).delayed(2)
        >>> [schedule(t) for t in range(1, 7)]
        [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

        Raises:
            SettingError: steps is not an integer ≥ 0.

        """
        return Delayed(self, steps)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step: η(t) = value, any finite number.

    >>> from fastopt.schedules import Constant
    >>> Constant(0.1)(1)
    0.1
    """

    value: float

    def __post_init__(self):
        check(self, value=ANY)

    def at(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class Delayed(Schedule):
    """A schedule some steps later, what `schedule.delayed(steps)` returns: schedule(max(t − steps, 0))."""

    schedule: Schedule
    steps: int

    def __post_init__(self):
        check(self, schedule=schedule_or_number, steps=COUNT)

    def at(self, t: int) -> float:
        return self.schedule.at(max(t - self.steps, 0))


@dataclass(frozen=True)
class Product(Schedule):
    """The product of two schedules, what `left * right` returns."""

    left: Schedule
    right: Schedule

    def __post_init__(self):
        check(self, left=schedule_or_number, right=schedule_or_number)

    def at(self, t: int) -> float:
        return value_at(self.left, t) * value_at(self.right, t)


@dataclass(frozen=True)
class Sum(Schedule):
    """The sum of two schedules, what `left + right` returns."""

    left: Schedule
    right: Schedule

    def __post_init__(self):
        check(self, left=schedule_or_number, right=schedule_or_number)

    def at(self, t: int) -> float:
        return value_at(self.left, t) + value_at(self.right, t)


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another, each in its own time, from a table {steps taken before it: schedule}.

    Of the entries (s, schedule) the last one with s < t gives η(t) = schedule(t − s): in {0: a, 500: b}, a gives steps
    1 to 500 as its own steps 1 to 500, and b gives steps 501, 502, … as its own steps 1, 2, …. At t = 0, a(0). So an
    `a` that ends at step 500 reaches its end, and the join is continuous where a(500) = b(0).

    The table is a dict or an iterable of pairs, in any order; its steps are different integers ≥ 0, the smallest of
    them 0. A number stands for a constant schedule. It is stored as a tuple of pairs in the order of steps.

    >>> from fastopt.schedules import Join, Polynomial, Warmup
    >>> schedule = Join({0: Warmup(2), 2: Polynomial(1.0, steps=4)})
    >>> [schedule(t) for t in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    table: Mapping[int, Schedule | float] | Iterable[tuple[int, Schedule | float]]

    def __post_init__(self):
        check(self, table=table(0, schedule_or_number))

    def at(self, t: int) -> float:
        start, schedule = entry_at(self.table, t - 1)
        return schedule.at(t - start)


def table(first: int, entry: Check) -> Check:
    """Return the check of a table whose smallest step is at most `first`; `entry` checks its entries."""

    def check(name: str, value: Any) -> tuple[tuple[int, Any], ...]:
        try:
            pairs = [(step, x) for step, x in (value.items() if isinstance(value, Mapping) else value)]
        except (TypeError, ValueError):
            pairs = []
        pairs = [(COUNT("a step", step), entry(f"{name}[{step!r}]", x)) for step, x in pairs]
        pairs.sort(key=itemgetter(0))
        if pairs and pairs[0][0] <= first and len({step for step, _ in pairs}) == len(pairs):
            return tuple(pairs)
        expected = f"a dict or pairs {{step: entry}}, the steps different integers ≥ 0, the smallest at most {first}"
        what = f"{name} is not a table that covers every step once."
        raise SettingError(what, got=f"{name}={value!r}", expected=expected)

    return check


def entry_at(pairs: Any, t: int) -> tuple[int, Any]:
    """Return the last entry whose step is at most t, or the first of all."""
    return pairs[max(bisect_right(pairs, t, key=itemgetter(0)) - 1, 0)]

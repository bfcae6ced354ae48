# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""What a schedule is, the checks of its settings, and the schedules that its operators make of others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
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

"""Checks of single values: numbers in a range, integers, choices. What passes is returned as Python's own type."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fastopt.errors import FastoptError, SettingError


class Interval(NamedTuple):
    """A range of finite numbers; an open end does not belong to it.

    >>> 0.0 in UNIT, 1.0 in UNIT, 1.0 in DECAY_RATE, float("nan") in FINITE
    (True, True, False, False)
    >>> print(NONNEGATIVE, "·", POSITIVE, "·", DECAY_RATE)
    a finite number ≥ 0 · a finite number > 0 · a finite number in [0, 1)
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, x: object) -> bool:
        if not isinstance(x, float) or not -math.inf < x < math.inf:
            return False
        above = self.low < x if self.low_open else self.low <= x
        return above and (x < self.high if self.high_open else x <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.high):
            above = f" {'>' if self.low_open else '≥'} {self.low:g}" if self.low > -math.inf else ""
            return f"a finite number{above}"
        ends = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"a finite number in {ends[0]}{self.low:g}, {self.high:g}{ends[1]}"


FINITE = Interval()
NONNEGATIVE = Interval(0.0)
POSITIVE = Interval(0.0, low_open=True)
UNIT = Interval(0.0, 1.0)
DECAY_RATE = Interval(0.0, 1.0, high_open=True)  # the β of a running average: at 1 it would never move


def number(name: str, value: Any, interval: Interval = FINITE) -> float:
    """Return a real number of a range as a float, or raise a SettingError. True and False are no numbers.

    >>> number("lr", 1, NONNEGATIVE)
    1.0
    """
    if type(value) is float and value in interval:
        return value
    if not isinstance(value, bool) and (found := to_float(value)) in interval:
        return found
    raise SettingError(f"{name} is out of its range.", got=f"{name}={value!r}", expected=interval)


def to_float(value: Any) -> float:
    """Return a real number as a float; NaN for what is none, and for integers beyond the largest float."""
    if getattr(value, "shape", None) == ():  # an array without dimensions, or a NumPy scalar
        value = value.item()
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.nan


def integer(
    name: str,
    value: Any,
    low: int,
    below: int | None = None,
    *,
    expected: str | None = None,
    do: str | None = None,
    error: type[FastoptError] = SettingError,
) -> int:
    """Return an integer of at least `low`, and less than `below`, as a Python int, or raise an error.

    >>> integer("t", 3, 1)
    3
    """
    try:
        found = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < low or (below is not None and found >= below):
        expected = expected or f"an integer ≥ {low}" + (f" and < 2**{below.bit_length() - 1}" if below else "")
        raise error(f"{name} is out of its range.", got=f"{name}={value!r}", expected=expected, do=do)
    return found


def seed_number(seed: Any, name: str = "seed", error: type[FastoptError] = SettingError) -> int:
    """Return a seed, any integer of 64 bits with a sign or without, as a Python int, or raise an error."""
    return integer(name, seed, -(2**63), 2**64, expected="an integer of 64 bits", error=error)


def choice(name: str, value: Any) -> bool:
    """Return True or False as it is, or raise a SettingError for anything else, 0 and 1 included."""
    if type(value) is not bool:
        raise SettingError(f"{name} is neither True nor False.", got=f"{name}={value!r}", expected="True or False")
    return value

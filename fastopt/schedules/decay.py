# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""Decay: by time, exponential, by step, by a table, half a cosine, polynomial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastopt.schedules.schedule import ANY, POSITIVE_NUMBER, RATE, STEPS, Schedule, check, entry_at, table


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Inverse-time decay: η(t) = start / (1 + k t), with start, k ≥ 0; k is in 1/steps.

    >>> from fastopt.schedules import InverseTime
    >>> [InverseTime(0.2, k=1.0)(t) for t in (0, 1, 3)]
    [0.2, 0.1, 0.05]

    Source: Robbins & Monro, "A Stochastic Approximation Method", 1951: for k > 0 it meets Σ η = ∞, Σ η² < ∞.
    """

    start: float
    k: float

    def __post_init__(self):
        check(self, start=RATE, k=RATE)

    def at(self, t: int) -> float:
        return self.start / (1 + self.k * t)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential decay: η(t) = start · gammaᵗ, with start, gamma ≥ 0; growth, as in a range test, with gamma > 1.

    >>> from fastopt.schedules import Exponential
    >>> [Exponential(0.8, gamma=0.5)(t) for t in (1, 2, 3)]
    [0.4, 0.2, 0.1]

    Source: Senior et al., "An empirical study of learning rates in deep neural networks for speech recognition",
    ICASSP 2013.
    """

    start: float
    gamma: float

    def __post_init__(self):
        check(self, start=RATE, gamma=RATE)

    def at(self, t: int) -> float:
        return self.start * self.gamma**t


@dataclass(frozen=True)
class Step(Schedule):
    """A factor every so many steps: η(t) = start · factor^⌊t / every⌋, with start, factor ≥ 0 and every ≥ 1 steps.

    The first drop is at t = every: every − 1 steps have the start value, then `every` steps each have the next ones.

    >>> from fastopt.schedules import Step
    >>> [Step(0.8, every=3, factor=0.5)(t) for t in range(1, 7)]
    [0.8, 0.8, 0.4, 0.4, 0.4, 0.2]

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385 (a tenth, twice).
    """

    start: float
    every: int
    factor: float

    def __post_init__(self):
        check(self, start=RATE, every=STEPS, factor=RATE)

    def at(self, t: int) -> float:
        return self.start * self.factor ** (t // self.every)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Piecewise constant, from a table {from_step: value}: η(t) is the value of the last entry with from_step ≤ t.

    The table is a dict or an iterable of pairs, in any order; steps are different integers ≥ 0, the smallest of them 0
    or 1, which then serves t = 0 too; values are finite numbers. It is stored as a tuple of pairs, ordered by step.

    >>> from fastopt.schedules import Piecewise
    >>> schedule = Piecewise({1: 0.1, 4: 0.01})
    >>> [schedule(t) for t in (1, 3, 4, 1000)]
    [0.1, 0.1, 0.01, 0.01]
    """

    table: Mapping[int, float] | Iterable[tuple[int, float]]

    def __post_init__(self):
        check(self, table=table(1, ANY))

    def at(self, t: int) -> float:
        return entry_at(self.table, t)[1]


def half_cosine(start: float, end: float, x: float) -> float:
    """Half a cosine wave from start at x = 0 to end at x = 1."""
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine annealing: η(t) = end + (start − end)(1 + cos(π t / steps)) / 2 up to t = steps, then end.

    Settings: start, end ≥ 0, steps ≥ 1.

    >>> from fastopt.schedules import Cosine
    >>> [round(Cosine(0.1, steps=4)(t), 6) for t in (0, 1, 2, 3, 4, 5)]
    [0.1, 0.085355, 0.05, 0.014645, 0.0, 0.0]

    Where others differ: torch's CosineAnnealingLR goes up again after T_max steps.

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983.
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self):
        check(self, start=RATE, steps=STEPS, end=RATE)

    def at(self, t: int) -> float:
        return half_cosine(self.start, self.end, min(t, self.steps) / self.steps)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial decay: η(t) = end + (start − end)(1 − t / steps)^power up to t = steps, then end; linear by default.

    Settings: start, end ≥ 0, steps ≥ 1, power > 0. With end > start it rises.

    >>> from fastopt.schedules import Polynomial
    >>> [Polynomial(0.5, steps=4, power=2.0)(t) for t in (0, 1, 2, 3, 4, 5)]
    [0.5, 0.28125, 0.125, 0.03125, 0.0, 0.0]

    Source: Chen et al., "DeepLab", 2016, arXiv:1606.00915, with a power of 0.9.
    """

    start: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self):
        check(self, start=RATE, steps=STEPS, power=POSITIVE_NUMBER, end=RATE)

    def at(self, t: int) -> float:
        return self.end + (self.start - self.end) * (1 - min(t, self.steps) / self.steps) ** self.power

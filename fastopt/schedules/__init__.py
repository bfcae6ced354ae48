# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""Schedules: learning-rate decay and warm-up as pure functions of the step t.

A schedule is a frozen dataclass, called with t and answering a float: it is hashable, can be pickled, keeps no count
and gives the same t the same value. Any number of a rule may be one: `Adam(lr=Cosine(1e-3, steps=1000))`. They compose:
`a * b`, `a + b`, `0.5 * a`, `Join({0: a, 500: b})`, `a.delayed(100)`. For one of your own, derive a frozen dataclass
from `Schedule` and define `at(t)`; a plain function of t serves too where nothing is composed.

t is the number of the step being taken, 1, 2, …, and the formulas are evaluated at t as they stand; t = 0 gives the
value before the first step. Frameworks count from 0: at our step t their count is t − 1, and so their schedulers give
our formula at t − 1, which is `.delayed(1)`:

    torch.optim.lr_scheduler                          here
    ExponentialLR(gamma=γ)                            Exponential(lr, γ).delayed(1)
    StepLR(step_size=n, gamma=γ)                      Step(lr, every=n, factor=γ).delayed(1)
    MultiStepLR(milestones=[n], gamma=γ)              Piecewise({0: lr, n: lr·γ}).delayed(1)
    LinearLR(start_factor=f, total_iters=n)           Polynomial(f·lr, n, end=lr).delayed(1)
    PolynomialLR(total_iters=n, power=k)              Polynomial(lr, n, power=k).delayed(1)
    CosineAnnealingLR(T_max=n, eta_min=ε)             Cosine(lr, n, end=ε).delayed(1); after n theirs rises again
    OneCycleLR(max_lr, total_steps=n)                 OneCycle(max_lr, n), not delayed
    SequentialLR([a, b], milestones=[n])              Join({0: a.delayed(1), n: b.delayed(1)})

Values are in the units of the setting they stand for and are not clipped: the rule checks what it gets at each step.
A setting out of the range that its schedule states is a SettingError when the schedule is made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from operator import itemgetter
from typing import Any

from fastopt.errors import SettingError, explain

_Check = Callable[[str, str, Any], Any]  # (where, name, value) → the value to keep, or a SettingError


def _range(kind: type, expected: str, holds: Callable[[Any], bool]) -> _Check:
    """Make the check that a value is a finite number of its kind in range; it gives a Python int or float."""

    def check(where: str, name: str, value: Any) -> Any:
        if isinstance(value, kind) and not isinstance(value, bool):
            try:
                number = int(value) if kind is Integral else float(value)
            except OverflowError:  # an integer or fraction beyond the largest float
                number = math.inf
            if (kind is Integral or math.isfinite(number)) and holds(number):
                return number
        raise SettingError(explain(where, f"{name} is out of its range.", got=f"{name}={value!r}", expected=expected))

    return check


_ANY = _range(Real, "a finite number", lambda _: True)
_RATE = _range(Real, "a finite number ≥ 0", lambda x: x >= 0)
_POSITIVE = _range(Real, "a finite number > 0", lambda x: x > 0)
_FRACTION = _range(Real, "a finite number in [0, 1)", lambda x: 0 <= x < 1)
_COUNT = _range(Integral, "an integer ≥ 0", lambda x: x >= 0)
_STEPS = _range(Integral, "an integer ≥ 1", lambda x: x >= 1)


def _schedule(where: str, name: str, value: Any) -> Schedule:
    """Check that a value is a schedule or a number, which becomes a constant one."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Real):
        return Constant(_ANY(where, name, value))
    expected = "a schedule, for example Cosine(1e-3, steps=1000), or a number"
    raise SettingError(explain(where, f"{name} is not a schedule.", got=f"{name}={value!r}", expected=expected))


def _table(first: int, entry: _Check) -> _Check:
    """Make the check that a value is a dict or pairs {step: entry}; it gives a tuple of pairs, in order of steps."""

    def check(where: str, name: str, value: Any) -> tuple[tuple[int, Any], ...]:
        try:
            pairs = [(step, x) for step, x in (value.items() if isinstance(value, Mapping) else value)]
        except (TypeError, ValueError):
            pairs = []
        pairs = [(_COUNT(where, "a step", step), entry(where, f"{name}[{step!r}]", x)) for step, x in pairs]
        pairs.sort(key=itemgetter(0))
        if pairs and pairs[0][0] <= first and len({step for step, _ in pairs}) == len(pairs):
            return tuple(pairs)
        expected = f"a dict or pairs {{step: entry}}, the steps different integers ≥ 0, the smallest at most {first}"
        what = f"{name} is not a table that covers every step once."
        raise SettingError(explain(where, what, got=f"{name}={value!r}", expected=expected))

    return check


def _entry(table: Any, t: int) -> tuple[int, Any]:
    """Find the last entry whose step is at most t, or the first of all."""
    return table[max(bisect_right(table, t, key=itemgetter(0)) - 1, 0)]


def _check(schedule: Any, /, **checks: _Check) -> None:
    """Check the named settings of `schedule` and replace them by what the checks give."""
    for name, check in checks.items():
        object.__setattr__(schedule, name, check(type(schedule).__name__, name, getattr(schedule, name)))


def _value(schedule: Schedule, t: int) -> float:
    """Evaluate a schedule at t as a float, or raise a SettingError if it gives no number."""
    value: Any = schedule.at(t)
    if type(value) is float:
        return value
    if isinstance(value, Real):
        return float(value)
    raise SettingError(
        explain(repr(schedule), f"the value at t={t} is not a number.", got=repr(value)[:60], expected="a float")
    )


class Schedule(ABC):
    """What all schedules share: the call, which checks t and the value, and the operators that compose them.

    `schedule(t)` takes an integer t ≥ 0 and gives a Python float. Operands of `*` and `+` are schedules and numbers.

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
        t = _COUNT(type(self).__name__, "t", t)
        try:
            value = _value(self, t)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise SettingError(explain(repr(self), f"the value at t={t} is not finite.", got=value))
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
        """Give this schedule `steps` later: its value at t − steps, and its value at 0 until then; steps ≥ 0.

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
        _check(self, value=_ANY)

    def at(self, t: int) -> float:
        return self.value


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
        _check(self, start=_RATE, k=_RATE)

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
        _check(self, start=_RATE, gamma=_RATE)

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
        _check(self, start=_RATE, every=_STEPS, factor=_RATE)

    def at(self, t: int) -> float:
        return self.start * self.factor ** (t // self.every)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Piecewise constant, from a table {from_step: value}: η(t) is the value of the last entry with from_step ≤ t.

    The table is a dict or an iterable of pairs, in any order; steps are different integers ≥ 0, the smallest of them 0
    or 1, which then serves t = 0 too; values are finite numbers. It is kept as a tuple of pairs in the order of steps.

    >>> from fastopt.schedules import Piecewise
    >>> schedule = Piecewise({1: 0.1, 4: 0.01})
    >>> [schedule(t) for t in (1, 3, 4, 1000)]
    [0.1, 0.1, 0.01, 0.01]
    """

    table: Mapping[int, float] | Iterable[tuple[int, float]]

    def __post_init__(self):
        _check(self, table=_table(1, _ANY))

    def at(self, t: int) -> float:
        return _entry(self.table, t)[1]


@dataclass(frozen=True)
class Warmup(Schedule):
    """Linear warm-up, a factor to multiply with: min(t / steps, 1), with steps ≥ 0; steps = 0 is no warm-up.

    The first step is taken with 1/steps, not with 0, and step number `steps` with 1.

    >>> from fastopt.schedules import Warmup
    >>> [(0.1 * Warmup(4))(t) for t in (1, 2, 4, 9)]
    [0.025, 0.05, 0.1, 0.1]

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, arXiv:1706.02677.
    """

    steps: int

    def __post_init__(self):
        _check(self, steps=_COUNT)

    def at(self, t: int) -> float:
        return t / self.steps if t < self.steps else 1.0


def _cosine(start: float, end: float, x: float) -> float:
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
        _check(self, start=_RATE, steps=_STEPS, end=_RATE)

    def at(self, t: int) -> float:
        return _cosine(self.start, self.end, min(t, self.steps) / self.steps)


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
        _check(self, start=_RATE, steps=_STEPS, power=_POSITIVE, end=_RATE)

    def at(self, t: int) -> float:
        return self.end + (self.start - self.end) * (1 - min(t, self.steps) / self.steps) ** self.power


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle: half a cosine wave up from the first step to the peak, another down to the last step, then constant.

    With f = warmup_fraction, the first step t = 1 has start = peak / start_divisor, step t = f·steps the peak, and from
    step t = steps on it is end = start / end_divisor:

        η(t) = wave(start, peak, (t − 1) / (f·steps − 1))                 1 ≤ t < f·steps; t = 0 as t = 1
        η(t) = wave(peak, end, (t − f·steps) / (steps − f·steps))         f·steps ≤ t ≤ steps
        wave(a, b, x) = b + (a − b)(1 + cos(π x)) / 2

    Settings: peak ≥ 0, steps ≥ 1, warmup_fraction in [0, 1), divisors > 0.

    Step for step this is torch's OneCycleLR with its default settings, which raises an error after its last step;
    optax.cosine_onecycle_schedule starts its first leg at 0 instead of 1. Neither momentum nor betas are cycled here:
    give them a schedule of their own.

    >>> from fastopt.schedules import OneCycle
    >>> [round(OneCycle(1.0, steps=10)(t), 6) for t in (1, 2, 3, 6, 10)]
    [0.04, 0.52, 1.0, 0.611262, 4e-06]

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017,
    arXiv:1708.07120; the cosine legs are torch's.
    """

    peak: float
    steps: int
    warmup_fraction: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4

    def __post_init__(self):
        _check(self, peak=_RATE, steps=_STEPS, warmup_fraction=_FRACTION)
        _check(self, start_divisor=_POSITIVE, end_divisor=_POSITIVE)

    def at(self, t: int) -> float:
        start, turn, t = self.peak / self.start_divisor, self.warmup_fraction * self.steps, max(t, 1)
        if t < turn:
            return _cosine(start, self.peak, (t - 1) / (turn - 1))
        return _cosine(self.peak, start / self.end_divisor, (min(t, self.steps) - turn) / (self.steps - turn))


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Warm-up, a plateau, a linear decay: three legs of `warmup`, `stable` and `decay` steps, then end.

        η(t) = peak · t / warmup                                              t < warmup
        η(t) = peak                                                           warmup ≤ t ≤ warmup + stable
        η(t) = end + (peak − end)(1 − (t − warmup − stable) / decay)          then, up to warmup + stable + decay

    Settings: peak, end ≥ 0; warmup, stable ≥ 0 and decay ≥ 1 steps.

    >>> from fastopt.schedules import WarmupStableDecay
    >>> schedule = WarmupStableDecay(0.4, warmup=2, stable=3, decay=4)
    >>> [round(schedule(t), 6) for t in range(1, 11)]
    [0.2, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]

    Source: Hu et al., "MiniCPM", 2024, arXiv:2404.06395; Hägele et al., "Scaling Laws and Compute-Optimal Training
    Beyond Fixed Training Durations", NeurIPS 2024, arXiv:2405.18392 (the linear decay).
    """

    peak: float
    warmup: int
    stable: int
    decay: int
    end: float = 0.0

    def __post_init__(self):
        _check(self, peak=_RATE, warmup=_COUNT, stable=_COUNT, decay=_STEPS, end=_RATE)

    def at(self, t: int) -> float:
        if t < self.warmup:
            return self.peak * t / self.warmup
        decayed = t - self.warmup - self.stable
        if decayed <= 0:
            return self.peak
        return self.end + (self.peak - self.end) * (1 - min(decayed, self.decay) / self.decay)


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another, each in its own time, from a table {steps taken before it: schedule}.

    Of the entries (s, schedule) the last one with s < t gives η(t) = schedule(t − s): in {0: a, 500: b}, a gives steps
    1 to 500 as its own steps 1 to 500, and b gives steps 501, 502, … as its own steps 1, 2, …. At t = 0, a(0). So an
    `a` that ends at step 500 reaches its end, and the join is continuous where a(500) = b(0).

    The table is a dict or an iterable of pairs, in any order; its steps are different integers ≥ 0, the smallest of
    them 0. A number stands for a constant schedule. It is kept as a tuple of pairs in the order of steps.

    >>> from fastopt.schedules import Join, Polynomial, Warmup
    >>> schedule = Join({0: Warmup(2), 2: Polynomial(1.0, steps=4)})
    >>> [schedule(t) for t in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    table: Mapping[int, Schedule | float] | Iterable[tuple[int, Schedule | float]]

    def __post_init__(self):
        _check(self, table=_table(0, _schedule))

    def at(self, t: int) -> float:
        start, schedule = _entry(self.table, t - 1)
        return schedule.at(t - start)


@dataclass(frozen=True)
class Delayed(Schedule):
    """A schedule some steps later, what `schedule.delayed(steps)` gives: schedule(max(t − steps, 0))."""

    schedule: Schedule
    steps: int

    def __post_init__(self):
        _check(self, schedule=_schedule, steps=_COUNT)

    def at(self, t: int) -> float:
        return self.schedule.at(max(t - self.steps, 0))


@dataclass(frozen=True)
class Product(Schedule):
    """The product of two schedules, what `left * right` gives."""

    left: Schedule
    right: Schedule

    def __post_init__(self):
        _check(self, left=_schedule, right=_schedule)

    def at(self, t: int) -> float:
        return _value(self.left, t) * _value(self.right, t)


@dataclass(frozen=True)
class Sum(Schedule):
    """The sum of two schedules, what `left + right` gives."""

    left: Schedule
    right: Schedule

    def __post_init__(self):
        _check(self, left=_schedule, right=_schedule)

    def at(self, t: int) -> float:
        return _value(self.left, t) + _value(self.right, t)

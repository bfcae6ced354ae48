# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""Warm-up, alone and as the first leg of a cycle."""

from __future__ import annotations

from dataclasses import dataclass

from fastopt.schedules.decay import half_cosine
from fastopt.schedules.schedule import COUNT, FRACTION, POSITIVE_NUMBER, RATE, STEPS, Schedule, check


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
        check(self, steps=COUNT)

    def at(self, t: int) -> float:
        return t / self.steps if t < self.steps else 1.0


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
        check(self, peak=RATE, steps=STEPS, warmup_fraction=FRACTION)
        check(self, start_divisor=POSITIVE_NUMBER, end_divisor=POSITIVE_NUMBER)

    def at(self, t: int) -> float:
        start, turn, t = self.peak / self.start_divisor, self.warmup_fraction * self.steps, max(t, 1)
        if t < turn:
            return half_cosine(start, self.peak, (t - 1) / (turn - 1))
        return half_cosine(self.peak, start / self.end_divisor, (min(t, self.steps) - turn) / (self.steps - turn))


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
        check(self, peak=RATE, warmup=COUNT, stable=COUNT, decay=STEPS, end=RATE)

    def at(self, t: int) -> float:
        if t < self.warmup:
            return self.peak * t / self.warmup
        decayed = t - self.warmup - self.stable
        if decayed <= 0:
            return self.peak
        return self.end + (self.peak - self.end) * (1 - min(decayed, self.decay) / self.decay)

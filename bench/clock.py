"""Timing for all benchmarks: contestants are timed in turns, so that other load on the machine affects all of them.

A contestant is a function `seconds(calls)` that makes so many calls in a row and returns the time they took: by this
process's clock, by two events on a device, or measured in another process. Each round times every contestant once, and
the order is rotated by one from round to round. Reported are the median with the 20th and 80th percentiles, and speeds
of one contestant relative to another: the ratio of their times *within a round*, again as a median with percentiles. A
burst of other load therefore affects one round only.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Timed: TypeAlias = Callable[[int], float]
"""Makes so many calls in a row and returns the seconds they took."""

MIN_SAMPLE = 5e-3  # seconds that a sample lasts at least; shorter calls are repeated within it
PAUSE = 2e-2  # seconds before each sample: OpenMP threads poll for 15 ms after their work, on cores the next one needs
WARM_BELOW = 1e-2  # seconds: the data of a shorter call may fit in the caches, so an untimed call precedes each sample
MAX_TIME = 2.0  # seconds: a contestant that has taken longer in total is not timed in the remaining rounds
MIN_ROUNDS = 3  # rounds in which every contestant is timed, however slow it is
SLOW_CALL = 1.0  # seconds: a call that takes longer is not repeated for an estimate


def timed(call: Callable[[], object], setup: Callable[[], object] | None = None) -> Timed:
    """Time a function by this process's clock; `setup` is called before each sample and is not timed."""

    def seconds(calls: int) -> float:
        if setup:
            setup()
        rounds = range(calls)
        start = time.perf_counter()
        for _ in rounds:
            call()
        return time.perf_counter() - start

    return seconds


def race(contestants: Mapping[str, Timed], repeats: int, *, pause: float = PAUSE) -> dict[str, list[float]]:
    """Time each contestant `repeats` times, in turns; return the seconds per call of each round.

    A slow contestant is timed in the first rounds only (`MAX_TIME`). `pause` is the time before a sample in seconds.
    """
    names = list(contestants)
    calls = {name: _calls(contestants[name]) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(repeats):
            first = k % len(names)
            for name in names[first:] + names[:first]:
                if k >= MIN_ROUNDS and spent[name] > MAX_TIME:
                    continue
                time.sleep(pause)
                if samples[name] and samples[name][-1] < WARM_BELOW:
                    contestants[name](1)
                took = contestants[name](calls[name])
                spent[name] += took
                samples[name].append(took / calls[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def _calls(seconds: Timed) -> int:
    """Return the number of calls of a long enough sample; finding it warms up the caches and the branch predictor."""
    calls, found = 1, seconds(1)
    if found < SLOW_CALL:
        found = seconds(1)  # the first call may have compiled, allocated or read from cold caches
    while found < MIN_SAMPLE:
        calls = max(2 * calls, round(calls * MIN_SAMPLE / max(found, 1e-9)))
        found = seconds(calls)
    return calls


def percentiles(values: Sequence[float]) -> list[float]:
    """Return the 20th, 50th and 80th percentiles."""
    return [float(f"{x:.6g}") for x in np.percentile(values, (20, 50, 80))]


def speed(subject: Sequence[float], versus: Sequence[float]) -> list[float]:
    """Return how many times as fast the subject is: percentiles of the ratios in rounds in which both were timed."""
    return percentiles([b / a for a, b in zip(subject, versus, strict=False)])

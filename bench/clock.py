"""One clock for every benchmark: contestants take turns, so that whatever slows the machine slows all of them.

A contestant is a function `seconds(calls)` that makes so many calls in a row and gives the time they took: on this
process's clock, between two events of a device, or in a process of its own. Each round times every contestant once and
begins one further than the round before. What is reported is the median with the 20th and 80th percentiles, and how
much faster one contestant is than another: the ratio of their two times *within a round*, again as a median with
percentiles. A burst of other work spoils one round, not the result.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

Timed: TypeAlias = Callable[[int], float]
"""What makes so many calls in a row, and gives the seconds they took."""

SHORTEST = 5e-3  # seconds a sample lasts at least; a call that is shorter is repeated within the sample
PAUSE = 2e-2  # seconds before a sample: OpenMP polls for 15 ms after its work, on cores the next one needs
FITS = 1e-2  # seconds: what a shorter call works on may be in caches, so one is made before each sample, not timed
PATIENCE = 2.0  # seconds: a contestant that has taken as long sits the remaining rounds out, after the third
FEWEST = 3
SLOW = 1.0  # seconds: a call that takes as long is not made twice to find out


def timed(call: Callable[[], object], ready: Callable[[], object] | None = None) -> Timed:
    """Put a function under this process's clock; `ready` is called before each sample, outside of the clock."""

    def seconds(calls: int) -> float:
        if ready:
            ready()
        rounds = range(calls)
        start = time.perf_counter()
        for _ in rounds:
            call()
        return time.perf_counter() - start

    return seconds


def race(contestants: Mapping[str, Timed], repeats: int, *, pause: float = PAUSE) -> dict[str, list[float]]:
    """Time each contestant `repeats` times, in turns; gives the seconds a call took, by round.

    One that is slow is timed in fewer rounds, the first ones (`PATIENCE`). `pause` is the seconds before a sample.
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
                if k >= FEWEST and spent[name] > PATIENCE:
                    continue
                time.sleep(pause)
                if samples[name] and samples[name][-1] < FITS:
                    contestants[name](1)
                took = contestants[name](calls[name])
                spent[name] += took
                samples[name].append(took / calls[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def _calls(seconds: Timed) -> int:
    """Find how many calls make a sample that is long enough; they also warm up the caches and the branch predictor."""
    calls, found = 1, seconds(1)
    if found < SLOW:
        found = seconds(1)  # the first call was a cold one, or made what the others find
    while found < SHORTEST:
        calls = max(2 * calls, round(calls * SHORTEST / max(found, 1e-9)))
        found = seconds(calls)
    return calls


def percentiles(values: Sequence[float]) -> list[float]:
    """Give the 20th, 50th and 80th percentiles."""
    return [float(f"{x:.6g}") for x in np.percentile(values, (20, 50, 80))]


def speed(subject: Sequence[float], versus: Sequence[float]) -> list[float]:
    """Give how many times as fast the subject is: percentiles of the ratios of the rounds that both took part in."""
    return percentiles([b / a for a, b in zip(subject, versus, strict=False)])

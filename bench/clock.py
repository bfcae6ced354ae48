"""One clock for every benchmark: contestants take turns, so that whatever slows the machine slows all of them.

A contestant is a function of no arguments. Each round times every contestant once and begins one further than the round
before. What is reported is the median with the 20th and 80th percentiles, and how much faster one contestant is than
another: the ratio of their two times *within a round*, again as a median with percentiles. A burst of other work spoils
one round, not the result.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Clock: TypeAlias = Callable[[Callable[[], object], int], float]
"""What times a contestant called so many times in a row, in seconds."""

SHORTEST = 5e-3  # seconds a sample lasts at least; a call that is shorter is repeated within the sample
PAUSE = (
    2e-2  # seconds before a sample: OpenMP, which torch uses, polls for 15 ms after its work, on cores the next needs
)


class Comparison(NamedTuple):
    """A claim: `subject` is `target` times as fast as `versus`, or faster. Without a target it is only reported."""

    subject: str
    versus: str
    target: float | None = None


class Limit(NamedTuple):
    """A claim: a call of `subject` takes at most so many seconds, in the median; `text` words it."""

    subject: str
    seconds: float
    text: str


class Case(NamedTuple):
    """Contestants that do the same work, by name; None stands for one that is not installed.

    `prepare` is called when the case's turn comes. It checks that all contestants compute the same, and raises if not.
    `traffic` is the number of bytes that one call has to read and write, 0 where that is beside the point. `seconds`
    times one contestant called so many times in a row; None is this process's own clock.
    """

    name: str
    prepare: Callable[[], Mapping[str, Callable[[], object] | None]]
    comparisons: tuple[Comparison, ...]
    traffic: float = 0
    seconds: Clock | None = None
    limits: tuple[Limit, ...] = ()


def run(case: Case, repeats: int) -> dict[str, Any]:
    """Prepare a case, time it for so many rounds and give the record of it that is kept."""
    prepared = case.prepare()
    samples = race({name: call for name, call in prepared.items() if call}, repeats, case.seconds)
    compared = [compare(c, samples) for c in case.comparisons if c.subject in samples and c.versus in samples]
    seconds: dict[str, Any] = {name: percentiles(samples[name]) if call else None for name, call in prepared.items()}
    result = {"case": case.name, "traffic": case.traffic, "seconds": seconds, "compared": compared}
    if case.limits:
        result["claims"] = {limit.text: seconds[limit.subject][1] <= limit.seconds for limit in case.limits}
    return result


def race(
    contestants: Mapping[str, Callable[[], object]], repeats: int, seconds: Clock | None = None
) -> dict[str, list[float]]:
    """Time each contestant `repeats` times, in turns; gives the seconds a call took, sample by sample."""
    seconds = seconds or _seconds
    names = list(contestants)
    calls = {name: _calls(contestants[name], seconds) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(repeats):
            first = k % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(seconds(contestants[name], calls[name]) / calls[name])
    finally:
        if collecting:
            gc.enable()
    return samples


def _seconds(call: Callable[[], object], calls: int) -> float:
    rounds = range(calls)
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in rounds:
        call()
    return time.perf_counter() - start


def _calls(call: Callable[[], object], seconds: Clock) -> int:
    """Find how many calls make a sample that is long enough; they also warm up the caches and the branch predictor."""
    calls = 1
    call()
    while (found := seconds(call, calls)) < SHORTEST:
        calls = max(2 * calls, round(calls * SHORTEST / max(found, 1e-9)))
    return calls


def percentiles(values: list[float]) -> list[float]:
    """Give the 20th, 50th and 80th percentiles."""
    return [float(f"{x:.6g}") for x in np.percentile(values, (20, 50, 80))]


def compare(claim: Comparison, samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """Give how many times as fast the subject is: percentiles of the ratios of each round, and the ratio of medians."""
    subject, versus = samples[claim.subject], samples[claim.versus]
    speed = percentiles([b / a for a, b in zip(subject, versus, strict=True)])
    medians = float(f"{np.median(versus) / np.median(subject):.6g}")
    met = None if claim.target is None else speed[1] >= claim.target
    return {**claim._asdict(), "speed": speed, "of_medians": medians, "met": met}

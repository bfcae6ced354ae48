"""What the page computes, in Python: `fastopt.Optimizer` on a problem. The page's numbers have these bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt.demo.laboratory.problems import (
    FIRST_OF_BATCH,
    SAMPLE_A,
    SAMPLE_C,
    SAMPLES,
    Problem,
    noisy,
    sample_number,
)
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.powers import Values


class Point(NamedTuple):
    """Where a run is after step t, in its precision, and its loss there."""

    t: int
    x: float
    y: float
    loss: float


def run(
    rule: Any, problem: Problem, *, dtype: Any, steps: int, seed: int = 0, batch: int = SAMPLES, noise: float = 0.0
) -> Iterator[Point]:
    """Yield the start of the problem, and where the rule is after each step."""
    opt = fastopt.Optimizer(rule, {"xy": np.array(problem.start, dtype)}, backend="reference")
    with np.errstate(all="ignore"):  # a run that diverges shows in its points
        for t in range(steps + 1):
            if t:
                opt.step({"xy": gradient(problem, opt.params["xy"], noise_keys(seed, t), batch, noise)})
            x, y = opt.params["xy"].tolist()
            yield Point(t, x, y, loss(problem, opt.params["xy"]))


def loss(problem: Problem, xy: np.ndarray) -> float:
    """Return the value of f; of a sampled problem the mean over all samples, added in their order."""
    x, y = xy[0:1].view(Values), xy[1:2].view(Values)
    if not problem.sampled:
        return problem.f(x, y).item()
    parts = problem.f(x, y, SAMPLE_A.astype(xy.dtype).view(Values), SAMPLE_C.astype(xy.dtype).view(Values))
    return _mean(parts).item()


def gradient(problem: Problem, xy: np.ndarray, keys: tuple[int, int], batch: int, noise: float) -> np.ndarray:
    """Return the gradient that a step gets: of a sampled problem the mean over a batch; with noise, if there is any."""
    x, y = xy[0:1].view(Values), xy[1:2].view(Values)
    key0, key1 = np.uint32(keys[0]), np.uint32(keys[1])
    if problem.sampled:
        chosen = np.arange(SAMPLES)
        if batch < SAMPLES:
            index = np.arange(FIRST_OF_BATCH, FIRST_OF_BATCH + batch, dtype=np.uint32)
            chosen = sample_number(key0, key1, index).astype(int)
        a, c = (values.astype(xy.dtype)[chosen].view(Values) for values in (SAMPLE_A, SAMPLE_C))
        g = np.array([_mean(part) for part in problem.gradient(x, y, a, c)], xy.dtype)
    else:
        g = np.concatenate(problem.gradient(x, y))
    if not noise:
        return g
    return noisy(g, xy.dtype.type(noise), key0, key1, np.arange(2, dtype=np.uint32))


def _mean(parts: np.ndarray) -> Any:
    total = parts.dtype.type(0)
    for part in parts.ravel():
        total = total + part
    return total / parts.dtype.type(parts.size)

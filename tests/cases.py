"""Rules to test (every rule in every variant), buffers for their first step, and a loop that steps along a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastopt
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules.cases import CASES, halving, warming
from fastopt.kernels.rules.rule import initial

__all__ = ["CASES", "fresh_buffers", "halving", "run_steps", "warming"]


def fresh_buffers(rule: Any, p: Any) -> dict[str, np.ndarray]:
    """Return the buffers of `rule` before its first step: a copy of p, a zero gradient, and the initial state."""
    p = np.array(p)
    start = initial(rule)
    state = {name: np.full_like(p, start.get(name, 0.0)) for name in trace(rule, p.dtype).state}
    return {"p": p, "g": np.zeros_like(p), **state}


def run_steps(
    rule: Any, p: Any, gradient: Callable[[np.ndarray, int], Any], steps: int, **options: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Start at p and take steps t = 1 … `steps` with `gradient(p, t)`; yield the buffers after each.

    It is the same dict each time. `options` are passed to `fastopt.update`.
    """
    buffers = fresh_buffers(rule, p)
    for t in range(1, steps + 1):
        buffers["g"][...] = gradient(buffers["p"], t)
        fastopt.update(rule, t, buffers, **options)
        yield buffers

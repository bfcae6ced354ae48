"""What tests step with: the rules in all their forms, their buffers, and a walk along a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastopt
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules.cases import CASES, halving, warming
from fastopt.kernels.rules.rule import initial

__all__ = ["CASES", "fresh_buffers", "halving", "walk", "warming"]


def fresh_buffers(rule: Any, p: Any) -> dict[str, np.ndarray]:
    """Give the buffers of `rule` before its first step: a copy of p, no gradient yet, and the state it starts with."""
    p = np.array(p)
    start = initial(rule)
    state = {name: np.full_like(p, start.get(name, 0.0)) for name in trace(rule, p.dtype).state}
    return {"p": p, "g": np.zeros_like(p), **state}


def walk(
    rule: Any, p: Any, gradient: Callable[[np.ndarray, int], Any], steps: int, **how: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Step from p along `gradient(p, t)`, giving the buffers, always the same ones, after each step t = 1 … steps."""
    buffers = fresh_buffers(rule, p)
    for t in range(1, steps + 1):
        buffers["g"][...] = gradient(buffers["p"], t)
        fastopt.update(rule, t, buffers, **how)
        yield buffers

"""Large steps: every kernel there is, beside the memory ceiling of the same bytes and, for some, torch's optimizer.

All contestants of a case run on the very same buffers: other memory, even of the same size, can be some per cent faster
or slower for as long as a process lives. The ceiling (fastopt.ceiling) adds the gradient to the buffers that the rule
writes. The gradient is small and positive, so what that leaves is still a state that the rule could be in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

import fastopt
from bench import peers
from bench.clock import Case, Comparison
from fastopt import ceiling
from fastopt.buffers import allocate
from fastopt.kernels.program import trace
from tests.cases import CASES

DTYPE = np.dtype(np.float32)

# The share of the ceiling that a kernel has to reach: memory alone should bound the first four.
TARGETS = {"SGD": 0.95, "Momentum": 0.95, "RMSprop": 0.95, "Adam": 0.95}
OTHERS = 0.85

BESIDE_TORCH = (
    "sgd", "momentum-heavy-ball", "rmsprop", "rmsprop-centered-momentum", "adam", "adam-decoupled", "adagrad",
)  # fmt: skip


class Memory:
    """The buffers that all cases share: touching gigabytes anew for each would take longer than timing them."""

    def __init__(self, elements: int):
        self.p, self.g = allocate(elements, DTYPE), allocate(elements, DTYPE)
        rng = np.random.default_rng(0)
        for start in range(0, elements, 1 << 20):
            self.g[start : start + (1 << 20)] = 1e-3 * (0.5 + rng.random(min(1 << 20, elements - start), DTYPE))
        self.state: list[np.ndarray] = []

    def give(self, case: str) -> dict[str, np.ndarray]:
        """Give the buffers of a case, at the start of a run."""
        rule = CASES[case]
        initial = rule.initial() if hasattr(rule, "initial") else {}
        names = trace(rule, DTYPE).state
        self.state += [allocate(self.p.size, DTYPE) for _ in names[len(self.state) :]]
        self.p.fill(1.0)
        state = dict(zip(names, self.state, strict=False))
        for name, array in state.items():
            array.fill(initial.get(name, 0.0))
        return {"p": self.p, "g": self.g, **state}


def cases(elements: int) -> list[Case]:
    """List one case for each kernel: rows of CASES that differ only in numbers have one kernel and are timed once."""
    memory = Memory(elements)
    first = {trace(rule, DTYPE).name: name for name, rule in reversed(CASES.items())}
    return [_case(name, memory) for name in CASES if name in first.values()]


def _case(name: str, memory: Memory) -> Case:
    rule = CASES[name]
    target = TARGETS.get(type(rule).__name__, OTHERS)
    comparisons = [Comparison("fastopt", "ceiling", target)]
    if name in BESIDE_TORCH:
        comparisons.append(Comparison("fastopt", "torch"))
    traffic = memory.p.size * trace(rule, DTYPE).bytes_per_parameter
    return Case(name, lambda: _contestants(name, memory), tuple(comparisons), traffic)


def _contestants(name: str, memory: Memory) -> Mapping[str, Callable[[], object] | None]:
    rule, program = CASES[name], trace(CASES[name], DTYPE)
    checked = peers.check_rule(name)
    arrays = memory.give(name)
    written = [arrays[b.name] for b in program.buffers if b.written]
    read = [arrays[b.name] for b in program.buffers if not b.written]
    kernel = ceiling.traffic(len(read), len(written), DTYPE)
    contestants: dict[str, Callable[[], object] | None] = {
        "fastopt": lambda: fastopt.update(rule, 10, arrays),
        "ceiling": lambda: ceiling.run(kernel, [*written, *read]),
    }
    if name in BESIDE_TORCH:
        contestants["torch"] = None
        if peers.torch():
            peers.check_torch(name, checked)
            contestants["torch"] = peers.torch_on(name, arrays).step
    return contestants

"""NumPy: the rule's own `update` function on whole arrays, tensor by tensor."""

from __future__ import annotations

import numpy as np

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.rules.cases import CASES
from fastopt.kernels.rules.rule import signature

_STEP = 10  # later steps repeat the scalars of this one, which takes the same time


class NumPy(Peer):
    """The rule's `update` on arrays; its results are copied back."""

    name, packages, own_process, light = "NumPy", ("numpy",), False, True

    def cannot(self, case: Case) -> str | None:
        """Refuse storages other than float32, gradient noise and groups."""
        if case.storage != "f32":
            return "the benchmark sets it up for float32 only"
        if case.program.noise:
            return "it has no gradient noise"
        return "the benchmark does not set up parameter groups for it" if case.groups > 1 else None

    def load(self, threads: int) -> None:
        """Do nothing: NumPy is imported already and uses one thread for these operations."""

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given arrays."""
        rule, program, t = CASES[case.rule], case.program, iter(range(1, _STEP))
        scalars = host_scalars(program, rule)
        returned = [b for b in signature(rule).buffers if b != "g"]

        def step() -> None:
            now = dict(zip(program.scalars, map(np.float32, scalars(next(t, _STEP))), strict=True))
            for name, p in problem.params.items():
                arrays = {"p": p, "g": problem.grads[name], **{b: of[name] for b, of in problem.state.items()}}
                results = rule.update(**arrays, **now)
                for b, new in zip(returned, results if isinstance(results, tuple) else (results,), strict=True):
                    if b in program.values:
                        arrays[b][...] = new

        return Contestant(step, lambda: problem.params, note="1 thread")

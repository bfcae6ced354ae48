"""NumPy: the rule's own code on whole arrays, tensor by tensor, as the definition stands in its file."""

from __future__ import annotations

import numpy as np

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.rules.cases import CASES
from fastopt.kernels.rules.rule import signature

_STEP = 10  # the step that is repeated: what depends on t is a few numbers


class NumPy(Peer):
    """The rule's `update` on arrays, and what it returns written back."""

    name, packages, apart, light = "NumPy", ("numpy",), False, True

    def cannot(self, case: Case) -> str | None:
        """Refuse storages, which NumPy does not have, noise, which is fastopt's own, and groups."""
        if case.storage != "f32":
            return "NumPy has no storage but float32"
        if case.program.noise:
            return "gradient noise is fastopt's own"
        return "not set up for groups" if case.groups > 1 else None

    def load(self, threads: int) -> None:
        """Do nothing: NumPy is here, and its arithmetic on arrays has one thread."""

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very arrays."""
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

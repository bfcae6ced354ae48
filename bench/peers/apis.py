"""fastopt's other APIs for one step, timed beside `Optimizer.step` to measure the overhead around the kernel."""

from __future__ import annotations

from functools import partial

import numpy as np

import fastopt
from fastopt.bench import problem as memory
from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

PERIOD = 1_000_000


class Api(Peer):
    """`step(grads)`, `step()` with a scheduled learning rate, the stateless `update`, or the compiled kernel alone."""

    packages, own_process, light = (), False, True

    def __init__(self, name: str):
        self.name = name

    def cannot(self, case: Case) -> str | None:
        """Refuse all but a single group in float32 on the CPU."""
        plain = case.storage == "f32" and case.groups == 1 and case.backend == "cpu"
        return None if plain else "the benchmark sets it up for one group in float32 on the CPU only"

    def load(self, threads: int) -> None:
        """Do nothing: fastopt is imported already."""

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Make another optimizer with the same parameters and gradients."""
        rule = CASES[case.rule]
        if self.name == "lr scheduled":
            rule = type(rule)(**{**vars(rule), "lr": fastopt.schedules.Cosine(rule.lr, PERIOD).delayed(1)})
        opt = fastopt.Optimizer(rule, dict(problem.params))
        for name, grads in problem.grads.items():
            opt.grads[name][...] = grads
        grads = {name: np.array(g) for name, g in problem.grads.items()}
        (group,) = opt._groups
        flat = {"p": opt.flat_params, "g": opt.flat_grads}
        flat |= {b: group.store.planes[0][b] for b in group.plan.program.state}
        if self.name == "update":
            t = iter(range(1, 1 << 62))
            return Contestant(lambda: fastopt.update(rule, next(t), flat), lambda: opt.params)
        if self.name == "kernel alone":
            ((kernel, *arguments),) = group.launch.calls((), group.plan.scalars(10))
            return Contestant(lambda opt=opt: kernel(*arguments), lambda: opt.params)
        step = partial(opt.step, grads) if self.name == "step(grads)" else opt.step
        return Contestant(step, lambda: opt.params)

    @property
    def comparable(self) -> bool:
        """Whether its result can be compared with the reference: the kernel alone repeats step 10."""
        return self.name != "kernel alone"


class Fastopt(Peer):
    """`Optimizer.step` itself, in its own process."""

    name, packages = "fastopt", ()

    def load(self, threads: int) -> None:
        """Set the number of threads."""
        fastopt.set_threads(threads)

    def problem(self, case: Case) -> Problem:
        """Return an empty problem: the optimizer allocates its arrays."""
        return Problem({}, {}, {})

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Make the optimizer."""
        opt = memory.optimizer(case)
        return Contestant(opt.step, lambda: opt.master())


FASTOPT = Fastopt()
APIS: dict[str, Peer] = {name: Api(name) for name in ("step(grads)", "lr scheduled", "update", "kernel alone")}

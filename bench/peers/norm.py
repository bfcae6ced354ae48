"""The norm of all gradients by itself: the first phase of a clipped step, and a loop that only reads their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.arrays import NUMPY
from fastopt.bench import ceiling
from fastopt.bench.cases import TIMED, Case
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.launch import Rows, run


class _Alone(Peer):
    """A part of the step of one clipped tensor, which leaves the parameters as they are."""

    own_process, light, comparable = False, True, False

    def cannot(self, case: Case) -> str | None:
        """Refuse what is not one clipped tensor in float32 on the CPU."""
        plain = case.rule == "clip" and case.storage == "f32" and case.backend == "cpu" and len(case.tensors) == 1
        return None if plain else "it is of one clipped tensor"

    def load(self, threads: int) -> None:
        """Do nothing: fastopt is imported already."""

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Make the part."""
        return Contestant(self._part(case, problem), lambda: problem.params)

    def _part(self, case: Case, problem: Problem) -> Callable[[], object]:
        raise NotImplementedError


class Norm(_Alone):
    """The pass of a clipped step that sums squares, and the fold of its sums."""

    name = "norm alone"

    def _part(self, case: Case, problem: Problem) -> Callable[[], object]:
        (name,) = case.tensors
        arrays = {
            "p": problem.params[name],
            "g": problem.grads[name],
            **{b: of[name] for b, of in problem.state.items()},
        }
        addresses = [NUMPY.address(arrays[b.name]) for b in case.program.buffers]
        launch: Any = bind("cpu", case.program, Rows([case.elements], [0], [addresses], arrays))
        scalars = host_scalars(case.program, TIMED[case.rule])(1)
        return lambda: run([*launch.phase(0, (), scalars), *launch.fold(0, None)])


class Reading(_Alone):
    """A loop over the gradients that only reads."""

    name = "reading alone"

    def _part(self, case: Case, problem: Problem) -> Callable[[], object]:
        return ceiling.bind([], list(problem.grads.values()))

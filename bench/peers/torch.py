"""torch.optim in four implementations: a loop over tensors, foreach, fused, and foreach under torch.compile."""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.glossary import ROWS, Row
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem

FUSED = {"cpu": {"SGD", "Adam", "AdamW", "Adagrad"}, "cuda": {"SGD", "Adam", "AdamW"}}
"""The classes with a fused implementation; the others run a sequence of operations on whole arrays."""

COMPILED = 100  # torch.compile makes a kernel for each tensor; cases of more tensors than this are left out


class Torch(Peer):
    """One implementation of torch.optim."""

    packages, supports_cuda = ("torch",), True

    def __init__(self, implementation: str):
        self.name, self.implementation = f"torch {implementation}", implementation
        self.own_process = implementation == "compile"
        self.light = not self.own_process

    def row(self, case: Case) -> Row | None:
        """Return the row of the glossary that makes the case's rule in torch; None if torch does not have it."""
        return ROWS.get(f"torch {case.rule}")

    def cannot(self, case: Case) -> str | None:
        """Refuse rules and storages that torch.optim does not have in this implementation."""
        if self.row(case) is None:
            return "torch.optim does not have the rule with these settings"
        if case.storage not in ("f32", "bf16"):
            return "torch.optim has no such storage"
        if case.storage == "bf16" and self.implementation != "fused":
            return "it rounds to bfloat16 after every operation, so its result differs"
        if self.implementation in ("foreach", "compile") and "nesterov" in case.rule and "momentum" in case.rule:
            return "its Nesterov momentum overwrites the gradients"
        if self.implementation == "compile" and len(case.tensors) > COMPILED:
            return f"it compiles for minutes with more than {COMPILED} tensors"
        if self.implementation == "fused" and self._class(case) not in FUSED[case.backend]:
            return f"torch has no fused {self._class(case)} for {'the CPU' if case.backend == 'cpu' else 'CUDA'}"
        if self.implementation == "compile" and case.backend == "cuda":
            return "the benchmark sets it up for the CPU only"
        return None

    def _class(self, case: Case) -> str:
        row = self.row(case)
        return "" if row is None else row.optimizer

    def load(self, threads: int) -> None:
        """Import torch."""
        import_module("torch").set_num_threads(threads)

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given arrays, including the state."""
        torch: Any = import_module("torch")
        torch.set_num_threads(case.threads)
        row = self.row(case)
        assert row is not None, "cannot() refuses these cases"
        params = tensors.parameters(problem)
        optimizer = self._optimizer(torch, row, params, case)
        # SGD with dampening has a special first step, which torch recognizes by the missing momentum buffer.
        tensors.use_state(optimizer, params, problem, {} if optimizer.defaults.get("dampening") else row.state)
        step = optimizer.step
        if self.implementation == "compile":
            torch._dynamo.reset()
            step = torch.compile(optimizer.step)
        return Contestant(step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """On the CPU, use one thread or all, whichever is faster; it is set before each sample."""
        if case.backend == "cuda":
            return contestant
        if self.own_process:
            return tensors.tuned(contestant, case)
        torch: Any = import_module("torch")
        count = tensors.faster(contestant.step, case.threads, case.elements)
        setup = partial(torch.set_num_threads, count)
        return contestant._replace(setup=setup, note=tensors.thread_count(count))

    def _optimizer(self, torch: Any, row: Row, params: list[Any], case: Case) -> Any:
        example = row.make(torch, torch.nn.Parameter(torch.zeros(1)))
        settings = self._settings(example) | {"foreach": self.implementation in ("foreach", "compile")}
        if "fused" in inspect.signature(type(example)).parameters:
            settings["fused"] = self.implementation == "fused"
        return type(example)(tensors.grouped(params, case), **settings)

    def _settings(self, example: Any) -> dict[str, Any]:
        """Return the arguments with which an optimizer was made, without those that choose the implementation."""
        known = inspect.signature(type(example)).parameters
        return {n: x for n, x in example.defaults.items() if n in known and n not in ("foreach", "fused")}

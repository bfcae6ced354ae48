"""torch.optim in its four forms: a loop over tensors, foreach, fused, and foreach under torch.compile."""

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
"""What torch runs in one pass; the others are a chain of operations on whole arrays."""

COMPILED = 100  # tensors up to which torch.compile is waited for: it makes a kernel for each


class Torch(Peer):
    """One form of torch.optim."""

    packages, devices = ("torch",), True

    def __init__(self, form: str):
        self.name, self.form = f"torch {form}", form
        self.apart = form == "compile"
        self.light = not self.apart

    def row(self, case: Case) -> Row | None:
        """Give torch's words for a case's rule."""
        return ROWS.get(f"torch {case.rule}")

    def cannot(self, case: Case) -> str | None:
        """Refuse rules and storages that torch.optim does not have in this form."""
        if self.row(case) is None:
            return "torch.optim has no such form of the rule"
        if case.storage not in ("f32", "bf16"):
            return "torch.optim has no such storage"
        if case.storage == "bf16" and self.form != "fused":
            return "it rounds to bfloat16 after every operation: another result"
        if self.form in ("foreach", "compile") and "nesterov" in case.rule and "momentum" in case.rule:
            return "its Nesterov momentum overwrites the gradients"
        if self.form == "compile" and len(case.tensors) > COMPILED:
            return f"above {COMPILED} tensors it compiles for minutes"
        if self.form == "fused" and self._class(case) not in FUSED[case.backend]:
            return f"torch does not fuse {self._class(case)} on {'the CPU' if case.backend == 'cpu' else 'a device'}"
        if self.form == "compile" and case.backend == "cuda":
            return "not set up for devices"
        return None

    def _class(self, case: Case) -> str:
        row = self.row(case)
        return "" if row is None else row.optimizer

    def load(self, threads: int) -> None:
        """Import torch."""
        import_module("torch").set_num_threads(threads)

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very arrays, state included."""
        torch: Any = import_module("torch")
        torch.set_num_threads(case.threads)
        row = self.row(case)
        assert row is not None, "cannot() refuses these cases"
        params = tensors.parameters(problem)
        optimizer = self._optimizer(torch, row, params, case)
        # Where SGD has dampening, torch's first step is another one, which it tells by having no momentum yet.
        tensors.begin(optimizer, params, problem, {} if optimizer.defaults.get("dampening") else row.state)
        step = optimizer.step
        if self.form == "compile":
            torch._dynamo.reset()
            step = torch.compile(optimizer.step)
        return Contestant(step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Set the faster number of threads before each sample."""
        if case.backend == "cuda":
            return contestant
        if self.apart:
            return tensors.tuned(contestant, case)
        torch: Any = import_module("torch")
        count = tensors.faster(contestant.step, case.threads, case.elements)
        ready = partial(torch.set_num_threads, count)
        return contestant._replace(ready=ready, note=tensors.several(count))

    def _optimizer(self, torch: Any, row: Row, params: list[Any], case: Case) -> Any:
        like = row.make(torch, torch.nn.Parameter(torch.zeros(1)))
        how = self._settings(like) | {"foreach": self.form in ("foreach", "compile")}
        if "fused" in inspect.signature(type(like)).parameters:
            how["fused"] = self.form == "fused"
        return type(like)(tensors.grouped(params, case), **how)

    def _settings(self, like: Any) -> dict[str, Any]:
        """Give the options with which an optimizer was made, those apart that say how it runs."""
        known = inspect.signature(type(like)).parameters
        return {n: x for n, x in like.defaults.items() if n in known and n not in ("foreach", "fused")}

"""fastopt.torch: torch.optim's classes with fastopt's kernels, on the model's own tensors or on flat buffers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.glossary import Row
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant
from fastopt.bench.peers.torch import Torch
from fastopt.bench.problem import Problem


class DropIn(Torch):
    """fastopt.torch on the model's tensors, by a table of addresses ("table"), or with flatten=True ("flat")."""

    own_state = True

    def __init__(self, layout: str, *, flatten: bool):
        super().__init__(layout)
        self.name, self.flatten = f"fastopt.torch {layout}", flatten

    def cannot(self, case: Case) -> str | None:
        """Refuse rules that torch.optim does not have, and storages other than float32."""
        if self.row(case) is None:
            return "torch.optim has no such rule"
        return None if case.storage == "f32" else "the benchmark sets it up for float32 only"

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given tensors, or move them into flat buffers first; it allocates the state."""
        torch: Any = import_module("torch")
        adapter: Any = import_module("fastopt.torch")
        row = self.row(case)
        assert row is not None, "cannot() refuses these cases"
        params = tensors.parameters(problem)
        grads = [p.grad for p in params]
        optimizer = self._drop_in(torch, adapter, row, params, case)
        if self.flatten:
            optimizer.zero_grad(set_to_none=False)  # replaces the gradients by views of a flat buffer
            for p, g in zip(params, grads, strict=True):
                p.grad.copy_(g)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Return it unchanged: it uses fastopt's threads, which the case sets."""
        return contestant

    def _drop_in(self, torch: Any, adapter: Any, row: Row, params: list[Any], case: Case) -> Any:
        example = row.make(torch, torch.nn.Parameter(torch.zeros(1)))
        kind = getattr(adapter, type(example).__name__)
        return kind(tensors.grouped(params, case), flatten=self.flatten, **self._settings(example))

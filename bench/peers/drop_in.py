"""fastopt.torch beside torch.optim: the same classes with fastopt's steps, by a table of tensors or in flat buffers."""

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
    """One way in which fastopt.torch keeps a model's tensors."""

    own_state = True

    def __init__(self, way: str, *, flatten: bool):
        super().__init__(way)
        self.name, self.flatten = f"fastopt.torch {way}", flatten

    def cannot(self, case: Case) -> str | None:
        """Refuse what torch.optim does not have, and other storages than float32."""
        if self.row(case) is None:
            return "torch.optim has no such rule"
        return None if case.storage == "f32" else "set up for float32 alone"

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very tensors, or move them into flat buffers first; the state is its own."""
        torch: Any = import_module("torch")
        adapter: Any = import_module("fastopt.torch")
        row = self.row(case)
        assert row is not None, "cannot() refuses these cases"
        params = tensors.parameters(problem)
        grads = [p.grad for p in params]
        optimizer = self._made(torch, adapter, row, params, case)
        if self.flatten:
            optimizer.zero_grad()  # from now on gradients are added up in a flat buffer
            for p, g in zip(params, grads, strict=True):
                p.grad.copy_(g)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Leave it: fastopt's own threads are those of the case."""
        return contestant

    def _made(self, torch: Any, adapter: Any, row: Row, params: list[Any], case: Case) -> Any:
        like = row.make(torch, torch.nn.Parameter(torch.zeros(1)))
        kind = getattr(adapter, type(like).__name__)
        return kind(tensors.grouped(params, case), flatten=self.flatten, **self._settings(like))

"""torchao's AdamW with 8-bit state, which torch.compile turns into one kernel a tensor."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

SMALLEST = 4096  # parameters below which torchao keeps float32 state


class TorchAO(Peer):
    """AdamW8bit."""

    name, packages = "torchao", ("torchao", "torch")
    own_state = devices = True

    def cannot(self, case: Case) -> str | None:
        """Refuse all but Adam with 8-bit state in tensors that it keeps so."""
        if case.rule not in ("adam", "adam-decoupled"):
            return "torchao has Adam alone"
        if case.storage != "8bit":
            return "torchao has no such storage"
        if min(case.tensors.values()) < SMALLEST or any(n % 256 for n in case.tensors.values()):
            return f"below {SMALLEST:,} parameters, or for part of a block of 256, torchao keeps float32 state"
        return "not set up for groups" if case.groups > 1 else None

    def load(self, threads: int) -> None:
        """Import torchao."""
        import_module("torch").set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("torchao.optim")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very parameters and gradients; the state is the library's own."""
        rule: Any = CASES[case.rule]
        params = tensors.parameters(problem)
        how = {"lr": rule.lr, "betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay}
        optimizer = import_module("torchao.optim").AdamW8bit(params, **how)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Use the faster number of threads."""
        return contestant if case.backend == "cuda" else tensors.tuned(contestant, case)

"""torchao's AdamW with 8-bit state, which torch.compile compiles to one kernel per tensor."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

SMALLEST = 4096  # for fewer parameters torchao uses float32 state


class TorchAO(Peer):
    """AdamW8bit."""

    name, packages = "torchao", ("torchao", "torch")
    own_state = supports_cuda = True

    def cannot(self, case: Case) -> str | None:
        """Refuse all but Adam with 8-bit state, and tensors for which torchao uses float32 state."""
        if case.rule not in ("adam", "adam-decoupled"):
            return "torchao has only Adam"
        if case.storage != "8bit":
            return "torchao has no such storage"
        if min(case.tensors.values()) < SMALLEST or any(n % 256 for n in case.tensors.values()):
            return f"torchao uses float32 state unless sizes are multiples of 256 and at least {SMALLEST:,}"
        return "the benchmark does not set up parameter groups for it" if case.groups > 1 else None

    def load(self, threads: int) -> None:
        """Import torchao."""
        import_module("torch").set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("torchao.optim")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given parameters and gradients; the library allocates the state."""
        rule: Any = CASES[case.rule]
        params = tensors.parameters(problem)
        settings = {"lr": rule.lr, "betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay}
        optimizer = import_module("torchao.optim").AdamW8bit(params, **settings)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """On the CPU, use one thread or all, whichever is faster."""
        return contestant if case.backend == "cuda" else tensors.tuned(contestant, case)

"""FlashOptim: Triton kernels for CUDA devices. On the CPU there is nothing of it to time, and the table says so."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

_STORED: dict[str, dict[str, Any]] = {
    "8bit": {"quantize": True, "master_weight_bits": None},
    "split": {"quantize": False, "master_weight_bits": 32},
    "split_8bit": {"quantize": True, "master_weight_bits": 32},
    "bf16_8bit": {"quantize": True, "master_weight_bits": None},
}
"""Our storages in its words; where parameters are bfloat16 alone it rounds them to nearest."""


class FlashOptim(Peer):
    """FlashAdamW and FlashLion."""

    name, packages = "FlashOptim", ("flashoptim", "triton")
    own_state = devices = True

    def cannot(self, case: Case) -> str | None:
        """Refuse every case on the CPU, and rules and storages that it does not have."""
        if case.backend != "cuda":
            return "its fused, compressed steps need a CUDA device"
        if case.storage not in _STORED:
            return "FlashOptim has no such storage"
        if self._made(case) is None:
            return "FlashOptim has no such form of the rule"
        return "not set up for groups" if case.groups > 1 else None

    def _made(self, case: Case) -> tuple[str, dict[str, Any]] | None:
        """Give the class and its settings."""
        rule: Any = CASES[case.rule]
        match case.rule:
            case "adam" | "adam-decoupled":
                return "FlashAdamW", {"betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay}
            case "lion" | "lion-weight-decay":
                return "FlashLion", {"betas": rule.betas, "weight_decay": rule.weight_decay}
        return None

    def load(self, threads: int) -> None:
        """Import FlashOptim."""
        import_module("flashoptim")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very parameters and gradients; the state is the library's own."""
        found = self._made(case)
        assert found is not None, "cannot() refuses these cases"
        name, how = found
        params = tensors.parameters(problem)
        rule: Any = CASES[case.rule]
        how = how | {"lr": rule.lr} | _STORED[case.storage]
        with warnings.catch_warnings():  # it warns of bfloat16 parameters without a master
            warnings.simplefilter("ignore")
            optimizer = getattr(import_module("flashoptim"), name)(params, **how)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

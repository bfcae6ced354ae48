"""FlashOptim: Triton kernels for CUDA devices. It has none for the CPU, which the results say."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

_STORAGES: dict[str, dict[str, Any]] = {
    "8bit": {"quantize": True, "master_weight_bits": None},
    "split": {"quantize": False, "master_weight_bits": 32},
    "split_8bit": {"quantize": True, "master_weight_bits": 32},
    "bf16_8bit": {"quantize": True, "master_weight_bits": None},
}
"""Its settings for fastopt's storages. It rounds bfloat16 parameters without a master copy to nearest."""


class FlashOptim(Peer):
    """FlashAdamW and FlashLion."""

    name, packages = "FlashOptim", ("flashoptim", "triton")
    own_state = supports_cuda = True

    def cannot(self, case: Case) -> str | None:
        """Refuse every case on the CPU, and rules and storages that it does not have."""
        if case.backend != "cuda":
            return "its kernels need a CUDA device"
        if case.storage not in _STORAGES:
            return "FlashOptim has no such storage"
        if self._made(case) is None:
            return "FlashOptim does not have the rule with these settings"
        return "the benchmark does not set up parameter groups for it" if case.groups > 1 else None

    def _made(self, case: Case) -> tuple[str, dict[str, Any]] | None:
        """Return the name of the class and its settings; None if there is none."""
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
        """Step on the given parameters and gradients; the library allocates the state."""
        found = self._made(case)
        assert found is not None, "cannot() refuses these cases"
        name, settings = found
        params = tensors.parameters(problem)
        rule: Any = CASES[case.rule]
        settings = settings | {"lr": rule.lr} | _STORAGES[case.storage]
        with warnings.catch_warnings():  # it warns of bfloat16 parameters without a master copy
            warnings.simplefilter("ignore")
            optimizer = getattr(import_module("flashoptim"), name)(params, **settings)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

"""bitsandbytes' optimizers: in float32, and with 8-bit state."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

_NAMES = {"f32": "", "8bit": "8bit"}
SMALLEST = 4096  # parameters below which bitsandbytes keeps float32 state, and says so nowhere


class BitsAndBytes(Peer):
    """AdamW, Lion, RMSprop and SGD with momentum."""

    name, packages = "bitsandbytes", ("bitsandbytes", "torch")
    own_state = devices = True

    def cannot(self, case: Case) -> str | None:
        """Refuse rules and storages that it does not have, and 8-bit state of tensors that it keeps in float32."""
        if case.storage not in _NAMES:
            return "bitsandbytes has no such storage"
        if self._made(case) is None:
            return "bitsandbytes has no such form of the rule"
        if case.storage == "8bit" and min(case.tensors.values()) < SMALLEST:
            return f"below {SMALLEST:,} parameters bitsandbytes keeps float32 state"
        return "not set up for groups" if case.groups > 1 else None

    def _made(self, case: Case) -> tuple[str, dict[str, Any]] | None:
        """Give the class and its settings."""
        rule = CASES[case.rule]
        if callable(rule.lr) if hasattr(rule, "lr") else True:
            return None
        how = {"lr": rule.lr, "weight_decay": rule.weight_decay}
        match case.rule:
            case "adam" | "adam-decoupled":
                return "AdamW", how | {"betas": rule.betas, "eps": rule.eps}
            case "lion" | "lion-weight-decay":
                return "Lion", how | {"betas": rule.betas}
            case "rmsprop":
                return "RMSprop", how | {"alpha": rule.alpha, "eps": rule.eps}
            case "momentum-heavy-ball":
                return "SGD", how | {"momentum": rule.beta}
        return None

    def load(self, threads: int) -> None:
        """Import bitsandbytes, which warns that it has found no GPU."""
        import_module("torch").set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("bitsandbytes.optim")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the very parameters and gradients; the state is the library's own."""
        found = self._made(case)
        assert found is not None, "cannot() refuses these cases"
        name, how = found
        params = tensors.parameters(problem)
        optimizer = getattr(import_module("bitsandbytes.optim"), name + _NAMES[case.storage])(params, **how)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Use the faster number of threads."""
        return contestant if case.backend == "cuda" else tensors.tuned(contestant, case)

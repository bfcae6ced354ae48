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
SMALLEST = 4096  # for fewer parameters bitsandbytes uses float32 state without a warning


class BitsAndBytes(Peer):
    """AdamW, Lion, RMSprop and SGD with momentum."""

    name, packages = "bitsandbytes", ("bitsandbytes", "torch")
    own_state = supports_cuda = True

    def cannot(self, case: Case) -> str | None:
        """Refuse rules and storages that it does not have, and tensors too small for its 8-bit state."""
        if case.storage not in _NAMES:
            return "bitsandbytes has no such storage"
        if self._made(case) is None:
            return "bitsandbytes does not have the rule with these settings"
        if case.storage == "8bit" and min(case.tensors.values()) < SMALLEST:
            return f"bitsandbytes uses float32 state for tensors of fewer than {SMALLEST:,} parameters"
        return "the benchmark does not set up parameter groups for it" if case.groups > 1 else None

    def _made(self, case: Case) -> tuple[str, dict[str, Any]] | None:
        """Return the name of the class and its settings; None if there is none."""
        rule = CASES[case.rule]
        if callable(rule.lr) if hasattr(rule, "lr") else True:
            return None
        settings = {"lr": rule.lr, "weight_decay": getattr(rule, "weight_decay", 0.0)}
        match case.rule:
            case "adam" | "adam-decoupled":
                return "AdamW", settings | {"betas": rule.betas, "eps": rule.eps}
            case "lion" | "lion-weight-decay":
                return "Lion", settings | {"betas": rule.betas}
            case "rmsprop":
                return "RMSprop", settings | {"alpha": rule.alpha, "eps": rule.eps}
            case "momentum-heavy-ball":
                return "SGD", settings | {"momentum": rule.beta}
        return None

    def load(self, threads: int) -> None:
        """Import bitsandbytes, which warns that it has found no GPU."""
        import_module("torch").set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("bitsandbytes.optim")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given parameters and gradients; the library allocates the state."""
        found = self._made(case)
        assert found is not None, "cannot() refuses these cases"
        name, settings = found
        params = tensors.parameters(problem)
        optimizer = getattr(import_module("bitsandbytes.optim"), name + _NAMES[case.storage])(params, **settings)
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """On the CPU, use one thread or all, whichever is faster."""
        return contestant if case.backend == "cuda" else tensors.tuned(contestant, case)

"""DeepSpeed's CPU optimizers: C++ that is compiled on the user's machine when the first optimizer is made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastopt.bench.cases import Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules.cases import CASES

_KINDS = {"Adam": ("adam", "DeepSpeedCPUAdam"), "Lion": ("lion", "DeepSpeedCPULion")}
_KINDS |= {"Adagrad": ("adagrad", "DeepSpeedCPUAdagrad")}
_STATE = {"Adam": {"m": "exp_avg", "v": "exp_avg_sq"}, "Lion": {"m": "exp_avg"}, "Adagrad": {"v": "exp_avg_sq"}}


BLOCK = 64  # DeepSpeedCPUAdagrad overwrites gradients where the number of parameters is not a multiple of this


class DeepSpeed(Peer):
    """DeepSpeedCPUAdam, DeepSpeedCPULion and DeepSpeedCPUAdagrad."""

    name, packages = "DeepSpeed", ("deepspeed", "torch", "ninja")

    def cannot(self, case: Case) -> str | None:
        """Refuse what is not Adam, Lion or Adagrad in float32."""
        rule = CASES[case.rule]
        kind = type(rule).__name__
        if kind not in _KINDS:
            return "DeepSpeed has no such rule for the CPU"
        if getattr(rule, "amsgrad", False):
            return "DeepSpeedCPUAdam has no AMSGrad"
        if getattr(rule, "lr_decay", 0.0) or getattr(rule, "initial_accumulator_value", 0.0):
            return "DeepSpeedCPUAdagrad has no such setting"
        if kind == "Adagrad" and any(n % BLOCK for n in case.tensors.values()):
            return f"DeepSpeedCPUAdagrad overwrites gradients unless sizes are multiples of {BLOCK}"
        if callable(rule.lr):
            return "the benchmark does not set up learning-rate schedules for it"
        return None if case.storage == "f32" else "the benchmark sets it up for float32 only"

    def check_size(self, case: Case) -> int:
        """Return a multiple of BLOCK for Adagrad."""
        return 16 * BLOCK if type(CASES[case.rule]).__name__ == "Adagrad" else super().check_size(case)

    def load(self, threads: int) -> None:
        """Import DeepSpeed's optimizers."""
        import_module("torch").set_num_threads(threads)
        import_module("deepspeed.ops.adam")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given arrays, including the state."""
        rule = CASES[case.rule]
        kind = type(rule).__name__
        module, name = _KINDS[kind]
        made: Any = getattr(import_module(f"deepspeed.ops.{module}"), name)
        settings: dict[str, Any] = {"lr": rule.lr, "weight_decay": rule.weight_decay}
        if kind != "Adagrad":
            settings["betas"] = rule.betas
        if kind != "Lion":
            settings["eps"] = rule.eps
        if kind == "Adam":
            settings["adamw_mode"] = rule.decoupled
        params = tensors.parameters(problem)
        optimizer = made(tensors.grouped(params, case), **settings)
        tensors.use_state(optimizer, params, problem, _STATE[kind])
        return Contestant(optimizer.step, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Use one thread or all, whichever is faster."""
        return tensors.tuned(contestant, case)

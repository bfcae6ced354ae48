"""AdamW and what surrounds its step in PyTorch: GradScaler, clip_grad_norm_, fused, AveragedModel, zero_grad."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from fastopt.bench.cases import AROUND, Case
from fastopt.bench.peers import tensors
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem
from fastopt.kernels.rules import EMA, Adam, ClipByGlobalNorm, ScaledGradient, ZeroGradients
from fastopt.kernels.rules.cases import CASES

RULES: dict[str, Any] = {**AROUND, "lamb": CASES["lamb"]}
"""What is timed beside torch's passes."""


class TorchPasses(Peer):
    """torch's own way: several passes around the fused step."""

    name, packages, own_process, own_state, light = "torch passes", ("torch",), False, True, True

    def cannot(self, case: Case) -> str | None:
        """Refuse what is no step with passes around it."""
        if case.rule not in RULES or (case.rule == "lamb" and type(self) is TorchPasses):
            return "it is for AdamW with passes around its step"
        plain = case.storage == "f32" and case.backend == "cpu" and case.groups == 1
        return None if plain else "the benchmark sets it up for one group in float32 on the CPU only"

    def load(self, threads: int) -> None:
        """Import torch."""
        import_module("torch").set_num_threads(threads)

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given parameters and gradients, and what torch allocates."""
        torch: Any = import_module("torch")
        torch.set_num_threads(case.threads)
        params, around = tensors.parameters(problem), _around(case)
        model = torch.nn.ParameterList(params)
        adam = around[Adam]
        optimizer = torch.optim.AdamW(
            params, lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay, fused=True
        )
        before: list[Callable[[], object]] = []
        step: Callable[[], object] = optimizer.step
        after: list[Callable[[], object]] = []
        if ScaledGradient in around:
            scaler = torch.amp.GradScaler("cpu", init_scale=1 / around[ScaledGradient].factor, growth_interval=1 << 30)
            scaler.scale(torch.ones(()))  # makes the scale
            before.append(partial(scaler.unscale_, optimizer))
            step = partial(scaler.step, optimizer)
            after.append(scaler.update)
        if ClipByGlobalNorm in around:
            before.append(partial(torch.nn.utils.clip_grad_norm_, params, around[ClipByGlobalNorm].max_norm))
        if EMA in around:
            swa = torch.optim.swa_utils
            average = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(around[EMA].decay))
            after.append(partial(average.update_parameters, model))
        if ZeroGradients in around:
            after.append(partial(optimizer.zero_grad, set_to_none=False))
        passes = [*before, step, *after]

        def all_passes() -> None:
            for each in passes:
                each()

        return Contestant(all_passes, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Use one thread or all, whichever is faster."""
        count = tensors.faster(contestant.step, case.threads, case.elements)
        setup = partial(import_module("torch").set_num_threads, count)
        return contestant._replace(setup=setup, note=tensors.thread_count(count))


class TorchLAMB(TorchPasses):
    """LAMB by torch's operations on whole tensors, as its implementations for torch are written."""

    name = "torch operations"

    def cannot(self, case: Case) -> str | None:
        """Refuse what is not LAMB."""
        return super().cannot(case) if case.rule == "lamb" else "it is LAMB"

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given parameters and gradients."""
        torch: Any = import_module("torch")
        params, rule = tensors.parameters(problem), RULES[case.rule]
        (beta1, beta2), counts = rule.betas, iter(range(1, 1 << 62))
        moments = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in params]

        @torch.no_grad()
        def step() -> None:
            t = next(counts)
            for p, m, v in moments:
                m.lerp_(p.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt_() + rule.eps)
                u.add_(p, alpha=rule.weight_decay)
                lengths = p.norm(), u.norm()
                trust = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
                p.sub_(u.mul_(trust * rule.lr))

        return Contestant(step, lambda: tensors.values(params, problem))


class FastoptTorch(TorchPasses):
    """fastopt.torch, which reads torch's gradients: the same in the step, but that zero_grad() follows it."""

    name = "fastopt.torch"

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on the given parameters and gradients."""
        adapter: Any = import_module("fastopt.torch")
        params, around = tensors.parameters(problem), _around(case)
        rule = _without_zero(RULES[case.rule])
        optimizer = adapter.Fused(params, rule)
        if ZeroGradients not in around:
            return Contestant(optimizer.step, lambda: tensors.values(params, problem))

        def both() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        return Contestant(both, lambda: tensors.values(params, problem))

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Return it unchanged: it uses fastopt's threads, which the case sets."""
        return contestant


def _around(case: Case) -> dict[type, Any]:
    """Return the rules of a case that lie inside one another, by their type."""
    found, rule = {}, RULES[case.rule]
    while rule is not None:
        found[type(rule)] = rule
        rule = getattr(rule, "rule", None)
    return found


def _without_zero(rule: Any) -> Any:
    """Return a rule without ZeroGradients, which fastopt.torch leaves to zero_grad()."""
    if isinstance(rule, ZeroGradients):
        return _without_zero(rule.rule)
    return type(rule)(**{**vars(rule), "rule": _without_zero(rule.rule)}) if hasattr(rule, "rule") else rule

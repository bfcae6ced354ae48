"""Grokfast and Lookahead: the inner rule on amplified gradients, and slow weights, beside their formulas and peers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, fresh_buffers, halving, run_steps
from peers import START, STEPS, gradient
from values import assert_same_bits

import fastopt
from fastopt import Grokfast, Lookahead, RuleError, SettingError

GROKFAST, LOOKAHEAD = CASES["grokfast-adam"], CASES["lookahead-adam"]
INNER = [fastopt.Adam(lr=halving, eps=1e-3, weight_decay=0.5), fastopt.SGD(lr=0.02, weight_decay=0.02)]


@pytest.mark.parametrize("inner", INNER)
def test_grokfast_is_the_inner_rule_on_gradients_with_their_average(inner):
    """The average as a sum: 0.9ᵗ⁻¹ g₁ + Σ 0.1 · 0.9ᵗ⁻ᵏ gₖ. The tolerance is that of test_trajectories."""
    rule, gs = dataclasses.replace(GROKFAST, rule=inner), []
    alone = fresh_buffers(inner, START)
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        gs.append(gradient(alone["p"], t))
        slow = 0.9 ** (t - 1) * gs[0] + sum(0.1 * 0.9 ** (t - k) * g for k, g in enumerate(gs[1:], 2))
        alone["g"][...] = gs[-1] + 0.5 * slow
        fastopt.update(inner, t, alone, backend="reference")
        np.testing.assert_allclose(buffers["p"], alone["p"], rtol=0, atol=1e-11)
        np.testing.assert_allclose(buffers["slow_g"], slow, rtol=0, atol=1e-11)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_lookahead_is_the_inner_rule_that_returns_to_slow_weights(inner, k):
    rule = Lookahead(inner, k=k, alpha=0.6)
    alone, slow = fresh_buffers(inner, START), START
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        alone["g"][...] = gradient(alone["p"], t)
        fastopt.update(inner, t, alone, backend="reference")
        if t % k == 0:
            slow = slow + 0.6 * (alone["p"] - slow)
            alone["p"][...] = slow
        for name, x in (*alone.items(), ("slow", slow)):
            assert_same_bits(buffers[name], x, name)  # the same operations in the same order: no tolerance


@pytest.mark.parametrize("rule", [GROKFAST, LOOKAHEAD])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_without_effect_parameters_are_those_of_the_rule_alone(rule, backend):
    off: Any = {"lamb": 0.0} if rule is GROKFAST else {"k": 10**6}
    around, alone = dataclasses.replace(rule, **off), rule.rule
    for ours, theirs in zip(
        run_steps(around, START, gradient, 10, backend=backend),
        run_steps(alone, START, gradient, 10, backend=backend),
        strict=True,
    ):
        assert_same_bits(ours["p"], theirs["p"])
        assert_same_bits(ours["m"], theirs["m"])


def test_lookahead_of_optax_takes_the_same_steps():
    optax = pytest.importorskip("optax", reason="optax is not installed: the formula is compared above")
    jax = pytest.importorskip("jax")
    x64 = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        theirs = optax.lookahead(optax.adam(0.01, eps=1e-3), sync_period=3, slow_step_size=0.6)
        params = optax.LookaheadParams.init_synced(jax.numpy.asarray(START))
        state = theirs.init(params)
        for t, buffers in enumerate(run_steps(LOOKAHEAD, START, gradient, 30, backend="reference"), 1):
            g = jax.numpy.asarray(gradient(np.asarray(params.fast), t))
            updates, state = theirs.update(g, state, params)
            params = optax.apply_updates(params, updates)
            # 30 steps of at most 30 roundings of 1.1e-16, of numbers below 2.
            np.testing.assert_allclose(buffers["p"], params.fast, rtol=0, atol=2e-13)
            np.testing.assert_allclose(buffers["slow"], params.slow, rtol=0, atol=2e-13)
    finally:
        jax.config.update("jax_enable_x64", x64)


def test_grokfast_of_pytorch_optimizer_takes_the_same_steps():
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed: see the formula above")
    torch = pytest.importorskip("torch")
    # It takes the larger of √v̂ and ε instead of their sum: with such an ε both are √v̂.
    p, inner = torch.nn.Parameter(torch.tensor(START)), dataclasses.replace(GROKFAST.rule, eps=1e-30)
    rule = dataclasses.replace(GROKFAST, rule=inner)
    theirs = peer.GrokFastAdamW(
        [p], lr=inner.lr, betas=inner.betas, grokfast_alpha=0.9, grokfast_lamb=0.5, weight_decay=inner.weight_decay,
        normalize_lr=False, eps=inner.eps,
    )  # fmt: skip
    for t, buffers in enumerate(run_steps(rule, START, gradient, 30, backend="reference"), 1):
        p.grad = torch.tensor(gradient(p.detach().numpy(), t))
        theirs.step()
        np.testing.assert_allclose(buffers["p"], p.detach().numpy(), rtol=0, atol=2e-13)  # as above


@pytest.mark.parametrize("storage", ["8bit", "split_8bit", "bf16"])
def test_presets_keep_slow_weights_in_the_computing_precision(storage):
    opt = fastopt.Optimizer(Lookahead(fastopt.Adam(), k=2), {"w": START.astype(np.float32)}, storage=storage)
    opt.step({"w": np.ones(START.shape, opt.grads["w"].dtype)})
    assert_same_bits(opt.state("slow")["w"], START.astype(np.float32))


def test_they_go_around_each_other_but_not_around_themselves():
    both = Lookahead(Grokfast(fastopt.EMA(fastopt.SGD(lr=0.1))))
    found = {
        backend: list(run_steps(both, START, gradient, 12, backend=backend))[-1] for backend in ("reference", "cpu")
    }
    assert set(found["cpu"]) == {"p", "g", "slow", "slow_g", "ema"}
    for name, x in found["reference"].items():
        assert_same_bits(found["cpu"][name], x, name)
    for rule in (Lookahead, Grokfast):
        with pytest.raises(RuleError, match="already has"):
            rule(rule(fastopt.SGD()))


@pytest.mark.parametrize(
    ("make", "settings"),
    [(Lookahead, {"k": 0}), (Lookahead, {"k": 2.5}), (Lookahead, {"k": halving}), (Lookahead, {"alpha": 1.5}),
     (Grokfast, {"alpha": 1.0}), (Grokfast, {"lamb": -1.0})],
)  # fmt: skip
def test_settings_that_are_none_are_refused(make, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        make(fastopt.SGD(), **settings)

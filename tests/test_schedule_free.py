"""Schedule-Free rules: the average that they are for, what it is made of, and how it is read from p and z."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, halving, run_steps
from peers import START, STEPS, gradient
from test_rules import assert_independent_of_order, forget

import fastopt
from fastopt import SettingError
from fastopt.kernels.rules import schedule_free

RULES = [
    CASES["schedulefreesgd"],
    CASES["schedulefreeadamw"],
    fastopt.ScheduleFreeSGD(lr=0.1, momentum=1.0),
    fastopt.ScheduleFreeAdamW(lr=0.01, betas=(0.5, 0.9), warmup_steps=200, weight_lr_power=1.0),
]


def beta(rule: Any) -> float:
    return rule.momentum if isinstance(rule, fastopt.ScheduleFreeSGD) else rule.betas[0]


def weight(rule: Any, t: int) -> float:
    return t**rule.r * (min(1, t / rule.warmup_steps) if rule.warmup_steps else 1) ** rule.weight_lr_power


@pytest.mark.parametrize("rule", RULES)
def test_the_average_is_the_weighted_mean_of_z_and_p_lies_between(rule):
    """After step t the average x is that of z₁ … zₜ with weights w₁ … wₜ, and p = (1 − β) zₜ + β x, as in the paper.

    The rule computes neither x nor this sum. Of numbers below 2, 100 steps with at most 10 roundings of 1.1e-16 each
    add up to 2e-13, and 1 − 1/β magnifies the error of x by no more than 3.
    """
    zs, weights = [], []
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        weights.append(weight(rule, t))
        zs.append(buffers["z"].copy())
        x = sum(w * z for w, z in zip(weights, zs, strict=True)) / sum(weights)
        np.testing.assert_allclose(rule.averaged(buffers["p"], buffers["z"]), x, rtol=0, atol=6e-13)
        np.testing.assert_allclose(buffers["p"], (1 - beta(rule)) * buffers["z"] + beta(rule) * x, rtol=0, atol=2e-13)


@pytest.mark.parametrize("rule", RULES[:2])
def test_z_takes_the_steps_of_the_rule_without_averaging(rule):
    z, v = START, np.zeros_like(START)
    p = START
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        g = gradient(p, t)
        if isinstance(rule, fastopt.ScheduleFreeAdamW):
            v = rule.betas[1] * v + (1 - rule.betas[1]) * g * g
            g = g / (np.sqrt(v / (1 - rule.betas[1] ** t)) + rule.eps)
        z = z - rule.lr * min(1, t / rule.warmup_steps) * (g + rule.weight_decay * p)
        p = buffers["p"].copy()
        np.testing.assert_allclose(buffers["z"], z, rtol=0, atol=2e-13)


def test_the_average_of_a_noisy_descent_is_better_than_where_it_is():
    noisy = fastopt.ScheduleFreeSGD(lr=0.2)
    rng, far = np.random.default_rng(0), []
    for buffers in run_steps(noisy, np.ones(1000), lambda p, t: p + rng.standard_normal(1000), 1000):
        far = [np.linalg.norm(x) for x in (noisy.averaged(buffers["p"], buffers["z"]), buffers["p"], buffers["z"])]
    assert far[0] < far[1] < far[2]


def test_an_optimizer_gives_the_average_by_name_in_every_storage():
    rule = fastopt.ScheduleFreeAdamW(lr=0.01)
    for storage in ("f32", "split_8bit", "bf16"):
        opt = fastopt.Optimizer(rule, {"w": START.astype(np.float32)}, storage=storage)
        opt.step({"w": np.ones(START.shape, opt.grads["w"].dtype)})
        assert opt.state("z")["w"].dtype == np.float32
        x = rule.averaged(opt.master()["w"], opt.state("z")["w"])
        # After one step x is z, a step of lr away. bf16 rounds p, of at most 1, by up to 2⁻⁸, which 1/β magnifies.
        np.testing.assert_allclose(x, START - 0.01, rtol=0, atol=1.2 * 2.0**-8 if storage == "bf16" else 1e-6)


def test_weights_are_the_same_bits_in_any_order_of_steps():
    for settings in ((10, 0.0, 2.0), (10, 0.5, 2.0), (0, 1.0, 2.0), (2.5, 0.0, 0.0)):
        assert_independent_of_order(lambda t, settings=settings: schedule_free._share(t, *settings))


def test_a_late_step_costs_no_more_than_the_warm_up(monkeypatch):
    counted = []
    real = schedule_free._weight
    monkeypatch.setattr(schedule_free, "_weight", lambda t, *settings: counted.append(t) or real(t, *settings))
    forget()
    assert schedule_free._share(10**12, 10, 0.0, 2.0) == pytest.approx(1e-12)
    assert len(counted) == 11


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        (fastopt.ScheduleFreeSGD, {"momentum": halving}),
        (fastopt.ScheduleFreeSGD, {"warmup_steps": halving}),
        (fastopt.ScheduleFreeAdamW, {"betas": (halving, 0.999)}),
        (fastopt.ScheduleFreeAdamW, {"r": halving}),
        (fastopt.ScheduleFreeAdamW, {"weight_lr_power": halving}),
    ],
)
def test_what_the_average_is_made_of_cannot_follow_a_schedule(rule, setting):
    with pytest.raises(SettingError, match="cannot follow a schedule"):
        rule(**setting)


@pytest.mark.parametrize("make", [lambda: fastopt.ScheduleFreeSGD(momentum=0.0),
                                  lambda: fastopt.ScheduleFreeAdamW(betas=(0.0, 0.9))])  # fmt: skip
def test_without_momentum_there_is_no_average(make):
    with pytest.raises(SettingError, match=r"momentum|betas"):
        make()


@pytest.mark.parametrize("case", ["schedulefreesgd", "schedulefreeadamw"])
def test_the_average_is_that_of_schedulefree(case):
    library = pytest.importorskip("schedulefree", reason="schedulefree is not installed: its z and y are recorded")
    torch = pytest.importorskip("torch")
    rule: Any = CASES[case]
    own = {"lr": rule.lr, "weight_decay": rule.weight_decay, "warmup_steps": rule.warmup_steps, "r": rule.r}
    p = torch.nn.Parameter(torch.tensor(START))
    if case == "schedulefreesgd":
        theirs = library.SGDScheduleFree([p], momentum=rule.momentum, **own)
    else:
        theirs = library.AdamWScheduleFree([p], betas=rule.betas, eps=rule.eps, **own)
    theirs.train()
    for t, buffers in enumerate(run_steps(rule, START, gradient, 30, backend="reference"), 1):
        p.grad = torch.tensor(gradient(p.detach().numpy(), t))
        theirs.step()
        theirs.eval()
        x = p.detach().numpy().copy()
        theirs.train()
        np.testing.assert_allclose(rule.averaged(buffers["p"], buffers["z"]), x, rtol=0, atol=1e-12)

"""The rules are correct: their trajectories match those of other libraries and of the published formulas."""

from __future__ import annotations

import dataclasses
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, halving, run_steps, warming
from peers import PEERS, START, STEPS, STORED, gradient, path

import fastopt
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.rule import is_rule

RECORDED = np.load(Path(__file__).parent / "data" / "trajectories.npz", allow_pickle=False)

# Both sides compute in float64 what is mathematically the same, in different orders. A step has at most 30 roundings of
# 1.1e-16, so 100 steps add up to at most 3.3e-13 of the largest values; the problem contracts, so early errors shrink.
# One scalar is ill-conditioned: RAdam's ρ is about 5 when it is first used, and is a difference of numbers of about
# 2000, which brings p's error to about 1e-12 where the two compute powers of β₂ differently. Ten times that:
TOLERANCE = 1e-11


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(np.abs(a - b) <= TOLERANCE * np.maximum(np.abs(b).max(), np.abs(b))))


def trajectory(rule: Any, lrs: np.ndarray, steps: int = STEPS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run the rule at these learning rates; return p after the steps STORED, and the buffers after the last step."""
    if np.ptp(lrs):
        rule = dataclasses.replace(rule, lr=lambda t: float(lrs[t - 1]))
    ps, buffers = [], {}
    for buffers in run_steps(rule, START, gradient, steps, backend="reference"):
        ps.append(buffers["p"].copy())
    return np.array([ps[t - 1] for t in STORED if t <= steps]), buffers


@pytest.mark.parametrize("name", PEERS)
def test_a_rule_matches_the_recorded_trajectory_of_its_peer(name):
    peer = PEERS[name]
    rule, lrs = CASES[peer.case], RECORDED[f"{name}/lr"]
    assert np.ptp(lrs) or rule.lr == lrs[0]
    p, buffers = trajectory(rule, lrs)
    assert close(p, RECORDED[f"{name}/p"])
    for ours in peer.state:
        assert close(buffers[ours], RECORDED[f"{name}/{ours}"]), ours


@pytest.mark.parametrize("name", PEERS)
def test_the_installed_peer_matches_the_recorded_trajectory(name):
    peer = PEERS[name]
    pytest.importorskip(peer.library, reason=f"{peer.library} is not installed: only its record is compared")
    live = path(peer)
    assert close(live.lr, RECORDED[f"{name}/lr"])
    assert close(live.p, RECORDED[f"{name}/p"])
    for ours, x in live.state.items():
        assert close(x, RECORDED[f"{name}/{ours}"]), ours


def test_the_recorded_file_matches_the_table_of_peers():
    extra = {"versions", "start", "stored"}
    assert {key.split("/")[0] for key in RECORDED.files} == PEERS.keys() | extra
    assert np.array_equal(RECORDED["start"], START)
    assert RECORDED["stored"].tolist() == list(STORED)
    assert {text.split()[0] for text in RECORDED["versions"]} >= {peer.library for peer in PEERS.values()}


def perturbed(rule: Any) -> list[Any]:
    """Return the rules that differ from this one in one setting: a bool negated, or a number off by 1 % (0 by 0.01)."""

    def off(x: Any) -> Any:
        if isinstance(x, bool):
            return not x
        if isinstance(x, tuple):
            return None
        return 0.01 if not x else 0.99 * x

    near = []
    for f in dataclasses.fields(rule):
        x = getattr(rule, f.name)
        if is_rule(x):
            near += [{f.name: inner} for inner in perturbed(x)]
        elif isinstance(x, tuple):
            near += [{f.name: (*x[:k], off(x[k]), *x[k + 1 :])} for k in range(len(x))]
        else:
            near.append({f.name: off(x)})
    rules = []
    for change in near:
        try:
            rules.append(dataclasses.replace(rule, **change))
        except fastopt.SettingError:  # two settings that exclude each other
            continue
    return rules


def is_equivalent(rule: Any, other: Any) -> bool:
    """Whether the one setting that differs has no effect on these rules."""
    differs = [f.name for f in dataclasses.fields(rule) if getattr(rule, f.name) != getattr(other, f.name)]
    if differs == ["rule"]:
        return is_equivalent(rule.rule, other.rule)
    return (
        (differs in (["decoupled"], ["decoupled_weight_decay"]) and not rule.weight_decay)
        or (differs == ["eps_inside_sqrt"] and not rule.eps)
        or (differs == ["max_lr"] and not (rule.weight_decay and getattr(rule, "decoupled", True)))
        or (differs == ["momentum_decay"] and rule.momentum_decay == 1e6)  # decays completely either way
    )


@pytest.mark.parametrize("name", PEERS)
def test_a_rule_with_another_setting_does_not_match(name):
    rule, lrs = CASES[PEERS[name].case], RECORDED[f"{name}/lr"]
    for other in perturbed(rule):
        if not is_equivalent(rule, other) and not (np.ptp(lrs) and other.lr != rule.lr):
            p, buffers = trajectory(other, lrs)
            state = PEERS[name].state  # of which the other setting may not have all
            same = [ours in buffers and close(buffers[ours], RECORDED[f"{name}/{ours}"]) for ours in state]
            assert not (close(p, RECORDED[f"{name}/p"]) and all(same)), other


@pytest.mark.parametrize("name", PEERS)
def test_another_rule_does_not_match(name):
    # Within six steps: RAdam's first five are those of Momentum(bias_correction=True).
    rule, lrs = CASES[PEERS[name].case], RECORDED[f"{name}/lr"]
    for other in fastopt.rules.RULES.values():
        if other is not type(rule):
            assert not close(trajectory(other(lr=rule.lr), lrs, steps=6)[0], RECORDED[f"{name}/p"][:5]), other


# Rules and settings that none of the libraries has, as their source defines them. Each is a function of the gradients
# g₁ … gₜ so far, written with sums instead of recurrences wherever the two are mathematically the same.


def _nesterov(t: int, gs: list, *, corrected: bool, beta: float = 0.9, lr: float = 0.1) -> Any:
    average = sum((1 - beta) * beta ** (t - k) * g for k, g in enumerate(gs, 1))
    ahead = beta * average / (1 - beta ** (t + 1) if corrected else 1)
    return lr * (ahead + (1 - beta) * gs[-1] / (1 - beta**t if corrected else 1))


def _adam_scheduled(t: int, gs: list) -> Any:
    m = sum(0.1 * 0.9 ** (t - k) * g for k, g in enumerate(gs, 1))
    v = np.zeros_like(m)
    for k, g in enumerate(gs, 1):
        v = warming(k) * v + (1 - warming(k)) * g * g
    return halving(t) * m / (1 - 0.9**t) / (np.sqrt(v / (1 - warming(t) ** t)) + 1e-3)


def _average(t: int, beta: float, gs: list) -> Any:
    """Average with falling weights, corrected for its start."""
    return sum((1 - beta) * beta ** (t - k) * g for k, g in enumerate(gs, 1)) / (1 - beta**t)


def _laprop(t: int, gs: list) -> Any:
    squares = [g * g for g in gs]
    scaled = [g / (np.sqrt(_average(k, 0.999, squares[:k])) + 1e-3) for k, g in enumerate(gs, 1)]
    return halving(t) * _average(t, 0.9, scaled)


def _qhadam(t: int, gs: list) -> Any:
    m, v = 0.3 * gs[-1] + 0.7 * _average(t, 0.9, gs), 0.1 * gs[-1] ** 2 + 0.9 * _average(t, 0.999, [g * g for g in gs])
    return halving(t) * m / (np.sqrt(v) + 1e-3)


def _madgrad(t: int, gs: list) -> Any:
    weighted = [halving(k) * sqrt(k) * g for k, g in enumerate(gs, 1)]
    sums, squares = np.cumsum(weighted, 0), np.cumsum([w * g for w, g in zip(weighted, gs, strict=True)], 0)
    z = START - sums / (np.cbrt(squares) + 1e-3)
    # p is the start and all z so far, averaged with momentum.
    before, now = (0.9**n * START + sum(0.1 * 0.9 ** (n - k) * z[k - 1] for k in range(1, n + 1)) for n in (t - 1, t))
    return before - now


PUBLISHED = {
    "sgd-scheduled": lambda t, gs: halving(t) * gs[-1],
    "momentum-nesterov": lambda t, gs: _nesterov(t, gs, corrected=False),
    "momentum-nesterov-weight-decay": lambda t, gs: _nesterov(t, gs, corrected=False),
    "momentum-nesterov-bias-correction": lambda t, gs: _nesterov(t, gs, corrected=True),
    "adam-scheduled": _adam_scheduled,
    "laprop": _laprop,
    "qhadam": _qhadam,
    "madgrad": _madgrad,
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_rule_matches_its_published_formula(case):
    rule, p, gs = CASES[case], START, []
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS), 1):
        decoupled = hasattr(rule, "max_lr") and getattr(rule, "decoupled", True)
        gs.append(gradient(p, t) + (0.0 if decoupled else rule.weight_decay) * p)
        lr = rule.lr(t) if callable(rule.lr) else rule.lr
        p = p - PUBLISHED[case](t, gs) - (lr * rule.weight_decay if decoupled else 0.0) * p
        assert close(buffers["p"], p), t


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("noise-")])
def test_gradient_noise_equals_the_inner_rule_on_noisy_gradients(case):
    rule = CASES[case]
    p, seed = START, 3

    def noisy(p: np.ndarray, t: int) -> np.ndarray:
        # p ← 0 − 1 · (0 + 1 · z): the noise alone, negated.
        z = {"p": np.zeros(p.size), "g": np.zeros(p.size)}
        fastopt.update(fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=1.0, gamma=0.0), t, z, seed=seed)
        return gradient(p, t) + sqrt(rule.eta / (1 + t) ** rule.gamma) * -z["p"]

    pairs = zip(run_steps(rule, p, gradient, 20, seed=seed), run_steps(rule.rule, p, noisy, 20), strict=True)
    for ours, inner in pairs:
        assert np.array_equal(ours["p"], inner["p"])  # the same operations in the same order: no tolerance


def test_every_case_is_compared_with_something():
    # Rules around a rule: noise above, clips in test_totals, averages in test_ema, others in test_around. Rules with
    # totals: test_norms. What has an average, and what its caller refreshes: test_averaged.
    around = {case for case, rule in CASES.items() if isinstance(rule, Around)}
    with_totals = {case for case, rule in CASES.items() if trace(rule, "f64").totals}
    elsewhere = around | with_totals | {"gpaadamw", "sophiag"}
    assert {peer.case for peer in PEERS.values()} | PUBLISHED.keys() | elsewhere == CASES.keys()

"""The rules that take norms are correct: other libraries and published formulas go the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES
from norm_peers import PEERS, START, STEPS, STORED, flat, gradients, load, ours, rate
from test_trajectories import perturbed

import fastopt
from fastopt.kernels.compiler.trace import trace

RECORDED = np.load(Path(__file__).parent / "data" / "norm_trajectories.npz", allow_pickle=False)

# Both sides compute in float64 what is mathematically the same, in different orders. A step moves an element by at most
# 0.2 and has at most 60 roundings of 1.1e-16, those of norms included, and p is rounded once more: at most 1.5e-15 in a
# step, 1.7e-13 in all 120, of elements of size 1. The problem contracts, so errors shrink: measured are 4e-16.
TOLERANCE = 2e-13


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= TOLERANCE)


@pytest.mark.parametrize("name", PEERS)
def test_a_rule_follows_the_recorded_trajectory_of_its_peer(name):
    path = ours(PEERS[name].rule)
    for t, expected in zip(STORED, RECORDED[name], strict=True):
        assert close(path[t], expected), t


@pytest.mark.parametrize("name", PEERS)
def test_the_installed_peer_follows_its_recorded_trajectory(name):
    library = PEERS[name].library
    try:
        load(library)
    except ImportError:
        pytest.skip(f"{library} is not installed: only its record is compared")
    path = PEERS[name].path()
    for t, expected in zip(STORED, RECORDED[name], strict=True):
        assert close(path[t], expected), t


def test_the_recorded_file_matches_the_table_of_peers():
    assert set(RECORDED.files) == PEERS.keys() | {"versions", "stored"}
    assert RECORDED["stored"].tolist() == list(STORED)
    assert {text.split()[0] for text in RECORDED["versions"]} >= {peer.library.split(".")[0] for peer in PEERS.values()}


# As their source defines them: of one tensor, the parameter before each step so far, its gradients and the learning
# rates give what is subtracted from it. Written with sums instead of recurrences, and with NumPy's own norms.


def average(xs: Sequence[np.ndarray], beta: float) -> np.ndarray:
    """Return the average with weights βᵏ, k steps back."""
    weights = [beta ** (len(xs) - 1 - k) for k in range(len(xs))]
    return np.asarray(sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights))


def squares(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [x * x for x in xs]


def _lamb(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    m, v = average(gs, rule.betas[0]), average(squares(gs), rule.betas[1])
    u = m / (np.sqrt(v) + rule.eps) + rule.weight_decay * ps[-1]
    own, other = np.linalg.norm(ps[-1]), np.linalg.norm(u)
    return lrs[-1] * u * (own / other if own and other else 1.0)


def _lars(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    summed = []
    for p, g, lr in zip(ps, gs, lrs, strict=True):
        own, other = np.linalg.norm(p), np.linalg.norm(g)
        bottom = other + rule.weight_decay * own + rule.eps
        ratio = rule.trust_coefficient * own / bottom if own and other else 1.0
        summed.append(lr * ratio * (g + rule.weight_decay * p))
    m = sum(rule.momentum ** (len(summed) - 1 - k) * s for k, s in enumerate(summed))
    return np.asarray(rule.momentum * m + summed[-1] if rule.nesterov else m)


FORMULAS: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {
    "lamb": (CASES["lamb"], _lamb),
    "lamb-no-decay": (fastopt.LAMB(lr=0.01, betas=(0.8, 0.95)), _lamb),
    "lars": (CASES["lars"], _lars),
    "lars-nesterov": (fastopt.LARS(lr=0.5, trust_coefficient=0.02, eps=0.1, nesterov=True), _lars),
}


def formula(name: str) -> dict[int, np.ndarray]:
    """Follow a formula, tensor by tensor."""
    rule, of_tensor = FORMULAS[name]
    inner = rule if hasattr(rule, "lr") else rule.rule
    history = {tensor: ([x.copy()], []) for tensor, x in START.items()}
    lrs: list[float] = []
    path = {}
    for t in range(1, STEPS + 1):
        lrs.append(inner.lr * rate(t))
        found = gradients({tensor: ps[-1] for tensor, (ps, _) in history.items()}, t)
        for tensor, (ps, gs) in history.items():
            gs.append(found[tensor])
            ps.append(ps[-1] - of_tensor(rule, ps, gs, lrs))
        path[t] = flat({tensor: ps[-1] for tensor, (ps, _) in history.items()})
    return path


@pytest.mark.parametrize("name", FORMULAS)
def test_a_rule_follows_its_published_formula(name):
    expected = formula(name)
    for t, found in ours(FORMULAS[name][0]).items():
        assert close(found, expected[t]), t


@pytest.mark.parametrize("name", FORMULAS)
def test_a_rule_with_another_setting_goes_another_way(name):
    rule = FORMULAS[name][0]
    path = ours(rule, 40)[40]
    for other in perturbed(rule):
        if other.lr == rule.lr:
            assert not close(ours(other, 40)[40], path), other


def test_every_rule_with_totals_is_compared():
    with_totals = {case: rule for case, rule in CASES.items() if trace(rule, "f64").totals}
    compared = [peer.rule for peer in PEERS.values()] + [rule for rule, _ in FORMULAS.values()]
    assert with_totals
    for case, rule in with_totals.items():
        assert rule in compared, case
    assert {type(rule) for rule in with_totals.values()} <= {type(peer.rule) for peer in PEERS.values()}


@pytest.mark.parametrize("rule", [CASES["lamb"], CASES["lars"]], ids=lambda rule: type(rule).__name__)
def test_a_parameter_or_a_gradient_of_zero_takes_the_plain_step(rule):
    """Where a norm is zero the trust ratio is 1: no NaN, and p = 0 is left."""
    for p, g in ((np.zeros(300), np.ones(300)), (np.ones(300), np.zeros(300)), (np.zeros(300), np.zeros(300))):
        opt = fastopt.Optimizer(rule, {"w": p})
        opt.step({"w": g})
        moved = np.abs(opt.params["w"] - p).max()
        assert np.isfinite(moved)
        assert (moved > 0) == bool(g.any() or (p.any() and rule.weight_decay))


def test_fused_takes_norms_of_each_tensor_as_an_optimizer_does():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastopt.torch

    single = {name: x.astype(np.float32) for name, x in START.items()}
    for rule in (CASES["lamb"], CASES["lars"]):
        opt = fastopt.Optimizer(rule, single)
        params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in single.items()}
        fused = fastopt.torch.Fused(params.values(), rule)
        for t in range(1, 11):
            for name, g in gradients(opt.params, t).items():
                opt.grads[name][...] = g
                params[name].grad = torch.tensor(opt.grads[name])
            opt.step()
            fused.step()
        for name, p in params.items():
            assert np.array_equal(p.detach().numpy(), opt.params[name]), name


def test_settings_out_of_range_are_refused():
    for make in (fastopt.LAMB, fastopt.LARS):
        for setting in {f.name for f in dataclasses.fields(make)} - {"betas", "nesterov"}:
            wrong: Any = {setting: -0.1}
            with pytest.raises(fastopt.SettingError, match=setting):
                make(**wrong)

"""The rules that take norms are correct: other libraries and published formulas go the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES
from norm_peers import PEERS, START, STEPS, STORED, flat, gradients, load, lr_of, ours, rate
from test_trajectories import is_equivalent, perturbed

import fastopt
from fastopt.kernels.compiler.trace import trace

RECORDED = np.load(Path(__file__).parent / "data" / "norm_trajectories.npz", allow_pickle=False)

# Both sides compute in float64 what is mathematically the same, in different orders. A step moves an element by at most
# 0.2 and has at most 60 roundings of 1.1e-16, those of norms included, and p is rounded once more: at most 1.5e-15 in a
# step, 1.7e-13 in all 120, of elements of size 1. The problem contracts, so errors shrink: measured are 1e-15,
# and 1e-14 of Prodigy, whose d passes errors on to all later steps.
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


def _cautious(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    inner, decay = rule.rule, lrs[-1] * rule.weight_decay * ps[-1]
    m, v = average(gs, inner.betas[0]), average(squares(gs), inner.betas[1])
    step = lrs[-1] * m / (np.sqrt(v) + inner.eps)
    mask = step * gs[-1] > 0
    return decay + np.where(mask, step, 0.0) / max(np.mean(mask), 1e-3)


def _stableadamw(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    m, v = average(gs, rule.betas[0]), average(squares(gs), rule.betas[1])
    rms = np.sqrt(np.mean(gs[-1] ** 2 / np.maximum(v, rule.eps**2)))
    return lrs[-1] / max(1.0, float(rms)) * (m / (np.sqrt(v) + rule.eps) + rule.weight_decay * ps[-1])


def _mars(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    beta1, beta2 = rule.betas
    cs = []
    for g, before in zip(gs, [gs[0], *gs], strict=False):
        c = g + rule.gamma * beta1 / (1 - beta1) * (g - before)
        cs.append(c / max(1.0, float(np.linalg.norm(c))))
    m, v = average(cs, beta1), average(squares(cs), beta2)
    return lrs[-1] * (m / (np.sqrt(v) + rule.eps) + rule.weight_decay * ps[-1])


def _novograd(rule: Any, ps: list, gs: list, lrs: list) -> np.ndarray:
    beta1, beta2 = rule.betas
    v, m = float(np.sum(gs[0] ** 2)), np.zeros_like(ps[0])
    for k, (p, g) in enumerate(zip(ps, gs, strict=True)):
        v += (1 - beta2) * (float(np.sum(g**2)) - v) * (k > 0)
        m += beta1 ** (len(gs) - 1 - k) * (g / (v**0.5 + rule.eps) + rule.weight_decay * p)
    return lrs[-1] * m


FORMULAS: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {
    "lamb": (CASES["lamb"], _lamb),
    "lamb-no-decay": (fastopt.LAMB(lr=0.01, betas=(0.8, 0.95)), _lamb),
    "lars": (CASES["lars"], _lars),
    "cautious-adam": (CASES["cautious-adam"], _cautious),
    "cautious-adam-no-decay": (fastopt.Cautious(fastopt.Adam(lr=0.01, betas=(0.95, 0.9), eps=1e-3)), _cautious),
    "stableadamw": (CASES["stableadamw"], _stableadamw),
    "stableadamw-no-decay": (fastopt.StableAdamW(lr=0.01, betas=(0.8, 0.999), eps=1e-2), _stableadamw),
    "mars": (CASES["mars"], _mars),
    "mars-no-decay": (fastopt.MARS(lr=0.01), _mars),
    "novograd": (CASES["novograd"], _novograd),
    "novograd-no-decay": (fastopt.NovoGrad(lr=0.01, betas=(0.5, 0.9)), _novograd),
    "lars-nesterov": (CASES["lars-nesterov"], _lars),
    "lars-nesterov-no-decay": (fastopt.LARS(lr=0.5, trust_coefficient=0.02, eps=0.1, nesterov=True), _lars),
}


def formula(name: str) -> dict[int, np.ndarray]:
    """Follow a formula, tensor by tensor."""
    rule, of_tensor = FORMULAS[name]
    history = {tensor: ([x.copy()], []) for tensor, x in START.items()}
    lrs: list[float] = []
    path = {}
    for t in range(1, STEPS + 1):
        lrs.append(lr_of(rule) * rate(t))
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


PRODIGY = {
    "prodigy": CASES["prodigy"],
    "prodigy-no-decay": fastopt.Prodigy(lr=0.5, betas=(0.8, 0.99), d0=1e-3, d_coef=0.5),
}


def summed(xs: Sequence[Any], beta: float) -> Any:
    """Return the sum with weights βᵏ, k steps back."""
    return sum(beta ** (len(xs) - 1 - k) * x for k, x in enumerate(xs))


@pytest.mark.parametrize("name", PRODIGY)
def test_prodigy_follows_its_published_formula(name):
    """One vector of all parameters, and d as its next step sees it."""
    rule = PRODIGY[name]
    (beta1, beta2), beta3 = rule.betas, rule.betas[1] ** 0.5
    params = {tensor: x.copy() for tensor, x in START.items()}
    first, d, estimates = flat(START), rule.d0, [rule.d0]
    gs, products, numerators = [], [], []
    path = ours(rule)
    for t in range(1, STEPS + 1):
        lr, p = rule.lr * rate(t), flat(params)
        gs.append(d * flat(gradients(params, t)))
        products.append(lr * d * gs[-1])
        numerators.append(lr * d * float(gs[-1] @ (first - p)))
        m, v = (1 - beta1) * summed(gs, beta1), (1 - beta2) * summed(squares(gs), beta2)
        p = p - lr * d * (m / (np.sqrt(v) + d * rule.eps) + rule.weight_decay * p)
        d = max(d, rule.d_coef * summed(numerators, beta3) / float(np.abs(summed(products, beta3)).sum()))
        estimates.append(d)
        ends = np.cumsum([x.size for x in START.values()])
        params = {k: x.reshape(START[k].shape) for k, x in zip(START, np.split(p, ends), strict=False)}
        assert close(path[t], p), t
    assert len(set(estimates)) > 5


def test_prodigy_has_one_d_for_all_groups():
    groups = {"bias": {"weight_decay": 0.0}, "t*": {"lr": 0.25}}
    opt = fastopt.Optimizer(CASES["prodigy"], START, groups=groups)
    for t in range(1, 40):
        opt.step(gradients(opt.params, t))
    assert len({float(d) for x in opt.state("d").values() for d in x.ravel()}) == 1
    assert float(opt.state("d")["scalar"]) > 2 * CASES["prodigy"].d0
    for name, x in opt.state("p0").items():
        assert np.array_equal(x, START[name])


def test_where_prodigy_starts_cannot_follow_a_schedule():
    with pytest.raises(fastopt.SettingError, match="cannot follow a schedule"):
        fastopt.Prodigy(d0=rate)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*FORMULAS, *PRODIGY])
def test_a_rule_with_another_setting_goes_another_way(name):
    rule = PRODIGY[name] if name in PRODIGY else FORMULAS[name][0]
    path = ours(rule, 12)[12]
    for other in perturbed(rule):
        if lr_of(other) == lr_of(rule) and not is_equivalent(rule, other):
            assert not close(ours(other, 12)[12], path), other


def test_every_rule_with_totals_is_compared():
    with_totals = {case: rule for case, rule in CASES.items() if trace(rule, "f64").totals}
    compared = [peer.rule for peer in PEERS.values()] + [rule for rule, _ in FORMULAS.values()] + [*PRODIGY.values()]
    assert with_totals
    for case, rule in with_totals.items():
        assert rule in compared, case
    assert {type(rule) for rule in with_totals.values()} <= {type(peer.rule) for peer in PEERS.values()}


def test_caution_moves_no_element_against_the_gradient():
    rule = fastopt.Cautious(fastopt.Momentum(lr=0.1, beta=0.9))
    opt, waited = fastopt.Optimizer(rule, START), 0
    for t in range(1, 40):
        before, found = flat(opt.params), gradients(opt.params, t)
        opt.step(found)
        moved = flat(opt.params) - before
        waited += int(np.sum((moved == 0) & (flat(found) != 0)))
        assert not np.any(moved * flat(found) > 0)
    assert waited > 100


def test_caution_leaves_the_state_of_the_rule_alone():
    path = [gradients(START, t) for t in range(1, 20)]
    cautious, alone = (fastopt.Optimizer(rule, START) for rule in (fastopt.Cautious(CASES["adam"]), CASES["adam"]))
    for found in path:
        cautious.step(found)
        alone.step(found)
    for name in ("m", "v"):
        for tensor, x in cautious.state(name).items():
            assert np.array_equal(x, alone.state(name)[tensor]), (name, tensor)


@dataclasses.dataclass(frozen=True)
class InPlace:
    """A rule that changes its arguments in place, and whose learning rate has another name."""

    rate: float = 0.1

    def scalars(self, t: int) -> dict[str, float]:
        return {"rate": self.rate}

    def update(self, p: Any, g: Any, *, rate: Any) -> Any:
        g += p
        p -= rate * g
        return p


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_caution_around_a_rule_that_works_in_place(backend):
    p, g = np.array([1.0, -1.0, 1.0, -1.0]), np.array([1.0, 1.0, -3.0, 0.5])
    fastopt.update(fastopt.Cautious(InPlace()), 1, {"p": p, "g": g}, backend=backend)
    # g + p = (2, 0, −2, −0.5): the first and the third agree with g in sign, half of them: twice 0.1 · (g + p).
    np.testing.assert_allclose(p, [1 - 0.4, -1.0, 1 + 0.4, -1.0], rtol=1e-15)
    assert g.tolist() == [1.0, 1.0, -3.0, 0.5]


def test_decay_of_caution_needs_a_learning_rate():
    with pytest.raises(fastopt.SettingError, match="no setting lr") as caught:
        fastopt.Cautious(InPlace(), weight_decay=0.1)
    assert caught.value.where == "Cautious"
    nested = fastopt.Cautious(fastopt.ClipByValue(fastopt.SGD(lr=lambda t: 0.5 * t), 1.0), weight_decay=0.1)
    p = np.ones(3)
    for t in (1, 2):
        fastopt.update(nested, t, {"p": p, "g": np.zeros(3)})
    np.testing.assert_allclose(p, 0.95 * 0.9, rtol=1e-15)


@pytest.mark.parametrize("storage", ["f32", "split"])
def test_the_second_moment_of_novograd_is_one_number_for_each_tensor(storage):
    single = {name: x.astype(np.float32) for name, x in START.items()}
    opt = fastopt.Optimizer(fastopt.NovoGrad(lr=0.01), single, storage=storage)
    for t in range(1, 21):
        for name, g in gradients(single, t).items():
            opt.grads[name][...] = g.astype(opt.grads[name].dtype)
        opt.step()
    found = opt.state("v")
    assert len({float(x.max()) for x in found.values()}) == len(single)
    for name, x in found.items():
        assert np.ptp(x) == 0, name


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
    for rule in (CASES["lamb"], CASES["cautious-adam"], CASES["novograd"]):
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
    for make in (fastopt.LAMB, fastopt.LARS, fastopt.StableAdamW, fastopt.MARS, fastopt.NovoGrad, fastopt.Prodigy):
        for setting in {f.name for f in dataclasses.fields(make)} - {"betas", "nesterov", "bias_correction"}:
            wrong: Any = {setting: -0.1}
            with pytest.raises(fastopt.SettingError, match=setting):
                make(**wrong)

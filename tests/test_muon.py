"""Muon: beside torch's and optax's, and its formula; which rule each tensor has; the same bits but for the products."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cuda_matrix import ARCHITECTURES
from test_matrixwise import STORAGES, assert_same_steps, stepped
from test_totals import compile_phases, needs_gpp

import fastopt
from fastopt import ClipByGlobalNorm, Muon, SettingError
from fastopt.kernels.rules.muon import COEFFICIENTS, NewtonSchulz

SHAPES = {"wide": (4, 7), "tall": (9, 3), "square": (6, 6), "more": (4, 7)}
START = {k: np.cos(np.arange(np.prod(s), dtype=float) + n).reshape(s) for n, (k, s) in enumerate(SHAPES.items())}
STEPS = 100


def gradients(params: Any, t: int) -> dict[str, np.ndarray]:
    """Of an ill-conditioned quadratic, and a term that varies irregularly with t."""
    found = {}
    for name, p in params.items():
        i = np.arange(p.size).reshape(p.shape)
        found[name] = 2.0 ** (i % 9 - 6) * (p - 0.5) + ((7 * t + 5 * i) % 11 - 5) / 8
    return found


def rate(t: int) -> float:
    return (0.5 + ((3 * t) % 7) / 8) * (1 - t / (2 * STEPS))


def ours(rule: Muon, backend: str = "reference") -> dict[str, np.ndarray]:
    opt = fastopt.Optimizer(dataclasses.replace(rule, lr=lambda t: rule.lr * rate(t)), START, backend=backend)
    for t in range(1, STEPS + 1):
        opt.step(gradients(opt.params, t))
    return {name: p.copy() for name, p in opt.params.items()}


def assert_close(found: Any, expected: Any) -> None:
    """Another order of operations in float64: over 100 steps errors of 2⁻⁵² grow, by products of 5 steps, below 1e4."""
    for name, p in expected.items():
        np.testing.assert_allclose(found[name], p, rtol=0, atol=1e-11, err_msg=name)


RULES = {
    "default": Muon(lr=0.02),
    "plain": Muon(lr=0.02, nesterov=False, weight_decay=0.0),
    "adjusted": Muon(lr=0.05, adjust_lr_fn="match_rms_adamw", weight_decay=0.5, momentum=0.8),
    "steps": Muon(lr=0.02, ns_steps=3, ns_coefficients=(1.5, -0.5, 0.0), eps=0.5),
}


def slowly(rule: Muon) -> dict[str, np.ndarray]:
    """Follow the formula, with singular values in place of products of matrices."""
    ps, ms = {k: p.copy() for k, p in START.items()}, {k: np.zeros_like(p) for k, p in START.items()}
    a, b, c = rule.ns_coefficients
    for t in range(1, STEPS + 1):
        lr = rule.lr * rate(t)
        for name, g in gradients(ps, t).items():
            p, m = ps[name], ms[name]
            m += (1 - rule.momentum) * (g - m)
            u = (1 - rule.momentum) * g + rule.momentum * m if rule.nesterov else m
            left, s, right = np.linalg.svd(u / max(np.linalg.norm(u), rule.eps), full_matrices=False)
            for _ in range(rule.ns_steps):
                s = a * s + b * s**3 + c * s**5
            rows, columns = p.shape
            scale = max(1, rows / columns) ** 0.5 if rule.adjust_lr_fn is None else 0.2 * max(rows, columns) ** 0.5
            p -= lr * rule.weight_decay * p + lr * scale * (left * s) @ right
    return ps


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_it_follows_its_formula(name, backend):
    assert_close(ours(RULES[name], backend), slowly(RULES[name]))


@pytest.mark.parametrize("name", RULES)
def test_it_follows_torch(name, monkeypatch):
    """Whose products, in bfloat16, are replaced by the same ones in float64."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    theirs: Any = pytest.importorskip("torch.optim._muon", reason="this torch has no Muon")

    def in_float64(x: Any, coefficients: Any, steps: int, eps: float) -> Any:
        made = x.T if x.shape[0] > x.shape[1] else x
        made = made / made.norm().clamp(min=eps)
        a, b, c = coefficients
        for _ in range(steps):
            gram = made @ made.T
            made = a * made + (b * gram + c * gram @ gram) @ made
        return made.T if x.shape[0] > x.shape[1] else made

    monkeypatch.setattr(theirs, "_zeropower_via_newtonschulz", in_float64)
    rule = RULES[name]
    ps = {k: torch.nn.Parameter(torch.from_numpy(p.copy())) for k, p in START.items()}
    own = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}
    options = {k: v for k, v in own.items() if k not in ("aux", "aux_for", "ns_dtype", "lr")}
    opt = torch.optim.Muon(ps.values(), **options)
    for t in range(1, STEPS + 1):
        opt.param_groups[0]["lr"] = rule.lr * rate(t)
        for k, g in gradients({k: p.detach().numpy() for k, p in ps.items()}, t).items():
            ps[k].grad = torch.from_numpy(g)
        opt.step()
    assert_close(ours(rule), {k: p.detach().numpy() for k, p in ps.items()})


@pytest.mark.parametrize("coefficients", [COEFFICIENTS, (2.0, -1.5, 0.5)])
def test_singular_values_come_near_one(coefficients):
    rng = np.random.default_rng(0)
    for shape in ((2, 20, 50), (3, 50, 20), (1, 1, 1), (1, 30, 30)):
        x = rng.standard_normal(shape)
        x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
        kept = x.copy()
        s = np.linalg.svd(NewtonSchulz(12 if coefficients[2] == 0.5 else 5, coefficients)(x), compute_uv=False)
        low = (
            0.3 if coefficients is COEFFICIENTS else 0.99
        )  # the former's slope at zero is 3.4⁵; 30 × 30 has small ones
        scale = (shape[1] / shape[2]) ** 0.5 if shape[1] > shape[2] else 1.0
        assert (s / scale).max() < 1.21
        assert np.median(s / scale) > low
        assert np.array_equal(x, kept)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["default", "adjusted"])
def test_steps_have_the_bits_of_the_reference(name, storage):
    assert_same_steps(RULES[name], "cpu", storage)


@needs_gpp
@pytest.mark.parametrize("storage", ["f32", "split_8bit"])
def test_a_device_has_the_bits_of_the_reference(storage, cupy):
    assert_same_steps(RULES["default"], "cuda", storage)


@pytest.mark.parametrize("storage", ["f32", "f64", "split_8bit"])
def test_its_kernels_compile_for_the_oldest_and_the_newest_architecture(storage):
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is called through it")
    for architecture in (min(ARCHITECTURES), max(ARCHITECTURES)):
        compile_phases(Muon(), storage, architecture)


# --- the rule of each tensor


VALUES = {"embed.weight": np.ones((10, 4)), "w": np.ones((4, 4)), "norm": np.ones(4), "scale": np.ones(())}


def rules_of(opt: fastopt.Optimizer) -> dict[str, Any]:
    return {name: group.plan.rule for group in opt._groups for name in group.shapes}


@pytest.mark.parametrize("around", [lambda rule: rule, lambda rule: ClipByGlobalNorm(rule, max_norm=1.0)])
def test_what_is_no_matrix_and_what_is_named_has_the_other_rule(around):
    aux = fastopt.Adam(lr=0.01)
    rule = around(Muon(lr=0.1, aux=aux, aux_for=("embed*",)))
    opt = fastopt.Optimizer(rule, VALUES, groups={"scale": {"weight_decay": 0.5}})
    assert rules_of(opt) == {"embed.weight": around(aux), "norm": around(aux), "scale": around(aux),
                             "w": around(Muon(lr=0.1))}  # fmt: skip
    assert set(opt.state("m")) == set(VALUES)
    assert set(opt.state("v")) == set(VALUES) - {"w"}
    opt.step({name: np.ones_like(x) for name, x in VALUES.items()})
    again = fastopt.Optimizer(rule, VALUES, groups={"scale": {"weight_decay": 0.5}})
    again.load_state_dict(opt.state_dict())
    for each in (opt, again):
        each.step({name: np.full_like(x, 0.5) for name, x in VALUES.items()})
    assert all(np.array_equal(again.params[name], p) for name, p in opt.params.items())


def test_a_group_may_have_a_rule_of_its_own():
    groups = {"embed*": fastopt.SGD(lr=0.1), "w": {"lr": 0.5}}
    rules = rules_of(fastopt.Optimizer(Muon(aux=fastopt.Lion()), VALUES, groups=groups))
    assert rules == {"embed.weight": fastopt.SGD(lr=0.1), "w": Muon(lr=0.5), "norm": fastopt.Lion(),
                     "scale": fastopt.Lion()}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ns_steps": 0}, "ns_steps"),
        ({"ns_steps": 2.0}, "ns_steps"),
        ({"ns_steps": 100}, "from 1 to 99"),
        ({"aux_for": (3,), "aux": fastopt.Adam()}, "aux_for"),
        ({"aux": Muon()}, "Muon is for matrices"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients"),
        ({"ns_coefficients": (1.0, 2.0, float("nan"))}, "ns_coefficients"),
        ({"adjust_lr_fn": "rms"}, "adjust_lr_fn"),
        ({"ns_dtype": "float16"}, "ns_dtype"),
        ({"momentum": 1.0}, "momentum"),
        ({"eps": 0.0}, "eps"),
        ({"aux_for": "embed*", "aux": fastopt.Adam()}, "aux_for"),
        ({"aux_for": ("embed*",)}, "there is none"),
        ({"aux": fastopt.Adam}, "a rule's class"),
    ],
)
def test_settings_out_of_their_range_are_refused(settings, message):
    with pytest.raises(fastopt.FastoptError, match=message):
        Muon(**settings)


def test_mistakes_are_found_when_the_optimizer_is_built():
    with pytest.raises(SettingError, match="fits no parameter") as caught:
        fastopt.Optimizer(Muon(aux=fastopt.Adam(), aux_for=("embd*",)), VALUES)
    assert "embed.weight" in str(caught.value)
    with pytest.raises(fastopt.LayoutError, match="fewer than two dimensions") as caught:
        fastopt.Optimizer(Muon(), VALUES)
    assert "aux=" in str(caught.value)


def test_products_in_bfloat16_are_torchs():
    opt = fastopt.Optimizer(Muon(ns_dtype="bfloat16"), {"w": np.ones((3, 2), np.float32)})
    with pytest.raises(SettingError, match="torch's"):
        opt.step({"w": np.ones((3, 2), np.float32)})
    assert (opt.params["w"] == 1).all()


def test_nan_and_infinite_gradients_spoil_their_own_matrix_alone():
    values = {"a": np.ones((3, 4), np.float32), "b": np.ones((3, 4), np.float32)}
    for bad in (np.nan, np.inf):
        found = []
        for backend in ("reference", "cpu"):
            opt = fastopt.Optimizer(Muon(lr=0.1), values, backend=backend)
            grads = {name: x.copy() for name, x in values.items()}
            grads["a"][1, 2] = bad
            opt.step(grads)
            assert np.isnan(opt.params["a"]).all()
            found.append(opt.params["b"].copy())
        assert np.array_equal(*found)
        assert np.isfinite(found[0]).all()


def test_it_minimises_a_quadratic_of_a_matrix():
    """½‖A (P − M)‖² with curvatures from 1 to 16; steps do not shrink with the gradient, so it ends within a few steps.

    The learning rate falls from 0.1 to 1e-4 in 600 steps; a rule that forgets its state, or ascends, ends elsewhere.
    """
    rng = np.random.default_rng(0)
    target, curvature = rng.standard_normal((5, 3)), 2.0 ** np.arange(5)[:, None]
    rule = Muon(lr=lambda t: 0.1 * 10 ** (-3 * t / 600), weight_decay=0.0)
    for sign, near in ((1.0, True), (-1.0, False)):
        opt = fastopt.Optimizer(rule, {"p": np.zeros((5, 3))})
        for _ in range(600):
            opt.step({"p": sign * curvature * (opt.params["p"] - target)})
        assert bool(np.abs(opt.params["p"] - target).max() < 0.01) is near


def test_many_matrices_are_one_launch():
    shapes = {f"w{k}": (8, 8) if k % 2 else (4, 16) for k in range(300)}
    opt = stepped(Muon(), "cpu", shapes=shapes)
    assert len({id(group.launch) for group in opt._groups}) == 1
    alone = stepped(Muon(), "reference", shapes=shapes)
    assert all(np.array_equal(alone.params[name], p) for name, p in opt.params.items())

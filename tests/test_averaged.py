"""Averages for evaluation of every rule that has them, GPA-AdamW, and state that the caller refreshes, as Sophia's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import CASES, halving, run_steps
from peers import START, STEPS, gradient

import fastopt
from fastopt import LayoutError, SettingError


def average(xs: list[np.ndarray], beta: float) -> Any:
    """Average with weights βᵏ, k steps back, corrected for its start."""
    t = len(xs)
    return sum((1 - beta) * beta ** (t - 1 - k) * x for k, x in enumerate(xs)) / (1 - beta**t)


RULES = [
    CASES["gpaadamw"],
    fastopt.GPAAdamW(lr=halving, betas=(0.5, 0.9), train_interp_coeff=0.3, eval_interp_coeff=0.5, eps=1e-2),
    fastopt.GPAAdamW(lr=0.01, eps=1e-3, train_interp_coeff=1.0, eval_interp_coeff=0.99),
]


@pytest.mark.parametrize("rule", RULES)
def test_gpa_is_three_sequences(rule):
    """As in the paper: x, y and z, of which the rule stores two. Over 100 steps roundings of 1e-16 add up to 1e-13."""
    x, z, gs, ys = START, START, [], START
    mu_y, mu_x = rule.train_interp_coeff, rule.eval_interp_coeff
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        gs.append(gradient(ys, t))
        m, v = average(gs, rule.betas[0]), average([g * g for g in gs], rule.betas[1])
        d = m / (np.sqrt(v) + rule.eps) + rule.weight_decay * z
        z = z - (rule.lr(t) if callable(rule.lr) else rule.lr) * d
        x = mu_x * x + (1 - mu_x) * z
        for found, expected in (
            (buffers["z"], z),
            (buffers["p"], mu_y * x + (1 - mu_y) * z),
            (rule.averaged(buffers["p"], buffers["z"]), x),
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
        ys = buffers["p"].copy()


def test_gpa_at_the_end_of_its_coefficients_is_adamw():
    """With μ_x = 0 the average is z itself, and so is y."""
    adam = fastopt.Adam(lr=0.01, eps=1e-3, weight_decay=0.1)
    gpa = fastopt.GPAAdamW(lr=0.01, eps=1e-3, weight_decay=0.1, eval_interp_coeff=0.0)
    steps = zip(run_steps(gpa, START, gradient, 50), run_steps(adam, START, gradient, 50), strict=True)
    for ours, other in steps:
        np.testing.assert_allclose(ours["p"], other["p"], rtol=0, atol=1e-13)


# y and x of GPAAdamW of facebookresearch/optimizers after 100 steps of `gradient`, in float64, with the settings of the
# test below; its moments, which it makes in float32, were put into its state before. It has no package.
THEIRS = {
    "y": [0.40897820655709854, 0.02559484197873571, -0.005964624414252273, -0.047673512931274475,
          -0.41241898855819414, 0.42061437957104364, 0.04421992161684111, 0.07150919464539035,
          0.013377533759281388, -0.40032616970062573, 0.4641839753284347, 0.374081862052406],
    "x": [0.4092265921289177, 0.025678951790645672, -0.005971621344009328, -0.04776208156329095,
          -0.4126595642773473, 0.42086000959408837, 0.04428317797757759, 0.0715182816518295,
          0.013235145190470641, -0.4005802458406464, 0.46434567696726725, 0.3740707107037343],
}  # fmt: skip


def test_gpa_goes_where_its_authors_code_goes():
    rule = fastopt.GPAAdamW(lr=lambda t: 0.02 * 0.97 ** (t - 1), eps=1e-3, eval_interp_coeff=0.5)
    *_, buffers = run_steps(rule, START, gradient, STEPS, backend="reference")
    np.testing.assert_allclose(buffers["p"], THEIRS["y"], rtol=0, atol=1e-11)  # as of other peers: test_trajectories
    np.testing.assert_allclose(rule.averaged(buffers["p"], buffers["z"]), THEIRS["x"], rtol=0, atol=1e-11)
    other = fastopt.GPAAdamW(lr=rule.lr, eps=1e-3, eval_interp_coeff=0.505)
    *_, buffers = run_steps(other, START, gradient, STEPS, backend="reference")
    assert not np.allclose(buffers["p"], THEIRS["y"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["train_interp_coeff", "eval_interp_coeff"])
def test_gpas_coefficients_are_numbers_in_their_range(name):
    for wrong in (halving, -0.1, 1.1):
        with pytest.raises(SettingError, match=name):
            fastopt.GPAAdamW(**{name: wrong})  # type: ignore[arg-type]


def test_sophia_takes_newton_steps_of_bounded_size():
    """As the authors' code: a refresh every five steps, of a gradient that is not the step's."""
    rule = fastopt.SophiaG(lr=halving, betas=(0.9, 0.8), rho=0.05, weight_decay=0.2, batch_size=3.0)
    opt = fastopt.Optimizer(rule, {"w": START})
    p, gs, estimates, clipped = START, [], [np.zeros_like(START)], []
    for t in range(1, STEPS + 1):
        if t % 5 == 2:
            found = np.cos(np.arange(START.size) + t)
            estimates.append(0.8 * estimates[-1] + 0.2 * found**2)
            opt.assign_state("h", {"w": rule.refreshed(opt.state("h")["w"], found)})
        gs.append(gradient(p, t))
        m = (1 - 0.9**t) * average(gs, 0.9)
        with np.errstate(divide="ignore"):
            newton = np.abs(m) / (0.05 * 3.0 * estimates[-1])
        clipped.append(newton > 1)
        p = (1 - 0.2 * halving(t)) * p - halving(t) * np.sign(m) * np.minimum(newton, 1)
        opt.step({"w": gradient(opt.params["w"], t)})
        np.testing.assert_allclose(opt.params["w"], p, rtol=0, atol=1e-11)
        np.testing.assert_allclose(opt.state("h")["w"], estimates[-1], rtol=1e-14)
    assert 0.2 < np.mean(clipped[5:]) < 0.9


def test_sophia_goes_where_another_library_goes():
    """pytorch_optimizer's SophiaH, told the estimate: with ĝ² for it, it is Sophia-G of another rate and bound.

    lr · min(1, |m| / (γ h)) = (lr/γ) · min(γ, |m| / h), so lr and λ are scaled by γ = ρ B. Its ε is below 10⁻¹⁵ too.
    """
    library: Any = pytest.importorskip(
        "pytorch_optimizer", reason="pytorch_optimizer is not installed: see the formula"
    )
    torch: Any = pytest.importorskip("torch")
    gamma, lr = 0.15, 0.02
    settings = {"betas": (0.9, 0.8), "rho": 0.05, "weight_decay": 0.2, "batch_size": 3.0}
    rule = fastopt.SophiaG(lr=lambda t: lr * 0.97 ** (t - 1), **settings)
    p = torch.nn.Parameter(torch.tensor(START))
    theirs = library.SophiaH(
        [p], lr=lr / gamma, betas=(0.9, 0.8), weight_decay=0.2 * gamma, p=gamma, eps=1e-15, update_period=10**9
    )
    opt = fastopt.Optimizer(rule, {"w": START})
    for t in range(1, STEPS + 1):
        theirs.param_groups[0]["lr"] = lr / gamma * 0.97 ** (t - 1)
        found = np.cos(np.arange(START.size) + t) if t % 5 == 1 else None
        p.grad = torch.tensor(gradient(p.detach().numpy(), t))
        theirs.step(hessian=None if found is None else [torch.tensor(found**2)])
        if found is not None:
            opt.assign_state("h", {"w": rule.refreshed(opt.state("h")["w"], found)})
        opt.step({"w": gradient(opt.params["w"], t)})
        np.testing.assert_allclose(opt.params["w"], p.detach().numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("storage", ["f32", "8bit", "bf16"])
def test_state_that_is_assigned_is_stored_and_saved(storage, backend):
    rule = fastopt.SophiaG(lr=0.1, rho=1.0)
    values = {"w": np.ones(700, np.float32), "b": np.ones(3, np.float32)}
    opt = fastopt.Optimizer(rule, values, storage=storage, backend=backend)
    h = {"w": np.full(700, 0.25, np.float32)}
    opt.assign_state("h", h)
    assert np.array_equal(opt.state("h")["w"], h["w"])
    assert not opt.state("h")["b"].any()
    opt.step({name: np.full(x.shape, 0.01, opt.grads[name].dtype) for name, x in values.items()})
    assert np.array_equal(opt.state("h")["w"], h["w"])
    again = fastopt.Optimizer(rule, values, storage=storage, backend=backend)
    again.load_state_dict(opt.state_dict())
    assert np.array_equal(again.state("h")["w"], h["w"])


def test_what_does_not_fit_is_not_assigned():
    opt = fastopt.Optimizer(fastopt.SophiaG(), {"w": np.ones(3)})
    for name, value, message in (
        ("h", {"w": np.ones(2)}, "state 'h' of 'w'"),
        ("h", {"v": np.ones(3)}, "state 'h'"),
        ("h", {"w": np.ones(3, np.float32)}, "state 'h' of 'w'"),
        ("v", {"w": np.ones(3)}, "no state 'v'"),
        ("p", {"w": np.ones(3)}, "no state 'p'"),
    ):
        with pytest.raises(LayoutError, match=message):
            opt.assign_state(name, value)
    assert not opt.state("h")["w"].any()


# --- Optimizer.averaged


@pytest.mark.parametrize("storage", ["f32", "split_8bit", "bf16"])
@pytest.mark.parametrize("case", ["schedulefreesgd", "schedulefreeadamw", "gpaadamw"])
def test_the_average_of_a_rule_stands_in_place_of_its_parameters(case, storage):
    rule: Any = fastopt.ClipByGlobalNorm(CASES[case], max_norm=1.0)
    opt = fastopt.Optimizer(rule, {"w": START.astype(np.float32)}, storage=storage, groups={"w": {}})
    for _ in range(3):
        opt.step({"w": np.ones(START.shape, opt.grads["w"].dtype)})
    before, own = opt.master()["w"], opt.params["w"].copy()
    expected = CASES[case].averaged(before, opt.state("z")["w"])
    with opt.averaged():
        assert np.array_equal(opt.master()["w"], expected if storage != "bf16" else opt.params["w"])
        np.testing.assert_allclose(opt.params["w"].astype(np.float32), expected, rtol=2.0**-8)
        assert not np.array_equal(opt.params["w"], own)
        with pytest.raises(SettingError, match="in place"):
            opt.assign_state("z", {"w": before})
    assert np.array_equal(opt.master()["w"], before)
    assert np.array_equal(opt.params["w"], own)


def test_groups_without_an_average_stay_as_they_are():
    groups = {"b": fastopt.SGD(lr=1.0)}
    opt = fastopt.Optimizer(fastopt.EMA(fastopt.SGD(lr=1.0), 0.5), {"w": np.zeros(2), "b": np.zeros(2)}, groups=groups)
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    with opt.averaged():
        np.testing.assert_allclose(opt.params["w"], -5 / 3)
        assert (opt.params["b"] == -2).all()
    with (
        pytest.raises(SettingError, match="no rule keeps averages"),
        fastopt.Optimizer(fastopt.GradientNoise(fastopt.SGD()), {"w": np.ones(2)}).averaged(),
    ):
        pass


def test_a_rule_of_ones_own_says_what_its_average_is():
    @dataclass(frozen=True)
    class Mean:
        """SGD, and the sum of its iterates."""

        lr: float = 1.0

        def scalars(self, t):
            return {"lr": self.lr}

        def update(self, p, g, sums, *, lr):
            p = p - lr * g
            return p, sums + p

        def averaged(self, sums):
            return sums / 3

    opt = fastopt.Optimizer(Mean(), {"w": np.zeros(2)})
    for _ in range(3):
        opt.step({"w": np.ones(2)})
    with opt.averaged():
        assert (opt.params["w"] == -2).all()
    assert (opt.params["w"] == -3).all()

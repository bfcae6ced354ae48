"""EMA: the average of the parameters, beside its formula and torch's AveragedModel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import CASES, fresh_buffers
from values import assert_same_bits

import fastopt
from fastopt import EMA, RuleError, SettingError

N = 300


def gradient(t: int) -> np.ndarray:
    return np.random.default_rng(t).standard_normal(N)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", ["sgd-weight-decay", "adam-amsgrad", "rmsprop-centered-momentum", "adagrad-initial"])
def test_parameters_and_state_are_those_of_the_rule_alone(case, backend):
    around, alone = fresh_buffers(EMA(CASES[case]), np.ones(N)), fresh_buffers(CASES[case], np.ones(N))
    for t in range(1, 6):
        around["g"][...] = alone["g"][...] = gradient(t)
        fastopt.update(EMA(CASES[case]), t, around, backend=backend)
        fastopt.update(CASES[case], t, alone, backend=backend)
    for name, value in alone.items():
        assert_same_bits(around[name], value, name)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_the_weighted_mean_of_all_parameters_so_far(decay):
    opt, seen = fastopt.Optimizer(EMA(fastopt.SGD(lr=0.1), decay), {"w": np.ones(N)}), []
    for t in range(1, 30):
        opt.step({"w": gradient(t)})
        seen.append(opt.params["w"].copy())
        weights = decay ** np.arange(t - 1, -1, -1.0)
        expected = sum(w * p for w, p in zip(weights, seen, strict=True)) / weights.sum()
        # Up to 29 averages in float64, a few roundings of 1.1e-16 each, of numbers around 1.
        np.testing.assert_allclose(opt.state("ema")["w"], expected, rtol=1e-13, atol=1e-14)


def test_without_correction_it_is_the_averaged_model_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastopt.torch

    net = torch.nn.Linear(30, 10)
    theirs = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    rule = EMA(fastopt.Adam(lr=0.01), decay=0.9, bias_correction=False)
    opt = fastopt.torch.Fused(net.parameters(), rule)
    for t in range(50):
        torch.manual_seed(t)
        opt.zero_grad()
        net(torch.randn(8, 30)).square().mean().backward()
        opt.step()
        theirs.update_parameters(net)
    for p, average in zip(net.parameters(), theirs.module.parameters(), strict=True):
        # Each of 50 averages is rounded a few times, of numbers below 1: a + w (b − a) or a product and a sum.
        torch.testing.assert_close(opt.state[p]["ema"], average.detach(), rtol=0, atol=50 * 2 * 2.0**-24)


@pytest.mark.parametrize("storage", ["8bit", "split_8bit", "bf16"])
def test_presets_keep_the_average_in_the_computing_precision(storage):
    opt = fastopt.Optimizer(EMA(fastopt.Adam(lr=0.01)), {"w": np.ones(N, np.float32)}, storage=storage)
    opt.step({"w": np.ones(N, opt.grads["w"].dtype)})
    before = opt.master()["w"].copy()
    assert opt.state("ema")["w"].dtype == np.float32
    if storage == "bf16":  # the average is of what the rule returns, before it is rounded
        assert np.all(np.abs(opt.state("ema")["w"] - before) <= 2.0**-8)
    else:
        assert_same_bits(opt.state("ema")["w"], before)
    opt.assign(opt.state("ema"))
    assert np.all(np.isfinite(opt.master()["w"]))


def test_clipped_unscaled_and_averaged_in_one_step():
    rule = fastopt.ScaledGradient(fastopt.ClipByGlobalNorm(EMA(fastopt.Adam(lr=0.01)), 0.5), 0.25)
    found = {}
    for backend in ("reference", "cpu"):
        opt = fastopt.Optimizer(rule, {"w": np.ones((N, 3), np.float32), "b": np.zeros(7, np.float32)}, backend=backend)
        for t in range(200):
            rng = np.random.default_rng(t)
            opt.step({k: rng.standard_normal(v.shape).astype(np.float32) for k, v in opt.params.items()})
        found[backend] = {**{f"p{k}": v.copy() for k, v in opt.params.items()}, **opt.state("ema")}
    for name, value in found["reference"].items():
        assert_same_bits(found["cpu"][name], value, name)


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan, "0.9", None])
def test_decays_that_are_none_are_refused(decay):
    with pytest.raises(SettingError, match="decay"):
        EMA(fastopt.SGD(), decay)


def test_two_averages_are_refused():
    with pytest.raises(RuleError, match="already has"):
        EMA(EMA(fastopt.SGD()))

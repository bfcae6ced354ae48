"""Fully decoupled weight decay, `max_lr`: λ is the share that a step takes at the peak of the learning rate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import halving, run_steps
from peers import START, STEPS, gradient
from values import assert_same_bits

import fastopt
from fastopt import SettingError

PEAK = halving(1)  # a learning rate that halves every ten steps
RULES = [rule for rule in fastopt.RULES.values() if "max_lr" in rule.__dataclass_fields__]


@pytest.mark.parametrize("rule", RULES)
def test_decay_is_that_of_the_rule_with_lambda_divided_by_the_peak(rule):
    """With a peak that is a power of two, (lr/max_lr)·λ and lr·(λ/max_lr) have the same bits."""
    full = rule(lr=halving, weight_decay=0.05, max_lr=0.125)
    plain = dataclasses.replace(full, weight_decay=0.4, max_lr=None)
    without = dataclasses.replace(full, weight_decay=0.0)
    ours, same, other = (
        list(run_steps(r, START, gradient, 30, backend="reference"))[-1] for r in (full, plain, without)
    )
    for name, x in same.items():
        assert_same_bits(ours[name], x, name)
    assert np.abs(ours["p"] - other["p"]).max() > 1e-3


def test_adam_equals_the_formula_for_a_hundred_steps():
    """P ← (1 − λ lr/lr_max) p − lr m̂/(√v̂ + ε), in sums. The tolerance is that of test_trajectories."""
    rule, p, gs = fastopt.Adam(lr=halving, eps=1e-3, weight_decay=0.05, max_lr=PEAK), START, []
    for t, buffers in enumerate(run_steps(rule, START, gradient, STEPS, backend="reference"), 1):
        gs.append(gradient(p, t))
        m = sum(0.1 * 0.9 ** (t - k) * g for k, g in enumerate(gs, 1)) / (1 - 0.9**t)
        v = sum(0.001 * 0.999 ** (t - k) * g * g for k, g in enumerate(gs, 1)) / (1 - 0.999**t)
        p = p - 0.05 * halving(t) / PEAK * p - halving(t) * m / (np.sqrt(v) + 1e-3)
        np.testing.assert_allclose(buffers["p"], p, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_another_peak_changes_no_decay(rule):
    """Without a gradient only decay is left: the same, whatever the peak; without max_lr it is not."""
    state = {name: 0.0 for name in rule.__dataclass_fields__ if name == "initial_accumulator_value"}

    def end(peak: float, max_lr: float | None) -> float:
        made = rule(lr=lambda t: peak * halving(t), weight_decay=0.05, max_lr=max_lr, **state)
        return float(list(run_steps(made, np.ones(1), lambda p, t: 0.0, 20, backend="reference"))[-1]["p"][0])

    # 20 steps with a few roundings of 1.1e-16 each, of numbers below 1.
    assert end(1.0, PEAK) == pytest.approx(end(3.0, 3 * PEAK), abs=1e-14)
    assert end(1.0, None) != pytest.approx(end(3.0, None), abs=1e-3)


def test_l2_decay_cannot_be_decoupled():
    with pytest.raises(SettingError, match="no learning rate scales it"):
        fastopt.Adam(weight_decay=0.1, decoupled=False, max_lr=0.1)


@pytest.mark.parametrize("max_lr", [0.0, -1.0, "1", True])
def test_peaks_that_are_none_are_refused(max_lr):
    with pytest.raises(SettingError, match="max_lr"):
        fastopt.Adam(max_lr=max_lr)

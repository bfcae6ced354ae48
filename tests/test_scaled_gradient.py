"""ScaledGradient: any rule whose gradient is multiplied by a factor in the same pass."""

import numpy as np
import pytest
from cases import CASES, fresh_buffers
from values import assert_same_bits

import fastopt
from fastopt import RuleError, ScaledGradient, SettingError


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", ["sgd-weight-decay", "adam-amsgrad-l2", "rmsprop-centered", "adagrad-initial"])
def test_it_equals_the_rule_on_the_scaled_gradient(case, backend):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(300)
    scaled, plain = fresh_buffers(CASES[case], p), fresh_buffers(CASES[case], p)
    for t, factor in enumerate((-1.0, 0.5, 2.0**-10, 3.0, 0.0), 1):
        g = rng.standard_normal(300)
        scaled["g"][...], plain["g"][...] = g, factor * g
        fastopt.update(ScaledGradient(CASES[case], factor), t, scaled, backend=backend)
        fastopt.update(CASES[case], t, plain, backend=backend)
        for name in plain:
            if name != "g":
                assert_same_bits(scaled[name], plain[name], name)


def test_it_forwards_what_the_inner_rule_declares_about_its_state():
    inner = fastopt.RMSprop(centered=True)
    assert ScaledGradient(inner).exact == inner.exact
    assert ScaledGradient(inner).unsigned == inner.unsigned
    assert ScaledGradient(fastopt.Adagrad(initial_accumulator_value=0.5)).initial() == {"v": 0.5}
    noisy = ScaledGradient(fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=0.0), factor=lambda t: 2.0 * t)
    p = np.zeros(3)
    fastopt.update(noisy, 3, {"p": p, "g": np.ones(3)})
    assert p.tolist() == [-6.0] * 3


def test_invalid_factors_and_rules_are_refused():
    for factor in (float("nan"), float("inf"), "2", None):
        with pytest.raises(SettingError, match="factor"):
            ScaledGradient(fastopt.SGD(), factor)
    with pytest.raises(RuleError, match="ScaledGradient"):
        ScaledGradient(fastopt.SGD)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuleError, match="gradient_factor"):
        ScaledGradient(ScaledGradient(fastopt.SGD()))

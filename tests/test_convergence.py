"""Do the rules train? Each case finds the minimum of a convex quadratic and walks Rosenbrock's valley to its end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, fresh_buffers

import fastopt


def falling(lr: float, steps: int) -> Any:
    """Hold lr for the first half and let it fall linearly to 2·lr/steps in the second.

    A rule whose steps have the size of lr, whatever the gradient's, ends within a few of its last steps of the minimum.
    """
    return lambda t: lr * min(1.0, 2 * (1 - (t - 1) / steps))


def prepared(rule: Any, lr: Any, weight_decay: float) -> Any:
    """Give `rule` another learning rate and, where it has weight decay, another one of that."""
    if isinstance(rule, fastopt.GradientNoise):
        return dataclasses.replace(rule, rule=prepared(rule.rule, lr, weight_decay))
    return dataclasses.replace(rule, lr=lr, weight_decay=weight_decay if rule.weight_decay else 0.0)


def last(rule: Any, p: np.ndarray, gradient: Any, steps: int) -> np.ndarray:
    """Give p after so many steps."""
    opt = fastopt.Optimizer(rule, {"p": p})
    p, g = opt.params["p"], opt.grads["p"]
    with np.errstate(over="ignore", invalid="ignore"):  # what climbs on purpose runs away
        for _ in range(steps):
            g[...] = gradient(p)
            opt.step()
    return p


def last_without_memory(rule: Any, p: np.ndarray, gradient: Any, steps: int) -> np.ndarray:
    """Give p after so many steps of a rule broken on purpose: it loses its state after each of them."""
    for t in range(1, steps + 1):
        buffers = fresh_buffers(rule, p)
        buffers["g"][...] = gradient(p)
        fastopt.update(rule, t, buffers)
        p = buffers["p"]
    return p


def row(table: dict[str, Any], case: str) -> Any:
    """Give the row of the longest name that the case's name begins with."""
    return table[max((name for name in table if case.startswith(name)), key=len)]


# A quadratic with its minimum at 0, where weight decay leaves it, and curvatures from 1 to 16.
CURVATURE, CORNER, QUADRATIC_STEPS = 2.0 ** np.arange(5), np.array([1.0, -1.0, 1.0, -1.0, 1.0]), 1000

# Learning rate, and the accuracy of each element of p at the end, of 1 at the start. SGD multiplies p by 1 − 0.1·c, at
# most 0.9 in size, for half of the steps: 0.9⁵⁰⁰ = 1e-23. The other rules were found to end at 1e-16 or less, because
# near the minimum their steps shrink with the gradient: 1e-12 leaves room and is still zero. Lion's do not: it circles
# the minimum within some ten of its last steps, of 2e-5. Noise of standard deviation σ = √(η/1001^0.55), here 0.015 and
# 0.08, moves the minimum by σ/c, less what averages out.
QUADRATIC = {
    "sgd": (0.1, 1e-12),
    "momentum": (0.1, 1e-12),
    "momentum-heavy-ball": (0.01, 1e-12),
    "rmsprop": (0.01, 1e-12),
    "adam": (0.03, 1e-12),
    "adagrad": (0.3, 1e-12),
    "adadelta": (1.0, 1e-12),
    "adamax": (0.03, 1e-12),
    "nadam": (0.03, 1e-12),
    "radam": (0.03, 1e-12),
    "lion": (0.01, 2e-4),
    "noise-sgd": (0.1, 0.015),
    "noise-adam": (0.03, 0.08),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quadratic_is_minimised(case):
    lr, accuracy = row(QUADRATIC, case)
    rule = prepared(CASES[case], falling(lr, QUADRATIC_STEPS), 0.01)
    assert np.abs(last(rule, CORNER, lambda p: CURVATURE * p, QUADRATIC_STEPS)).max() < accuracy


@pytest.mark.parametrize("case", CASES)
def test_a_step_with_the_wrong_sign_climbs(case):
    rule = prepared(CASES[case], row(QUADRATIC, case)[0], 0.01)
    p = last(rule, CORNER, lambda p: -CURVATURE * p, 100)
    assert not np.abs(p).min() < 1


# Rosenbrock's function (1 − x)² + 100 (y − x²)² falls from 24 into a curved valley, which starts at a height of 4, is
# hundreds of times less steep than its walls and ends in the minimum, 0. Weight decay of 1e-4 raises it to some 1e-8.
START = np.array([-1.2, 1.0])


def rosenbrock(p: np.ndarray) -> float:
    return float((1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)


def rosenbrock_gradient(p: np.ndarray) -> np.ndarray:
    across = 200 * (p[1] - p[0] ** 2)
    return np.array([-2 * (1 - p[0]) - 2 * p[0] * across, across])


# Learning rate, steps, height reached. By experiment: a learning rate that works well, and a height at least twice,
# mostly ten times what the worst case of the row comes to. The curvature of the walls, 1000, keeps lr below 2/1000 for
# SGD. Bias correction makes the first step of momentum, and plain steps make the first five of RAdam, steps against the
# whole gradient, which is 233 at the start. Adagrad's own decay leaves it a seventh of lr at the end.
VALLEY = {
    "sgd": (1e-3, 8000, 5e-3),
    "momentum": (1e-2, 3000, 1e-6),
    "momentum-bias-correction": (3e-3, 3000, 2e-3),
    "momentum-nesterov-bias-correction": (3e-3, 3000, 2e-3),
    "momentum-heavy-ball": (1e-3, 3000, 1e-6),
    "rmsprop": (1e-2, 3000, 1e-3),
    "rmsprop-momentum": (1e-2, 3000, 1e-6),
    "rmsprop-centered-momentum": (1e-2, 3000, 1e-6),
    "adam": (0.1, 3000, 1e-5),
    "adam-no-momentum": (0.01, 6000, 1e-4),
    "adagrad": (1.0, 6000, 1e-3),
    "adagrad-lr-decay": (1.0, 6000, 0.05),
    "adadelta": (0.03, 8000, 1e-3),
    "adamax": (0.3, 3000, 1e-6),
    "nadam": (0.03, 3000, 1e-3),
    "radam": (4e-3, 10000, 1e-3),
    "lion": (3e-3, 3000, 1e-5),
    "noise-sgd": (1e-3, 8000, 5e-3),
    "noise-adam": (0.1, 3000, 1e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_rosenbrocks_valley_is_walked_to_its_end(case):
    lr, steps, height = row(VALLEY, case)
    rule = prepared(CASES[case], falling(lr, steps), 1e-4)
    assert rosenbrock(last(rule, START, rosenbrock_gradient, steps)) < height


@pytest.mark.parametrize("case", [name for name in fastopt.RULES if name != "sgd"])
def test_a_rule_that_forgets_its_state_does_not_get_there(case):
    lr, steps, height = row(VALLEY, case)
    rule = prepared(CASES[case], falling(lr, steps), 1e-4)
    assert not rosenbrock(last_without_memory(rule, START, rosenbrock_gradient, steps)) < height

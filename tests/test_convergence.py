"""The rules converge: each case finds the minimum of a convex quadratic and of Rosenbrock's function."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, fresh_buffers

import fastopt
from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.launch import Rows
from fastopt.kernels.launch import run as take
from fastopt.kernels.rules.around import Around


def constant_then_falling(lr: float, steps: int) -> Any:
    """Return a schedule that is lr in the first half of the steps, then falls linearly to 2·lr/steps.

    With it, a rule whose steps have the size of lr, whatever the gradient, ends a few of its last steps from the
    minimum.
    """
    return lambda t: lr * min(1.0, 2 * (1 - (t - 1) / steps))


def adjusted(rule: Any, lr: Any, weight_decay: float) -> Any:
    """Return `rule` with this learning rate and, if it has weight decay, with this weight decay."""
    if isinstance(rule, Around):
        outer: Any = rule
        own = {"weight_decay": weight_decay} if getattr(rule, "weight_decay", 0.0) else {}
        return dataclasses.replace(outer, rule=adjusted(rule.rule, lr, weight_decay), **own)
    decay = {"weight_decay": weight_decay} if getattr(rule, "weight_decay", 0.0) else {}
    return dataclasses.replace(rule, lr=lr, **decay)


def run(rule: Any, p: np.ndarray, gradient: Any, steps: int) -> np.ndarray:
    """Return p after so many steps."""
    opt = fastopt.Optimizer(rule, {"p": p})
    p, g = opt.params["p"], opt.grads["p"]
    with np.errstate(over="ignore", invalid="ignore"):  # overflows where a test diverges on purpose
        for _ in range(steps):
            g[...] = gradient(p)
            opt.step()
    return p


def run_without_state(rule: Any, p: np.ndarray, gradient: Any, steps: int) -> np.ndarray:
    """Return p after so many steps of which each starts with fresh state, which breaks the rule on purpose."""
    program, buffers = trace(rule, p.dtype), fresh_buffers(rule, p)
    fresh = {name: a.copy() for name, a in buffers.items() if name not in ("p", "g")}
    arrays = [buffers[b.name] for b in program.buffers]
    launch = bind("cpu", program, Rows([p.size], [0], [[a.ctypes.data for a in arrays]], arrays))
    scalars = host_scalars(program, rule)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, steps + 1):
            for name, values in fresh.items():
                buffers[name][...] = values
            buffers["g"][...] = gradient(buffers["p"])
            take(launch.calls((), scalars(t)))
    return buffers["p"]


def longest_prefix(table: dict[str, Any], case: str) -> Any:
    """Return the value of the longest key that the name of the case begins with."""
    return table[max((name for name in table if case.startswith(name)), key=len)]


# A quadratic with curvatures from 1 to 16 and its minimum at 0, which weight decay does not move.
CURVATURE, CORNER, QUADRATIC_STEPS = 2.0 ** np.arange(5), np.array([1.0, -1.0, 1.0, -1.0, 1.0]), 1000

# Learning rate, and the largest |p| allowed at the end, of 1 at the start. SGD multiplies p by 1 − 0.1·c, at most 0.9
# in size, for half of the steps: 0.9⁵⁰⁰ = 1e-23. The other rules end at 1e-16 or less by experiment, because near the
# minimum their steps shrink with the gradient: 1e-12 leaves room and is practically zero. Lion's steps do not shrink:
# it oscillates around the minimum within about ten of its last steps, of 2e-5, Signum, whose momentum here lasts
# three times as long, within a hundred, and so does Sophia, whose curvature nobody refreshes here. Rprop's shrink by
# themselves, down to the case's 1e-4. Those of LAMB and LARS are in proportion to p, whose minimum is 0 here; those
# of NovoGrad shrink slowly, with the average of the norm. Noise of standard deviation σ = √(η/1001^0.55), here 0.015
# and 0.08, moves the minimum by σ/c, less what averages out. Slow averages still carry some of the early gradients at
# the end: ten times what they reach. In schedule-free SGD y lags with the average of all steps, whose oldest are
# forgotten as 1/t: 1e-6, of 2e-8 by experiment.
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
    "lamb": (0.1, 1e-12),
    "lars": (3.0, 1e-12),
    "stableadamw": (0.03, 1e-12),
    "mars": (0.03, 1e-12),
    "novograd": (0.01, 1e-5),
    "prodigy": (0.3, 1e-12),
    "adabelief": (0.03, 1e-12),
    "yogi": (0.03, 1e-12),
    "ademamix": (0.03, 1e-10),
    "adopt": (0.03, 1e-12),
    "adan": (0.03, 1e-10),
    "schedulefreesgd": (0.3, 1e-6),
    "schedulefreeadamw": (0.1, 1e-12),
    "laprop": (0.03, 1e-12),
    "sophiag": (0.01, 2e-3),
    "gpaadamw": (0.03, 1e-12),
    "signum": (0.01, 2e-3),
    "qhadam": (0.03, 1e-12),
    "madgrad": (0.1, 1e-12),
    "rprop": (0.01, 1e-4),
    "asgd": (0.1, 1e-12),
    "noise-sgd": (0.1, 0.015),
    "noise-adam": (0.03, 0.08),
    "clip-momentum": (0.1, 1e-12),
    "cautious-adam": (0.03, 1e-12),
    "ema-adam": (0.03, 1e-12),
    "grokfast-adam": (0.03, 1e-10),
    "lookahead-adam": (0.03, 1e-12),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quadratic_is_minimised(case):
    lr, accuracy = longest_prefix(QUADRATIC, case)
    rule = adjusted(CASES[case], constant_then_falling(lr, QUADRATIC_STEPS), 0.01)
    assert np.abs(run(rule, CORNER, lambda p: CURVATURE * p, QUADRATIC_STEPS)).max() < accuracy


@pytest.mark.parametrize("case", CASES)
def test_with_a_negated_gradient_a_rule_moves_away_from_the_minimum(case):
    rule = adjusted(CASES[case], longest_prefix(QUADRATIC, case)[0], 0.01)
    p = run(rule, CORNER, lambda p: -CURVATURE * p, 100)
    assert not np.abs(p).min() < 1


# Rosenbrock's function (1 − x)² + 100 (y − x²)² falls from 24 at the start into a curved valley. Its floor starts at a
# value of 4, is hundreds of times less steep than the walls and ends at the minimum, 0. Weight decay of 1e-4 raises the
# minimum to about 1e-8.
START = np.array([-1.2, 1.0])


def rosenbrock(p: np.ndarray) -> float:
    return float((1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2)


def rosenbrock_gradient(p: np.ndarray) -> np.ndarray:
    across = 200 * (p[1] - p[0] ** 2)
    return np.array([-2 * (1 - p[0]) - 2 * p[0] * across, across])


# Learning rate, steps, and the bound on the function's value at the end. By experiment: a learning rate that works
# well, and a bound that is at least twice, mostly ten times, the value that the worst case of the row reaches. The
# curvature of the walls, 1000, limits lr to less than 2/1000 for SGD. The first step of momentum with bias correction,
# and the first five steps of RAdam, use the full gradient, which is 233 at the start. Adagrad's own decay reduces lr to
# a seventh at the end.
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
    "lamb": (0.03, 3000, 1e-3),
    "lars": (0.1, 3000, 1e-6),
    "stableadamw": (0.1, 3000, 1e-6),
    "mars": (0.03, 3000, 1e-6),
    "novograd": (0.03, 3000, 1e-6),
    "prodigy": (0.3, 3000, 1e-5),
    "adabelief": (0.1, 3000, 1e-5),
    "yogi": (0.1, 3000, 1e-4),
    "ademamix": (0.03, 3000, 1e-6),
    "adopt": (0.1, 3000, 1e-6),
    "adan": (0.1, 3000, 1e-7),
    "schedulefreesgd": (4e-3, 8000, 1e-2),
    "schedulefreeadamw": (0.1, 6000, 1e-5),
    "laprop": (0.1, 3000, 1e-6),
    "sophiag": (3e-3, 6000, 2e-5),
    "gpaadamw": (0.01, 6000, 1e-3),
    "signum": (3e-3, 3000, 2e-5),
    "qhadam": (0.03, 3000, 1e-5),
    "madgrad": (0.01, 6000, 1e-6),
    "rprop": (0.01, 3000, 3e-3),
    "asgd": (1e-3, 8000, 0.02),
    "noise-sgd": (1e-3, 8000, 5e-3),
    "noise-adam": (0.1, 3000, 1e-3),
    "clip-momentum": (0.01, 8000, 1e-6),
    "cautious-adam": (0.1, 3000, 1e-6),
    "ema-adam": (0.1, 3000, 1e-5),
    "grokfast-adam": (0.03, 6000, 1e-6),
    "lookahead-adam": (0.1, 3000, 1e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_rosenbrocks_function_is_minimised(case):
    lr, steps, bound = longest_prefix(VALLEY, case)
    rule = adjusted(CASES[case], constant_then_falling(lr, steps), 1e-4)
    assert rosenbrock(run(rule, START, rosenbrock_gradient, steps)) < bound


@pytest.mark.parametrize("case", [name for name in fastopt.RULES if name not in ("sgd", "asgd")])
def test_a_rule_that_loses_its_state_does_not_minimise_rosenbrocks_function(case):
    # SGD has none, and ASGD's is the average, which no step reads.
    lr, steps, bound = longest_prefix(VALLEY, case)
    rule = adjusted(CASES[case], constant_then_falling(lr, steps), 1e-4)
    assert not rosenbrock(run_without_state(rule, START, rosenbrock_gradient, steps)) < bound

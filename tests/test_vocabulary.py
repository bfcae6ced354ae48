"""Each operation that a rule may use, alone, in both precisions, on every pair of special values."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from values import assert_same_bits, special

import fastopt

OPERATIONS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "radd": lambda x, y: 0.1 + x + 0 * y,
    "subtract": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "rdiv": lambda x, y: 1 / x + y,
    "nested": lambda x, y: x - (y - x) - (x + y) * 2 / (x - (y / (x * y))),
    "negative": lambda x, y: -x - -y,
    "positive": lambda x, y: +x - y,
    "square": lambda x, y: x**2 - np.square(y),
    "sqrt": lambda x, y: np.sqrt(x) + np.sqrt(np.abs(y)),
    "abs": lambda x, y: abs(x) - np.fabs(y),
    "sign": lambda x, y: np.sign(x) * 2 + np.sign(x + y),
    "rint": lambda x, y: np.rint(x) - np.rint(y * 0.5),
    "floor": lambda x, y: np.floor(x) - np.floor(y * 0.3),
    "ceil": lambda x, y: np.ceil(x) - np.ceil(y * 0.3),
    "trunc": lambda x, y: np.trunc(x) - np.trunc(y * 0.3),
    "copysign": lambda x, y: np.copysign(x, y),
    "less": lambda x, y: np.where(x < y, x, y),
    "less_equal": lambda x, y: np.where(x <= y, x, 1.0),
    "greater": lambda x, y: np.where(x > y, 2, y),
    "greater_equal": lambda x, y: np.where(x >= y, x, y),
    "equal": lambda x, y: np.where(x == y, x, -y),
    "not_equal": lambda x, y: np.where(x != y, x, -y),
    "scalar_comparison": lambda x, y: np.where(x > 0.5, x, y),
    "and": lambda x, y: np.where((x > 0) & (y > 0), x, y),
    "or": lambda x, y: np.where((x > 0) | (y > 0), x, y),
    "xor": lambda x, y: np.where((x > 0) ^ (y > 0), x, y),
    "not": lambda x, y: np.where(~(x > 0), x, y),
    "logical": lambda x, y: np.where(np.logical_and(x > 0, np.logical_not(np.logical_or(y > 0, x > 1))), x, y),
    "isnan": lambda x, y: np.where(np.isnan(x), y, x),
    "isfinite": lambda x, y: np.where(np.isfinite(x), x, y),
    "isinf": lambda x, y: np.where(np.isinf(x), y, x),
    "zeros_like": lambda x, y: np.where(x > y, np.zeros_like(x), -1.0),
    "ones_like": lambda x, y: np.where(x > y, np.ones_like(x), -1.0),
    "full_like": lambda x, y: np.where(x > y, np.full_like(x, 0.1), y),
    "infinity": lambda x, y: np.where(x < float("inf"), x, y * float("nan")),
    "numpy_scalar": lambda x, y: x * x.dtype.type(0.1) + y,
    "larger": lambda x, y: np.where((x > y) | (x != x), x, y),
    "augmented": lambda x, y: _augmented(x, y),
    "unchanged": lambda x, y: x,
    "other": lambda x, y: y,
    "constant": lambda x, y: np.ones_like(x),
}


def _augmented(x, y):
    x = x * 1.0
    x *= 3
    x -= y
    return x


@dataclass(frozen=True)
class Operation:
    """p becomes the operation's result, g stays."""

    name: str

    def scalars(self, t):
        return {}

    def update(self, p, g):
        return OPERATIONS[self.name](p, g)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_same_compiled_and_in_numpy(name, dtype):
    x, y = (a.ravel().copy() for a in np.meshgrid(special(dtype), special(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    for backend in ("cpu", "reference"):
        p = x.copy()
        fastopt.update(Operation(name), 1, {"p": p, "g": y.copy()}, backend=backend)
        assert_same_bits(p, expected, f"{name} on {backend}")


def test_every_operation_of_the_tracer_is_tested_here():
    from fastopt.kernels.program import trace, walk
    from fastopt.kernels.symbols import VOCABULARY

    used = {n.op for name in OPERATIONS for n in walk(trace(Operation(name), np.float32).results.values())}
    noise = fastopt.GradientNoise(fastopt.SGD())  # the only user of unsigned integers
    used |= {n.op for n in walk(trace(noise, np.float32).results.values())}
    assert set(VOCABULARY.values()) <= used


@dataclass(frozen=True)
class AwkwardNames:
    """Scalars and state named like the printed module's own variables."""

    def scalars(self, t):
        names = (
            "job",
            "count",
            "i",
            "x0",
            "p_new",
            "float32",
            "select",
            "claim",
            "low",
            "range",
            "p_i",
            "p_at",
            "types",
        )
        return {name: float(k) for k, name in enumerate(names)}

    def update(
        self, p, g, n, first, chunk, *, job, count, i, x0, p_new, float32, select, claim, low, range, p_i, p_at, types
    ):
        x = np.abs(g) + job
        y = x * count + i * x0
        step = np.where(y > p_new, y, float32 + select) * (claim + low + range) + p_i + p_at * types
        return p - step * x, n + y, first - step, chunk * y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rules_own_names_may_be_any(dtype):
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(300).astype(dtype) for name in ("p", "g", "n", "first", "chunk")}
    truth = {name: a.copy() for name, a in ours.items()}
    fastopt.update(AwkwardNames(), 1, ours)
    fastopt.update(AwkwardNames(), 1, truth, backend="reference")
    for name, array in ours.items():
        assert_same_bits(array, truth[name], name)

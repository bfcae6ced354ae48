"""Each operation that a rule may use, alone, in float32 and float64, on every pair of special values."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from values import assert_same_bits, special_values

import fastopt
from fastopt.kernels.compiler.trace import trace

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
    "bool_add": lambda x, y: np.where((x > 0) + (y > 0) == (x == x), x, y),
    "bool_multiply": lambda x, y: np.where((x > 0) * (y > 0), x, y),
    "bool_comparisons": lambda x, y: np.where(((x > 0) < (y > 0)) | ((x == x) >= (y == y)), x, y),
    "bool_constant": lambda x, y: np.where((x > 0) != True, x, y),  # noqa: E712
    "bool_rounded": lambda x, y: np.where(abs(x > 0) & np.floor(y > 0) | np.ceil(x > 1) ^ np.trunc(y > 1), x, y),
    "bool_branches": lambda x, y: np.where(np.where(x > y, x > 0, y > 0), x, y),
    "logical_of_floats": lambda x, y: np.where(np.logical_and(x, y) ^ np.logical_or(x, np.logical_not(y)), x, y),
    "beyond": lambda x, y: np.where(x < 1e300, x * 1e300, -y),
    "square_of_a_constant": lambda x, y: np.full_like(x, 3) ** 2 + y,
    "deep": lambda x, y: _deep(x, y),
    "in_place": lambda x, y: _in_place(x, y),
    "copies": lambda x, y: _copies(x, y),
    "scalars_in_place": lambda x, y: _scalars_in_place(x, y),
    "word_shifts": lambda x, y: _float(_word(x) >> 8, x) - _float(_word(y) << 31, x),
    "word_shifted_out": lambda x, y: (_word(x) >> 32).view(np.float32).astype(x.dtype) + _float(_word(y) << 40, x),
    "word_shifted_by_words": lambda x, y: _float(_word(x) >> (_word(y) >> 26), x) + _float(_word(x) << _word(y), x),
    "word_shifts_a_number": lambda x, y: _float(1 << (_word(y) & 63), x),
    "word_negative": lambda x, y: _float(-_word(x), x) - _float(abs(_word(y)), x),
    "word_sign": lambda x, y: _float(np.sign(_word(x)), x) * 3 + _float(np.floor(_word(y)), x),
    "word_logical": lambda x, y: np.where(np.logical_or(np.logical_and(_word(x), 9), np.logical_not(_word(x))), x, y),
    "word_square": lambda x, y: _float(_word(x) ** 2 + np.square(_word(y)), x),
    "word_branches": lambda x, y: _float(np.where(x > y, _word(x), 7), x),
    "word_in_place": lambda x, y: _word_in_place(x, y),
    "word_of_a_signed_byte": lambda x, y: (
        _float(_word(x).astype(np.int8).astype(np.uint32), x)
        - _float((_word(y) >> 9).astype(np.int8).astype(np.uint32) << 20 >> 1, x)
    ),
}


def _word(x):
    """Return the bits of a float32, with NaN, whose bits depend on the platform, as 2.0; of a float64, some word."""
    if x.dtype == np.float32:
        return np.where(x == x, x, np.full_like(x, 2.0)).view(np.uint32)
    return np.where(x > 1, np.uint32(0xB5026F35), np.where(x < 0, np.uint32(77), np.uint32(0)))


def _float(word, x):
    return word.astype(np.float32).astype(x.dtype)


def _augmented(x, y):
    x = x * 1.0
    x *= 3
    x -= y
    return x


def _deep(x, y):
    for k in range(120):
        x = k - abs(y - 0.5 * x)
    return x


def _in_place(x, y):
    old = x
    x *= 0.5
    x += y
    z = y
    z **= 2
    z -= old
    return x - old * y + z


def _copies(x, y):
    before, same, moved = +x, x.astype(x.dtype), x.copy()
    ones = np.ones_like(x)
    chosen = np.where(x > y, x, y)
    x *= 0.5
    ones /= 4
    return before - same * ones + moved * chosen - x


def _scalars_in_place(x, y):
    scale = x.dtype.type(0.5)
    old = scale
    scale *= 3
    scale *= x
    old += 1
    return scale - old * y


def _word_in_place(x, y):
    z = _word(x).view(np.float32)
    bits = z.view(np.uint32)
    bits ^= 1 << 31
    z *= 2
    bits |= 1
    return z.astype(x.dtype) + _float(bits, x) * y


@dataclass(frozen=True)
class Operation:
    """A rule whose update replaces p by the operation's result."""

    name: str

    def scalars(self, t):
        return {}

    def update(self, p, g):
        return OPERATIONS[self.name](p, g)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_compiled_operation_equals_numpy(name, dtype):
    x, y = (a.ravel().copy() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    for backend in ("cpu", "reference"):
        p = x.copy()
        fastopt.update(Operation(name), 1, {"p": p, "g": y.copy()}, backend=backend)
        assert_same_bits(p, expected, f"{name} on {backend}")


def test_every_operation_of_the_tracer_is_covered():
    from fastopt.kernels.compiler.graph import walk
    from fastopt.kernels.compiler.operations import VOCABULARY

    used = {n.op for name in OPERATIONS for n in walk(trace(Operation(name), np.float32).results.values())}
    noise = fastopt.GradientNoise(fastopt.SGD())  # the only rule that uses unsigned integers
    used |= {n.op for n in walk(trace(noise, np.float32).results.values())}
    assert set(VOCABULARY.values()) <= used


@dataclass(frozen=True)
class AwkwardNames:
    """A rule whose scalars and state are named like variables of the printed module."""

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
            "float",
            "bool",
        )
        return {name: float(k) for k, name in enumerate(names)}

    def update(
        self, p, g, n, first, chunk, *,
        job, count, i, x0, p_new, float32, select, claim, low, range, p_i, p_at, types, float, bool,
    ):  # fmt: skip
        x = np.abs(g) + job
        y = x * count + i * x0
        step = np.where(y > p_new, y, float32 + select) * (claim + low + range) + p_i + p_at * types
        step = np.where((step < np.inf) == True, step * float, bool)  # noqa: E712
        return p - step * x, n + y, first - step, chunk * y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rules_names_may_collide_with_names_in_the_printed_module(dtype):
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(300).astype(dtype) for name in ("p", "g", "n", "first", "chunk")}
    truth = {name: a.copy() for name, a in ours.items()}
    fastopt.update(AwkwardNames(), 1, ours)
    fastopt.update(AwkwardNames(), 1, truth, backend="reference")
    for name, array in ours.items():
        assert_same_bits(array, truth[name], name)

"""Rules that hypothesis writes: each compiles, and has the reference's bits in any storage, at any size."""

from __future__ import annotations

import linecache
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from values import assert_same_bits

import fastopt

# Names that printed kernels, Numba, C++ or the tracer use themselves, and letters that not every compiler takes.
NAMES = [
    "m", "v", "n", "job", "count", "first", "chunk", "word", "select", "float32", "index", "tile", "start", "strip",
    "lane", "key0", "x0", "max0", "buffer", "scratch", "step", "int", "double", "register", "\u03bc",
    "o", "O", "l", "_",
    "__x", "key0_", "m_i", "m_tile", "spill", "prefetching", "i", "TILE", "types", "njit", "sqrt", "true", "numba",
]  # fmt: skip
CONSTANTS = ["0.0", "-0.0", "1.0", "0.5", "-3.0", "1e-30", "1e-45", "1e38", "16777217", "3", "float('inf')"]
UNARY = [
    "-{}", "abs({})", "np.sqrt(abs({}))", "np.sqrt({})", "np.sign({})", "np.rint({})", "np.floor({})", "np.ceil({})",
    "np.trunc({})", "np.square({})", "({}) ** 2", "({}) ** 3", "({}) ** 0.5", "({}) ** -1", "np.ones_like({})", "+{}",
    "np.full_like({}, 0.25)", "({}).copy()",
]  # fmt: skip
BINARY = ["({} + {})", "({} - {})", "({} * {})", "({} / {})"]
CONDITIONS = [
    "({} < {})", "({} <= {})", "({} > {})", "({} == {})", "({} != {})", "np.isfinite({} + {})", "np.isnan({} * {})",
    "~({} >= {})",
]  # fmt: skip
STORAGES = ["f32", "f64", "bf16", "8bit", "split", "split_8bit", "mixed_bf16", "bf16_8bit", "bf16_kahan", "mixed_f16"]
SIZES = [1, 2, 255, 256, 257, 1003]


@st.composite
def expressions(draw: Any, leaves: list[str], depth: int) -> str:
    """Write an expression of the buffers, so that it is an array."""
    if not depth:
        return draw(st.sampled_from(leaves))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.sampled_from(leaves))
    inner = expressions(leaves, depth - 1)
    if kind == 1:
        return draw(st.sampled_from(UNARY)).format(draw(inner))
    if kind == 2:
        condition = draw(st.sampled_from(CONDITIONS)).format(draw(inner), draw(inner))
        if draw(st.booleans()):
            other = draw(st.sampled_from(CONDITIONS)).format(draw(inner), draw(inner))
            condition = f"({condition} {draw(st.sampled_from('&|'))} {other})"
        return f"np.where({condition}, {draw(inner)}, {draw(inner)})"
    operand = draw(st.one_of(inner, st.sampled_from(CONSTANTS)))
    pair = [draw(inner), operand]
    return draw(st.sampled_from(BINARY)).format(*(pair if draw(st.booleans()) else reversed(pair)))


@st.composite
def rules(draw: Any) -> tuple[str, list[str], dict[str, float]]:
    """Write the text of `update`, the names of its state and its scalars."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
    split = draw(st.integers(0, len(names)))
    state, scalars = names[:split], names[split:][:4]
    noise = draw(st.booleans()) and "noise" not in names
    leaves = ["p", "g", *state, *(f"(p * {s})" for s in scalars), *(["(g + noise)"] if noise else [])]
    frozen = draw(st.sampled_from([False, False, False, True]))
    results = [
        b if frozen or draw(st.integers(0, 4)) == 0 else draw(expressions(leaves, draw(st.integers(1, 4))))
        for b in ("p", *state)
    ]
    keywords = [*scalars, *(["noise"] if noise else [])]
    signature = ", ".join(["self", "p", "g", *state, *(["*", *keywords] if keywords else [])])
    values = {s: draw(st.sampled_from([0.1, -1.5, 1.0, 0.0, 1e-20, 7, 2**60 + 1])) for s in scalars}
    return f"def update({signature}):\n    return {', '.join(results)}\n", state, values


def made(text: str, scalars: dict[str, float]) -> Any:
    """Make the rule with this `update`."""
    namespace: dict[str, Any] = {"np": np}
    file = f"<rule {hash(text)}>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    exec(compile(text, file, "exec"), namespace)
    methods = {"update": namespace["update"], "scalars": lambda self, t: dict(scalars)}
    return make_dataclass("Mine", [], frozen=True, namespace=methods)()


def compare(written: tuple[str, list[str], dict[str, float]], storage: str, size: int, seed: int) -> None:
    text, state, scalars = written
    rng = np.random.default_rng(seed)
    precision = np.float64 if storage == "f64" else np.float32
    w = rng.standard_normal(size).astype(precision)
    w[rng.random(size) < 0.1] = rng.choice([0.0, -0.0, 1e-40, 1e30])
    rule = made(text, scalars)
    opts = [fastopt.Optimizer(rule, {"w": w}, storage=storage, backend=b, seed=seed) for b in ("cpu", "reference")]
    for _ in range(2):
        g = rng.standard_normal(size) * rng.choice([1e-20, 1.0, 1e4])
        for opt in opts:
            opt.grads["w"][...] = g.astype(opt.grads["w"].dtype)
            opt.step()
    ours, truth = (opt.state_dict() for opt in opts)
    for name in ("p/w", *(f"{s}/w" for s in state)):
        assert_same_bits(ours[name], truth[name], f"{name}, {storage}, {size} elements\n{text}")


FOUND = [  # what this test has found, and what was found before it
    (("def update(self, p, g):\n    return p\n", [], {}), "bf16", 5),
    (("def update(self, p, g, m):\n    return p, m\n", ["m"], {}), "split_8bit", 257),
    (("def update(self, p, g, *, n):\n    return (p * n)\n", [], {"n": 2**60 + 1}), "f32", 3),
    (("def update(self, p, g):\n    return (p * 16777217)\n", [], {}), "f32", 3),
    (
        ("def update(self, p, g, *, \u00b5):\n    return p * \u00b5\n", [], {"\u00b5": 0.1}),
        "f32",
        3,
    ),  # Python reads \u03bc
    (("def update(self, p, g):\n    return np.where(p < g, p, g) ** 3\n", [], {}), "f32", 257),
    (("def update(self, p, g):\n    return (p) ** 3 - (g) ** 0.5\n", [], {}), "f64", 3),
]


@pytest.mark.parametrize(("written", "storage", "size"), FOUND)
def test_what_was_found(written, storage, size):
    compare(written, storage, size, 0)


checked = given(rules(), st.sampled_from(STORAGES), st.sampled_from(SIZES), st.integers(0, 3))
slow_health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=slow_health, database=None)
@checked
def test_random_rules_have_the_references_bits(written, storage, size, seed):
    with np.errstate(all="ignore"):
        compare(written, storage, size, seed)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=slow_health, database=None, print_blob=True)
@checked
def test_thousands_of_random_rules_have_the_references_bits(written, storage, size, seed):
    with np.errstate(all="ignore"):
        compare(written, storage, size, seed)

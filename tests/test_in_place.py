"""In-place operators in a traced rule behave as on NumPy arrays, also where several names refer to the same array."""

import operator
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
from test_program import buffers_of, rule
from values import assert_same_bits

import fastopt
from fastopt.kernels.compiler.graph import walk
from fastopt.kernels.compiler.operations import VOCABULARY
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace

NUMPY = {name: f for f, name in reversed(VOCABULARY.items())} | {
    "bitcast": lambda x: x.view(np.uint32 if x.dtype == np.float32 else np.float32),
    "select": np.where,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
}


def evaluate(program: Program, p: np.ndarray, g: np.ndarray, *scalars: float) -> np.ndarray:
    """Return the new p of a program without state, computed with NumPy directly from the graph."""
    inputs = {"p": p, "g": g, **dict(zip(program.scalars, map(p.dtype.type, scalars), strict=True))}
    values: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for node in walk(program.results.values()):
            args = [values[id(a)] for a in node.args]
            value = inputs[node.value] if node.op in ("buffer", "scalar") else node.value
            values[id(node)] = NUMPY[node.op](*args) if args else value
    return np.broadcast_to(values[id(program.results["p"])], p.shape)


BINARY = (operator.add, operator.sub, operator.mul, operator.truediv)
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def random_lines(rng: random.Random) -> list[tuple]:
    """Return random lines of a rule: the kind of operation, its two operands, the target name, and the operator."""
    kinds = ["alias", "new", "copy", "ones", "where", "number", "power", *["in place"] * 5, "bits"]
    return [
        (rng.choice(kinds), rng.randrange(10**6), rng.randrange(10**6), rng.randrange(10**6), rng.randrange(4))
        for _ in range(rng.randint(2, 9))
    ]


def run_lines(lines: list[tuple], p: Any, g: Any, c: Any) -> Any:
    """Run the lines on NumPy arrays or on the tracer's symbols, with Python's semantics of names and references."""
    values = [p, g, c]
    for kind, a, b, target, which in lines:
        x, y = values[a % len(values)], values[b % len(values)]
        if kind == "alias":
            result = x
        elif kind == "new":
            result = BINARY[which](x, y)
        elif kind == "copy":
            result = (+x, x.copy(), x.astype(x.dtype), abs(x))[which]
        elif kind == "ones":
            result = np.ones_like(p)
        elif kind == "where":
            result = np.where(p > y, x, y)
        elif kind == "number":
            result = IN_PLACE[which](x, 3)
        elif kind == "power":
            x = (p, g)[a % 2]
            x **= 2
            result = x
        elif kind == "bits":
            bits = p.view(np.uint32)
            bits ^= 1 << 22
            result = bits.view(np.float32) * x
        else:
            result = IN_PLACE[which](x, y)
        if target % 3:
            values.append(result)
        else:
            values[target % len(values)] = result
    for value in values:
        p = p * 0.5 + value
    return p


def test_in_place_operators_equal_numpys():
    x, y = np.array([[1.5, -2.0, 0.3], [0.7, 3.0, -1.1]], np.float32)
    changed = 0
    for seed in range(400):
        lines = random_lines(random.Random(seed))
        program = trace(rule(partial(lambda lines, p, g, *, c: run_lines(lines, p, g, c), lines)), np.float32)
        with np.errstate(all="ignore"):
            expected = run_lines(lines, x.copy(), y.copy(), np.float32(0.5))
        assert_same_bits(evaluate(program, x, y, 0.5), expected, str(lines))
        changed += any(line[0] == "in place" for line in lines)
    assert changed > 200


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_in_place_operation_is_visible_through_an_alias(backend):
    def update(self, p, g, m, mask, *, lr):
        old, decayed = m, g
        m *= 0.5
        m += g
        decayed *= lr
        mask += 0
        return p - lr * old - g, m, mask

    program = trace(rule(update), np.float32)
    assert [b.written for b in program.buffers] == [True, False, True, True]
    buffers = buffers_of(rule(update))
    fastopt.update(rule(update), 1, buffers, backend=backend)
    assert np.all(buffers["p"] == 1 - 0.5 * 1.5 - 0.5)
    assert np.all(buffers["m"] == 1.5)
    assert np.all(buffers["g"] == 1)

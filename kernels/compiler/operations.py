"""The operations of a traced rule, in one table: the NumPy functions that mean it, and how most targets write it.

Every operation is exact or correctly rounded, so every backend computes the same bits. A target is a language; what it
writes in another way is in its own table, in the folder of its backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt.kernels.compiler.text import PRODUCT, SUM, Text, Writer, call, infix, prefix


class Operation(NamedTuple):
    """One row of the table; `write` is how it is written where a target has no writer of its own for it."""

    name: str
    functions: tuple[np.ufunc, ...] = ()
    write: Writer | None = None


class Target(NamedTuple):
    """A language that programs are printed in.

    With `sums_in_loops` a sequence is a variable to which each element adds its difference, with `repairs_nan` NaN in
    16 bits is made canonical after a loop instead of in it: two things that not every compiler vectorizes otherwise.
    With `adds_halves` the language has `add_halves`, by which a sequence of 16 bits stays in the lower halves of words.
    """

    types: Mapping[str, str]  # what it calls a NumPy type
    writers: Mapping[str, Writer]
    sums_in_loops: bool = False
    repairs_nan: bool = False
    adds_halves: bool = False

    def write(self, node: Any, operands: Sequence[Text]) -> Text:
        """Write an operation."""
        write = self.writers.get(node.op) or OPERATIONS[node.op].write
        assert write is not None, f"this target has no writer for {node.op}"
        return write(node, operands)


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("constant"),
        Operation("add", (np.add,), infix("+", SUM)),
        Operation("subtract", (np.subtract,), infix("-", SUM)),
        Operation("multiply", (np.multiply,), infix("*", PRODUCT)),
        Operation("divide", (np.true_divide,), infix("/", PRODUCT)),
        Operation("negative", (np.negative,), prefix("-")),
        Operation("sqrt", (np.sqrt,), call("sqrt")),
        Operation("abs", (np.absolute,), call("fabs")),
        Operation("sign", (np.sign,), call("sign")),
        Operation("rint", (np.rint,), call("rint")),
        Operation("floor", (np.floor,), call("floor")),
        Operation("ceil", (np.ceil,), call("ceil")),
        Operation("trunc", (np.trunc,), call("trunc")),
        Operation("copysign", (np.copysign,), call("copysign")),
        Operation("less", (np.less,), infix("<")),
        Operation("less_equal", (np.less_equal,), infix("<=")),
        Operation("greater", (np.greater,), infix(">")),
        Operation("greater_equal", (np.greater_equal,), infix(">=")),
        Operation("equal", (np.equal,), infix("==")),
        Operation("not_equal", (np.not_equal,), infix("!=")),
        Operation("and", (np.logical_and, np.bitwise_and), infix("&")),
        Operation("or", (np.logical_or, np.bitwise_or), infix("|")),
        Operation("xor", (np.bitwise_xor,), infix("^")),
        Operation("not", (np.logical_not, np.invert)),
        Operation("left_shift", (np.left_shift,), infix("<<")),
        Operation("right_shift", (np.right_shift,), infix(">>")),
        Operation("select"),  # np.where
        Operation("cast"),  # .astype
        Operation("bitcast"),  # .view
        Operation("or_nan"),  # a value and a word: the canonical one where the value is NaN
        Operation("code"),  # the upper 12 bits of a word, a signed number, or a least one
        Operation("term", (), lambda node, args: args[0]),  # what a total sums; it is kept in memory
        Operation("tile_sum"),  # of the terms of a tile
        # An element's word in a tile's sequence, from the first word and the difference; its value: how many upper bits
        # are wanted.
        Operation("sequence"),
    )
}

VOCABULARY: dict[np.ufunc, str] = {f: operation.name for operation in OPERATIONS.values() for f in operation.functions}
"""NumPy function → operation."""

DERIVED = (np.square, np.fabs, np.isnan, np.isfinite, np.isinf)
"""NumPy functions that amount to the operations above, and are traced as those."""

_LARGER = "write np.where((a > b) | (a != a), a, b): NumPy leaves the sign of max(−0, +0) open"
_ON_THE_HOST = "not correctly rounded everywhere: if it depends on settings and t only, compute it in scalars(t)"
HINTS: dict[Any, str] = {
    np.maximum: _LARGER,
    np.fmax: _LARGER,
    np.minimum: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.fmin: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.clip: "write two np.where",
    np.round: "write np.rint(x)",
    np.power: "write x * x or x**2; other powers are " + _ON_THE_HOST,
    **dict.fromkeys(
        (np.exp, np.expm1, np.exp2, np.log, np.log1p, np.log2, np.tanh, np.sin, np.cos, np.cbrt), _ON_THE_HOST
    ),
}
"""What to write in place of NumPy functions that are not in the vocabulary."""

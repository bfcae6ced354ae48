"""The operations of a traced rule, in one table: the NumPy functions that mean it, and how each target writes it.

Every operation is exact or correctly rounded, so every backend computes the same bits. Python is what Numba compiles,
with the names of `cpu.values`; CUDA is C++ with the names of `tile.cuh`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastopt.kernels.compiler.text import ATOM, LOOSE, PREFIX, PRODUCT, SUM, Text, Writer, call, infix, prefix

PYTHON_TYPES = {"float32": "float32", "float64": "float64", "uint32": "word", "bool": "bool"}
CUDA_TYPES = {
    "float32": "float", "float64": "double", "uint32": "Word", "uint16": "Word16", "uint8": "Word8", "bool": "bool",
}  # fmt: skip
"""What a target calls a NumPy type."""

_WORD = np.dtype(np.uint32)


class Operation(NamedTuple):
    """One row of the table; `write` is one writer for all targets, or one per target where they differ."""

    name: str
    functions: tuple[np.ufunc, ...]
    write: Writer | Mapping[str, Writer]

    def writer(self, target: str) -> Writer:
        """Return the writer for a target, "python" or "cuda"."""
        return self.write if callable(self.write) else self.write[target]


def _python_number(node: Any, args: Any) -> Text:
    kind, x = PYTHON_TYPES[node.dtype.name], node.value.item()
    text = repr(x)
    if isinstance(x, float):
        short = str(node.value)  # as few digits as tell it from its neighbours
        if not np.isfinite(x):
            text = f"float('{x}')"
        elif type(node.value)(float(short)) == node.value:
            text = short
    return Text(f"{kind}({text})")


def _cuda_number(node: Any, args: Any) -> Text:
    value = node.value
    if value.dtype == np.bool_:
        return Text("true" if value else "false")
    if value.dtype == _WORD:
        return Text(f"{value:d}u" if value < 256 else f"{value:#x}u")
    if not np.isfinite(value):
        bits = f"0x{value.view(np.uint32 if value.dtype == np.float32 else np.uint64):x}"
        return Text(f"__uint_as_float({bits}u)" if value.dtype == np.float32 else f"__longlong_as_double({bits}ll)")
    # The shortest decimal that is nearest to this number, and no literal without a point or an exponent.
    text = str(value) + "f" * (value.dtype == np.float32)
    return Text(text, PREFIX if text.startswith("-") else ATOM)


def _python_not(node: Any, args: Any) -> Text:
    return prefix("not " if node.dtype == np.bool_ else "~", LOOSE)(node, args)


def _cuda_not(node: Any, args: Any) -> Text:
    # A negation within an operator stands in parentheses, without which g++ warns.
    return (prefix("!", LOOSE) if node.dtype == np.bool_ else prefix("~"))(node, args)


def _python_cast(node: Any, args: Any) -> Text:
    return Text(f"to_float({args[0]}, {PYTHON_TYPES[node.dtype.name]})")


def _cuda_cast(node: Any, args: Any) -> Text:
    return Text(f"{CUDA_TYPES[node.dtype.name]}({args[0]})")


def _python_bitcast(node: Any, args: Any) -> Text:
    return call("word" if node.dtype == _WORD else "from_bits")(node, args)


def _cuda_bitcast(node: Any, args: Any) -> Text:
    return call("__float_as_uint" if node.dtype == _WORD else "__uint_as_float")(node, args)


def _cuda_select(node: Any, args: Any) -> Text:
    condition, a, b = (x.within(SUM) for x in args)
    return Text(f"{condition} ? {a} : {b}", LOOSE)


def _cuda_or_nan(node: Any, args: Any) -> Text:
    canonical, _ = node.value
    return Text(f"{args[0].within(SUM)} != {args[0].within(SUM)} ? {canonical:#x}u : {args[1].within(SUM)}", LOOSE)


def _python_tile_sum(node: Any, args: Any) -> Text:
    return Text(f"float64(tile_total({args[0]}_spill, count))")


def _cuda_tile_sum(node: Any, args: Any) -> Text:
    return Text(f"double(tile_total<PACK>({args[0]}_spill))")


def _cuda_sequence(node: Any, args: Any) -> Text:
    return Text(f"{args[0].within(SUM)} + {args[1].within(PREFIX)} * index", SUM)


def _bitwise(operator: str) -> dict[str, Writer]:
    """Return the writers of a bit operation; in C++ arithmetic stands in parentheses, without which g++ warns."""
    return {"python": infix(operator), "cuda": infix(operator, around=PREFIX)}


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("constant", (), {"python": _python_number, "cuda": _cuda_number}),
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
        Operation("and", (np.logical_and, np.bitwise_and), _bitwise("&")),
        Operation("or", (np.logical_or, np.bitwise_or), _bitwise("|")),
        Operation("xor", (np.bitwise_xor,), _bitwise("^")),
        Operation("not", (np.logical_not, np.invert), {"python": _python_not, "cuda": _cuda_not}),
        Operation("left_shift", (np.left_shift,), _bitwise("<<")),
        Operation("right_shift", (np.right_shift,), _bitwise(">>")),
        Operation("select", (), {"python": call("select"), "cuda": _cuda_select}),  # np.where
        Operation("cast", (), {"python": _python_cast, "cuda": _cuda_cast}),  # .astype
        Operation("bitcast", (), {"python": _python_bitcast, "cuda": _cuda_bitcast}),  # .view
        # A value and a word: the canonical one where the value is NaN. In Python what follows the loop sees to that.
        Operation("or_nan", (), {"python": lambda node, args: args[1], "cuda": _cuda_or_nan}),
        # What a total sums; it is kept in memory, of which `tile_total` folds a tile.
        Operation("term", (), lambda node, args: args[0]),
        Operation("tile_sum", (), {"python": _python_tile_sum, "cuda": _cuda_tile_sum}),
        # The word of an element in a tile's sequence, from its first and the difference. In Python a loop adds it up.
        Operation("sequence", (), {"python": lambda node, args: args[0], "cuda": _cuda_sequence}),
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

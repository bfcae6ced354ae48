"""C99 as the language of a program, with the names of `tile.h`; the same text is C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.text import ATOM, LOOSE, PREFIX, SUM, Text, Writer, call, infix, prefix

TYPES = {
    "float32": "float", "float64": "double", "uint32": "uint32_t", "uint16": "uint16_t", "uint8": "uint8_t",
    "bool": "bool",
}  # fmt: skip
_WORD = np.dtype(np.uint32)


def _number(node: Any, args: Any) -> Text:
    value = node.value
    if value.dtype == np.bool_:
        return Text("true" if value else "false")
    if value.dtype == _WORD:
        return Text(f"{value:d}u" if value < 256 else f"{value:#x}u")
    if not np.isfinite(value):
        if value.dtype == np.float32:
            return Text(f"fastopt_float({value.view(np.uint32):#x}u)")
        return Text(f"fastopt_double(UINT64_C({value.view(np.uint64):#x}))")
    # The shortest decimal that is nearest to this number, and no literal without a point or an exponent.
    text = str(value) + "f" * (value.dtype == np.float32)
    return Text(text, PREFIX if text.startswith("-") else ATOM)


def _function(name: str) -> Writer:
    """Return the writer of a function that has one name for each type, as those of math.h."""
    return lambda node, args: call(f"{name}f" if node.dtype == np.float32 else name)(node, args)


def _not(node: Any, args: Any) -> Text:
    # A negation within an operator stands in parentheses, without which compilers warn.
    return (prefix("!", LOOSE) if node.dtype == np.bool_ else prefix("~"))(node, args)


def _cast(node: Any, args: Any) -> Text:
    return Text(f"({TYPES[node.dtype.name]}){args[0].within(ATOM)}", PREFIX)


def _bitcast(node: Any, args: Any) -> Text:
    return call("fastopt_word" if node.dtype == _WORD else "fastopt_float")(node, args)


def _select(node: Any, args: Any) -> Text:
    return Text(f"fastopt_{TYPES[node.dtype.name]}_select({', '.join(args)})")


def _or_nan(node: Any, args: Any) -> Text:
    canonical, _ = node.value
    x = args[0].within(SUM)
    return Text(f"{x} != {x} ? {canonical:#x}u : {args[1].within(SUM)}", LOOSE)


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"fastopt_{TYPES[node.args[0].dtype.name]}_sum({args[0]}_spill)")


def _of_type(name: str) -> Callable[[Any, Any], Text]:
    """Return the writer of a function of tile.h, which has the name of its type before its own."""
    return lambda node, args: Text(f"fastopt_{TYPES[node.dtype.name]}_{name}({', '.join(args)})")


# Arithmetic within a bit operation stands in parentheses, without which compilers warn.
_BITWISE = {
    name: infix(operator, around=PREFIX)
    for name, operator in {"and": "&", "or": "|", "xor": "^", "left_shift": "<<", "right_shift": ">>"}.items()
}

C = Target(
    types=TYPES,
    writers={
        "constant": _number,
        **{name: _function(name) for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign")},
        "abs": _function("fabs"),
        "sign": _of_type("sign"),
        "not": _not,
        "select": _select,
        "cast": _cast,
        "bitcast": _bitcast,
        "or_nan": _or_nan,
        "tile_sum": _tile_sum,
        "sequence": lambda node, args: args[0],
        **_BITWISE,
    },
    sums_in_loops=True,
)

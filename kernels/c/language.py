"""C99 as the language of a program, with the names of `tile.h`; the same text is C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.kernels.compiler.c_family import WRITERS, number
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.text import ATOM, PREFIX, Text, Writer, call

TYPES = {
    "float32": "float", "float64": "double", "uint32": "uint32_t", "uint16": "uint16_t", "uint8": "uint8_t",
    "int8": "int8_t", "bool": "bool",
}  # fmt: skip
_WORD = np.dtype(np.uint32)


def _not_finite(value: Any) -> str:
    if value.dtype == np.float32:
        return f"fastopt_float({value.view(np.uint32):#x}u)"
    return f"fastopt_double(UINT64_C({value.view(np.uint64):#x}))"


def _function(name: str) -> Writer:
    """Return the writer of a function that has one name for each type, as those of math.h."""
    return lambda node, args: call(f"{name}f" if node.dtype == np.float32 else name)(node, args)


def _cast(node: Any, args: Any) -> Text:
    return Text(f"({TYPES[node.dtype.name]}){args[0].within(ATOM)}", PREFIX)


def _bitcast(node: Any, args: Any) -> Text:
    return call("fastopt_word" if node.dtype == _WORD else "fastopt_float")(node, args)


def _select(node: Any, args: Any) -> Text:
    return Text(f"fastopt_{TYPES[node.dtype.name]}_select({', '.join(args)})")


def _code(node: Any, args: Any) -> Text:
    return Text(f"fastopt_code({args[0]}, {node.value})")


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"fastopt_{TYPES[node.args[0].dtype.name]}_sum({args[0]}_spill)")


def _of_type(name: str) -> Callable[[Any, Any], Text]:
    """Return the writer of a function of tile.h, which has the name of its type before its own."""
    return lambda node, args: Text(f"fastopt_{TYPES[node.dtype.name]}_{name}({', '.join(args)})")


C = Target(
    types=TYPES,
    writers={
        **WRITERS,
        "constant": number(_not_finite),
        **{name: _function(name) for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign")},
        "abs": _function("fabs"),
        "sign": _of_type("sign"),
        "select": _select,
        "cast": _cast,
        "bitcast": _bitcast,
        "code": _code,
        "tile_sum": _tile_sum,
        "sequence": lambda node, args: args[0],
    },
    sums_in_loops=True,
)

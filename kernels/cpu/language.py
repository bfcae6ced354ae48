"""Python as the language of a program: what Numba compiles, with the names of `cpu.values`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.text import LOOSE, Text, call, prefix

TYPES = {"float32": "float32", "float64": "float64", "uint32": "word", "int8": "word", "bool": "bool"}
_WORD = np.dtype(np.uint32)


def _number(node: Any, args: Any) -> Text:
    kind, x = TYPES[node.dtype.name], node.value.item()
    text = repr(x)
    if isinstance(x, float):
        short = str(node.value)  # as few digits as tell it from its neighbours
        if not np.isfinite(x):
            text = f"float('{x}')"
        elif type(node.value)(float(short)) == node.value:
            text = short
    return Text(f"{kind}({text})")


def _not(node: Any, args: Any) -> Text:
    return prefix("not " if node.dtype == np.bool_ else "~", LOOSE)(node, args)


def _cast(node: Any, args: Any) -> Text:
    if node.dtype == _WORD:  # of a signed byte, which is a word already
        return args[0]
    return Text(f"signed({args[0]})" if node.dtype == np.int8 else f"to_float({args[0]}, {TYPES[node.dtype.name]})")


def _bitcast(node: Any, args: Any) -> Text:
    return call("word" if node.dtype == _WORD else "from_bits")(node, args)


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"float64(tile_total({args[0]}_spill, count))")


PYTHON = Target(
    types=TYPES,
    writers={
        "constant": _number,
        "not": _not,
        "select": call("select"),
        "cast": _cast,
        "bitcast": _bitcast,
        "or_nan": lambda node, args: args[1],
        "code": lambda node, args: args[0],  # what becomes of several is packed at once: see `narrow`
        "tile_sum": _tile_sum,
        "sequence": lambda node, args: args[0],
    },
    sums_in_loops=True,
    repairs_nan=True,
    adds_halves=True,
)

"""CUDA C++ as the language of a program, with the names of `tile.cuh`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.compiler.c_family import WRITERS, number
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.text import LOOSE, PREFIX, SUM, Text, call

TYPES = {
    "float32": "float", "float64": "double", "uint32": "Word", "uint16": "Word16", "uint8": "Word8",
    "int8": "Signed8", "bool": "bool",
}  # fmt: skip
_WORD = np.dtype(np.uint32)


def _not_finite(value: Any) -> str:
    bits = f"0x{value.view(np.uint32 if value.dtype == np.float32 else np.uint64):x}"
    return f"__uint_as_float({bits}u)" if value.dtype == np.float32 else f"__longlong_as_double({bits}ll)"


def _cast(node: Any, args: Any) -> Text:
    return Text(f"{TYPES[node.dtype.name]}({args[0]})")


def _bitcast(node: Any, args: Any) -> Text:
    return call("__float_as_uint" if node.dtype == _WORD else "__uint_as_float")(node, args)


def _select(node: Any, args: Any) -> Text:
    condition, a, b = (x.within(SUM) for x in args)
    return Text(f"{condition} ? {a} : {b}", LOOSE)


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"double(tile_total<PACK>({args[0]}_spill))")


def _sequence(node: Any, args: Any) -> Text:
    return Text(f"{args[0].within(SUM)} + {args[1].within(PREFIX)} * index", SUM)


CUDA = Target(
    types=TYPES,
    writers={
        **WRITERS,
        "constant": number(_not_finite),
        "select": _select,
        "cast": _cast,
        "bitcast": _bitcast,
        "tile_sum": _tile_sum,
        "sequence": _sequence,
    },
)

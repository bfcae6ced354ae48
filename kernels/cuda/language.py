"""CUDA C++ as the language of a program, with the names of `tile.cuh`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.text import ATOM, LOOSE, PREFIX, SUM, Text, call, infix, prefix

TYPES = {
    "float32": "float", "float64": "double", "uint32": "Word", "uint16": "Word16", "uint8": "Word8", "bool": "bool",
}  # fmt: skip
_WORD = np.dtype(np.uint32)


def _number(node: Any, args: Any) -> Text:
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


def _not(node: Any, args: Any) -> Text:
    # A negation within an operator stands in parentheses, without which g++ warns.
    return (prefix("!", LOOSE) if node.dtype == np.bool_ else prefix("~"))(node, args)


def _cast(node: Any, args: Any) -> Text:
    return Text(f"{TYPES[node.dtype.name]}({args[0]})")


def _bitcast(node: Any, args: Any) -> Text:
    return call("__float_as_uint" if node.dtype == _WORD else "__uint_as_float")(node, args)


def _select(node: Any, args: Any) -> Text:
    condition, a, b = (x.within(SUM) for x in args)
    return Text(f"{condition} ? {a} : {b}", LOOSE)


def _or_nan(node: Any, args: Any) -> Text:
    canonical, _ = node.value
    return Text(f"{args[0].within(SUM)} != {args[0].within(SUM)} ? {canonical:#x}u : {args[1].within(SUM)}", LOOSE)


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"double(tile_total<PACK>({args[0]}_spill))")


def _sequence(node: Any, args: Any) -> Text:
    return Text(f"{args[0].within(SUM)} + {args[1].within(PREFIX)} * index", SUM)


# Arithmetic within a bit operation stands in parentheses, without which g++ warns.
_BITWISE = {
    name: infix(operator, around=PREFIX)
    for name, operator in {"and": "&", "or": "|", "xor": "^", "left_shift": "<<", "right_shift": ">>"}.items()
}

CUDA = Target(
    types=TYPES,
    writers={
        "constant": _number,
        "not": _not,
        "select": _select,
        "cast": _cast,
        "bitcast": _bitcast,
        "or_nan": _or_nan,
        "tile_sum": _tile_sum,
        "sequence": _sequence,
        **_BITWISE,
    },
)

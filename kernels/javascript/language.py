"""JavaScript as the language of a program, with the names of `runtime.js`.

JavaScript computes in float64. A float32 operation is computed there and rounded by Math.fround, which gives the
correctly rounded float32 result: for +, −, ×, ÷ and √ of numbers of p bits, rounding first to at least 2p + 2 bits and
then to p bits never differs from rounding once (Figueroa, "When is double rounding innocuous?", 1995), and
53 ≥ 2 · 24 + 2. Subnormal float32 results have fewer bits, and it holds for them too: sums and products are exact in
float64, roots are never subnormal, and a quotient that is not halfway between two neighbours is at least 2⁻⁴⁹ of its
size away from there. The other operations are exact, so they are written alike for both types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.compiler.operations import OPERATIONS, Target
from fastopt.kernels.compiler.text import ATOM, COMPARE, LOOSE, PREFIX, SUM, Text, Writer, call, infix

TYPES = {"float32": "Float32Array", "float64": "Float64Array", "uint32": "Uint32Array"}
_WORDS = (
    "arguments await break case catch class const continue debugger default delete do else enum eval export extends"
    " false finally for function if implements import in instanceof interface let new null package private protected"
    " public return static super switch this throw true try typeof undefined var void while with yield Infinity NaN"
    " Math Object Array Float32Array Float64Array Uint32Array Number BigInt"
)
WORDS = frozenset(_WORDS.split())
"""Names that have a meaning in JavaScript, and no variable may have."""

_WORD, _SINGLE, _BOOL = np.dtype(np.uint32), np.dtype(np.float32), np.dtype(bool)


def _number(node: Any, args: Any) -> Text:
    value = node.value.item()
    if isinstance(value, bool):
        return Text("true" if value else "false")
    if isinstance(value, int):
        return Text(str(value) if value < 256 else f"{value:#x}")
    if value != value:
        return Text("NaN")
    text = "Infinity" if abs(value) == float("inf") else repr(abs(value)).removesuffix(".0")
    return Text(f"-{text}", PREFIX) if np.signbit(value) else Text(text, ATOM)


def _arithmetic(name: str, symbol: str | None = None) -> Writer:
    """Write an operation that rounds: to float32 by fround, of words modulo 2³²."""
    write = OPERATIONS[name].write if symbol is None else call(symbol)
    assert write is not None

    def written(node: Any, args: Any) -> Text:
        text = write(node, args)
        if node.dtype == _SINGLE:
            return Text(f"fround({text})")
        return Text(f"{text.within(SUM)} >>> 0", COMPARE) if node.dtype == _WORD else text

    return written


def _multiply(node: Any, args: Any) -> Text:
    if node.dtype == _WORD:
        return Text(f"imul({args[0]}, {args[1]}) >>> 0", COMPARE)
    return _arithmetic("multiply")(node, args)


def _bitwise(words: str, logical: str) -> Writer:
    """Write an operation on words, or on truth values, of which JavaScript's operators on words would make numbers."""
    of_words, of_bools = infix(words), infix(logical)

    def written(node: Any, args: Any) -> Text:
        if node.dtype == _BOOL:
            return of_bools(node, args)
        return Text(f"({of_words(node, args)}) >>> 0", COMPARE)

    return written


def _not(node: Any, args: Any) -> Text:
    x = args[0].within(ATOM)
    return Text(f"!{x}", PREFIX) if node.dtype == _BOOL else Text(f"~{x} >>> 0", COMPARE)


def _cast(node: Any, args: Any) -> Text:
    x = args[0].within(SUM)
    if node.dtype in (np.int8, _WORD):
        return Text(f"{x} << 24 >> 24" if node.dtype == np.int8 else f"{x} >>> 0", COMPARE)
    return Text(f"fround({args[0]})") if node.dtype == _SINGLE else args[0]


def _bitcast(node: Any, args: Any) -> Text:
    return call("wordOf" if node.dtype == _WORD else "floatOf")(node, args)


def _select(node: Any, args: Any) -> Text:
    condition, a, b = (x.within(SUM) for x in args)
    return Text(f"{condition} ? {a} : {b}", LOOSE)


def _tile_sum(node: Any, args: Any) -> Text:
    return Text(f"tileTotal({args[0]}_spill, count)")


JAVASCRIPT = Target(
    types=TYPES,
    writers={
        "constant": _number,
        "add": _arithmetic("add"),
        "subtract": _arithmetic("subtract"),
        "multiply": _multiply,
        "divide": _arithmetic("divide"),
        "sqrt": _arithmetic("sqrt", "sqrt"),
        "abs": call("abs"),
        "equal": infix("==="),
        "not_equal": infix("!=="),
        "and": _bitwise("&", "&&"),
        "or": _bitwise("|", "||"),
        "xor": _bitwise("^", "!=="),
        "not": _not,
        "left_shift": _bitwise("<<", ""),
        "right_shift": lambda node, args: Text(infix(">>>")(node, args), COMPARE),
        "select": _select,
        "cast": _cast,
        "bitcast": _bitcast,
        "tile_sum": _tile_sum,
    },
)

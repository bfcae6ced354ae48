"""What C, C++ and CUDA C++ write alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.kernels.compiler.text import ATOM, LOOSE, PREFIX, SUM, Text, Writer, infix, prefix


def number(not_finite: Callable[[Any], str]) -> Writer:
    """Return the writer of constants; `not_finite` writes an infinity or NaN, from its bits."""

    def write(node: Any, args: Any) -> Text:
        value = node.value
        if value.dtype == np.bool_:
            return Text("true" if value else "false")
        if value.dtype == np.uint32:
            return Text(f"{value:d}u" if value < 256 else f"{value:#x}u")
        if not np.isfinite(value):
            return Text(not_finite(value))
        # The shortest decimal that is nearest to this number, and no literal without a point or an exponent.
        text = str(value) + "f" * (value.dtype == np.float32)
        return Text(text, PREFIX if text.startswith("-") else ATOM)

    return write


def _not(node: Any, args: Any) -> Text:
    # A negation within an operator stands in parentheses, without which compilers warn.
    return (prefix("!", LOOSE) if node.dtype == np.bool_ else prefix("~"))(node, args)


def _or_nan(node: Any, args: Any) -> Text:
    canonical, _ = node.value
    x = args[0].within(SUM)
    return Text(f"{x} != {x} ? {canonical:#x}u : {args[1].within(SUM)}", LOOSE)


WRITERS: dict[str, Writer] = {
    "not": _not,
    "or_nan": _or_nan,
    # Arithmetic within a bit operation stands in parentheses, without which compilers warn.
    **{
        name: infix(operator, around=PREFIX)
        for name, operator in {"and": "&", "or": "|", "xor": "^", "left_shift": "<<", "right_shift": ">>"}.items()
    },
}

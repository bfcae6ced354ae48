"""`total`: the sum of a value over a tensor, or over all parameters of a step, in one defined order."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastopt.errors import RuleError, suggest
from fastopt.kernels.formats import TILE

OVER = ("tensor", "all")
"""What a total may be over."""


def total(x: Any, over: str = "tensor", of: str = "") -> Any:
    """Sum a value over its tensor, or over all parameters of the step, in the order that every backend keeps.

    In a rule's `update` the result is a number like the rule's scalars. On an array it is this definition: a tile's 256
    values, with +0 for those beyond the end, are folded by halves in their own precision (i with i + 128, then with
    i + 64, … i + 1); the tiles' sums, as float64, are folded in the same way, 256 at a time, until one is left. Over
    all parameters the totals of the tensors are added in float64, in their order. The result is rounded to x's type.

    Args:
        x: what `update` computes from its buffers; here, a float32 or float64 array of any shape.
        over: "tensor" or "all", which on an array is the same.
        of: what a total over all is of, in words, where rules of several groups compute it in different ways. Without
            it their totals are one only if their expressions are the same.

    Raises:
        RuleError: x is a number or not of floating point, or `over` is neither.

    The relative error of a sum of squares is at most 10 · 2⁻²⁴ in float32: of a square, the eight additions of a tile
    and the last rounding; the additions in float64 are beneath that.

    >>> import numpy as np, fastopt
    >>> fastopt.total(np.full(1000, 0.1, np.float32))
    np.float32(100.0)

    """
    if over not in OVER:
        raise RuleError("a total is over one tensor or over all.", got=repr(over), do=suggest(str(over), list(OVER)))
    traced = getattr(type(x), "_total", None)
    if traced is not None:
        return traced(x, over, of)
    array = np.asarray(x)
    if not array.ndim or array.dtype not in (np.float32, np.float64):
        got = f"{array.dtype}{list(array.shape)}"
        raise RuleError("a total is of an array of floats.", got=got, expected="values computed from p, g or state")
    found, heard = folded(array.reshape(-1)), LISTENER.get()
    if heard is not None:
        found = heard(found, over)
    with np.errstate(all="ignore"):
        return array.dtype.type(found)


GRADIENTS = "squared gradients"
"""What the square of the global norm is a total of."""

LISTENER: ContextVar[Callable[[np.float64, str], np.float64] | None] = ContextVar("LISTENER", default=None)
"""What is told of each total and returns the one to use: the reference backend, of totals over all rows."""


def folded(values: np.ndarray) -> np.float64:
    """Return the total of a flat array, not rounded."""
    with np.errstate(all="ignore"):
        sums = _fold(values).astype(np.float64)
        while sums.size > 1:
            sums = _fold(sums)
    return sums[0] if sums.size else np.float64(0)


def _fold(values: np.ndarray) -> np.ndarray:
    """Fold each 256 values by halves."""
    tiles = -(-values.size // TILE)
    padded = np.zeros(tiles * TILE, values.dtype)
    padded[: values.size] = values
    rest = padded.reshape(tiles, TILE)
    while rest.shape[1] > 1:
        half = rest.shape[1] // 2
        rest = rest[:, :half] + rest[:, half:]
    return rest[:, 0]

"""`matrixwise`: a function of whole matrices within a rule, which a library of arrays computes, not a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastopt.errors import LayoutError, RuleError


def matrixwise(x: Any, function: Callable[[Any], Any]) -> Any:
    """Return `function` of the matrix that a value is, of each tensor on its own.

    A tensor of the shape (rows, …) is the matrix of so many rows, as the weights of a convolution are. `function` takes
    a batch of matrices, an array of the shape (matrices, rows, columns) of the library that the tensors are of (NumPy,
    CuPy or torch), and returns an array of the same shape and type, or of a shorter type of floats, whose values are
    taken as they are; it does not write to the one that it is given. What comes before and after it in `update` are
    passes of kernels, with the same bits on every backend; those of the function are the library's own, and differ by
    library and processor. NaN and infinities come to it as they are, of a step that is skipped for them too.

    In a rule's `update` the result is like the value of a buffer. On an array it is this definition.

    Args:
        x: what `update` computes from its buffers; here, a float32 or float64 array of at least two dimensions.
        function: the function, an object that is hashable, as a function of a module or an instance of a frozen
            dataclass with `__call__`. Matrices of one shape come to it together, as many as the backend chooses.

    Raises:
        RuleError: x is a number or not of floating point, or what the function returns is not like its argument.
        LayoutError: x has fewer than two dimensions.

    >>> import numpy as np, fastopt
    >>> fastopt.matrixwise(np.array([[1.0, 2.0], [3.0, 4.0]]), lambda x: x @ x)
    array([[ 7., 10.],
           [15., 22.]])

    """
    traced = getattr(type(x), "_matrixwise", None)
    if traced is not None:
        return traced(x, function)
    array = np.asarray(x)
    if not array.ndim or array.dtype not in (np.float32, np.float64):
        got = f"{array.dtype}{list(array.shape)}"
        raise RuleError("a function of matrices takes an array of floats.", got=got)
    batch = array.reshape(1, *matrix_shape(SHAPE.get() or array.shape))
    with np.errstate(all="ignore"):
        found = applied(function, batch) if batch.size else batch
    return found.reshape(array.shape).astype(array.dtype)


SHAPE: ContextVar[Sequence[int] | None] = ContextVar("SHAPE", default=None)
"""The shape of the tensor whose elements the reference backend passes to a rule, in one dimension."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of the matrix that a tensor is, or raise a LayoutError."""
    if len(shape) < 2:
        raise LayoutError(
            "this rule is for matrices, and a parameter has fewer than two dimensions.",
            got=f"shape {tuple(shape)}",
            expected="(rows, columns), or (rows, …) as of a convolution",
            do="give it another rule, as by aux=fastopt.Adam(…) of Muon or a group of its own",
        )
    rows, *rest = map(int, shape)
    return rows, int(np.prod(rest))


def applied(function: Callable[[Any], Any], batch: Any) -> Any:
    """Call a function on a batch, and raise a RuleError if what it returns is not like it."""
    given = batch
    if isinstance(batch, np.ndarray):  # which it shall not write to
        given = batch.view()
        given.flags.writeable = False
    found = function(given)
    where = getattr(function, "__name__", type(function).__name__)
    if not (hasattr(found, "shape") and hasattr(found, "dtype")):
        what = "a function of matrices returned no array."
        raise RuleError(what, got=repr(found)[:60], expected=f"{batch.dtype}{list(batch.shape)}", where=where)
    if tuple(found.shape) != tuple(batch.shape) or not _is_exact(found.dtype, batch.dtype):
        raise RuleError(
            "a function of matrices returned something that is not like what it was given.",
            got=f"{found.dtype}{list(found.shape)}",
            expected=f"{batch.dtype}{list(batch.shape)}, or of a shorter type of floats",
            where=where,
        )
    return found


def _is_exact(found: Any, wanted: Any) -> bool:
    """Whether values of a type, of NumPy, CuPy or torch, are exact in another one."""
    floating = getattr(found, "is_floating_point", getattr(found, "kind", "") == "f")
    return found == wanted or (floating and found.itemsize < wanted.itemsize)

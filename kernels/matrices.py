"""Functions of matrices within a step: the memory of their arguments, and the calls that replace these by values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.kernels.launch import MatrixLibrary, Rows
from fastopt.kernels.rules.matrixwise import applied, matrix_shape


class Matrices:
    """The arguments of a program's functions of matrices, in memory that is divided among rows; and their calls.

    The values of a function take the place of its arguments. Rows of one shape lie side by side, and are a batch, or
    several of at most so many elements.
    """

    def __init__(self, program: Any, rows: Rows, allocate: Callable[[int], Any], most: int):
        assert rows.shapes is not None, "functions of matrices need the shapes of rows"
        shapes = [matrix_shape(shape) for shape in rows.shapes]
        order = sorted(range(len(shapes)), key=lambda row: shapes[row])  # a stable order
        sizes = [shapes[row][0] * shapes[row][1] for row in order]
        ends = np.cumsum([0, *sizes])
        self.starts = np.empty(len(shapes), np.int64)  # of the first element of each row
        self.starts[order] = ends[:-1]
        self.memory = [allocate(int(ends[-1])) for _ in program.matrices]
        self._library = rows.library or Own()
        self._batches: list[list[tuple[Any, Any]]] = []
        for node, memory in zip(program.matrices, self.memory, strict=True):
            own, batches, k = self._library.view(memory), [], 0
            while k < len(order):
                shape = shapes[order[k]]
                alike = k + 1
                while alike < len(order) and shapes[order[alike]] == shape and (alike + 1 - k) * sizes[k] <= most:
                    alike += 1
                if sizes[k]:
                    batches.append((node.value, own[int(ends[k]) : int(ends[alike])].reshape(alike - k, *shape)))
                k = alike
            self._batches.append(batches)

    def calls(self, k: int) -> list[tuple]:
        """Prepare the calls of function number k, which are Python."""
        return [(_replace, function, batch, self._library) for function, batch in self._batches[k]]


class Own:
    """The library of the backend's own arrays, NumPy or CuPy: see `MatrixLibrary`."""

    def view(self, array: Any) -> Any:
        """Return the array itself."""
        return array

    def assign(self, batch: Any, found: Any) -> None:
        """Put values in the place of others; NumPy and CuPy see to it where both lie in the same memory."""
        batch[...] = found

    def computing(self) -> Any:
        """Ignore infinities and NaN."""
        return np.errstate(all="ignore")


def _replace(function: Callable[[Any], Any], batch: Any, library: MatrixLibrary) -> None:
    """Call a function of matrices, and put its values in the place of its argument."""
    with library.computing():
        library.assign(batch, applied(function, batch))

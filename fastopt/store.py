"""The store: rows × planes of memory. The one place that allocates, encodes, decodes and compares it, for all surfaces.

A row is a tensor: one of a model's, or a flat buffer of many. Each of its buffers (p, g, the state) is stored in a
format as one or more planes, arrays of their own: see `kernels.formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt.arrays.library import Array, Memory
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.formats import STORAGES, TILE, Format, Plane, pack, unpack

_PART = 4096 * TILE  # values that are packed at a time: temporary arrays take memory


class Store:
    """The memory of some rows, plane by plane.

    Args:
        memory: how to reach the memory of the arrays that the planes are.
        formats: buffer → name of its format.
        sizes: the number of values of each row.
        allocate: makes the array of a plane, all zero bytes: `allocate(row, form, name, plane)`.

    Attributes:
        planes: of each row, the name of a plane → its array.

    """

    def __init__(
        self,
        memory: Memory,
        formats: Mapping[str, str],
        sizes: Sequence[int],
        allocate: Callable[[int, Format, str, Plane], Array],
    ):
        self.memory, self.sizes, self._allocate = memory, sizes, allocate
        self.formats: dict[str, Format] = {b: STORAGES[name] for b, name in formats.items()}
        self.planes: list[dict[str, Array]] = [{} for _ in sizes]

    def plane(self, name: str) -> Plane:
        """Return what a plane consists of."""
        buffer = name.partition(".")[0]
        return self.formats[buffer].plane_names(buffer)[name]

    def allocate(self, row: int, name: str) -> Array:
        """Allocate a plane of a row anew, all zero bytes, in place of the one it has."""
        form = self.formats[name.partition(".")[0]]
        made = self.planes[row][name] = self._allocate(row, form, name, self.plane(name))
        return made

    def make(self, row: int, buffer: str, value: float = 0.0) -> bool:
        """Allocate the planes that a row's buffer lacks and fill it with a value; return whether any were lacking."""
        form = self.formats[buffer]
        lacking = [name for name in form.plane_names(buffer) if name not in self.planes[row]]
        for name in lacking:
            self.allocate(row, name)
        if lacking and value:  # zero bytes are zero in every format
            self.encode(row, buffer, np.broadcast_to(form.computes.type(value), self.sizes[row]))
        return bool(lacking)

    def decode(self, row: int, buffer: str) -> np.ndarray:
        """Return the values of a row's buffer in the computing precision, flat, in new memory of the CPU."""
        form = self.formats[buffer]
        read = [(self.planes[row][name], plane) for name, plane in form.plane_names(buffer).items() if plane.read]
        values = np.empty(self.sizes[row], form.computes)
        for part, tiles in _parts(values.size):
            words = [self.memory.read(a, tiles if plane.tiled else part, plane.dtype) for a, plane in read]
            values[part] = unpack(form, words)
        return values

    def encode(self, row: int, buffer: str, values: np.ndarray, *, skip: Any = ()) -> None:
        """Write flat values in the computing precision, each rounded to nearest, to all planes but those to `skip`."""
        for name, part, words in self.encoded(buffer, values):
            if name not in skip:
                self.memory.write(self.planes[row][name], part, words)

    def encoded(self, buffer: str, values: np.ndarray) -> Iterator[tuple[str, slice, np.ndarray]]:
        """Encode values as `encode` does, and return their words: the name of a plane, a part of it, and what it is."""
        form = self.formats[buffer]
        for part, tiles in _parts(values.size):
            packed = pack(form, values[part])
            for (name, plane), words in zip(form.plane_names(buffer).items(), packed, strict=True):
                yield name, tiles if plane.tiled else part, words

    def forward(self, buffer: str) -> str:
        """Return the name of the plane that a forward pass reads."""
        form = self.formats[buffer]
        return list(form.plane_names(buffer))[form.forward]

    def addresses(self, row: int, program: Program) -> list[int]:
        """Return the address of each of a program's buffers in a row."""
        planes, address = self.planes[row], self.memory.address
        return [address(planes[b.name]) for b in program.buffers]


def _parts(count: int) -> Iterator[tuple[slice, slice]]:
    """Divide elements, and their tiles, into parts."""
    for first in range(0, count, _PART):
        last = min(first + _PART, count)
        yield slice(first, last), slice(first // TILE, -(-last // TILE))


class Extents:
    """Ranges of memory in the order of their addresses; `overlap` is a pair of them that overlap, or None.

    >>> Extents([100, 0, 50], [10, 50, 60]).overlap
    (2, 0)
    """

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int]):
        order = sorted((k for k, size in enumerate(sizes) if size), key=addresses.__getitem__)
        self.overlap = next(((a, b) for a, b in pairwise(order) if addresses[a] + sizes[a] > addresses[b]), None)
        self._order, self._addresses, self._sizes = order, addresses, sizes
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None

    def touched_by(self, addresses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return which of these ranges lie, in part, in one of the extents."""
        if self._bounds is None:
            beyond = np.iinfo(np.int64).max  # so that there is always one before and one after
            starts = np.array([0, *(self._addresses[k] for k in self._order), beyond], np.int64)
            ends = np.array([0, *(self._addresses[k] + self._sizes[k] for k in self._order), beyond], np.int64)
            self._bounds = starts, ends
        starts, ends = self._bounds
        after = np.searchsorted(starts, addresses, "right")
        return ((ends[after - 1] > addresses) | (starts[after] < addresses + sizes)) & (sizes > 0)

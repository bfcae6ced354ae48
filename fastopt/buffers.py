"""Flat, aligned, tile-padded memory with named views: many parameters as one array, so that a step is one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fastopt import devices
from fastopt.kernels.program import planes
from fastopt.kernels.storage import TILE, Plane, Storage, pack, unpack

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def allocate(count: int, dtype: np.dtype, value: float = 0.0, device: Any = None) -> Any:
    """Allocate `count` elements, filled with `value`, beginning at a multiple of 64 bytes; on a device if one is given.

    Filling touches every page now: the first step would pay for it otherwise.
    """
    if device is not None:
        return devices.allocate(count, dtype, value, device)
    raw = np.empty(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    array = raw[start : start + count * dtype.itemsize].view(dtype)
    array.fill(value)
    return array


class Packed:
    """One buffer of a group as its format keeps it: flat arrays of whole tiles, one for each plane, by its name."""

    def __init__(self, name: str, storage: Storage, arrays: Mapping[str, Any]):
        self.storage, self.arrays = storage, dict(arrays)
        self._planes = planes(name, storage)

    @property
    def forward(self) -> Any:
        """The array that a forward pass reads."""
        return list(self.arrays.values())[self.storage.forward]

    def unpack(self) -> Any:
        """Give the values as a flat array in the computing precision: the memory itself where it is kept so."""
        if self.storage.plain:
            return self.forward
        read = [(self.arrays[name], plane.tiled) for name, plane in self._planes.items() if plane.read]
        values = np.empty(self.forward.size, self.storage.computes)
        for part, tiles in _parts(values.size):
            values[part] = unpack(self.storage, [devices.to_numpy(a[tiles if tiled else part]) for a, tiled in read])
        return values if isinstance(self.forward, np.ndarray) else devices.to_device(values, self.forward.device)

    def pack(self, values: np.ndarray) -> None:
        """Take over values in the computing precision, as many as are allocated, each rounded to nearest."""
        for part, tiles in _parts(values.size):
            for (name, plane), new in zip(self._planes.items(), pack(self.storage, values[part]), strict=True):
                devices.copy(self.arrays[name][tiles if plane.tiled else part], new)


def _parts(count: int) -> Iterator[tuple[slice, slice]]:
    """Divide elements, and their tiles, into parts that are packed at a time: temporary arrays take memory."""
    for first in range(0, count, _PART):
        last = min(first + _PART, count)
        yield slice(first, last), slice(first // TILE, -(-last // TILE))


_PART = 4096 * TILE


def numpy_type(plane: Plane) -> np.dtype:
    """Give the type in which users see a plane."""
    return devices.bfloat16() if plane.view == "bfloat16" else np.dtype(plane.view or plane.dtype)


def padded(count: int) -> int:
    """Round a number of elements up to whole tiles."""
    return -(-count // TILE) * TILE


def views(array: Any, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    """Divide a flat array among named shapes, one after the other without gaps; the mapping cannot be assigned to."""
    result, start = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        result[name] = array[start : start + count].reshape(shape)
        start += count
    return MappingProxyType(result)

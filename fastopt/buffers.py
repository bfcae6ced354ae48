"""Flat, aligned, tile-padded memory with named views: many parameters as one array, so that a step is one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fastopt import devices
from fastopt.kernels.storage import TILE

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

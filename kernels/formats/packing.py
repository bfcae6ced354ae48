"""Whole arrays of values to and from the planes of a format, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.formats.format import NEAREST, TILE, Format, Scaled


def unpack(storage: Format, planes: Sequence[np.ndarray]) -> np.ndarray:
    """Decode flat arrays, one for each plane that is read, to their values in new memory."""
    n = planes[0].size
    given = []
    for plane, array in zip([p for p in storage.planes if p.read], planes, strict=True):
        wide = array.copy() if plane.dtype.kind == "f" else array.astype(np.uint32)
        given.append(np.repeat(wide, TILE)[:n] if plane.tiled else wide)
    with np.errstate(all="ignore"):
        return storage.decode(*given)


def pack(storage: Format, values: np.ndarray, bits: Any = NEAREST) -> list[np.ndarray]:
    """Encode flat values to one array per plane; `bits` are as many random words as there are values."""
    with np.errstate(all="ignore"):
        if not isinstance(storage, Scaled):
            encoded = storage.encode(values, bits)
        else:
            tiles = -(-values.size // TILE)
            peaks = np.zeros(tiles * TILE, np.uint32)
            peaks[: values.size] = storage.peak(values)
            scale = storage.scale(peaks.reshape(tiles, TILE).max(axis=1))
            if bits is NEAREST:
                scale = _former_scale(storage, values, scale)
            encoded = (*storage.encode(values, bits, np.repeat(scale, TILE)[: values.size]), scale)
    return [x.astype(plane.dtype) for plane, x in zip(storage.planes, encoded, strict=True)]


def _former_scale(storage: Scaled, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return for each tile the scale with which its values were once encoded, where it is not the one they ask for.

    Rounding can carry a tile's largest value below the one that its scale was chosen by. Packed again as they are, the
    values must come back as they were.
    """

    def preserves(scale: np.ndarray) -> Any:
        each = np.repeat(scale, TILE)[: values.size]
        same = np.ones(scale.size * TILE, bool)
        back = storage.decode(*storage.encode(values, NEAREST, each), each)
        same[: values.size] = (back == values) | (values != values)
        return np.all(same.reshape(-1, TILE), axis=1)

    for other in storage.other_scales(scale):
        scale = np.where(~preserves(scale) & preserves(other), other, scale)
    return scale

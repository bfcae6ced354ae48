"""What a storage format is: its planes in memory, and decode and encode between those and a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

TILE = 256
"""Values in a tile: one scale block, one GPU warp × 8 values a lane, one short vector loop on the CPU. Groups of
parameters begin at a multiple of it."""

U8, U16, U32 = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32)
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


class Plane(NamedTuple):
    """One array of a format: the suffix of its name, and the type of its elements."""

    suffix: str
    dtype: np.dtype
    view: str = ""  # the type that users see, if the plane is stored as an unsigned integer
    read: bool = True  # False: a step only writes it, for others to read
    tiled: bool = False  # one element per tile

    def size(self, n: int) -> int:
        """Return the number of elements that hold n values."""
        return -(-n // TILE) if self.tiled else n


class Format:
    """A storage format. `decode(*planes)` returns the value, `encode(x, bits)` the new planes as a tuple.

    Both are NumPy code in the tracer's vocabulary: called on arrays they are the definition, called on symbols they
    become part of a kernel. A plane of 8 or 16 bits reaches `decode` as uint32, and leaves `encode` as a uint32 whose
    low bits are stored. Encoders write one canonical NaN. A decoded value is encoded without a change, whatever the
    random bits: rounding happens once, when the rule has computed a new value.

    `bits` is a uint32 whose upper `random` bits are random, the element's own; see `NEAREST`.
    """

    name: ClassVar[str]
    planes: ClassVar[tuple[Plane, ...]]
    computes: ClassVar[np.dtype] = F32
    forward: ClassVar[int] = 0  # index of the plane that a forward pass reads
    random: ClassVar[int] = 0  # bits that rounding an element takes: 16, 20 or none
    quiet: ClassVar[bool] = False  # whether the low half of any NaN that it decodes is zero
    holds: ClassVar[tuple[str, ...]] = ("p", "g", "state")  # the buffers it is meant for and tested with
    decode: Callable[..., Any]  # of the planes, to the value that they hold
    encode: Callable[..., tuple]  # of a value and random bits, to its planes

    @property
    def plain(self) -> bool:
        """Whether the memory holds the values as they are computed."""
        return len(self.planes) == 1 and self.planes[0].dtype == self.computes

    def has_values(self, plane: Plane) -> bool:
        """Whether a plane is all of a buffer, or has its values as they are computed."""
        return len(self.planes) == 1 or plane.dtype == self.computes

    def plane_names(self, buffer: str) -> dict[str, Plane]:
        """Return the planes of a buffer by the names of their arrays: "p" and "p.low", for example."""
        return {f"{buffer}.{plane.suffix}" if plane.suffix else buffer: plane for plane in self.planes}


class Scaled(Format):
    """A format with one scale per tile: `scale` computes it from the largest `peak`, and `encode` receives it.

    Nearly all tiles are plain: none of their values, before and after a step, is one that the format treats apart
    (NaN, ∞ and, for what is never negative, zero). For them there are `plain_decode`, `plain_peak` and `plain_encode`,
    with the same bits as the others and without a choice for each element.
    """

    plain_codes: ClassVar[tuple[int, int, int]]
    """Which bits of a code say whether it is plain, and the least and the largest that they are if it is."""

    def plain_decode(self, code: Any, scale: Any) -> Any:
        """Decode a plain code."""
        raise NotImplementedError

    def plain_peak(self, x: Any) -> Any:
        """Return a word for a value; that of a value which is not plain is `plain_limit` or more."""
        raise NotImplementedError

    plain_limit: ClassVar[int]

    def plain_scale(self, largest: Any) -> Any:
        """Return the scale of a tile from the largest `plain_peak` of its values, if they are all plain."""
        raise NotImplementedError

    def plain_encode(self, x: Any, bits: Any, scale: Any) -> Any:
        """Return a word whose upper 12 bits, a signed number, are a plain value's code, or less than the least one.

        It takes the least code then.
        """
        raise NotImplementedError

    def peak(self, x: Any) -> Any:
        """Return what a value asks of its tile's scale, as a uint32."""
        raise NotImplementedError

    def scale(self, peak: Any) -> Any:
        """Return the scale of a tile, its last plane, from the largest of its values' peaks."""
        raise NotImplementedError

    def other_scales(self, scale: np.ndarray) -> Sequence[np.ndarray]:
        """Return the scales that values may have had before whose peak now asks for `scale`."""
        return ()


NEAREST = np.uint32(0x80000000)
"""Stands for the random bits where values are encoded outside of a step: it rounds to nearest."""

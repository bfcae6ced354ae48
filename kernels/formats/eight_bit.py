"""8 bits with a scale per tile, for state with a sign and for state without; rounded stochastically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.formats.format import U8, U32, Plane, Scaled


class UF8(Scaled):
    """8 bits for values that are never negative.

    The codes 1 to 254 are floats with 3 bits of mantissa in 31.75 powers of two, the highest of which the tile's
    largest finite value decides. Smaller values become the smallest of them; code 0 is zero and nothing else. Code 255
    is NaN; ∞, values beyond 2.98e38 and negative values are stored as NaN. The scale is the bits of the float32 that
    code 0 would be.
    """

    name, planes, random = "uf8", (Plane("", U8), Plane("scale", U32, tiled=True)), True
    holds = ("state",)

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        u = np.where(code == 0, 0, (code << 20) + scale)
        return np.where(code == 255, 0x7FC00000, u).view(np.float32)

    def peak(self, x: Any) -> Any:  # noqa: D102
        u = x.view(np.uint32)
        return np.where(u < 0x7F800000, u, 0)

    def scale(self, peak: Any) -> Any:  # noqa: D102
        peak, room = np.where(peak < 0x7F600000, peak, 0x7F600000), 254 << 20
        return (np.where(peak > room, peak - room, 0) + 0x7FFFFF) & 0x7F800000

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        u, least = x.view(np.uint32), scale + 0x100000
        code = (((np.where(u < least, least, u) - scale) >> 4) + (bits >> 16)) >> 16  # with room for any u
        return (np.where(x == 0.0, 0, np.where(code > 255, 255, code)),)


class F8(Scaled):
    """8 bits, one of them the sign, around a scale b per tile.

    The codes 0 to 126 are |x| + b as floats with 3 bits of mantissa in the 15.75 powers of two from b on: evenly spaced
    about zero, in proportion to |x| above b. 127 is NaN; ∞ and what is beyond 2.98e38 are stored as NaN. b is a power
    of two that the tile's largest finite |x| decides, and the scale its float32 bits.
    """

    name, planes, random = "f8", (Plane("", U8), Plane("scale", U32, tiled=True)), True
    holds = ("state",)

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        size = code & 0x7F
        u = (((size << 20) + scale).view(np.float32) - scale.view(np.float32)).view(np.uint32)
        return np.where(size == 127, 0x7FC00000, u | ((code & 0x80) << 24)).view(np.float32)

    def peak(self, x: Any) -> Any:  # noqa: D102
        size = x.view(np.uint32) & 0x7FFFFFFF
        return np.where(size < 0x7F800000, size, 0)

    def scale(self, peak: Any) -> Any:  # noqa: D102
        # The power of two above whose 6/8 the peak, or b more than it, would round to 127; b/8 is never denormal.
        top = (np.where(peak < 0x7F5FFF00, peak, 0x7F5FFF00) + 0x2000FF) & 0x7F800000
        return np.where(top > 19 << 23, top - (15 << 23), 4 << 23)

    def other_scales(self, scale: np.ndarray) -> Sequence[np.ndarray]:
        """Return the next scale, for a largest value that was rounded down, and the last, for one that became NaN."""
        return scale + (1 << 23), np.full_like(scale, 239 << 23)

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        code = ((size.view(np.float32) + scale.view(np.float32)).view(np.uint32) - scale + (bits >> 12)) >> 20
        return (np.where(code >= 127, 127, code | ((u >> 24) & 0x80)),)

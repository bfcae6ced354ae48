"""8 bits with a scale per tile, for state with a sign and for state without; rounded stochastically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.formats.format import U8, U32, Plane, Scaled

_PLANES = (Plane("", U8), Plane("scale", U32, tiled=True))
_NAN, _SIGN = 0x7FC00000, 0x80000000
_SCALES = 0x7F800000
"""The bits that a scale may have. Others, in memory that no encoder wrote, are not read: the formats are `quiet`."""


class UF8(Scaled):
    """8 bits for values that are never negative.

    The codes 1 to 254 are floats with 3 bits of mantissa in 31.75 powers of two, the highest of which the tile's
    largest finite value decides. Smaller values become the smallest of them; code 0 is zero and nothing else. Code 255
    is NaN; ∞, values beyond 2.98e38 and negative values are stored as NaN. The scale is the bits of the float32 that
    code 0 would be. Plain are tiles without zero, NaN and ∞.
    """

    name, planes, random, holds, quiet = "uf8", _PLANES, 20, ("state",), True
    plain_codes, plain_limit = (0xFF, 1, 254), 0x7F600000 - 1

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        u = np.where(code == 0, 0, (code << 20) + (scale & _SCALES))
        return np.where(code == 255, _NAN, u).view(np.float32)

    def plain_decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        return ((code << 20) + (scale & _SCALES)).view(np.float32)

    def peak(self, x: Any) -> Any:  # noqa: D102
        u = x.view(np.uint32)
        return np.where(u < 0x7F800000, u, 0)

    def plain_peak(self, x: Any) -> Any:  # noqa: D102
        return x.view(np.uint32) - 1  # of zero the largest word; −0 and what is negative are large

    def scale(self, peak: Any) -> Any:  # noqa: D102
        peak, room = np.where(peak < 0x7F600000, peak, 0x7F600000), 254 << 20
        return (np.where(peak > room, peak - room, 0) + 0x7FFFFF) & 0x7F800000

    def plain_scale(self, largest: Any) -> Any:  # noqa: D102
        return self.scale(largest + 1)

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        u, least = x.view(np.uint32), scale + 0x100000
        code = (np.where(u < least, least, u) - scale + (bits >> 12)) >> 20
        return (np.where(x == 0.0, 0, np.where((code > 255) | (u >= 0x7F800000), 255, code)),)

    def plain_encode(self, x: Any, bits: Any, scale: Any) -> Any:  # noqa: D102
        return x.view(np.uint32) - scale + (bits >> 12)


class F8(Scaled):
    """8 bits, one of them the sign, around a scale b per tile.

    The codes 0 to 126 are |x| + b as floats with 3 bits of mantissa in the 15.75 powers of two from b on: evenly spaced
    about zero, which has no sign, in proportion to |x| above b. 127 is NaN; ∞ and what is beyond 2.98e38 are stored as
    NaN. b is a power of two that the tile's largest finite |x| decides, and the scale its float32 bits. Plain are tiles
    without NaN and ∞.
    """

    name, planes, random, holds, quiet = "f8", _PLANES, 20, ("state",), True
    plain_codes, plain_limit = (0x7F, 0, 126), 0x7F5FFF00

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        return np.where((code & 0x7F) == 127, _NAN, self.plain_decode(code, scale).view(np.uint32)).view(np.float32)

    def plain_decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        scale = scale & _SCALES
        signed = code.astype(np.int8).astype(np.uint32) << 20  # its sign is in bits 27 to 31
        x = ((signed & 0x87F00000) + scale).view(np.float32)
        return x - np.copysign(scale.view(np.float32), x)

    def peak(self, x: Any) -> Any:  # noqa: D102
        size = x.view(np.uint32) & 0x7FFFFFFF
        return np.where(size < 0x7F800000, size, 0)

    def plain_peak(self, x: Any) -> Any:  # noqa: D102
        return x.view(np.uint32) & 0x7FFFFFFF

    def scale(self, peak: Any) -> Any:  # noqa: D102
        # The power of two above whose 6/8 the peak, or b more than it, would round to 127; b/8 is never denormal.
        top = (np.where(peak < 0x7F5FFF00, peak, 0x7F5FFF00) + 0x2000FF) & 0x7F800000
        return np.where(top > 19 << 23, top - (15 << 23), 4 << 23)

    def plain_scale(self, largest: Any) -> Any:  # noqa: D102
        return self.scale(largest)

    def other_scales(self, scale: np.ndarray) -> Sequence[np.ndarray]:
        """Return the next scale, for a largest value that was rounded down, and the last, for one that became NaN."""
        return scale + (1 << 23), np.full_like(scale, 239 << 23)

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        code = (self._shifted(x, scale) - scale + (bits >> 12)) >> 20
        return (np.where(code >= 127, 127, code | ((x.view(np.uint32) >> 24) & 0x80)),)

    def plain_encode(self, x: Any, bits: Any, scale: Any) -> Any:  # noqa: D102
        least = np.where(x.view(np.uint32) >= _SIGN, scale - (1 << 27), scale)  # the sign is bit 27 of the difference
        return self._shifted(x, scale) - least + (bits >> 12)

    def _shifted(self, x: Any, scale: Any) -> Any:
        """Return the bits of |x| + b."""
        size = (x.view(np.uint32) & 0x7FFFFFFF).view(np.float32)
        return (size + scale.view(np.float32)).view(np.uint32)

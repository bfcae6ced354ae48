"""A float32 split into the bfloat16 that a forward pass reads and its low bits, all 16 of them or the upper 8."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.formats.format import U8, U16, Format, Plane


class Split(Format):
    """A float32, exactly: the nearest bfloat16, which a forward pass reads, and the float32's low 16 bits. 4 bytes.

    A tie goes away from zero in the bfloat16; where the low bits begin with a one, it was rounded up.
    """

    name, planes = "split", (Plane("", U16, "bfloat16"), Plane("low", U16))
    holds = ("p",)

    def decode(self, word: Any, low: Any) -> Any:  # noqa: D102
        return (((word - (low >> 15)) << 16) | low).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = np.where(x != x, 0x7FC00000, x.view(np.uint32))
        return (u + 0x8000) >> 16, u & 0xFFFF


class Split24(Format):
    """The upper 24 bits of a float32, to nearest even: a bfloat16, which a forward pass reads, and 8 bits. 3 bytes."""

    name, planes = "split24", (Plane("", U16, "bfloat16"), Plane("low", U8))
    holds = ("p",)

    def decode(self, word: Any, low: Any) -> Any:  # noqa: D102
        return (((word - (low >> 7)) << 16) | (low << 8)).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        u = np.where(x != x, 0x7FC000, (u + (0x7F + ((u >> 8) & 1))) >> 8)
        return (u + 0x80) >> 8, u & 0xFF

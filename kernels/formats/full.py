"""Full precision: alone, with a 16-bit copy for the forward pass, or split into a bfloat16 for it and the low bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.formats.format import F32, F64, U8, U16, Format, Plane
from fastopt.kernels.formats.half import BF16, F16


class Float32(Format):
    """float32: 4 bytes."""

    name, planes = "f32", (Plane("", F32),)

    def decode(self, x: Any) -> Any:  # noqa: D102
        return x

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x,)


class Float64(Float32):
    """float64: 8 bytes."""

    name, planes, computes = "f64", (Plane("", F64),), F64


class Float32WithBF16(Float32):
    """float32 with a bfloat16 copy, rounded to nearest even, that each step writes for the forward pass: 6 bytes."""

    name, planes, forward = "f32_bf16", (Plane("", F32), Plane("copy", U16, "bfloat16", read=False)), 1
    holds = ("p",)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x, *BF16().encode(x, bits))


class Float32WithF16(Float32WithBF16):
    """float32 with a float16 copy, rounded to nearest even, that each step writes for the forward pass: 6 bytes."""

    name, planes = "f32_f16", (Plane("", F32), Plane("copy", U16, "float16", read=False))

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x, *F16().encode(x, bits))


class Split(Format):
    """A float32, exactly: the nearest bfloat16, which a forward pass reads, and the float32's low 16 bits. 4 bytes.

    A tie goes away from zero in the bfloat16; where the low bits begin with a one, it was rounded up.
    """

    name, planes = "split", (Plane("", U16, "bfloat16"), Plane("low", U16))
    holds = ("p",)

    def decode(self, word: Any, low: Any) -> Any:  # noqa: D102
        return (((word - (low >> 15)) << 16) | low).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return self.divided(np.where(x != x, 0x7FC00000, x.view(np.uint32)))

    def divided(self, u: Any) -> tuple:
        """Return the planes of a float32's bits, which `decode` gives back, whatever they are."""
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

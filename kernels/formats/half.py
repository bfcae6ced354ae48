"""16 bits: bfloat16, the upper half of a float32, and float16; rounded to nearest or stochastically, or compensated."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.formats.format import U16, Format, Plane


class BF16(Format):
    """bfloat16, rounded to nearest, ties to even: 2 bytes."""

    name, planes, quiet = "bf16", (Plane("", U16, "bfloat16"),), True

    def decode(self, word: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (np.where(x != x, 0x7FC0, self.quiet_encode(x, bits)),)

    def quiet_encode(self, x: Any, bits: Any) -> Any:
        """Encode what may be a NaN whose low half is zero: it stays a NaN, whichever."""
        u = x.view(np.uint32)
        return (u + (0x7FFF + ((u >> 16) & 1))) >> 16


class BF16SR(BF16):
    """bfloat16 with stochastic rounding: up with a probability that makes the mean exact. 2 bytes."""

    name, random, holds = "bf16_sr", 16, ("p", "state")

    def quiet_encode(self, x: Any, bits: Any) -> Any:  # noqa: D102
        return (x.view(np.uint32) + (bits >> 16)) >> 16


class BF16Kahan(Format):
    """bfloat16 and its rounding error as another bfloat16 (compensated summation): 4 bytes, 16 or 17 bits.

    From half a step beyond bfloat16's largest number on it is ±∞; −0 becomes 0.
    """

    name, planes, quiet = "bf16_kahan", (Plane("", U16, "bfloat16"), Plane("error", U16, "bfloat16")), True
    holds = ("p",)

    def decode(self, word: Any, error: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32) + (error << 16).view(np.float32) + 0.0  # no −0 of two

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return self.with_error(x, *BF16().encode(x, bits))

    def with_error(self, x: Any, word: Any) -> tuple:
        """Return the nearest bfloat16, or any NaN, and its rounding error, which is zero where it is not finite."""
        rest = x - (word << 16).view(np.float32)
        finite = np.where(np.abs(rest) < np.inf, rest, 0.0)
        return word, BF16().quiet_encode(finite, None)


class F16(Format):
    """float16, rounded to nearest, ties to even; from 65,520 on it is ∞: 2 bytes. All of it is integer arithmetic."""

    name, planes = "f16", (Plane("", U16, "float16"),)

    def decode(self, word: Any) -> Any:  # noqa: D102
        size = word & 0x7FFF
        u = np.where(size >= 0x7C00, (size << 13) | 0x7F800000, (size << 13) + 0x38000000)
        # A denormal counts steps of 2⁻²⁴, as do the floats from 0.5 on. Products with float32 denormals are slow.
        small = ((size + 0x3F000000).view(np.float32) - 0.5).view(np.uint32)
        return (np.where(size < 0x0400, small, u) | ((word & 0x8000) << 16)).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        normal = (size - 0x38000000 + (0x0FFF + ((size >> 13) & 1))) >> 13
        small = (size.view(np.float32) + 0.5).view(np.uint32) - 0x3F000000  # 0.5 has float16's smallest step
        return (self._finish(x, u, size, np.where(size < 0x38800000, small, normal)),)

    def _finish(self, x: Any, u: Any, size: Any, finite: Any) -> Any:
        return np.where(x != x, 0x7E00, np.where(size >= 0x477FF000, 0x7C00, finite) | ((u >> 16) & 0x8000))


class F16SR(F16):
    """float16 with stochastic rounding: 2 bytes."""

    name, random, holds = "f16_sr", 16, ("p", "state")

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        chance = bits >> 19  # 13 bits, as many as are dropped
        normal = (size - 0x38000000 + chance) >> 13
        steps = np.floor(size.view(np.float32) * 2.0**24 + chance.astype(np.float32) * 2.0**-13)  # of the smallest
        small = (steps + 2.0**23).view(np.uint32) - 0x4B000000
        return (self._finish(x, u, size, np.where(size < 0x38800000, small, normal)),)

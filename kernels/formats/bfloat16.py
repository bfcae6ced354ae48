"""bfloat16, the upper half of a float32: rounded to nearest, stochastically, or with its rounding error beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.formats.format import U16, Format, Plane


class BF16(Format):
    """bfloat16, rounded to nearest, ties to even: 2 bytes."""

    name, planes = "bf16", (Plane("", U16, "bfloat16"),)

    def decode(self, word: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        return (np.where(x != x, 0x7FC0, (u + (0x7FFF + ((u >> 16) & 1))) >> 16),)


class BF16SR(BF16):
    """bfloat16 with stochastic rounding: up with a probability that makes the mean exact. 2 bytes."""

    name, random, holds = "bf16_sr", True, ("p", "state")

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (np.where(x != x, 0x7FC0, (x.view(np.uint32) + (bits >> 16)) >> 16),)


class BF16Kahan(Format):
    """bfloat16 and its rounding error as another bfloat16 (compensated summation): 4 bytes, 16 or 17 bits.

    From half a step beyond bfloat16's largest number on it is ±∞; −0 becomes 0.
    """

    name, planes = "bf16_kahan", (Plane("", U16, "bfloat16"), Plane("error", U16, "bfloat16"))
    holds = ("p",)

    def decode(self, word: Any, error: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32) + (error << 16).view(np.float32) + 0.0  # no −0 of two

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        (word,) = BF16().encode(x, bits)
        rest = x - (word << 16).view(np.float32)
        (error,) = BF16().encode(np.where(np.abs(rest) < np.inf, rest, 0.0), bits)
        return word, error

"""Full precision, alone or with a 16-bit copy that each step writes for the forward pass."""

from __future__ import annotations

from typing import Any

from fastopt.kernels.formats.bfloat16 import BF16
from fastopt.kernels.formats.float16 import F16
from fastopt.kernels.formats.format import F32, F64, U16, Format, Plane


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

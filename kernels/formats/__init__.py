"""Storage formats: how the values of a buffer lie in memory, one file per family; presets that combine them.

A value is decoded, the rule computes with it in full precision, and what the rule returns is encoded: no rule knows a
format, and no format a rule.
"""

from typing import NamedTuple

import numpy as np

from fastopt.kernels.formats.eight_bit import F8, UF8
from fastopt.kernels.formats.format import F32, F64, NEAREST, TILE, Format, Plane, Scaled
from fastopt.kernels.formats.full import Float32, Float32WithBF16, Float32WithF16, Float64, Split, Split24
from fastopt.kernels.formats.half import BF16, BF16SR, F16, F16SR, BF16Kahan
from fastopt.kernels.formats.packing import pack, unpack

STORAGES: dict[str, Format] = {
    f.name: f
    for f in (
        Float32(), Float64(), BF16(), BF16SR(), BF16Kahan(), F16(), F16SR(), Split(), Split24(), Float32WithBF16(),
        Float32WithF16(), F8(), UF8(),
    )
}  # fmt: skip
"""The formats by the names that `storage=` takes and kernel names show."""

FULL: dict[np.dtype, str] = {F32: "f32", F64: "f64"}
"""The format of a buffer that is stored as it is computed."""


class Preset(NamedTuple):
    """Formats for a whole optimizer: of the parameter, of the gradient, of state with a sign and of state without.

    State of which a rule takes differences (its `exact`) is stored in the computing precision, `full`.
    """

    p: str
    g: str
    signed: str
    unsigned: str
    full: str = "f32"


PRESETS: dict[str, Preset] = {
    "f32": Preset("f32", "f32", "f32", "f32"),
    "f64": Preset("f64", "f64", "f64", "f64", full="f64"),
    "bf16": Preset("bf16_sr", "bf16", "bf16_sr", "bf16_sr"),  # rounded to nearest throughout, training stalls
    "bf16_kahan": Preset("bf16_kahan", "bf16", "bf16", "bf16_sr"),
    "mixed_bf16": Preset("f32_bf16", "bf16", "f32", "f32"),
    "mixed_f16": Preset("f32_f16", "f16", "f32", "f32"),
    "split": Preset("split", "bf16", "f32", "f32"),
    "8bit": Preset("f32", "f32", "f8", "uf8"),
    "split_8bit": Preset("split", "bf16", "f8", "uf8"),
    "bf16_8bit": Preset("bf16_sr", "bf16", "f8", "uf8"),
}
"""Formats that go well together, by name; docs/storage.md says what each costs, in bytes and in quality."""

__all__ = [
    "BF16", "FULL", "NEAREST", "PRESETS", "STORAGES", "TILE", "BF16Kahan", "Format", "Plane", "Preset", "Scaled",
    "Split", "pack", "unpack",
]  # fmt: skip

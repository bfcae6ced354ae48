"""Storage formats: how the values of a buffer lie in memory, one file per family; presets that combine them.

A value is decoded, the rule computes with it in full precision, and what the rule returns is encoded: no rule knows a
format, and no format a rule.
"""

import numpy as np

from fastopt.kernels.formats.bfloat16 import BF16, BF16SR, BF16Kahan
from fastopt.kernels.formats.eight_bit import F8, UF8
from fastopt.kernels.formats.float16 import F16, F16SR
from fastopt.kernels.formats.format import F32, F64, NEAREST, TILE, Format, Plane, Scaled
from fastopt.kernels.formats.full import Float32, Float32WithBF16, Float32WithF16, Float64
from fastopt.kernels.formats.packing import pack, unpack
from fastopt.kernels.formats.presets import PRESETS, Preset
from fastopt.kernels.formats.split import Split, Split24

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

__all__ = ["FULL", "NEAREST", "PRESETS", "STORAGES", "TILE", "Format", "Plane", "Preset", "Scaled", "pack", "unpack"]

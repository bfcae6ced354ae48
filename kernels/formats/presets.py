"""Formats that go well together, by name; docs/storage.md says what each costs, in bytes and in quality."""

from __future__ import annotations

from typing import NamedTuple


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

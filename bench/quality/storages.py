"""The storages to compare: the presets, and bfloat16 rounded to nearest in all buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import fastopt
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import TILE
from fastopt.kernels.rules.rule import signature

NEAREST = "bf16, all to nearest"  # not a preset; for comparison with stochastic rounding
SHOWN = ["f32", NEAREST, *(name for name in fastopt.PRESETS if name not in ("f32", "f64"))]
Tick: TypeAlias = Callable[[], object]
"""Called after each unit of work, to advance a progress bar."""


def storage_of(name: str, rule: Any) -> Any:
    """Return the `storage` argument of an Optimizer for a preset or for NEAREST."""
    return dict.fromkeys(signature(rule).buffers, "bf16") if name == NEAREST else name


def sizes() -> dict[str, dict[str, Any]]:
    """Return, for Adam with every preset, the bytes per parameter that a step moves, and those of all buffers."""
    found = {}
    for name in fastopt.PRESETS:
        rule = fastopt.Adam()
        formats = layout(rule, name)
        buffers = trace(rule, name).buffers
        size = [b.dtype.itemsize / (TILE if b.tiled else 1) for b in buffers]
        moved = sum(s * (b.read + b.written) for s, b in zip(size, buffers, strict=True))
        found[name] = {"formats": formats, "moved": moved, "resident": sum(size)}
    return found

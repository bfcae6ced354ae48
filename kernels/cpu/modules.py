"""What printed modules have in common: the names of their functions, and what they import of this package."""

from __future__ import annotations

import re
from collections.abc import Collection

from fastopt.kernels.cache import short
from fastopt.kernels.compiler.program import Program

IMPORTED = {
    "apply": "apply",
    "jobs": "claim restore_mode standard_mode wide_vectors",
    "memory": "buffer one_nan one_nan_of_two prefetch scratch tile_total",
    "narrow": "within",
    "values": "LANES add_halves any_half_above ceil copysign each fabs floor from_bits high join low ramp rint select"
    " sign signed sqrt to_float top trunc umax word",
}
"""What printed modules import of this package."""


def imports(text: str, always: Collection[str] = ()) -> list[str]:
    """Return the lines that import what a text uses, and what is used in any case."""
    return [
        f"from fastopt.kernels.cpu.{module} import {', '.join(used)}"
        for module, offered in IMPORTED.items()
        if (used := [x for x in offered.split() if x in always or re.search(rf"\b{x}\b", text)])
    ]


def function_name(program: Program) -> str:
    """Return the name of the program's function: the program's own, cut where file names could not hold it."""
    return short(program.name)


def condition_name(program: Program) -> str:
    """Return the name of the function that says whether a step of the program is taken."""
    return short(f"{program.name}_condition")

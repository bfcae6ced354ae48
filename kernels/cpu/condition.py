"""Prints the condition of a step as a compiled function: of totals over all and of scalars, once for all rows."""

from __future__ import annotations

import re

from fastopt.kernels.compiler.lowering import condition_lines
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import wrapped
from fastopt.kernels.cpu.language import PYTHON
from fastopt.kernels.cpu.modules import condition_name, imports


def print_condition(program: Program) -> str:
    """Print the module of the function that sets two flags: whether a step is taken, and whether it is skipped.

    It is skipped where the condition does not hold, or where the flags at `before_at`, if that is not zero, say so.
    """
    totals, scalars = program.condition_inputs
    lines, kind = condition_lines(program, PYTHON), program.dtype.name
    arguments = ["flags_at", "before_at", *(f"total{k}_at" for k in totals), *(f"s{k}" for k in scalars)]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    body = [
        "mode = standard_mode()",
        *(f"s{k} = {kind}(s{k})" for k in scalars),
        *(f"total{k} = {kind}(buffer(total{k}_at, 0, float64, 0, 0)[0])" for k in totals),
        *(f"{v.name} = {v.text}" for v in lines),
        f"skipped = 0.0 if {lines[-1].name} else 1.0",
        "if before_at:",
        "    skipped = max(skipped, buffer(before_at, 1, float64, 0, 0)[0])",
        "flags = buffer(flags_at, 0, float64, 0, 0)",
        "flags[0] = 1.0 - skipped",
        "flags[1] = skipped",
        "restore_mode(mode)",
    ]
    text = "\n".join(body)
    dtypes = {name for name in ("float32", "uint32") if re.search(rf"\b{name}\b", text)}
    return "\n".join(
        [
            f'"""{program.name}: whether a step is taken. Printed by fastopt; do not edit."""',
            "",
            f"from numba import {', '.join(sorted(dtypes | {'float64', 'intp', 'njit', 'types'}))}",
            "",
            *imports(text),
            "",
            *wrapped("SIGNATURE = types.void(", types, ")"),
            "",
            "",
            '@njit(nogil=True, error_model="numpy")',
            *wrapped(f"def {condition_name(program)}(", arguments, "):"),
            *(f"    {line}" for line in body),
            "",
        ]
    )

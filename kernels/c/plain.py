"""Prints the step of a plain tile (see `formats.Scaled`), which nearly all tiles are that have scales."""

from __future__ import annotations

from fastopt.kernels.c.language import C
from fastopt.kernels.compiler.graph import walk
from fastopt.kernels.compiler.lowering import Loop, lower
from fastopt.kernels.compiler.program import Program


def plain_loops(program: Program, names: dict[str, str]) -> list[Loop]:
    """Return the loops over a plain tile."""
    assert program.plain is not None
    ends = (*program.plain.stages, *program.plain.roots)
    of_elements = [n for n in ends if any(x.op in ("buffer", "index") for x in walk([n]))]  # not roots of totals
    return lower(program, names, C, of_elements, plain=True)


def loops_that_decide(loops: list[Loop]) -> int:
    """Return how many loops come before it is known whether a tile is plain; they write nothing."""
    return 1 + max((k for k, loop in enumerate(loops) if loop.largest), default=0)


def scan(program: Program, names: dict[str, str]) -> list[str]:
    """Print what returns false where a code of the tile is not plain."""
    assert program.plain is not None
    return [
        f"if (!fastopt_within({names[b]}, {mask:#x}, {least}, {most})) return false;"
        for b, (mask, least, most) in program.plain.codes.items()
    ]


def limits(program: Program, loops: list[Loop]) -> list[str]:
    """Print what returns false where a new value is not plain, before any is written."""
    assert program.plain is not None
    known = {id(node): v.name for loop in loops for node, v in zip(loop.largest, loop.maxima, strict=True)}
    return [f"if ({known[id(node)]} >= {limit:#x}u) return false;" for node, limit in program.plain.limits]

"""Prints a Program as CUDA C++: entry points around what a warp does to a tile, behind `tile.cuh`.

The source of a single row has two: the one named like the program takes the step's scalars as arguments; the one that
ends in `_captured` finds them on the device, in the next row of a table of steps, so that a CUDA graph of it can be
replayed. The source of many rows has one of the two, which ends in `_table` or `_table_captured`: each warp looks up
the row of its tile. Printing needs NumPy only.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from fastopt.kernels.compiler.lowering import condition_lines
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cuda.language import CUDA
from fastopt.kernels.cuda.nvrtc import OPTIONS
from fastopt.kernels.cuda.tile import buffer_names, pack_lines, pointer, pointers, tile_lines, wrapped

FIRST_ADDRESS = 2
"""Column of a table's row with its first address; before it are the row's number of elements and its offset."""


def entry(program: Program) -> str:
    """Return the name of the entry point for one row."""
    return spelled_out(program.name)


def table_entry(program: Program) -> str:
    """Return the name of the entry point that steps the rows of a table."""
    return f"{entry(program)}_table"


def captured(name: str) -> str:
    """Return the name of the entry point that does the same with numbers that it finds on the device."""
    return f"{name}_captured"


def spelled_out(text: str) -> str:
    """Spell out other letters, which not every compiler takes in a name."""
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in text)


def print_kernel(program: Program) -> str:
    """Print `program` as a CUDA C++ source that includes tile.cuh; `print_source` returns the same in one piece."""
    head = [
        f"// {program.name}: one step on an NVIDIA GPU in {program.dtype.name}. Printed by fastopt; do not edit.",
        "//",
        f"// {program.traffic}.",
        f"// The bits are those of every backend when compiled with {' '.join(OPTIONS[1:])}.",
    ]
    return spelled_out("\n".join([*head, "", '#include "tile.cuh"', "", print_entries(program)]))


def print_entries(program: Program, target: Target = CUDA, *, for_graphs: bool = True) -> str:
    """Print the entry points for one row, or the first alone, to stand behind tile.cuh."""
    names = buffer_names(program)
    scalars = [names[s] for s in program.scalars]
    number = CUDA.types[program.dtype.name]
    buffers = [pointer(b, names) for b in program.buffers]
    declared = pointers(program, names)
    noise = ["Word key0", "Word key1", "Index offset"] if program.noise else []
    arguments = ["Index n", *declared, *noise, *(f"{number} {s}" for s in scalars)]
    # The same arguments where a row of a table on the device holds what depends on t.
    fixed = ["Index n", *declared, *(["const Word* keys", "Index offset"] if noise else []), f"const {number}* table"]
    from_row = ["keys[0]", "keys[1]", "offset"] if noise else []
    from_row += [f"table[{k}]" for k in range(len(scalars))]
    head = 'extern "C" __global__ void __launch_bounds__(THREADS) '
    text = "\n".join(
        [
            *wrapped("__device__ __forceinline__ void step(", arguments, ") {"),
            *pack_lines(program, names),
            "    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {",
            *(
                f"        {line}" if line and not line.startswith("#") else line
                for line in tile_lines(program, names, target)
            ),
            "    }",
            "}",
            "",
            *wrapped(f"{head}{program.name}(", arguments, ") {"),
            *wrapped("    step(", [x.rsplit(" ", 1)[1] for x in arguments], ");"),
            "}",
            "",
        ]
    )
    if for_graphs:
        text += "\n" + "\n".join(
            [
                *wrapped(f"{head}{program.name}_captured(", [*fixed, "const Index* row", "Index rows"], ") {"),
                "    if (*row >= rows) return;",
                *(["    keys += *row * 2;"] if noise else []),
                f"    table += *row * {len(scalars)};",
                *wrapped("    step(", ["n", *buffers, *from_row], ");"),
                "}",
                "",
            ]
        )
    return spelled_out(text)


def print_table_kernel(program: Program, *, own_numbers: bool = False) -> str:
    """Print the step of one tile, and the entry point that steps the rows of a table, to stand behind tile.cuh.

    `table` has a row per tensor (elements, offset, addresses); `tiles` the number of the first tile of each row.
    """
    names = buffer_names(program)
    declared, number = pointers(program, names), CUDA.types[program.dtype.name]
    keys = ["Word key0", "Word key1"] if program.noise else []
    scalars = [f"{number} {names[s]}" for s in program.scalars]
    step = ["Index n", "Index first", *declared, *keys, *(["Index offset"] if keys else []), *scalars]
    cast = [f"reinterpret_cast<{p.split('*')[0]}*>(line[{FIRST_ADDRESS + k}])" for k, p in enumerate(declared)]
    before = ["line[0]", "(number - tiles[row]) * TILE", *cast]
    passed = [*before, *(x.split(" ")[1] for x in keys), *(["line[1]"] if keys else [])]
    passed += [x.split(" ", 1)[1] for x in scalars]
    name, own, first = f"{program.name}_table", ["Index rows", "const Index* table", "const Index* tiles"], []
    if own_numbers:
        name = captured(name)
        own += [*(["const Word* keys"] if keys else []), f"const {number}* numbers", "const Index* skip"]
        numbers = [f"numbers[row * {len(scalars)} + {k}]" for k in range(len(scalars))]
        passed = [*before, *(["keys[row * 2]", "keys[row * 2 + 1]", "line[1]"] if keys else []), *numbers]
        first = ["    if (*skip != 0) return;"]
    else:
        own = [*own, *keys, *scalars]
    head = 'extern "C" __global__ void __launch_bounds__(THREADS) '
    text = "\n".join(
        [
            f"// {program.name} for the rows of a table. Printed by fastopt; do not edit.",
            "",
            *wrapped("__device__ __forceinline__ void step_tile(", step, ") {"),
            *pack_lines(program, names),
            *(f"    {line}" if not line.startswith("#") else line for line in tile_lines(program, names)),
            "}",
            "",
            *wrapped(f"{head}{name}(", own, ") {"),
            *first,
            "    for (Index number = first_tile(); number < tiles[rows]; number += warps_in_grid()) {",
            "        Index row = 0, end = rows;  // tiles[row] <= number < tiles[end]",
            "        while (end - row > 1) {",
            "            const Index middle = (row + end) / 2;",
            "            if (tiles[middle] <= number) {",
            "                row = middle;",
            "            } else {",
            "                end = middle;",
            "            }",
            "        }",
            f"        const Index* line = table + row * {FIRST_ADDRESS + len(program.buffers)};",
            *wrapped("        step_tile(", passed, ");"),
            "    }",
            "}",
            "",
        ]
    )
    return spelled_out(text)


def condition_entry(program: Program) -> str:
    """Return the name of the entry point that says whether a step is taken."""
    return f"{entry(program)}_condition"


@lru_cache(maxsize=512)
def print_condition_source(program: Program) -> str:
    """Print the complete source of `print_condition`."""
    return f"{tile_header()}\n{print_condition(program)}"


def print_condition(program: Program, target: Target = CUDA, *, for_graphs: bool = True) -> str:
    """Print what sets two flags: whether a step is taken, and whether it is skipped.

    It is skipped where the condition does not hold, or where the flags `before`, if there are any, say so. The entry
    point that ends in `_captured` finds the scalars in the next row of a table of steps; without one left, it is taken.
    """
    totals, scalars = program.condition_inputs
    number, lines = target.types[program.dtype.name], condition_lines(program, target)
    head = 'extern "C" __global__ void __launch_bounds__(THREADS) '
    known = ["double* flags", "const double* before", *(f"const double* total{k}_at" for k in totals)]
    names = [x.rsplit(" ", 1)[1] for x in known]
    given = [*known, *(f"{number} s{k}" for k in scalars)]
    fixed = [*known, f"const {number}* table", "const Index* row", "Index rows"]
    text = "\n".join(
        [
            f"// {program.name}: whether a step is taken. Printed by fastopt; do not edit.",
            "",
            *wrapped("__device__ __forceinline__ void decide(", given, ") {"),
            *(f"    const {number} total{k} = {number}(*total{k}_at);" for k in totals),
            *(f"    const {target.types[v.dtype.name]} {v.name} = {v.text};" for v in lines),
            f"    const bool skipped = !{lines[-1].name} || (before && before[1] != 0.0);",
            "    if (threadIdx.x != 0) return;",
            "    flags[0] = skipped ? 0.0 : 1.0;",
            "    flags[1] = skipped ? 1.0 : 0.0;",
            "}",
            "",
            *wrapped(f"{head}{condition_entry(program)}(", given, ") {"),
            *wrapped("    decide(", [*names, *(f"s{k}" for k in scalars)], ");"),
            "}",
            "",
        ]
    )
    if for_graphs:
        text += "\n" + "\n".join(
            [
                *wrapped(f"{head}{captured(condition_entry(program))}(", fixed, ") {"),
                "    if (*row < rows) {",
                f"        table += *row * {len(program.scalars)};",
                *wrapped("        decide(", [*names, *(f"table[{k}]" for k in scalars)], ");"),
                "    } else if (threadIdx.x == 0) {",
                "        flags[0] = 1.0;",
                "        flags[1] = 0.0;",
                "    }",
                "}",
                "",
            ]
        )
    return spelled_out(text)


@lru_cache(maxsize=512)
def print_source(program: Program) -> str:
    """Print `program` as one complete CUDA C++ source, which nvcc or NVRTC compiles as it stands.

    A program in phases is printed as so many sources, one after the other.
    """
    if program.phases:
        condition = [print_condition_source(program)] if program.condition else []
        return "\n\n".join([*map(print_source, program.phases[:-1]), *condition, print_source(program.phases[-1])])
    return print_kernel(program).replace('#include "tile.cuh"\n', tile_header(), 1)


@lru_cache(maxsize=512)
def print_table_source(program: Program, *, own_numbers: bool = False) -> str:
    """Print the complete source for the rows of a table; with `own_numbers` each has its own, on the device."""
    return f"{tile_header()}\n{print_table_kernel(program, own_numbers=own_numbers)}"


@lru_cache(maxsize=1)
def tile_header() -> str:
    """Return tile.cuh without what only a file that is included needs."""
    text = (files("fastopt.kernels.cuda") / "tile.cuh").read_text(encoding="utf-8")
    return text.replace("#pragma once\n\n", "")

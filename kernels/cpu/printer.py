"""Prints a Program as a Python module for Numba: a vector loop, in prefetched strips, in a loop that claims chunks.

The function takes bare addresses and float64 scalars: a call costs about 2 µs.
"""

from __future__ import annotations

import re
import sys

from fastopt.kernels.cache import short
from fastopt.kernels.compiler.lowering import Loop, lower, printed_names
from fastopt.kernels.compiler.operations import PYTHON_TYPES
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import wrapped
from fastopt.kernels.cpu.pairs import print_pairs
from fastopt.kernels.cpu.tuning import HALF, strip
from fastopt.kernels.formats import TILE

# Names of the printed skeleton, which a rule's own names must not hide.
_SKELETON = (
    "job n chunk first last prefetching length count strip i offset tile tile_low tile_high start index key0 key1 min"
    " range step step_0 step_1 step_2 step_3 mode"
)
_INTRINSICS = (
    "buffer claim prefetch scratch low high join umax wide_vectors word to_float from_bits sqrt rint floor ceil trunc"
    " copysign sign select fabs standard_mode restore_mode"
)
_FROM_NUMBA = frozenset(["float32", "float64", "uint8", "uint16", "uint32", "intp", "njit", "types"])
_RESERVED = frozenset([*_SKELETON.split(), *_INTRINSICS.split(), *_FROM_NUMBA, *PYTHON_TYPES.values()])


FIRST_ADDRESS = 2
"""Column of a row's first address; before it are its number of elements and its offset."""

JOB_WORDS = 16
"""int64 words of a job's two counters, each on a cache line of its own: see `intrinsics.claim`."""


def function_name(program: Program) -> str:
    """Return the name of the program's function: the program's own, cut where file names could not hold it."""
    return short(program.name)


def print_source(program: Program) -> str:
    """Print `program` as one complete Python module with one compiled function, `function_name(program)`."""
    names = printed_names(program, _RESERVED)
    loops = lower(program, names, "python", split_after=program.stages)
    buffers = [names[b.name] for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", "prefetching", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    # Words that hold two elements each, where every buffer is short enough: see `pairs`.
    paired = sys.byteorder == "little" and all(b.tiled or b.dtype.itemsize <= 2 for b in program.buffers)
    halves = ("_0", "_1") if paired else ("",)
    spills = [(f"{v.name}_spill{half}", v.dtype) for loop in loops for v in loop.spills for half in halves]
    count = len(buffers) + len(spills)
    functions, printed = [], []
    for k, loop in enumerate(loops):
        if paired:
            function, lines = print_pairs(loop, f"step{f'_{k}' if len(loops) > 1 else ''}", names, program, count)
            functions += function
            printed.append(lines)
        else:
            printed.append(_print_loop(loop, names))

    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    if noise:
        convert += ["key0, key1 = word(key0), word(key1)"]
    if spills or any(b.dtype.itemsize < 4 for b in program.buffers):
        convert.insert(0, "wide_vectors()")
    convert += [f"{name}_at = scratch({dtype.name})" for name, dtype in spills]
    views = []
    for b in program.buffers:
        first, kind = (f"strip // {TILE}" if b.tiled else "strip"), b.dtype.name
        if paired and not b.tiled:
            first, kind = "strip // 2", f"uint{16 * b.dtype.itemsize}"
        views.append(f"{names[b.name]} = buffer({names[b.name]}_at, {first}, {kind}")
    views += [f"{name} = buffer({name}_at, 0, {dtype.name}" for name, dtype in spills]
    views = [f"{view}, {k}, {count})" for k, view in enumerate(views)]
    elements, length = strip(max(b.dtype.itemsize for b in program.buffers if not b.tiled)), "chunk"
    if program.noise or program.tiled:
        elements, length = HALF if program.stages and not program.tiled else TILE, str(TILE)
    tile = [f"{names[b.name]}_i = {names[b.name]}[0]" for b in program.buffers if b.tiled]
    if noise:
        tile += [f"tile = (offset + strip) // {TILE}", "tile_low, tile_high = word(tile), word(tile >> 32)"]
        tile += [f"start = word(strip % {TILE})"]
    # Before a loop that does little else with memory, where there is one; an 8-bit tile is only four cache lines.
    ahead = [
        f"prefetch({names[b.name]}, {elements // 2 if paired else elements})"
        for b in program.buffers
        if not b.tiled and b.dtype.itemsize > 1
    ]
    printed.insert(len(printed) > 1, ["if prefetching:", *(f"    {line}" for line in ahead)])
    steps = [*tile, *(line for part in printed for line in part)]

    text = "\n".join([*convert, *views, *functions, *steps])
    imported = {
        "claim",
        "prefetch",
        "restore_mode",
        "standard_mode",
        *(name for name in _INTRINSICS.split() if re.search(rf"\b{name}\(", text)),
    }
    dtypes = {name for name in _FROM_NUMBA if re.search(rf"\b{name}\b", text)} | {"float64", "intp", "njit", "types"}
    return "\n".join(
        [
            f'"""{program.name}: one step on the CPU in {program.dtype.name}. Printed by fastopt; do not edit.',
            "",
            f"{program.traffic}.",
            '"""',
            "",
            f"from numba import {', '.join(sorted(dtypes))}",
            "",
            f"from fastopt.kernels.cpu.intrinsics import {', '.join(sorted(imported))}",
            "",
            *wrapped("SIGNATURE = types.void(", types, ")"),
            "",
            "",
            *functions,
            '@njit(nogil=True, error_model="numpy")',
            *wrapped(f"def {function_name(program)}(", arguments, "):"),
            "    mode = standard_mode()",
            *(f"    {line}" for line in convert),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        length = {elements}{f' if prefetching else {length}' if length != str(elements) else ''}",
            "        for strip in range(first, last, length):",
            "            count = min(length, last - strip)",
            *(f"            {view}" for view in views),
            *(f"            {line}" for line in steps),
            "        first = claim(job, first, chunk)",
            "    restore_mode(mode)",
            "",
        ]
    )


def _print_loop(loop: Loop, names: dict[str, str]) -> list[str]:
    """Print one loop over the elements of a strip, and what is computed once before it."""
    before = [f"{v.name} = {v.text}" for v in loop.uniform]
    before += [f"{names[b]}[0] = {text}" for b, text in loop.tile_stores]
    before += [f"{v.name} = word(0)" for v in loop.maxima]
    body = [f"{v.name} = {v.name}_spill[i]" for v in loop.reloads]
    loads = [names[b] for b in loop.loads]
    if loads:
        body.append(f"{', '.join(f'{b}_i' for b in loads)} = {', '.join(f'{b}[i]' for b in loads)}")
    lines = [f"{v.name} = {v.text}" for v in loop.lines]
    lines += [f"{v.name} = umax({v.name}, {v.text})" for v in loop.maxima]
    lines += [f"{v.name}_spill[i] = {v.name}" for v in loop.spills]
    lines += [f"{names[b]}[i] = {text}" for b, text in loop.stores]
    if any(re.search(r"\bindex\b", line) for line in lines):
        body.append("index = start + word(i)")
    return [*before, "for i in range(count):", *(f"    {line}" for line in [*body, *(lines or ["pass"])])]


def print_table(program: Program, name: str, module: str) -> str:
    """Print the module of a function, `name`, that calls the kernel of `program` for each row of a table.

    `module` is the name under which the kernel's own module is imported; `table` has a row per tensor (elements,
    offset, addresses), `starts` the first row of each block of short ones. Rows before the first block are long: each
    has a job of its own.
    """
    kernel = function_name(program)
    noise = ["key0", "key1"] if program.noise else []
    scalars = [f"s{k}" for k in range(len(program.scalars))]
    addresses = [f"table[row, {FIRST_ADDRESS + k}]" for k in range(len(program.buffers))]
    passed = [*addresses, *noise, *(["table[row, 1]"] if noise else []), *scalars]
    types = ["intp", "intp", "TABLE", "STARTS", "intp", "intp", *["intp"] * len(noise), *["float64"] * len(scalars)]
    arguments = ["jobs", "long", "table", "starts", "chunk", "prefetching", *noise, *scalars]
    return "\n".join(
        [
            f'"""{program.name} for the rows of a table. Printed by fastopt; do not edit."""',
            "",
            "from numba import float64, int64, intp, njit, types",
            "",
            "from fastopt.kernels.cpu.intrinsics import claim",
            f"from {module} import {kernel}",
            "",
            'TABLE, STARTS = types.Array(int64, 2, "C"), types.Array(int64, 1, "C")',
            f"SIGNATURE = types.void({', '.join(types)})",
            "",
            "",
            '@njit(nogil=True, error_model="numpy")',
            f"def {name}({', '.join(arguments)}):",
            "    for row in range(long):",
            f"        job = jobs + {8 * JOB_WORDS} * (row + 1) if jobs else 0",
            "        length = chunk if jobs else table[row, 0]",
            f"        {kernel}(job, table[row, 0], length, prefetching, {', '.join(passed)})",
            "    block = claim(jobs, -1, 1)",
            "    while block < starts.size - 1:",
            "        for row in range(starts[block], starts[block + 1]):",
            f"            {kernel}(0, table[row, 0], table[row, 0], prefetching, {', '.join(passed)})",
            "        block = claim(jobs, block, 1)",
            "",
        ]
    )

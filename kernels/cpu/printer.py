"""Prints a Program as a Python module for Numba: a vector loop, in prefetched strips, in a loop that claims chunks.

The function takes bare addresses and float64 scalars: a call costs about 2 µs.
"""

from __future__ import annotations

import re
import sys

from fastopt.kernels.compiler.lowering import Loop, common, lower, printed_names
from fastopt.kernels.compiler.program import SKIPPED, Program
from fastopt.kernels.compiler.text import ATOM, SUM, wrapped
from fastopt.kernels.cpu.condition import print_condition
from fastopt.kernels.cpu.language import PYTHON
from fastopt.kernels.cpu.modules import IMPORTED, function_name, imports
from fastopt.kernels.cpu.pairs import print_pairs
from fastopt.kernels.cpu.steps import INFINITE, SIZE
from fastopt.kernels.cpu.tuning import HALF, STRETCH, STRIP, codes_apart, ends_after_root
from fastopt.kernels.cpu.vectors import print_vectors
from fastopt.kernels.formats import TILE, Split

# Names of the printed skeleton, which a rule's own names must not hide.
_SKELETON = (
    "job n chunk first last prefetching length count strip i offset tile tile_low tile_high start index key0 key1 min"
    " range step mode plain far skipped nan"
)
_FROM_NUMBA = frozenset(["float32", "float64", "uint8", "uint16", "uint32", "intp", "njit", "types"])
_RESERVED = frozenset([*f"{_SKELETON} {' '.join(IMPORTED.values())}".split(), *_FROM_NUMBA, *PYTHON.types.values()])


FIRST_ADDRESS = 2
"""Column of a row's first address; before it are its number of elements and its offset."""

JOB_WORDS = 16
"""int64 words of a job's two counters, each on a cache line of its own: see `jobs.claim`."""


def print_source(program: Program) -> str:
    """Print `program` as one complete Python module with one compiled function, `function_name(program)`.

    A program in phases is printed as so many modules, one after the other.
    """
    if program.phases:
        condition = [print_condition(program)] if program.condition else []
        return "\n\n".join([*map(print_source, program.phases[:-1]), *condition, print_source(program.phases[-1])])
    names, numbered = printed_names(program, _RESERVED), {"x": 0, "max": 0}
    plain_loops, of_tile, known = [], [], {}
    if program.plain is not None:
        of_tile, known = common(program, names, PYTHON, numbered)
        stages = (*program.plain.stages, *program.plain.roots)
        options: dict = {"plain": True, "apart": codes_apart(), "numbered": numbered, "known": known}
        plain_loops = lower(program, names, PYTHON, stages, **options)
    ends = program.tiled or (program.noise and program.compressed and ends_after_root())
    stages = (*program.stages, *program.roots) if ends else program.stages
    loops = lower(program, names, PYTHON, stages, numbered=numbered, known=known)
    buffers = [names[b.name] for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", "prefetching", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    # Words that hold two elements each, where every buffer is short enough: see `pairs`.
    paired = sys.byteorder == "little" and not program.sums
    paired &= all(b.dtype.itemsize <= 2 for b in program.buffers if b.elementwise)
    halves = ("_0", "_1") if paired else ("",)
    spills = list(
        dict.fromkeys(
            (f"{v.name}_spill{half}", v.dtype)
            for loop in (*plain_loops, *loops)
            for v in loop.spills
            for half in halves
        )
    )
    count = len(buffers) + len(spills)
    by_vector = program.compressed or (program.sums and program.dtype == "float32")
    functions: list[str] = []
    printed: list[list[str]] = []
    for k, loop in enumerate((*plain_loops, *loops)):
        whole: list[str] = []
        lines: list[str] = []
        step = f"step{f'_{k}' if len(plain_loops) + len(loops) > 1 else ''}"
        once = not (loop.spills or loop.maxima or loop.stores)  # what is done for a tile as a whole
        if not once and (k < len(plain_loops) or (by_vector and not plain_loops)):
            function, whole = print_vectors(loop, step, names, program, paired=paired, plain=k < len(plain_loops))
            functions += function
        if k >= len(plain_loops):
            lines = _print_loop(loop, names)
            if paired and not once:
                function, lines = print_pairs(loop, step, names, program, count)
                functions += [] if whole else function
        if whole and lines:
            whole = [f"if count % {TILE} == 0:", *_indented(whole), "else:"]
            lines = _indented(lines)
        printed.append([*whole, *lines, *_print_repair(program, loop, names)])

    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    if noise:
        convert += ["key0, key1 = word(key0), word(key1)"]
    if spills or program.compressed:
        convert.insert(0, "wide_vectors()")
    convert += [f"{name} = scratch({dtype.name}, {k}, {count})" for k, (name, dtype) in enumerate(spills, len(buffers))]
    for b in program.buffers:
        if b.of_row and b.name != SKIPPED:
            convert.append(f"{names[b.name]} = {program.dtype.name}(buffer({names[b.name]}_at, 0, float64, 0, 0)[0])")
    if program.may_be_skipped:  # which claims its chunks all the same: others wait until all are claimed and done
        convert.append(f"skipped = buffer({names[SKIPPED]}_at, 0, float64, 0, 0)[0] != 0.0")
    views = []
    for b in program.buffers:
        first, kind = (f"strip // {TILE}" if b.tiled else "strip"), b.dtype.name
        if paired and not b.tiled:
            first, kind = "strip // 2", f"uint{16 * b.dtype.itemsize}"
        views.append(f"{names[b.name]} = buffer({names[b.name]}_at, {first}, {kind}")
    views = [f"{view}, {k}, {count})" for k, view in enumerate(views) if not program.buffers[k].of_row]
    elements, length = STRIP, "chunk"
    if program.noise or program.tiled:
        elements, length = HALF if program.stages and not program.compressed else TILE, str(TILE)
    elif program.compressed:
        elements, length = STRETCH, str(STRETCH)
    tile = [f"{names[b.name]}_i = {names[b.name]}[0]" for b in program.buffers if b.tiled and b.read]
    if noise:
        tile += [f"tile = (offset + strip) // {TILE}", "tile_low, tile_high = word(tile), word(tile >> 32)"]
        tile += [f"start = word(strip % {TILE})"]
    if by_vector:
        convert.append(f"far = {2 * TILE // (2 if paired else 1)} if prefetching else 0")
    else:  # before a loop that does little else with memory, where there is one
        ahead = [f"    prefetch({names[b.name]}, {elements})" for b in program.buffers if b.elementwise]
        printed.insert(len(printed) > 1, ["if prefetching:", *ahead])
    if plain_loops:
        steps = [*tile, *of_tile, *_print_tile(program, names, plain_loops, printed, count)]
    else:
        steps = [*tile, *(line for part in printed for line in part)]

    text = "\n".join([*convert, *views, *functions, *steps])
    always = ("claim", "restore_mode", "standard_mode")
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
            *imports(text, always),
            "",
            *wrapped("SIGNATURE = types.void(", types, ")"),
            "",
            "",
            *functions,
            '@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")',
            *wrapped(f"def {function_name(program)}(", arguments, "):"),
            "    mode = standard_mode()",
            *(f"    {line}" for line in convert),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            f"        last = {'first if skipped else ' * program.may_be_skipped}min(first + chunk, n)",
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


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines or ["pass"]]


def _print_tile(
    program: Program, names: dict[str, str], plain_loops: list[Loop], printed: list[list[str]], count: int
) -> list[str]:
    """Print the two ways to step a tile, and what chooses: the plain one for a whole tile in which all is plain.

    It is seen from the codes before, and from the largest of the new values, when nothing is written yet.
    """
    assert program.plain is not None
    order = {b.name: k for k, b in enumerate(program.buffers)}
    scans = [
        f"within(buffer({names[b]}_at, strip, uint8, {order[b]}, {count}), {mask}, {least}, {most})"
        for b, (mask, least, most) in program.plain.codes.items()
    ]
    known = {id(node): v.name for loop in plain_loops for node, v in zip(loop.largest, loop.maxima, strict=False)}
    within = [f"{known[id(node)]} < word({limit})" for node, limit in program.plain.limits]
    decided = 1 + max((k for k, loop in enumerate(plain_loops) if loop.largest), default=0)
    general = [line for part in printed[len(plain_loops) :] for line in part]
    before = [line for part in printed[:decided] for line in part]
    after = [line for part in printed[decided : len(plain_loops)] for line in part]
    return [
        f"plain = count == {TILE}",
        *(f"plain = plain and {scan}" for scan in scans),
        *(f"{name} = word(0)" for name in known.values()),  # or Numba infers their types in twice as many passes
        "if plain:",
        *_indented(before),
        *([f"    plain = {' and '.join(within)}"] if within else []),
        "if plain:",
        *_indented(after),
        "else:",
        *_indented(general),
    ]


def _print_repair(program: Program, loop: Loop, names: dict[str, str]) -> list[str]:
    """Print what makes NaN the canonical one where there was any."""
    if not loop.quiet:
        return []
    views = {(b.buffer, b.name): f"buffer({names[b.name]}_at, strip, uint16, 0, 0)" for b in program.buffers}
    lines = []
    for b in loop.quiet:
        if isinstance(program.formats[b], Split):
            own = [view for (buffer, _), view in views.items() if buffer == b]
            lines.append(f"    one_nan_of_two({', '.join(own)}, count)")
        else:
            lines.append(f"    one_nan({views[b, b]}, count)")
    return ["if nan:", *lines]


def _print_loop(loop: Loop, names: dict[str, str]) -> list[str]:
    """Print one loop over the elements of a strip, and what is computed once before it."""
    before = [f"{v.name} = {v.text}" for v in loop.uniform]
    before += [f"{names[b]}[0] = {text}" for b, text in loop.tile_stores]
    before += [f"{name} = word(0)" for name in (*(v.name for v in loop.maxima), *[loop.nan] * bool(loop.watched))]
    words = [f"{s.name}_word" if s.halved else s.name for s in loop.sequences]
    for word, s in zip(words, loop.sequences, strict=True):
        before.append(f"{word} = {s.first.within(SUM)} + start * {s.step.within(ATOM)}")
    body = [f"{v.name} = {v.name}_spill[i]" for v in loop.reloads]
    loads = [names[b] for b in loop.loads]
    if loads:
        body.append(f"{', '.join(f'{b}_i' for b in loads)} = {', '.join(f'{b}[i]' for b in loads)}")
    body += [f"{s.name} = {s.value(word)}" for word, s in zip(words, loop.sequences, strict=True) if s.halved]
    lines = [f"{v.name} = {v.text}" for v in loop.lines]
    lines += [f"{v.name} = umax({v.name}, {v.text})" for v in loop.maxima]
    stored = dict(loop.stores)
    lines += [f"{loop.nan} = umax({loop.nan}, {stored[b]} & word({SIZE}))" for b in loop.watched]
    lines += [f"{v.name}_spill[i] = {v.name}" for v in loop.spills]
    lines += [f"{names[b]}[i] = {text}" for b, text in loop.stores]
    lines += [f"{word} = {word} + {s.step.within(SUM)}" for word, s in zip(words, loop.sequences, strict=True)]
    if any(re.search(r"\bindex\b", line) for line in lines):
        body.append("index = start + word(i)")
    after = [f"nan = {loop.nan} > word({INFINITE})"] if loop.watched else []
    return [*before, *(["for i in range(count):", *_indented([*body, *lines])] if body or lines else []), *after]


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
            "from fastopt.kernels.cpu.jobs import claim",
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

"""Prints what a warp does to one tile: loads, the loops of the program, stores. `tile.cuh` has the geometry."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from fastopt.kernels.compiler.lowering import Loop, Value, lower, printed_names
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.program import SKIPPED, Buffer, Program
from fastopt.kernels.compiler.text import SUM
from fastopt.kernels.cuda.language import CUDA

_NARROW = ("uint16", "uint8")  # a lane holds several in one word

# Names of the skeleton and of the language, which a rule's own names must not hide.
_SKELETON = (
    "n first count whole step i offset key0 key1 tile number tile_low tile_high index table keys row rows"
    " tiles line middle end step_tile numbers skip Index Word Word16 Word8 Signed8"
)
_TILE = (
    "TILE LANES HELD THREADS PACK Pack Narrow lane position first_tile warps_in_grid packed load store larger"
    " warp_max tile_total"
)
_LANGUAGE = (
    "alignas alignof and and_eq asm auto bitand bitor bool case catch char class compl const constexpr const_cast"
    " decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto if"
    " inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public"
    " register reinterpret_cast return short signed sizeof static static_assert static_cast struct switch template this"
    " thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor"
    " xor_eq blockIdx blockDim gridDim threadIdx warpSize char16_t char32_t NULL"
)
_FUNCTIONS = "sqrt rint floor ceil trunc sign copysign fabs"
_RESERVED = frozenset([*_SKELETON.split(), *_TILE.split(), *_LANGUAGE.split(), *_FUNCTIONS.split()])


def buffer_names(program: Program) -> dict[str, str]:
    """Return the names under which buffers and scalars are printed; two leading underscores are the compiler's."""
    names = printed_names(program, _RESERVED | {f"{b.name}_tile".replace(".", "_") for b in program.buffers})
    return {name: f"u{printed}" if printed.startswith("__") else printed for name, printed in names.items()}


def wrapped(head: str, items: list[str], tail: str, between: str = ", ") -> list[str]:
    """Write a call or definition on one line, or with its items wrapped where it is long."""
    line = f"{head}{between.join(items)}{tail}"
    if len(line) <= 120:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()) + 4)
    whole = between.join(item.replace(" ", "\0") for item in items)  # so that lines break between items only
    options: dict[str, Any] = {"initial_indent": indent, "subsequent_indent": indent, "break_long_words": False}
    lines = textwrap.wrap(whole + tail.replace(" ", "\0"), 120, break_on_hyphens=False, **options)
    return [head, *(line.replace("\0", " ") for line in lines)]


def _by_one_lane(lines: list[str]) -> list[str]:
    """Let one lane of the warp do what is done once for a tile, after all have read what it overwrites."""
    if not lines:
        return []
    return ["__syncwarp();", "if (lane() == 0) {", *(f"    {line}" for line in lines), "}"]


def _continued(line: str) -> list[str]:
    """Continue a long line on the next."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 120, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False)


def pointers(program: Program, names: dict[str, str]) -> list[str]:
    """Declare the buffers as pointers."""
    types = [f"{'' if b.written else 'const '}{CUDA.types[b.dtype.name]}*" for b in program.buffers]
    return [f"{kind} __restrict__ {pointer(b, names)}" for kind, b in zip(types, program.buffers, strict=True)]


def pointer(buffer: Buffer, names: dict[str, str]) -> str:
    """Return the name of a buffer's pointer: of one with an element for a row the name itself is that element's."""
    return f"{names[buffer.name]}_at" if buffer.of_row else names[buffer.name]


def elementwise(program: Program) -> list[Buffer]:
    """Return the buffers with an element per parameter."""
    return [b for b in program.buffers if b.elementwise]


def pack_lines(program: Program, names: dict[str, str]) -> list[str]:
    """Print how many neighbours a lane loads at once, and whether all buffers begin at a multiple of that.

    Before that it returns where the step is skipped.
    """
    buffers = elementwise(program)
    skipped = next((b for b in program.buffers if b.name == SKIPPED), None)
    return [
        f"    constexpr int PACK = {16 // max(b.dtype.itemsize for b in buffers)};",
        *([f"    if (*{pointer(skipped, names)} != 0.0) return;"] if skipped else []),
        *wrapped("    const bool whole = ", [f"packed<PACK>({names[b.name]})" for b in buffers], ";", " && "),
    ]


def tile_lines(program: Program, names: dict[str, str], target: Target = CUDA) -> list[str]:
    """Print what a warp does to the tile that begins at `first`, `whole` saying whether its buffers are packed."""
    loops = lower(program, names, target)
    buffers = elementwise(program)
    held: dict[str, list[str]] = {}
    for b in buffers:
        kind, narrow = CUDA.types[b.dtype.name], b.dtype.name in _NARROW
        held.setdefault(f"Narrow<{kind}>" if narrow else kind, []).append(
            f"{names[b.name]}_tile{'' if narrow else '[HELD]'}"
        )
    for v in (v for loop in loops for v in loop.spills):
        held.setdefault(CUDA.types[v.dtype.name], []).append(f"{v.name}_spill[HELD]")
    read = [names[b.name] for b in buffers if b.read]
    narrow = {b.name for b in buffers if b.dtype.name in _NARROW}
    steps = [line for loop in loops for line in _print_loop(loop, names, narrow, sums=program.sums)]
    once = ["const Index tile = first / TILE;"] if program.noise or program.tiled else []
    once += [f"const Word {names[b.name]}_i = {names[b.name]}[tile];" for b in program.buffers if b.tiled and b.read]
    number = CUDA.types[program.dtype.name]
    once += [
        f"const {number} {names[b.name]} = {number}(*{pointer(b, names)});"
        for b in program.buffers
        if b.of_row and b.name != SKIPPED
    ]
    if program.noise:
        once.append("const Index number = offset / TILE + tile;")
        once.append("const Word tile_low = Word(number), tile_high = Word(number >> 32);")
    return [
        "const Index count = n - first;",
        *(line[8:] for kind, items in held.items() for line in wrapped(f"        {kind} ", items, ";")),
        "if (whole && count >= TILE) {",
        *(f"    load<PACK>({b}_tile, {b} + first);" for b in read),
        "} else {",
        *(f"    load<PACK>({b}_tile, {b} + first, count);" for b in read),
        "}",
        *once,
        *(part for line in steps for part in ([line] if line.startswith("#") else _narrower(line))),
    ]


def _narrower(line: str) -> list[str]:
    """Continue a long line on the next, counting the eight columns by which it will be indented."""
    return [part[8:] for part in _continued(f"        {line}")]


def _print_loop(loop: Loop, names: dict[str, str], narrow: set[str], *, sums: bool) -> list[str]:
    """Print one loop over the elements that a lane holds, what is computed once before it, and what is stored then.

    With `sums` what it spills is zero beyond the last element.
    """

    def lines(values: list[Value]) -> list[str]:
        return [f"const {CUDA.types[v.dtype.name]} {v.name} = {v.text};" for v in values]

    body = [f"const {CUDA.types[v.dtype.name]} {v.name} = {v.name}_spill[i];" for v in loop.reloads]
    body += [
        f"const {kind} {names[b]}_i = {names[b]}_tile[i];"
        for b, kind in ((b, CUDA.types[dtype.name]) for b, dtype in loop.loads.items())
    ]
    made = lines(loop.lines)
    for v in loop.maxima:
        made.append(f"{v.name} = larger({v.name}, position<PACK>(i) < count ? {v.text.within(SUM)} : 0u);")
    for v in loop.spills:
        zero = f"{CUDA.types[v.dtype.name]}(0)"
        made.append(f"{v.name}_spill[i] = {f'position<PACK>(i) < count ? {v.name} : {zero}' if sums else v.name};")
    made += [
        f"{names[b]}_tile.set(i, {text});" if b in narrow else f"{names[b]}_tile[i] = {text};"
        for b, text in loop.stores
    ]
    if any(re.search(r"\bindex\b", line) for line in made):
        body.append("const Word index = position<PACK>(i);")
    stored = [names[b] for b, _ in loop.stores]
    storing = [
        "if (whole && count >= TILE) {",
        *(f"    store<PACK>({b} + first, {b}_tile);" for b in stored),
        "} else {",
        *(f"    store<PACK>({b} + first, {b}_tile, count);" for b in stored),
        "}",
    ]
    return [
        *lines(loop.uniform),
        *_by_one_lane([f"{names[b]}[tile] = {text};" for b, text in loop.tile_stores]),
        *([f"Word {', '.join(f'{v.name} = 0' for v in loop.maxima)};"] if loop.maxima else []),
        *(["#pragma unroll", "for (int i = 0; i < HELD; ++i) {"] if body or made else []),
        *(f"    {line}" for line in (*body, *made)),
        *(["}"] if body or made else []),
        *(f"{v.name} = warp_max({v.name});" for v in loop.maxima),
        *(storing if stored else []),
    ]

"""Prints what is done to one tile, as a C function that a compiler specializes for whole tiles and for the last one."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from fastopt.kernels.c.language import C
from fastopt.kernels.c.plain import limits, loops_that_decide, plain_loops, scan
from fastopt.kernels.compiler.lowering import Loop, Value, lower, printed_names
from fastopt.kernels.compiler.program import SKIPPED, Buffer, Program
from fastopt.kernels.formats import TILE

# Names of the skeleton, of C and C++, and of the headers, which a rule's own names must not hide.
_SKELETON = (
    "n first count i k index number offset keys key0 key1 tile_low tile_high scalars tensor tensors tiles taken all"
    " totals work unusual mode t stream blocks grid flags error"
)
_LANGUAGE = (
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr const_cast"
    " continue decltype default delete do double dynamic_cast else enum explicit export extern false float for friend"
    " goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected"
    " public register reinterpret_cast restrict return short signed sizeof static static_assert static_cast struct"
    " switch template this thread_local throw true try typedef typeid typename typeof union unsigned using virtual void"
    " volatile wchar_t while xor xor_eq char16_t char32_t NULL linux unix"
)
_HEADERS = (
    "sqrt sqrtf rint rintf floor floorf ceil ceilf trunc truncf copysign copysignf fabs fabsf pow fmod exp log gamma"
    " signgam nan nanf NAN INFINITY isnan isinf j0 j1 jn y0 y1 yn div time errno memcpy memset size_t ptrdiff_t"
    " int32_t int64_t uint8_t uint16_t uint32_t uint64_t max_align_t"
)
RESERVED = frozenset([*_SKELETON.split(), *_LANGUAGE.split(), *_HEADERS.split()])


def spelled_out(text: str) -> str:
    """Spell out other letters, which not every compiler takes in a name."""
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in text)


def names_of(program: Program) -> dict[str, str]:
    """Return the names under which buffers and scalars are printed; leading underscores are the compiler's."""
    taken = RESERVED | {f"{b.name}_at".replace(" ", "") for b in program.buffers}
    names = {name: spelled_out(printed) for name, printed in printed_names(program, taken).items()}
    return {
        name: f"u{printed}" if printed.startswith("_") or printed.lower().startswith("fastopt") else printed
        for name, printed in names.items()
    }


def wrapped(head: str, items: list[str], tail: str) -> list[str]:
    """Write a call or definition on one line, or with its items wrapped where it is long."""
    line = f"{head}{', '.join(items)}{tail}"
    if len(line) <= 120:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()) + 4)
    whole = ", ".join(item.replace(" ", "\0") for item in items)  # so that lines break between items only
    options: dict[str, Any] = {"initial_indent": indent, "subsequent_indent": indent, "break_long_words": False}
    lines = textwrap.wrap(whole + tail.replace(" ", "\0"), 120, break_on_hyphens=False, **options)
    return [head, *(line.replace("\0", " ") for line in lines)]


def pointer(buffer: Buffer, names: dict[str, str]) -> str:
    """Return the name of a buffer's pointer: of one with an element for a tensor the name itself is that element's."""
    return f"{names[buffer.name]}_at" if buffer.of_row else names[buffer.name]


def pointers(program: Program, names: dict[str, str]) -> list[str]:
    """Declare the buffers as pointers."""
    return [f"{element(b)} *FASTOPT_RESTRICT {pointer(b, names)}" for b in passed(program)]


def element(buffer: Buffer) -> str:
    """Return the type of a buffer's elements."""
    return f"{'' if buffer.written else 'const '}{C.types[buffer.dtype.name]}"


def passed(program: Program) -> list[Buffer]:
    """Return the buffers that are arguments; a step that is skipped is not called."""
    return [b for b in program.buffers if b.name != SKIPPED]


def tile_function(program: Program, names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Print the function that steps the first `count` elements of a tile, at which the pointers point.

    Returns also the scalars that it takes, which are those that it uses.
    """
    return _function(program, names, lower(program, names, C), plain=False)


def plain_function(program: Program, names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Print the function that steps a whole tile if it is plain, and else returns false, and has written nothing."""
    return _function(program, names, plain_loops(program, names), plain=True)


def _function(
    program: Program, names: dict[str, str], loops: list[Loop], *, plain: bool
) -> tuple[list[str], list[str]]:
    number = C.types[program.dtype.name]
    printed = [_print_loop(loop, program, names) for loop in loops]
    if plain:
        decided = loops_that_decide(loops)
        printed = [
            scan(program, names),
            *printed[:decided],
            limits(program, loops),
            *printed[decided:],
            ["return true;"],
        ]
    body = [line for part in printed for line in part]
    spilled = {v.name: C.types[v.dtype.name] for loop in loops for v in loop.spills}
    mentioned = set(re.findall(r"\w+", " ".join(body)))
    before = [f"{kind} {name}_spill[FASTOPT_TILE];" for name, kind in spilled.items()]
    before += [
        f"const {C.types[b.dtype.name]} {names[b.name]}_i = *{names[b.name]};"
        for b in program.buffers
        if b.tiled and f"{names[b.name]}_i" in mentioned
    ]
    before += [
        f"const {number} {names[b.name]} = ({number})*{pointer(b, names)};"
        for b in passed(program)
        if b.of_row and names[b.name] in mentioned
    ]
    if program.noise:
        before.append("const uint32_t tile_low = (uint32_t)number, tile_high = (uint32_t)(number >> 32);")
    used = [s for s in program.scalars if names[s] in mentioned]
    scalars = [f"const {number} {names[s]}" for s in used]
    noise = ["const uint32_t key0", "const uint32_t key1", "const uint64_t number"] if program.noise else []
    mentioned |= set(re.findall(r"\w+", " ".join(before)))
    taken = [] if plain else ["count"]
    taken += [*(pointer(b, names) for b in passed(program)), *(x.rsplit(" ", 1)[1] for x in noise)]
    before += [f"(void){x};" for x in taken if x not in mentioned]
    kind, count = ("bool", []) if plain else ("void", ["const int count"])
    if plain:
        before.insert(0, "const int count = FASTOPT_TILE;")
    lines = [
        *wrapped(
            f"FASTOPT_INLINE {kind} {spelled_out(program.name)}_{'plain_' * plain}tile(",
            [*count, *pointers(program, names), *noise, *scalars],
            ") {",
        ),
        *(f"    {part}" for line in (*before, *body) for part in _continued(line)),
        "}",
    ]
    return lines, used


def tiles_function(program: Program, names: dict[str, str], scalars_type: str) -> list[str]:
    """Print the function that goes through the tiles of n elements; `scalars_type` is what holds the step's scalars.

    It is kept apart from what sets the floating-point mode, so that no compiler moves arithmetic before that.
    """
    name, number, arguments = spelled_out(program.name), C.types[program.dtype.name], pointers(program, names)
    noise = ["const uint32_t *keys", "uint64_t offset"] if program.noise else []
    scalars = [f"const {scalars_type} *scalars"] if program.scalars else []
    tile, used = tile_function(program, names)
    plain, plain_used = plain_function(program, names) if program.plain is not None else ([], [])
    given = [f"{pointer(b, names)}{_advance(b)}" for b in passed(program)]
    given += ["keys[0]", "keys[1]", "offset / FASTOPT_TILE + first / FASTOPT_TILE"] if noise else []
    whole = wrapped(f"        {name}_tile(", ["FASTOPT_TILE", *given, *(names[s] for s in used)], ");")
    if plain:
        taken = [*given, *(names[s] for s in plain_used)]
        whole = [*wrapped(f"        if ({name}_plain_tile(", taken, ")) continue;"), *whole]
    return [
        *plain,
        *([""] if plain else []),
        *tile,
        "",
        *wrapped(f"FASTOPT_APART void {name}_tiles(", ["size_t n", *arguments, *noise, *scalars], ") {"),
        *(
            f"    const {number} {names[s]} = scalars->{names[s]};"
            for s in program.scalars
            if s in (*used, *plain_used)
        ),
        *(["    (void)scalars;"] if scalars and not used else []),
        "    size_t first = 0;",
        "    for (; n - first >= FASTOPT_TILE; first += FASTOPT_TILE) {",
        *_prefetches(program, names),
        *whole,
        "    }",
        "    if (first < n) {",
        *wrapped(f"        {name}_tile(", ["(int)(n - first)", *given, *(names[s] for s in used)], ");"),
        "    }",
        "}",
    ]


def _prefetches(program: Program, names: dict[str, str]) -> list[str]:
    """Print the fetching of a later tile, where a tile takes less time than memory does."""
    if not program.compressed:
        return []
    return [
        f"        fastopt_fetch({names[b.name]} + first, {2 * TILE * b.dtype.itemsize}, {TILE * b.dtype.itemsize});"
        for b in program.buffers
        if b.elementwise and b.read
    ]


def _advance(buffer: Buffer) -> str:
    return "" if buffer.of_row else " + first / FASTOPT_TILE" if buffer.tiled else " + first"


def _continued(line: str) -> list[str]:
    """Continue a long line on the next."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 116, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False)


def _print_loop(loop: Loop, program: Program, names: dict[str, str]) -> list[str]:
    """Print one loop over the elements of a tile, and what is computed once before it.

    In a program that sums, what it spills is zero beyond the last element.
    """

    def lines(values: list[Value]) -> list[str]:
        return [f"const {C.types[v.dtype.name]} {v.name} = {v.text};" for v in values]

    kinds = {b.name: C.types[b.dtype.name] for b in program.buffers}
    body = [f"const {C.types[v.dtype.name]} {v.name} = {v.name}_spill[i];" for v in loop.reloads]
    body += [f"const {C.types[kind.name]} {names[b]}_i = {names[b]}[i];" for b, kind in loop.loads.items()]
    made = lines(loop.lines)
    for v in loop.maxima:
        made.append(f"const uint32_t {v.name}_i = {v.text};")
        made.append(f"{v.name} = {v.name}_i > {v.name} ? {v.name}_i : {v.name};")
    made += [f"{v.name}_spill[i] = {v.name};" for v in loop.spills]
    for b, text in loop.stores:
        narrow = kinds[b] in ("uint16_t", "uint8_t")
        made.append(f"{names[b]}[i] = {f'({kinds[b]})({text})' if narrow else text};")
    made += [f"{s.name} += {s.step};" for s in loop.sequences]
    if any(re.search(r"\bindex\b", line) for line in made):
        body.append("const uint32_t index = (uint32_t)i;")
    after = []
    if program.sums:
        after = [f"for (int i = count; i < FASTOPT_TILE; ++i) {v.name}_spill[i] = 0;" for v in loop.spills]
    return [
        *lines(loop.uniform),
        *(f"*{names[b]} = {text};" for b, text in loop.tile_stores),
        *([f"uint32_t {', '.join(f'{v.name} = 0' for v in loop.maxima)};"] if loop.maxima else []),
        *(f"uint32_t {s.name} = {s.first};" for s in loop.sequences),
        *(["for (int i = 0; i < count; ++i) {"] if body or made else []),
        *(f"    {line}" for line in (*body, *made)),
        *(["}"] if body or made else []),
        *after,
    ]

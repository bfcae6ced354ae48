"""The CUDA backend: prints a Program as CUDA C++ and launches it on device arrays.

A printed kernel is one loop over tiles, `tile.cuh` before it; that file says how a tile is divided among a warp. Two
entry points share the loop: the one named like the program takes the step's scalars as arguments, the one that ends in
`_captured` finds them on the device, in the next row of a table, so that a CUDA graph of it can be replayed.

Printing needs numpy only; `nvrtc` compiles, and imports CuPy, when something is launched.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.kernels.launch import Launch
from fastopt.kernels.nvrtc import OPTIONS, function, load_cupy
from fastopt.kernels.printing import Loop, Text, Value, infix, loops, own_names
from fastopt.kernels.program import Node, Program
from fastopt.kernels.storage import TILE

THREADS = 128
"""Threads of a block, 4 warps; as in tile.cuh. Twice as many are slower, most so where there is much arithmetic."""

MOST_BLOCKS = 2**31 - 1
"""Blocks that a grid can have. Below this a warp works on one tile, and the device is never short of blocks."""

_TYPES = {
    "float32": "float",
    "float64": "double",
    "uint32": "Word",
    "uint16": "Word16",
    "uint8": "Word8",
    "bool": "bool",
}
_NARROW = ("uint16", "uint8")  # a lane holds several in one word
_CALLS = {"sqrt": "sqrt", "rint": "rint", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "sign": "sign",
          "copysign": "copysign", "abs": "fabs"}  # fmt: skip

_BITWISE = ("and", "or", "xor", "left_shift", "right_shift")

# Names of the skeleton and of the language, which a rule's own names must not hide.
_SKELETON = (
    "n first count whole step i offset key0 key1 tile number tile_low tile_high place table keys row rows"
    " Index Word Word16 Word8"
)
_TILE = (
    "TILE LANES HELD THREADS PACK Pack Narrow lane position first_tile warps_in_grid packed load store larger warp_max"
)
_LANGUAGE = (
    "alignas alignof and and_eq asm auto bitand bitor bool case catch char class compl const constexpr const_cast"
    " decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto if"
    " inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public"
    " register reinterpret_cast return short signed sizeof static static_assert static_cast struct switch template this"
    " thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor"
    " xor_eq blockIdx blockDim gridDim threadIdx warpSize char16_t char32_t NULL"
)
_RESERVED = frozenset([*_SKELETON.split(), *_TILE.split(), *_LANGUAGE.split(), *_CALLS.values()])


def _render(node: Node, operands: list[Text], names: dict[str, str]) -> Text:
    match node.op:
        case "buffer" | "tile":
            return Text(f"{names[node.value]}_i")
        case "scalar":
            return Text(names[node.value])
        case "key" | "tile_number" | "place":
            return Text(node.value)
        case "constant":
            return _constant(node.value)
        case "cast":
            return Text(f"{_TYPES[node.dtype.name]}({operands[0]})")
        case "bitcast":
            return Text(f"{'__float_as_uint' if node.dtype == np.uint32 else '__uint_as_float'}({operands[0]})")
        case "negative":
            return Text(f"-{operands[0].within(9)}", 4)
        case "not":
            if node.dtype == np.bool_:
                return Text(f"!{operands[0].within(9)}", 0)  # in parentheses, without which g++ warns
            return Text(f"~{operands[0].within(9)}", 4)
        case "select":
            condition, a, b = operands
            return Text(f"{condition.within(2)} ? {a.within(2)} : {b.within(2)}", 0)
    if node.op in _CALLS:
        return Text(f"{_CALLS[node.op]}({', '.join(operands)})")
    if node.op in _BITWISE:  # parentheses around arithmetic, without which g++ warns
        operands = [Text(f"({x})") if x.binding in (2, 3) else x for x in operands]
    return infix(node.op, *operands)


def _constant(value: Any) -> Text:
    if value.dtype == np.bool_:
        return Text("true" if value else "false")
    if value.dtype == np.uint32:
        return Text(f"{value:d}u" if value < 256 else f"{value:#x}u")
    if not np.isfinite(value):
        bits = f"0x{value.view(np.uint32 if value.dtype == np.float32 else np.uint64):x}"
        return Text(f"__uint_as_float({bits}u)" if value.dtype == np.float32 else f"__longlong_as_double({bits}ll)")
    # The shortest decimal that is nearest to this number, and no literal without a point or an exponent.
    text = str(value) + "f" * (value.dtype == np.float32)
    return Text(text, 4 if text.startswith("-") else 9)


def buffer_names(program: Program) -> dict[str, str]:
    """Give the names under which buffers and scalars are printed; two leading underscores are the compiler's."""
    names = own_names(program, _RESERVED | {f"{b.name}_tile".replace(".", "_") for b in program.buffers})
    return {name: f"u{printed}" if printed.startswith("__") else printed for name, printed in names.items()}


def entry(program: Program) -> str:
    """Give the name of the program's entry point."""
    return spelled_out(program.name)


def spelled_out(text: str) -> str:
    """Spell out other letters, which not every compiler takes in a name."""
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in text)


def listed(head: str, items: list[str], tail: str, between: str = ", ") -> list[str]:
    """Write a call or definition on one line, or with its items wrapped where it is long."""
    line = f"{head}{between.join(items)}{tail}"
    if len(line) <= 120:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()) + 4)
    whole = between.join(item.replace(" ", "\0") for item in items)  # so that lines break between items only
    wrapped = textwrap.wrap(whole + tail.replace(" ", "\0"), 120, initial_indent=indent, subsequent_indent=indent)
    return [head, *(line.replace("\0", " ") for line in wrapped)]


def _by_one_lane(lines: list[str]) -> list[str]:
    """Let one lane of the warp do what is done once for a tile, after all have read what it overwrites."""
    if not lines:
        return []
    return ["__syncwarp();", "if (lane() == 0) {", *(f"    {line}" for line in lines), "}"]


def _wrapped(line: str) -> list[str]:
    """Continue a long line on the next."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, 120, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False)


def arrays(program: Program, names: dict[str, str]) -> list[str]:
    """Declare the buffers as pointers."""
    return [
        f"{'' if b.written else 'const '}{_TYPES[b.dtype.name]}* __restrict__ {names[b.name]}" for b in program.buffers
    ]


def tile_lines(program: Program, names: dict[str, str]) -> list[str]:
    """Print what a warp does to the tile that begins at `first`, `whole` saying whether its buffers are packed."""
    divided = loops(program, names, lambda node, operands: _render(node, operands, names))
    walked = [b for b in program.buffers if not b.tiled]
    held: dict[str, list[str]] = {}
    for b in walked:
        kind, narrow = _TYPES[b.dtype.name], b.dtype.name in _NARROW
        held.setdefault(f"Narrow<{kind}>" if narrow else kind, []).append(
            f"{names[b.name]}_tile{'' if narrow else '[HELD]'}"
        )
    for v in (v for loop in divided for v in loop.kept):
        held.setdefault(_TYPES[v.dtype.name], []).append(f"{v.name}_all[HELD]")
    read = [names[b.name] for b in walked if b.read]
    narrow = {b.name for b in walked if b.dtype.name in _NARROW}
    steps = [line for loop in divided for line in _printed_loop(loop, names, narrow)]
    once = ["const Index tile = first / TILE;"] if program.noise or program.tiled else []
    once += [f"const Word {names[b.name]}_i = {names[b.name]}[tile];" for b in program.buffers if b.tiled]
    if program.noise:
        once.append("const Index number = offset / TILE + tile;")
        once.append("const Word tile_low = Word(number), tile_high = Word(number >> 32);")
    return [
        "const Index count = n - first;",
        *(line[8:] for kind, items in held.items() for line in listed(f"        {kind} ", items, ";")),
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
    return [part[8:] for part in _wrapped(f"        {line}")]


def print_kernel(program: Program) -> str:
    """Print `program` as a CUDA C++ source that includes tile.cuh; `print_source` gives the same in one piece."""
    names = buffer_names(program)
    scalars = [names[s] for s in program.scalars]
    number = _TYPES[program.dtype.name]
    buffers = [names[b.name] for b in program.buffers]
    declared = arrays(program, names)
    noise = ["Word key0", "Word key1", "Index offset"] if program.noise else []
    arguments = ["Index n", *declared, *noise, *(f"{number} {s}" for s in scalars)]
    walked = [b for b in program.buffers if not b.tiled]
    pack = 16 // max(b.dtype.itemsize for b in walked)
    written = [b.name for b in program.buffers if b.written]
    only_read = [b.name for b in program.buffers if not b.written]
    # The same arguments where a row of a table on the device holds what depends on t.
    fixed = ["Index n", *declared, *(["const Word* keys", "Index offset"] if noise else []), f"const {number}* table"]
    from_row = ["keys[0]", "keys[1]", "offset"] if noise else []
    from_row += [f"table[{k}]" for k in range(len(scalars))]
    head = 'extern "C" __global__ void __launch_bounds__(THREADS) '
    text = "\n".join(
        [
            f"// {program.name}: one step on an NVIDIA GPU in {program.dtype.name}. Printed by fastopt; do not edit.",
            "//",
            f"// Reads and writes {', '.join(written) or 'nothing'}; reads {', '.join(only_read) or 'nothing else'}:"
            f" {program.bytes_per_parameter:g} bytes a parameter.",
            f"// The bits are those of every backend when compiled with {' '.join(OPTIONS[1:])}.",
            "",
            '#include "tile.cuh"',
            "",
            *listed("__device__ __forceinline__ void step(", arguments, ") {"),
            f"    constexpr int PACK = {pack};",
            *listed("    const bool whole = ", [f"packed<PACK>({names[b.name]})" for b in walked], ";", " && "),
            "    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {",
            *(f"        {line}" if line and not line.startswith("#") else line for line in tile_lines(program, names)),
            "    }",
            "}",
            "",
            *listed(f"{head}{program.name}(", arguments, ") {"),
            *listed("    step(", [x.rsplit(" ", 1)[1] for x in arguments], ");"),
            "}",
            "",
            *listed(f"{head}{program.name}_captured(", [*fixed, "const Index* row", "Index rows"], ") {"),
            "    if (*row >= rows) return;",
            *(["    keys += *row * 2;"] if noise else []),
            f"    table += *row * {len(scalars)};",
            *listed("    step(", ["n", *buffers, *from_row], ");"),
            "}",
            "",
        ]
    )
    return spelled_out(text)


def _printed_loop(loop: Loop, names: dict[str, str], narrow: set[str]) -> list[str]:
    """Print one loop over the elements that a lane holds, what is computed once before it, and what is stored then."""

    def lines(values: list[Value]) -> list[str]:
        return [f"const {_TYPES[v.dtype.name]} {v.name} = {v.text};" for v in values]

    body = [f"const {_TYPES[v.dtype.name]} {v.name} = {v.name}_all[i];" for v in loop.taken]
    body += [
        f"const {kind} {names[b]}_i = {names[b]}_tile[i];"
        for b, kind in ((b, _TYPES[dtype.name]) for b, dtype in loop.loads.items())
    ]
    made = lines(loop.lines)
    made += [f"{v.name} = larger({v.name}, position<PACK>(i) < count ? {v.text.within(2)} : 0u);" for v in loop.tops]
    made += [f"{v.name}_all[i] = {v.name};" for v in loop.kept]
    made += [
        f"{names[b]}_tile.set(i, {text});" if b in narrow else f"{names[b]}_tile[i] = {text};"
        for b, text in loop.stores
    ]
    if any(re.search(r"\bplace\b(?!<)", line) for line in made):
        body.append("const Word place = position<PACK>(i);")
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
        *([f"Word {', '.join(f'{v.name} = 0' for v in loop.tops)};"] if loop.tops else []),
        "#pragma unroll",
        "for (int i = 0; i < HELD; ++i) {",
        *(f"    {line}" for line in (*body, *made)),
        "}",
        *(f"{v.name} = warp_max({v.name});" for v in loop.tops),
        *(storing if stored else []),
    ]


@lru_cache(maxsize=512)
def print_source(program: Program) -> str:
    """Print `program` as one complete CUDA C++ source, which nvcc or NVRTC compiles as it stands."""
    return print_kernel(program).replace('#include "tile.cuh"\n', tile_header(), 1)


@lru_cache(maxsize=1)
def tile_header() -> str:
    """Give tile.cuh without what only a file that is included needs."""
    text = (Path(__file__).parent / "tile.cuh").read_text()
    return text.replace("#pragma once\n\n", "")


def blocks(n: int) -> int:
    """Give the number of blocks that step n elements."""
    return min(-(-n // (TILE * (THREADS // 32))), MOST_BLOCKS)


def numbers(program: Program, noise: tuple, scalars: tuple) -> list[Any]:
    """Give what a kernel takes after n and its buffers, each as the NumPy scalar whose bytes are passed."""
    keys = [np.uint32(noise[0]), np.uint32(noise[1]), np.int64(noise[2])] if program.noise else []
    return [*keys, *map(program.dtype.type, scalars)]


ADVANCE = 'extern "C" __global__ void advance_row(long long* row) { ++*row; }\n'
"""The kernel after the captured ones of a step: the next replay finds the next row."""


class DeviceLaunch(Launch):
    """A step over flat, contiguous, non-overlapping CuPy arrays of one device, in the order of `program.buffers`.

    Its calls run on the device and the stream that are current then, and wait for nothing.
    """

    __slots__ = ("_arrays", "_captured", "_keys", "_program", "_row", "_rows", "_table")

    def __init__(self, program: Program, arrays: Sequence[Any]):
        n = int(arrays[0].size)
        self._program, self._arrays, self._captured = program, tuple(arrays), None
        if n == 0:
            super().__init__(lambda noise, scalars: [])
            return
        shape, fixed = ((blocks(n),), (THREADS,)), (np.int64(n), *arrays)
        with arrays[0].device as device:
            kernel = function(print_source(program), entry(program), device.id)
        super().__init__(lambda noise, scalars: [(kernel, *shape, (*fixed, *numbers(program, noise, scalars)))])

    def prepare(self, row: Any, scalars: Sequence[tuple], noise: Sequence[tuple[int, int]]) -> None:
        """Put the scalars of the next steps on the device, and the keys of their noise, for `captured_calls`.

        `row` is an int64 on the device that says which of them is next. Called again, with as many, it writes to the
        same memory, where captured graphs look for them.
        """
        program, cupy = self._program, load_cupy(self._program.name)
        table = np.array(scalars, program.dtype).reshape(len(scalars), -1)
        keys = np.array(noise, np.uint32).reshape(-1, 2)
        with row.device as device:
            if self._captured is None:
                self._captured = function(print_source(program), f"{entry(program)}_captured", device.id)
                self._table, self._keys = cupy.empty(table.shape, table.dtype), cupy.empty(keys.shape, keys.dtype)
                self._row, self._rows = row, np.int64(len(scalars))
            self._table.set(table)
            self._keys.set(keys)

    def captured_calls(self, offset: int) -> list[tuple]:
        """Prepare the step whose scalars are in the next row; without a row left it does nothing."""
        n = int(self._arrays[0].size)
        if n == 0:
            return []
        noise = [self._keys, np.int64(offset)] if self._program.noise else []
        arguments = (np.int64(n), *self._arrays, *noise, self._table, self._row, self._rows)
        return [(self._captured, (blocks(n),), (THREADS,), arguments)]


def counter(device: Any) -> tuple[Any, list[tuple]]:
    """Make the int64 on a device that says which row of prepared scalars is next, and the calls that advance it."""
    with device:
        row = load_cupy("fastopt.kernels.cuda").zeros(1, np.int64)
        kernel = function(ADVANCE, "advance_row", device.id)
    return row, [(kernel, (1,), (1,), (row,))]


def bind(program: Program, arrays: Sequence[Any]) -> DeviceLaunch:
    """Prepare a step over arrays on a device, as `cpu.bind` does over NumPy arrays."""
    return DeviceLaunch(program, arrays)

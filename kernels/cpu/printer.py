"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on address ranges.

A printed kernel is a vector loop, in prefetched strips where a step is large, in a loop that claims chunks. It is
compiled once for the program, for bare addresses and float64 scalars, so no call ever compiles anything and a call
costs about 2 µs.
"""

from __future__ import annotations

import hashlib
import re
import sys
import textwrap
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from fastopt.kernels import cache as files
from fastopt.kernels import intrinsics, threads
from fastopt.kernels.launch import Launch
from fastopt.kernels.printing import Loop, Text, infix, loops, own_names
from fastopt.kernels.program import Node, Program
from fastopt.kernels.storage import TILE

CHUNK = 32_768
"""The fewest elements that a thread claims at a time, a multiple of the tile: so many that a claim costs nothing."""

CLAIMS = 32
"""Chunks for each thread of a large step: the fewer, the longer each thread walks on through memory without a jump,
and the longer the last one to finish may be waited for. Measured in docs/decisions/0002."""

PARALLEL_FROM = 8 << 20
"""Bytes of traffic from which a step is shared among threads: measured in docs/decisions/0002."""

STRIPS_FROM = 131_072
"""Elements beyond which a step comes from memory: measured in docs/decisions/0003."""


@cache
def prefetches() -> bool:
    """Whether large steps ask for memory ahead on this processor: AMD's Zen is faster without (decision 0003)."""
    return not llvmlite.binding.get_host_cpu_name().startswith("znver")


def is_far(n: int) -> bool:
    """Whether a step of n elements runs in strips that are prefetched."""
    return n > STRIPS_FROM and prefetches()


def chunk(n: int) -> int:
    """Give the elements that a thread claims at a time where so many are shared, a multiple of the tile."""
    return max(CHUNK, -(-n // (CLAIMS * threads.get_threads() * TILE)) * TILE)


_CALLS = {name: name for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign", "sign", "select")} | {
    "abs": "fabs"
}

HALF = TILE // 2
"""Elements of a prefetched strip with gradient noise: to ask for a whole tile of each buffer is too much, and shorter
loops are slower (see decision 0004)."""


def strip(itemsize: int) -> int:
    """Give the elements that a large step works on, and prefetches, at a time, for the size of its widest.

    Four cache lines of float32, of shorter types too: four times as many of each buffer are more than a core can have
    under way (see docs/decisions/0003).
    """
    return 256 // min(itemsize, 4)


# Names of the printed skeleton, which a rule's own names must not hide.
_SKELETON = (
    "job n chunk first last far length count strip i offset tile tile_low tile_high start place key0 key1 min range"
    " step step_0 step_1 step_2 step_3"
)
_IMPORTED = "buffer claim prefetch scratch low high both larger wide_vectors word to_float from_bits"
_FROM_NUMBA = frozenset(["float32", "float64", "uint8", "uint16", "uint32", "intp", "njit", "types"])
_RESERVED = frozenset([*_SKELETON.split(), *_IMPORTED.split(), *_FROM_NUMBA, *_CALLS.values()])


def _render(node: Node, operands: list[Text], names: dict[str, str]) -> Text:
    kind = "word" if node.dtype == np.uint32 else node.dtype.name
    match node.op:
        case "buffer" | "tile":
            return Text(f"{names[node.value]}_i")
        case "scalar":
            return Text(names[node.value])
        case "key" | "tile_number" | "place":
            return Text(node.value)
        case "constant":
            return Text(f"{kind}({_number(node.value)})")
        case "cast":
            word = node.args[0].dtype == np.uint32
            return Text(f"to_float({operands[0]}, {kind})" if word else f"{kind}({operands[0]})")
        case "bitcast":
            return Text(f"word({operands[0]})" if kind == "word" else f"from_bits({operands[0]})")
        case "negative":
            return Text(f"-{operands[0].within(9)}", 4)
        case "not":
            return Text(f"not {operands[0].within(9)}" if kind == "bool" else f"~{operands[0].within(9)}", 0)
    if node.op in _CALLS:
        return Text(f"{_CALLS[node.op]}({', '.join(operands)})")
    return infix(node.op, *operands)


def _number(value: Any) -> str:
    x = value.item()
    if isinstance(x, float):
        if not np.isfinite(x):
            return f"float('{x}')"
        short = str(value)  # as few digits as tell it from its neighbours
        return short if type(value)(float(short)) == value else repr(x)
    return repr(x)


def _listed(head: str, items: list[str], tail: str, indent: str) -> list[str]:
    """Write a call or definition on one line, or with its items wrapped where it is long."""
    line = f"{head}{', '.join(items)}{tail}"
    if len(line) <= 100:
        return [line]
    return [head, *textwrap.wrap(", ".join(items) + ",", 100, initial_indent=indent, subsequent_indent=indent), tail]


def printed_name(program: Program) -> str:
    """Give the name of the program's function: the program's own, cut where file names could not hold it."""
    return files.short(program.name)


def print_module(program: Program) -> str:
    """Print `program` as one complete Python module with one compiled function, `printed_name(program)`."""
    names = own_names(program, _RESERVED)
    divided = loops(program, names, lambda node, operands: _render(node, operands, names), keep=program.stages)
    buffers = [names[b.name] for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", "far", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    # Words that hold two elements each, where every buffer is short enough: see _printed_pairs.
    paired = sys.byteorder == "little" and all(b.tiled or b.dtype.itemsize <= 2 for b in program.buffers)
    halves = ("_0", "_1") if paired else ("",)
    kept = [(f"{v.name}_all{half}", v.dtype) for loop in divided for v in loop.kept for half in halves]
    count = len(buffers) + len(kept)
    functions, printed = [], []
    for k, loop in enumerate(divided):
        if paired:
            function, lines = _printed_pairs(loop, f"step{f'_{k}' if len(divided) > 1 else ''}", names, program, count)
            functions += function
            printed.append(lines)
        else:
            printed.append(_printed_loop(loop, names))

    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    if noise:
        convert += ["key0, key1 = word(key0), word(key1)"]
    if kept or any(b.dtype.itemsize < 4 for b in program.buffers):
        convert.insert(0, "wide_vectors()")
    convert += [f"{name}_at = scratch({dtype.name})" for name, dtype in kept]
    views = []
    for b in program.buffers:
        first, kind = (f"strip // {TILE}" if b.tiled else "strip"), b.dtype.name
        if paired and not b.tiled:
            first, kind = "strip // 2", f"uint{16 * b.dtype.itemsize}"
        views.append(f"{names[b.name]} = buffer({names[b.name]}_at, {first}, {kind}")
    views += [f"{name} = buffer({name}_at, 0, {dtype.name}" for name, dtype in kept]
    views = [f"{view}, {k}, {count})" for k, view in enumerate(views)]
    elements, length = strip(max(b.dtype.itemsize for b in program.buffers if not b.tiled)), "chunk"
    if program.noise or program.tiled:
        elements, length = HALF if program.stages and not program.tiled else TILE, str(TILE)
    tile = [f"{names[b.name]}_i = {names[b.name]}[0]" for b in program.buffers if b.tiled]
    if noise:
        tile += [f"tile = (offset + strip) // {TILE}", "tile_low, tile_high = word(tile), word(tile >> 32)"]
        tile += [f"start = word(strip % {TILE})"]
    # In front of a loop that does little else with memory, where there is one; an 8-bit tile is only four cache lines.
    ahead = [
        f"prefetch({names[b.name]}, {elements // 2 if paired else elements})"
        for b in program.buffers
        if not b.tiled and b.dtype.itemsize > 1
    ]
    printed.insert(len(printed) > 1, ["if far:", *(f"    {line}" for line in ahead)])
    steps = [*tile, *(line for part in printed for line in part)]

    text = "\n".join([*convert, *views, *functions, *steps])
    imported = {name for name in (*_IMPORTED.split(), *_CALLS.values()) if re.search(rf"\b{name}\(", text)}
    dtypes = {name for name in _FROM_NUMBA if re.search(rf"\b{name}\b", text)} | {"float64", "intp", "njit", "types"}
    read = [b.name for b in program.buffers if not b.written]
    written = [b.name for b in program.buffers if b.written]
    return "\n".join(
        [
            f'"""{program.name}: one step on the CPU in {program.dtype.name}. Printed by fastopt; do not edit.',
            "",
            f"Reads and writes {', '.join(written) or 'nothing'}; reads {', '.join(read) or 'nothing else'}:"
            f" {program.bytes_per_parameter:g} bytes a parameter.",
            '"""',
            "",
            f"from numba import {', '.join(sorted(dtypes))}",
            "",
            f"from fastopt.kernels.intrinsics import {', '.join(sorted({'claim', 'prefetch', *imported}))}",
            "",
            *_listed("SIGNATURE = types.void(", types, ")", "    "),
            "",
            "",
            *functions,
            '@njit(nogil=True, cache=True, error_model="numpy")',
            *_listed(f"def {printed_name(program)}(", arguments, "):", "    "),
            *(f"    {line}" for line in convert),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        length = {elements}{f' if far else {length}' if length != str(elements) else ''}",
            "        for strip in range(first, last, length):",
            "            count = min(length, last - strip)",
            *(f"            {view}" for view in views),
            *(f"            {line}" for line in steps),
            "        first = claim(job, first, chunk)",
            "",
        ]
    )


def _printed_loop(loop: Loop, names: dict[str, str]) -> list[str]:
    """Print one loop over the elements of a strip, and what is computed once before it."""
    before = [f"{v.name} = {v.text}" for v in loop.uniform]
    before += [f"{names[b]}[0] = {text}" for b, text in loop.tile_stores]
    before += [f"{v.name} = word(0)" for v in loop.tops]
    body = [f"{v.name} = {v.name}_all[i]" for v in loop.taken]
    loads = [names[b] for b in loop.loads]
    if loads:
        body.append(f"{', '.join(f'{b}_i' for b in loads)} = {', '.join(f'{b}[i]' for b in loads)}")
    lines = [f"{v.name} = {v.text}" for v in loop.lines]
    lines += [f"{v.name} = larger({v.name}, {v.text})" for v in loop.tops]
    lines += [f"{v.name}_all[i] = {v.name}" for v in loop.kept]
    lines += [f"{names[b]}[i] = {text}" for b, text in loop.stores]
    if any(re.search(r"\bplace\b", line) for line in lines):
        body.append("place = start + word(i)")
    return [*before, "for i in range(count):", *(f"    {line}" for line in [*body, *(lines or ["pass"])])]


def _printed_pairs(
    loop: Loop, step: str, names: dict[str, str], program: Program, count: int
) -> tuple[list[str], list[str]]:
    """Print a loop over words that hold two elements each: a function of one element, `step`, and what calls it.

    To widen 16 bits to 32 and back costs more than what lies between; to take a word's halves costs next to nothing.
    """
    bits = {names[b.name]: 8 * b.dtype.itemsize for b in program.buffers}
    loads, stores = [names[b] for b in loop.loads], [names[b] for b, _ in loop.stores]
    taken, kept, tops = ([v.name for v in values] for values in (loop.taken, loop.kept, loop.tops))
    results = [*(text for _, text in loop.stores), *kept, *(v.text for v in loop.tops)]
    lines = [f"{v.name} = {v.text}" for v in loop.lines] + [f"return {', '.join(results)}"]
    mentioned = set(re.findall(r"\w+", " ".join(lines)))
    uniform = [*(names[b.name] + "_i" for b in program.buffers if b.tiled), *(names[s] for s in program.scalars)]
    own = {f"{b}_i" for b in loads} | {v.name for v in loop.lines} | set(taken)
    known = ["place", *uniform, *sorted(name for name in mentioned if re.fullmatch(r"(x|top)\d+", name))]
    used = [name for name in known if name in mentioned - own]
    parameters = [*(f"{b}_i" for b in loads), *taken, *used]

    def call(half: str, at: str, elements: list[str], place: str) -> str:
        given = [*elements, *(f"{v}_all{half}[{at}]" for v in taken)]
        given += [place if name == "place" else name for name in used]
        return f"{', '.join(f'{x}{half}' for x in (*stores, *kept, *tops))} = {step}({', '.join(given)})"

    def keep(half: str, at: str) -> list[str]:
        return [f"{v}_all{half}[{at}] = {v}{half}" for v in kept]

    function = [
        '@njit(inline="always", error_model="numpy")',
        *_listed(f"def {step}(", parameters, "):", "    "),
        *(f"    {line}" for line in lines),
        "",
        "",
    ]
    order = {names[b.name]: k for k, b in enumerate(program.buffers)}
    first = [f"low({b}[i], {bits[b]})" for b in loads]
    second = [f"high({b}[i], {bits[b]})" for b in loads]
    last = [f"{b}_last[0]" for b in loads]
    return function, [
        *(f"{v.name} = {v.text}" for v in loop.uniform),
        *(f"{names[b]}[0] = {text}" for b, text in loop.tile_stores),
        *(f"{name} = word(0)" for name in tops),
        "for i in range(count // 2):",
        f"    {call('_0', 'i', first, 'start + word(2 * i)')}",
        f"    {call('_1', 'i', second, 'start + word(2 * i + 1)')}",
        *(f"    {b}[i] = both({b}_0, {b}_1, {bits[b]})" for b in stores),
        *(f"    {line}" for half in ("_0", "_1") for line in keep(half, "i")),
        *(f"    {name} = larger({name}, larger({name}_0, {name}_1))" for name in tops),
        "if count % 2:",
        *(
            f"    {b}_last = buffer({b}_at, strip + count - 1, uint{bits[b]}, {order[b]}, {count})"
            for b in dict.fromkeys([*loads, *stores])
        ),
        f"    {call('_0', 'count // 2', last, 'start + word(count - 1)')}",
        *(f"    {b}_last[0] = {b}_0" for b in stores),
        *(f"    {line}" for line in keep("_0", "count // 2")),
        *(f"    {name} = larger({name}, {name}_0)" for name in tops),
    ]


@cache
def _kind() -> str:
    """Name the folder of compiled modules: whatever changes the code they become, besides their own text."""
    source = hashlib.sha256(Path(intrinsics.__file__).read_bytes()).hexdigest()[:8]
    return f"cpu-numba{numba.__version__}-{source}"


def cache_folder() -> Path:
    """Give the folder in which compiled CPU kernels are kept."""
    return files.folder(_kind())


def load(name: str, text: str) -> Any:
    """Give the function `name` of a printed module, compiled for its SIGNATURE now or by an earlier process.

    Compiled code that was damaged on disk is made anew. Where it cannot be written, it lasts as long as the process.
    """
    with files.lock:  # two threads, or two programs that print the same text, come for one kernel
        module = files.load(name, text, _kind())
        kernel = getattr(module, name)
        if not kernel.signatures:
            kernel = _compile(kernel, module.SIGNATURE, Path(str(module.__file__)))
            kernel.disable_compile()
            setattr(module, name, kernel)
    return kernel


@cache
def entry(kernel: Any) -> Any:
    """Give the C function behind a loaded kernel: the dispatcher looks at every argument's type, 0.12 µs a call."""
    (only,) = kernel.overloads.values()
    return only.entry_point


def _compile(kernel: Any, signature: Any, path: Path) -> Any:
    try:
        try:
            kernel.compile(signature)
        except Exception as damage:  # whatever unpickling damaged bytes raises
            if not files.discard(Path(kernel.stats.cache_path), path.stem):
                raise
            kernel.compile(signature)
            files.warn_damaged(path, damage)
    except OSError as error:
        files.warn_unwritable(path, error)
        kernel = numba.njit(nogil=kernel.targetoptions.get("nogil", False), error_model="numpy")(kernel.py_func)
        kernel.compile(signature)
    return kernel


@lru_cache(maxsize=512)
def compiled(program: Program) -> Any:
    """Compile `program`, or load what an earlier process compiled."""
    return load(printed_name(program), print_module(program))


@cache
def waiting() -> Any:
    """Compile `wait(job, chunks)`, which returns when all chunks of a shared step are finished."""
    return load("wait", _WAIT)


# It looks for some 0.1 ms, about as long as a chunk takes, before it lets others have the core.
_WAIT = '''"""Wait until all chunks of a shared step are finished. Printed by fastopt; do not edit."""

from numba import intp, njit, types

from fastopt.kernels.intrinsics import finished, give_way

SIGNATURE = types.void(intp, intp)


@njit(nogil=True, cache=True, error_model="numpy")
def wait(job, chunks):
    looks = 0
    while finished(job) < chunks:
        looks += 1
        if looks > 50_000:
            give_way()
'''


def bind(program: Program, arrays: Sequence[np.ndarray]) -> Launch:
    """Prepare a step over flat, contiguous, non-overlapping arrays in the order of `program.buffers`.

    The launch that it returns updates them in place. The arrays must not be moved while it is in use.
    """
    n = arrays[0].size
    if n == 0:
        return Launch(lambda noise, scalars: [])
    kernel = entry(compiled(program))
    if n > CHUNK:
        waiting()
    keep = tuple(arrays)
    at = (int(is_far(n)), *[a.__array_interface__["data"][0] for a in keep])
    whole, traffic = (kernel, 0, n, n, *at), n * program.bytes_per_parameter

    def calls(noise: tuple, scalars: tuple) -> list[tuple]:
        if n > CHUNK and traffic >= PARALLEL_FROM:
            return threads.share(kernel, waiting(), n, chunk(n), (*at, *noise, *scalars), keep)
        return [(*whole, *noise, *scalars)]

    return Launch(calls)

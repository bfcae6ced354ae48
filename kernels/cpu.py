"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on address ranges.

A printed kernel is a vector loop, in prefetched strips where a step is large, in a loop that claims chunks. It is
compiled once for the program, for bare addresses and float64 scalars, so no call ever compiles anything and a call
costs about 2 µs.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from fastopt.kernels import cache as files
from fastopt.kernels import intrinsics, threads
from fastopt.kernels.launch import Launch
from fastopt.kernels.program import Node, Program, Statement, Text, infix, own_names, statements, walk

CHUNK = 32_768
"""Elements a thread claims at a time, a multiple of the tile: long enough that a claim costs nothing, short enough that
the last one to finish is not waited for."""

PARALLEL_FROM = 8 << 20
"""Bytes of traffic from which a step is shared among threads: measured in docs/decisions/0002."""

STRIPS_FROM = 131_072
"""Elements beyond which a step runs in strips that are prefetched: measured in docs/decisions/0003."""

_CALLS = {name: name for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign", "sign", "select")} | {
    "abs": "fabs"
}

# Names of the printed skeleton, which a rule's own names must not hide.
_SKELETON = "job n chunk first last far length count strip i offset low index_low index_high key0 key1 min range"
_IMPORTED = "float32 float64 intp njit types buffer claim prefetch scratch wide_vectors word to_float from_bits"
_RESERVED = frozenset([*_SKELETON.split(), *_IMPORTED.split(), *_CALLS.values()])


def _render(node: Node, operands: list[Text], names: dict[str, str]) -> Text:
    kind = "word" if node.dtype == np.uint32 else node.dtype.name
    match node.op:
        case "buffer":
            return Text(f"{names[node.value]}_i")
        case "scalar":
            return Text(names[node.value])
        case "key" | "index":
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
    lines, results = statements(program, lambda node, operands: _render(node, operands, names))
    buffers = [names[b.name] for b in program.buffers]
    kinds = [b.dtype.name for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    stages, lines = _stages(program, lines)
    body = [f"{s.name} = {s.text}" for s in lines] + [f"{names[b]}[i] = {text}" for b, text in results.items()]
    text = "\n".join([*(s.text for stage in stages for s in stage), *body])
    calls = {"buffer", "claim", "prefetch"}
    calls |= {name for name in (*_CALLS.values(), "word", "to_float", "from_bits") if f"{name}(" in text}
    dtypes = {*kinds, program.dtype.name, "float64", *(["float32"] if "float32" in text else [])}
    read = [b.name for b in program.buffers if not b.written]
    written = [b.name for b in program.buffers if b.written]
    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    views = [f"{b} = buffer({b}_at, strip, {kind}, {k}" for k, (b, kind) in enumerate(zip(buffers, kinds, strict=True))]
    loops, strip, length = [], intrinsics.STRIP, "chunk"
    if noise:
        calls |= {"scratch", "wide_vectors", "word"}
        kept = [(stage[-1].name, stage[-1].dtype.name) for stage in stages]
        convert.insert(0, "wide_vectors()")
        convert.append("key0, key1, index_high = word(key0), word(key1), word(offset >> 32)")
        convert += [f"{name}_at = scratch({kind})" for name, kind in kept]
        views += [f"{name}_all = buffer({name}_at, 0, {kind}, {len(views) + k}" for k, (name, kind) in enumerate(kept)]
        loops, strip, length = ["low = word(offset + strip)"], intrinsics.SCRATCH, str(intrinsics.SCRATCH)
        for k, stage in enumerate(stages):
            taken = [f"{name} = {name}_all[i]" for name, _ in kept[:k]]
            given = [f"{s.name} = {s.text}" for s in stage] + [f"{kept[k][0]}_all[i] = {kept[k][0]}"]
            index = [] if k else ["index_low = low + word(i)"]
            loops += ["for i in range(count):", *(f"    {line}" for line in [*index, *taken, *given])]
        body = [f"{name} = {name}_all[i]" for name, _ in kept] + body
    return "\n".join(
        [
            f'"""{program.name}: one step on the CPU in {program.dtype.name}. Printed by fastopt; do not edit.',
            "",
            f"Reads and writes {', '.join(written) or 'nothing'}; reads {', '.join(read) or 'nothing else'}:"
            f" {program.bytes_per_parameter} bytes a parameter.",
            '"""',
            "",
            f"from numba import {', '.join(sorted({*dtypes, 'intp', 'njit', 'types'}))}",
            "",
            f"from fastopt.kernels.intrinsics import {', '.join(sorted(calls))}",
            "",
            *_listed("SIGNATURE = types.void(", types, ")", "    "),
            "",
            "",
            '@njit(nogil=True, cache=True, error_model="numpy")',
            *_listed(f"def {printed_name(program)}(", arguments, "):", "    "),
            *(f"    {line}" for line in convert),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        far = n > {STRIPS_FROM}",
            f"        length = {strip} if far else {length}" if length != str(strip) else f"        length = {strip}",
            "        for strip in range(first, last, length):",
            "            count = min(length, last - strip)",
            *(f"            {view}, {len(views)})" for view in views),
            "            if far:",
            *(f"                prefetch({b}, {strip})" for b in buffers),
            *(f"            {line}" for line in loops),
            "            for i in range(count):",
            f"                {', '.join(f'{b}_i' for b in buffers)} = {', '.join(f'{b}[i]' for b in buffers)}",
            *(f"                {line}" for line in body),
            "        first = claim(job, first, chunk)",
            "",
        ]
    )


def _stages(program: Program, lines: list[Statement]) -> tuple[list[list[Statement]], list[Statement]]:
    """Divide the lines into those up to each stage of the noise, each its own loop, and the rest.

    A loop of the whole is one long chain for each element, of which a processor overlaps too few: see decision 0004.
    """
    stages, rest = [], lines
    for node in program.stages:
        below = {id(x) for x in walk([node])}
        stages.append([s for s in rest if id(s.node) in below])
        rest = [s for s in rest if id(s.node) not in below]
    return stages, rest


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
        kernel = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)
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
    kernel = compiled(program)
    if n > CHUNK:
        waiting()
    keep = tuple(arrays)
    at = tuple([a.__array_interface__["data"][0] for a in keep])
    whole = (kernel, 0, n, n, *at)

    def calls(noise: tuple, scalars: tuple) -> list[tuple]:
        if noise and (noise[2] & _LOW) + n > _LOW + 1:
            return pieces(noise, scalars)
        if n > CHUNK and n * program.bytes_per_parameter >= PARALLEL_FROM:
            return threads.share(kernel, waiting(), n, CHUNK, (*at, *noise, *scalars), keep)
        return [(*whole, *noise, *scalars)]

    def pieces(noise: tuple, scalars: tuple) -> list[tuple]:
        """Prepare the stretches of elements whose indices share their upper 32 bits, constant to a kernel."""
        key0, key1, offset = noise
        found, done = [], 0
        while done < n:
            count = min(n - done, _LOW + 1 - (offset + done & _LOW))
            moved = [a + done * b.dtype.itemsize for a, b in zip(at, program.buffers, strict=True)]
            arguments = (*moved, key0, key1, offset + done, *scalars)
            found += threads.share(kernel, waiting(), count, CHUNK, arguments, keep)
            done += count
        return found

    return Launch(calls)


_LOW = 0xFFFFFFFF

"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on address ranges.

A printed kernel is a vector loop, in prefetched strips where a step is large, in a loop that claims chunks. It is
compiled once for the program, for bare addresses and float64 scalars, so no call ever compiles anything and a call
costs about 2 µs.
"""

from __future__ import annotations

import hashlib
import pickle
import textwrap
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from fastopt.kernels import cache as files
from fastopt.kernels import intrinsics, threads
from fastopt.kernels.program import Node, Program, Text, infix, own_names, statements

CHUNK = 32_768
"""Elements a thread claims at a time, a multiple of the tile: long enough that a claim costs nothing, short enough that
the last one to finish is not waited for."""

PARALLEL_FROM = 8 << 20
"""Bytes of traffic from which a step is shared among threads: measured in docs/decisions/0002."""

_INFIX = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "and": "&", "or": "|", "xor": "^",
    "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!=",
    "left_shift": "<<", "right_shift": ">>",
}  # fmt: skip
_CALLS = {name: name for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign", "sign", "select")} | {
    "abs": "fabs"
}

# Names of the printed skeleton, which a rule's own names must not hide.
_SKELETON = "job n chunk first last far length strip i offset low index_low index_high key0 key1 min range"
_IMPORTED = "float32 float64 intp njit types buffer claim prefetch wide_vectors word to_float from_bits"
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
    return infix(_INFIX[node.op], *operands)


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


def print_module(program: Program) -> str:
    """Print `program` as one complete Python module with one compiled function, named like the program."""
    names = own_names(program, _RESERVED)
    lines, results = statements(program, lambda node, operands: _render(node, operands, names))
    buffers = [names[b.name] for b in program.buffers]
    kinds = [b.dtype.name for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    body = [f"{s.name} = {s.text}" for s in lines] + [f"{names[b]}[i] = {text}" for b, text in results.items()]
    text = "\n".join(body)
    calls = {"buffer", "claim", "prefetch"}
    calls |= {name for name in (*_CALLS.values(), "word", "to_float", "from_bits") if f"{name}(" in text}
    dtypes = {*kinds, program.dtype.name, "float64", *(["float32"] if "float32" in text else [])}
    read = [b.name for b in program.buffers if not b.written]
    written = [b.name for b in program.buffers if b.written]
    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    base, index = [], []
    if noise:
        calls |= {"wide_vectors", "word"}
        convert.insert(0, "wide_vectors()")
        convert.append("key0, key1, index_high = word(key0), word(key1), word(offset >> 32)")
        base, index = ["low = word(offset + strip)"], ["index_low = low + word(i)"]
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
            *_listed(f"def {program.name}(", arguments, "):", "    "),
            *(f"    {line}" for line in convert),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        far = n > {4 * CHUNK}",
            f"        length = {intrinsics.STRIP} if far else chunk",
            "        for strip in range(first, last, length):",
            *(
                f"            {b} = buffer({b}_at, strip, {kind}, {k}, {len(buffers)})"
                for k, (b, kind) in enumerate(zip(buffers, kinds, strict=True))
            ),
            "            if far:",
            *(f"                prefetch({b})" for b in buffers),
            *(f"            {line}" for line in base),
            "            for i in range(min(length, last - strip)):",
            f"                {', '.join(f'{b}_i' for b in buffers)} = {', '.join(f'{b}[i]' for b in buffers)}",
            *(f"                {line}" for line in [*index, *body]),
            "        first = claim(job, first, chunk)",
            "",
        ]
    )


@cache
def _kind() -> str:
    """Name the folder of compiled modules: whatever changes the code they become, besides their own text."""
    source = hashlib.sha256(Path(intrinsics.__file__).read_bytes()).hexdigest()[:8]
    return f"cpu-numba{numba.__version__}-{source}"


def cache_folder() -> Path:
    """Give the folder in which compiled CPU kernels are kept."""
    return files.folder(_kind())


@lru_cache(maxsize=512)
def compiled(program: Program) -> Callable[..., None]:
    """Compile `program`, or load what an earlier process compiled.

    Where the compiled code cannot be written or what is there cannot be read, warns and compiles for this process.
    """
    module = files.load(program.name, print_module(program), _kind())
    kernel = getattr(module, program.name)
    with _compiling:  # two threads, or two programs that print the same text, come for one kernel
        if not kernel.signatures:
            try:
                kernel.compile(module.SIGNATURE)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                files.warn_unwritable(Path(str(module.__file__)), error)
                kernel = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)
                kernel.compile(module.SIGNATURE)
                setattr(module, program.name, kernel)
            kernel.disable_compile()
    return kernel


_compiling = threading.Lock()


def bind(program: Program, arrays: Sequence[np.ndarray]) -> Callable[[tuple, tuple], None]:
    """Prepare a step over flat, contiguous, non-overlapping arrays in the order of `program.buffers`.

    Returns `launch(noise, scalars)`, which updates the arrays in place; `noise` is () or (key0, key1, offset of the
    first element), `scalars` is what `program.host_scalars` gives. The arrays must not be moved while it is in use.
    """
    n = arrays[0].size
    if n == 0:
        return lambda noise, scalars: None
    kernel = compiled(program)
    keep = tuple(arrays)
    at = tuple([a.__array_interface__["data"][0] for a in keep])

    def run(n: int, at: tuple, noise: tuple, scalars: tuple) -> None:
        if n > CHUNK and n * program.bytes_per_parameter >= PARALLEL_FROM and threads.get_threads() > 1:
            threads.share(kernel, intrinsics.wait, n, CHUNK, (*at, *noise, *scalars), keep)
        else:
            kernel(0, n, n, *at, *noise, *scalars)

    def launch(noise: tuple, scalars: tuple) -> None:
        if noise and (noise[2] & _LOW) + n > _LOW + 1:
            launch_in_pieces(noise, scalars)
        else:
            run(n, at, noise, scalars)

    def launch_in_pieces(noise: tuple, scalars: tuple) -> None:
        """Run each stretch of elements whose indices share their upper 32 bits, which a kernel takes as constant."""
        key0, key1, offset = noise
        done = 0
        while done < n:
            count = min(n - done, _LOW + 1 - (offset + done & _LOW))
            moved = tuple([a + done * b.dtype.itemsize for a, b in zip(at, program.buffers, strict=True)])
            run(count, moved, (key0, key1, offset + done), scalars)
            done += count

    return launch


_LOW = 0xFFFFFFFF

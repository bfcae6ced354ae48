"""The CPU backend: prints a Program as a Python module, compiles it with Numba, runs it on address ranges.

A printed kernel is one loop over the elements of a chunk, inside one loop that claims chunks. It is compiled once for the
program, for bare addresses and float64 scalars, so no call ever compiles anything and a call costs about 2 µs.
"""

from __future__ import annotations

import hashlib
import pickle
import textwrap
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from fastopt.kernels import cache as files
from fastopt.kernels import intrinsics, threads
from fastopt.kernels.program import Node, Program, Text, infix, statements

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
_CALLS = {name: name for name in ("sqrt", "rint", "floor", "ceil", "trunc", "copysign", "sign", "select")} | {"abs": "fabs"}

# Names of the printed skeleton, which a rule's own names must not hide.
_RESERVED = frozenset(
    "job n chunk first count i offset index index_low index_high key0 key1 "
    "float32 float64 intp njit types uint32 uint64 bool "
    "bitcast buffer ceil claim copysign fabs floor rint select sign sqrt trunc min range".split()
)


def _render(node: Node, operands: list[Text], names: dict[str, str]) -> Text:
    kind = node.dtype.name
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
            return Text(f"{kind}({operands[0]})")
        case "bitcast":
            return Text(f"bitcast({operands[0]}, {kind})")
        case "negative":
            return Text(f"-{operands[0].within(9)}", 4)
        case "not":
            return Text(f"not {operands[0].within(9)}" if kind == "bool" else f"~{operands[0].within(9)}", 0)
    if node.op in _CALLS:
        return Text(f"{_CALLS[node.op]}({', '.join(operands)})")
    text = infix(_INFIX[node.op], *operands)
    # Numba widens uint32 arithmetic to 64 bits; the cast brings it back, and LLVM then never leaves 32.
    return Text(f"{kind}({text})") if node.dtype.kind == "u" else text


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
    taken = [*(b.name for b in program.buffers), *program.scalars]
    names = {name: f"{name}_" if name in _RESERVED else name for name in taken}
    lines, results = statements(program, lambda node, operands: _render(node, operands, names))
    buffers = [names[b.name] for b in program.buffers]
    kinds = [b.dtype.name for b in program.buffers]
    scalars = [names[s] for s in program.scalars]
    noise = ["key0", "key1", "offset"] if program.noise else []
    arguments = ["job", "n", "chunk", *(f"{b}_at" for b in buffers), *noise, *scalars]
    types = ["intp"] * (len(arguments) - len(scalars)) + ["float64"] * len(scalars)
    body = [f"{s.name} = {s.text}" for s in lines] + [f"{names[b]}[i] = {text}" for b, text in results.items()]
    text = "\n".join(body)
    calls = {name for name in (*_CALLS.values(), "bitcast") if f"{name}(" in text} | {"buffer", "claim"}
    dtypes = {*kinds, program.dtype.name, "float64", *(d for d in ("float32", "uint32") if d in text or noise)}
    read = [b.name for b in program.buffers if not b.written]
    written = [b.name for b in program.buffers if b.written]
    convert = [f"{s} = {program.dtype.name}({s})" for s in scalars]
    index = []
    if noise:
        convert.append("key0, key1 = uint32(key0), uint32(key1)")
        index = ["index = offset + first + i", "index_low, index_high = uint32(index), uint32(index >> 32)"]
    return "\n".join(
        [
            f'"""{program.name}: one step on the CPU, computed in {program.dtype.name}. Printed by fastopt; do not edit.',
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
            *(
                f"        {b} = buffer({b}_at, first, {kind}, {k}, {len(buffers)})"
                for k, (b, kind) in enumerate(zip(buffers, kinds, strict=True))
            ),
            "        count = min(chunk, n - first)",
            "        for i in range(count):",
            f"            {', '.join(f'{b}_i' for b in buffers)} = {', '.join(f'{b}[i]' for b in buffers)}",
            *(f"            {line}" for line in [*index, *body]),
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
    try:
        kernel.compile(module.SIGNATURE)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        files.warn_unwritable(Path(str(module.__file__)), error)
        kernel = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)
        kernel.compile(module.SIGNATURE)
    kernel.disable_compile()
    return kernel


def bind(program: Program, arrays: Sequence[np.ndarray]) -> Callable[[tuple, tuple], None]:
    """Prepare a step over flat, contiguous, non-overlapping arrays in the order of `program.buffers`.

    Returns `launch(noise, scalars)`, which updates the arrays in place; `noise` is () or (key0, key1, offset of the first
    element), `scalars` is what `program.host_scalars` gives. The arrays must not be moved while it is in use.
    """
    n = arrays[0].size
    if n == 0:
        return lambda noise, scalars: None  # noqa: ARG005
    kernel = compiled(program)
    keep = tuple(arrays)
    at = tuple([a.__array_interface__["data"][0] for a in keep])
    large = n > CHUNK and n * program.bytes_per_parameter >= PARALLEL_FROM

    def launch(noise: tuple, scalars: tuple) -> None:
        if large and threads.get_threads() > 1:
            threads.share(kernel, intrinsics.wait, n, CHUNK, (*at, *noise, *scalars), keep)
        else:
            kernel(0, n, n, *at, *noise, *scalars)

    return launch

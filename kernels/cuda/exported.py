"""Prints a Program as one CUDA source with a function that launches it, to be compiled by nvcc as it stands.

nvcc contracts multiplications and additions unless it is told not to, and a source cannot tell it. So these are
written as the functions of one rounding that CUDA has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.kernels.c.comments import argument_table, buffer_comment, settings_text
from fastopt.kernels.c.printer import entry, header, print_host_functions, scalars_type
from fastopt.kernels.c.scalars import commented
from fastopt.kernels.c.tile import names_of
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import Text
from fastopt.kernels.cuda.exported_totals import print_kernels, print_launch
from fastopt.kernels.cuda.language import CUDA
from fastopt.kernels.cuda.printer import print_entries, tile_header
from fastopt.kernels.cuda.tile import wrapped

_ROUNDED = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "sqrt": "sqrt"}


def _rounded(name: str) -> Any:
    """Return the writer of an operation: of floating point by the function that rounds it to nearest."""
    short = _ROUNDED[name]

    def write(node: Any, args: Any) -> Text:
        if node.dtype.kind != "f":
            return CUDA.write(node, args)
        return Text(f"__{'f' if node.dtype == np.float32 else 'd'}{short}_rn({', '.join(args)})")

    return write


NVCC = Target(types=CUDA.types, writers={**CUDA.writers, **{name: _rounded(name) for name in _ROUNDED}})
"""CUDA C++ whose bits do not depend on nvcc's options for multiplication and addition, division and roots."""


def print_export(program: Program, rule: Any, command: str) -> str:
    """Print the source with which to take the steps of a rule; `command` is what exports it again."""
    names = names_of(program)
    if program.phases:
        kernels, launch = print_kernels(program, NVCC), print_launch(program, rule, names, _HOST)
    else:
        kernels, launch = print_entries(program, NVCC), _launch(program, rule, names)
    return "\n".join(
        [
            *commented(_head(program, rule, command)),
            "",
            tile_header(),
            kernels,
            "#ifndef __CUDACC_RTC__",
            "",
            header(),
            'extern "C" {',
            "",
            *print_host_functions(program, rule, names),
            *launch,
            "",
            "}",
            "",
            "#endif",
            "",
        ]
    )


def _head(program: Program, rule: Any, command: str) -> list[str]:
    return [
        f"{entry(program)}: one optimizer step on an NVIDIA GPU, computed in {program.dtype.name}.",
        f"Printed by `{command}`; do not edit.",
        "",
        f"Rule      {settings_text(rule)}",
        f"Memory    {program.traffic} and step.",
        "Compile   nvcc -O3 -arch=native -c FILE    (any architecture; or with NVRTC, which sees the kernels alone)."
        " Where the host's compiler contracts, as GCC does on AArch64, add -Xcompiler -ffp-contract=off for the"
        " scalars.",
        "",
        "The bits are those of fastopt on every backend, whatever nvcc's --fmad, --prec-div and --prec-sqrt, but not"
        " with --ftz=true, which --use_fast_math sets too: subnormal numbers must be kept. Where NaN is stored as"
        " float or double it is the device's.",
        "",
        "Geometry. A warp steps a tile of 256 consecutive elements, element i being in tile i / 256, and each of its"
        " lanes 8 of them. 4 warps are a block, so n elements are (n + 1023) / 1024 blocks of 128 threads; a smaller"
        " grid works too, and has the same bits. The last tile may have fewer elements, and nothing beyond element n"
        " - 1 is read or written. Arrays may begin at any element; loads are of 16 bytes where all begin at a"
        " multiple of that.",
        "",
        f"{entry(program)}_captured finds what depends on t in the next row of a table on the device, for CUDA graphs."
        if not program.phases
        else "Totals. The sums of tiles are added up 256 at a time, by halves, and those of tensors in their order: the"
        " result does not depend on the device. A step is several launches, all of which"
        f" {entry(program)}_launch makes.",
    ]


def _launch(program: Program, rule: Any, names: dict[str, str]) -> list[str]:
    """Print the host function that launches the kernel."""
    pointers = [f"{'' if b.written else 'const '}{_HOST[b.dtype.name]} *{names[b.name]}" for b in program.buffers]
    given = ["cudaStream_t stream", "size_t n", *pointers]
    given += ["const uint32_t keys[2]", "uint64_t offset"] if program.noise else []
    given += [f"const {scalars_type(program)} *scalars"] if program.scalars else []
    passed = ["(Index)n", *(names[b.name] for b in program.buffers)]
    passed += ["keys[0]", "keys[1]", "(Index)offset"] if program.noise else []
    passed += [f"scalars->{names[s]}" for s in program.scalars]
    rows = [("stream", "where it runs; the function does not wait"), ("n", "number of elements; 0 is nothing to do")]
    rows += [(names[b.name], f"on the device: {buffer_comment(program, rule, b)}") for b in program.buffers]
    if program.noise:
        rows += [("keys", f"on the host, read: those of step t, from {entry(program)}_keys_at")]
        rows += [("offset", "number of element 0 among all parameters, a multiple of 256")]
    if program.scalars:
        rows += [("scalars", f"on the host, read: those of step t, see {scalars_type(program)}")]
    comment = ["One step of a tensor, in place, on a stream. Arrays do not overlap.", *argument_table(rows)]
    return [
        *commented(comment),
        *wrapped(f"cudaError_t {entry(program)}_launch(", given, ") {"),
        "    if (n == 0) return cudaSuccess;",
        "    const size_t blocks = (n + 1023) / 1024;",
        "    const unsigned grid = (unsigned)(blocks < 2147483647 ? blocks : 2147483647);",
        *wrapped(f"    {entry(program)}<<<grid, THREADS, 0, stream>>>(", passed, ");"),
        "    return cudaGetLastError();",
        "}",
    ]


_HOST = {"float32": "float", "float64": "double", "uint32": "uint32_t", "uint16": "uint16_t", "uint8": "uint8_t"}

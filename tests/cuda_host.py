"""Runs printed CUDA kernels on the host: g++ compiles them together with `cuda_host.h`, and a launch is one call."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cuda.launch import blocks as blocks_of
from fastopt.kernels.cuda.launch import numbers
from fastopt.kernels.cuda.printer import entry as entry_of
from fastopt.kernels.cuda.printer import print_kernel

TESTS = Path(__file__).parent
COMPILER = shutil.which("g++")
FLAGS = [
    "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-shared", "-fPIC",
    "-Wl,-Bsymbolic", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable",
    f"-I{TESTS}", f"-I{TESTS.parent / 'kernels' / 'cuda'}",
]  # fmt: skip


def compile_library(text: str, path: Path, *flags: str) -> ctypes.CDLL:
    """Compile a source that includes cuda_host.h into the shared library `path`, and load it."""
    source = path.with_suffix(".cpp")
    source.write_text(text)
    assert COMPILER is not None
    done = subprocess.run([COMPILER, *FLAGS, *flags, str(source), "-o", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(path))


class HostKernels:
    """The CUDA kernels of some programs, compiled for the host."""

    def __init__(self, programs: Iterable[Program], folder: Path):
        distinct = list({p.name: p for p in programs}.values())
        parts = [part for k in range(4) if (part := distinct[k::4])]  # compiled in parallel
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda k: compile_library(_source(parts[k]), folder / f"part{k}.so"), range(len(parts)))
        self._library = {p.name: library for part, library in zip(parts, made, strict=True) for p in part}

    def step(
        self,
        program: Program,
        arrays: Sequence[np.ndarray],
        noise: tuple,
        scalars: tuple,
        *,
        blocks: int | None = None,
        descending: bool = False,
        tail_of: int = 0,
    ) -> None:
        """Launch the kernel as the CUDA backend does, optionally with another number of blocks, or in reverse order.

        With `tail_of=n`, the arrays are the end of buffers of n elements, which do not exist otherwise; they start at a
        tile boundary. Only the blocks that own some of these elements run.
        """
        size = arrays[0].size
        n = tail_of or size
        before = [b.size(n) - b.size(size) for b in program.buffers]
        # Modulo 2⁶⁴, as pointers count: a heap may begin below such an offset.
        addresses = [np.uint64((a.ctypes.data - k * a.itemsize) % 2**64) for a, k in zip(arrays, before, strict=True)]
        blocks = blocks or blocks_of(n)
        arguments = [np.int64(n), *addresses, *numbers(program, noise[:2], noise[2] if noise else 0, scalars)]
        first = blocks - blocks_of(size) if tail_of else 0
        self._launch(program, entry_of(program), arguments, blocks, first, descending)

    def captured_step(
        self,
        program: Program,
        arrays: Sequence[np.ndarray],
        keys: np.ndarray,
        offset: int,
        table: np.ndarray,
        row: np.ndarray,
        rows: int,
    ) -> None:
        """Launch the entry point for CUDA graphs, which reads its scalars and noise keys from row `row` of tables."""
        n = arrays[0].size
        noise = [_address(keys), np.int64(offset)] if program.noise else []
        arguments = [np.int64(n), *map(_address, arrays), *noise, _address(table), _address(row), np.int64(rows)]
        self._launch(program, f"{entry_of(program)}_captured", arguments, blocks_of(n), 0, False)

    def _launch(self, program: Program, entry: str, arguments: list, blocks: int, first: int, descending: bool) -> None:
        values = [np.atleast_1d(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[a.ctypes.data for a in values])
        run = getattr(self._library[program.name], f"run_{entry}")
        run(ctypes.c_longlong(blocks), ctypes.c_longlong(first), pointers, descending)


def _address(array: np.ndarray) -> np.uint64:
    return np.uint64(array.ctypes.data)


def _source(programs: list[Program]) -> str:
    text = ['#include "cuda_host.h"\n#include "tile.cuh"\n']
    for k, program in enumerate(programs):
        kernel = print_kernel(program).replace('#include "tile.cuh"\n', "")
        text.append(f"namespace k{k} {{\n{kernel}}}")
        text += [
            f'extern "C" void run_{entry}(Index blocks, Index first, void** arguments, bool descending)'
            f" {{ host::launch(k{k}::{entry}, blocks, first, THREADS, arguments, descending); }}"
            for entry in (entry_of(program), f"{entry_of(program)}_captured")
        ]
    return "\n".join(text)

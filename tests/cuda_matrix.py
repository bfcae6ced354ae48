"""Compiles printed CUDA kernels with NVRTC from its wheel, which needs no GPU, and reads what came of them.

`python tests/cuda_matrix.py` writes the registers of every kernel to bench/results/cuda-registers.csv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cases import CASES

from fastopt.kernels import cuda, nvrtc
from fastopt.kernels.program import Program, trace

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
REGISTERS = Path(__file__).parent.parent / "bench" / "results" / "cuda-registers.csv"


class Compiled(NamedTuple):
    """What NVRTC makes of one source: machine code, PTX, and for each entry point the registers and bytes of stack."""

    cubin: bytes
    ptx: str
    registers: dict[str, int]
    stack: dict[str, int]


def compile_source(source: str, architecture: int) -> Compiled:
    """Compile a source for a real architecture, as the CUDA backend does, and read the assembler's report."""
    made = nvrtc.compile_source(source, f"sm_{architecture}", "--ptxas-options=-v")
    parts = re.split(r"Compiling entry function '(\w+)'", made.log)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    return Compiled(
        made.cubin,
        made.ptx.decode(),
        {name: int(_found(r"Used (\d+) registers", text)) for name, text in told.items()},
        {name: int(_found(r"(\d+) bytes stack frame", text)) for name, text in told.items()},
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]


def compile_all(programs: Iterable[Program], architecture: int) -> dict[str, Compiled]:
    """Compile programs side by side (NVRTC lets go of the interpreter's lock)."""
    programs = list(programs)
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda p: compile_source(cuda.print_source(p), architecture), programs)
        return {p.name: compiled for p, compiled in zip(programs, made, strict=True)}


def all_programs(dtype: Any) -> list[Program]:
    """Give the programs of all cases, each once."""
    return list({p.name: p for p in (trace(rule, dtype) for rule in CASES.values())}.values())


def write_registers() -> None:
    """Write a table of registers: a row for each kernel, a column for each architecture."""
    programs = [p for dtype in (np.float32, np.float64) for p in all_programs(dtype)]
    columns = {a: compile_all(programs, a) for a in ARCHITECTURES}
    with REGISTERS.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(
            [
                "kernel (NVRTC {}.{})".format(*nvrtc.load_cupy("NVRTC").cuda.nvrtc.getVersion()),
                *(f"sm_{a}" for a in ARCHITECTURES),
            ]
        )
        for p in programs:
            rows.writerow([p.name, *(columns[a][p.name].registers[cuda.entry(p)] for a in ARCHITECTURES)])


if __name__ == "__main__":
    write_registers()

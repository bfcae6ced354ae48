"""Compiles printed CUDA kernels with NVRTC from its wheel, which needs no GPU, and reads what came of them.

`python tests/cuda_matrix.py` writes the registers and instructions of every kernel to bench/results/cuda-registers.csv.
"""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cases import CASES

from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda import nvrtc
from fastopt.kernels.cuda.printer import entry, print_source
from fastopt.kernels.devices import load_cupy
from fastopt.kernels.formats import PRESETS

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
        made = pool.map(lambda p: compile_source(print_source(p), architecture), programs)
        return {p.name: compiled for p, compiled in zip(programs, made, strict=True)}


def all_programs(dtype: Any) -> list[Program]:
    """Give the programs of all cases, each once."""
    return list({p.name: p for p in (trace(rule, dtype) for rule in CASES.values())}.values())


def storage_programs() -> list[Program]:
    """Give programs of every preset for Adam, of those that differ most for other rules, and one with noise."""
    chosen = [("adam", name) for name in PRESETS if name not in ("f32", "f64")]
    chosen += [
        (case, name)
        for case in ("momentum", "lion", "rmsprop-centered", "adam-amsgrad")
        for name in ("8bit", "bf16", "split_8bit")
    ]
    chosen.append(("noise-adam", "bf16_8bit"))
    return [trace(CASES[case], name) for case, name in chosen]


INTEGER = frozenset(
    "ISETP IADD3 VIADD IABS LEA LOP3 PLOP3 SHF PRMT SEL MOV VIMNMX VIMNMX3 FSEL FSETP FMNMX".split()  # noqa: SIM905
)
"""Instructions of the integer unit, which on sm_90 is half as wide as the one that multiplies and adds floats."""


def issued(cubin: bytes, entry: str) -> list[str]:
    """Name the instructions, in order, that a warp issues for one whole tile of ordinary numbers.

    That is the shortest way from the kernel's beginning over its wide loads and stores to its end: the tail, and what
    division and root do for denormals and infinities, are other branches. Where a scalar decides between two branches
    (RAdam), the shorter is counted.
    """
    part = re.search(rf"^\.text\.{entry}:\n(.*?)(?=^\s*\.section|\Z)", _disassembled(cubin), re.M | re.S)
    assert part, entry
    code: list[tuple[str, str, str]] = []  # guard, name, operands
    labels: dict[str, int] = {}
    for line in part[1].splitlines():
        if label := re.match(r"(\.?[\w$]+):", line):
            labels[label[1]] = len(code)
        elif found := re.search(r"/\*[0-9a-f]+\*/\s+(?:@(!?\w+)\s+)?([\w.]+)\s*(.*?)\s*;", line):
            code.append((found[1] or "", found[2], found[3]))

    def after(k: int) -> list[int]:
        guard, name, operands = code[k]
        kind = name.split(".")[0]
        if kind in ("CALL", "RET", "BRX") or (kind == "EXIT" and not guard):
            return []
        target = re.search(r"\((\.?[\w$]+)\)", operands)
        if kind != "BRA" or name == "BRA.DIV" or not target:
            return [k + 1]
        certain = not guard and not re.match(r"!?U?P\d", operands)
        return [labels[target[1]]] if certain else [labels[target[1]], k + 1]

    sizes = (".128",) if any(name.startswith("D") for _, name, _ in code) else (".64", ".128")
    over = [
        k
        for k, (guard, name, _) in enumerate(code)
        if not guard and name.startswith(("LDG", "STG")) and any(size in name for size in sizes)
    ]
    way, at = [], 0
    for goal in (*over, None):
        came: dict[int, int | None] = {at: None}
        line = deque([at])
        while at != goal and not (goal is None and code[at][1] == "EXIT" and not after(at)):
            at = line.popleft()
            fresh = [k for k in after(at) if k not in came and k < len(code)]
            came |= dict.fromkeys(fresh, at)
            line += fresh
        step, back = [], at
        while (before := came[back]) is not None:
            step.append(back)
            back = before
        way += step[::-1]
    return [code[k][1].split(".")[0] for k in (0, *way)]


def _disassembled(cubin: bytes) -> str:
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        raise SystemExit("pip install nvidia-cuda-nvdisasm, which reads machine code") from None
    tool = next(str(f.locate()) for f in files if f.name.startswith("nvdisasm"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin + b"\0")  # CuPy drops the last byte, a zero
        return subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout


COLUMNS = [f"sm_{a}" for a in ARCHITECTURES] + ["instructions a parameter (sm_90)", "integer ones"]


def write_registers() -> None:
    """Write a table of registers and instructions: a row for each kernel, a column for each architecture."""
    programs = [p for dtype in (np.float32, np.float64) for p in all_programs(dtype)] + storage_programs()
    made = {a: compile_all(programs, a) for a in ARCHITECTURES}
    with ThreadPoolExecutor() as pool:
        names = list(pool.map(lambda p: issued(made[90][p.name].cubin, entry(p)), programs))
    with REGISTERS.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["kernel (NVRTC {}.{})".format(*load_cupy().cuda.nvrtc.getVersion()), *COLUMNS])
        for p, way in zip(programs, names, strict=True):
            registers = [made[a][p.name].registers[entry(p)] for a in ARCHITECTURES]
            rows.writerow([p.name, *registers, len(way) / 8, sum(name in INTEGER for name in way) / 8])


if __name__ == "__main__":
    write_registers()

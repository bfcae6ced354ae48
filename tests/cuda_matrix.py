"""Compiles printed CUDA kernels with NVRTC, which needs no GPU, and counts their registers and instructions.

`python tests/cuda_matrix.py` writes the numbers of all kernels and architectures to bench/results/cuda-registers.csv.
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
GREEDIEST = (75, 120)
"""The architectures of which one needs the most registers, whichever the kernel: see the recorded table."""
REGISTERS = Path(__file__).parent.parent / "bench" / "results" / "cuda-registers.csv"


class Compiled(NamedTuple):
    """Output of NVRTC for one source: machine code, PTX, and of each entry point the registers and bytes of stack."""

    cubin: bytes
    ptx: str
    registers: dict[str, int]
    stack: dict[str, int]


def compile_source(source: str, architecture: int) -> Compiled:
    """Compile a source for a real architecture, as the CUDA backend does, and parse the report of ptxas."""
    made = nvrtc.compile_source(source, f"sm_{architecture}", "--ptxas-options=-v")
    parts = re.split(r"Compiling entry function '(\w+)'", made.log)[1:]
    reports = dict(zip(parts[::2], parts[1::2], strict=True))
    return Compiled(
        made.cubin,
        made.ptx.decode(),
        {name: int(_search(r"Used (\d+) registers", text)) for name, text in reports.items()},
        {name: int(_search(r"(\d+) bytes stack frame", text)) for name, text in reports.items()},
    )


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]


def compile_all(programs: Iterable[Program], architecture: int) -> dict[str, Compiled]:
    """Compile programs in parallel threads (NVRTC releases the GIL) and return the results by program name."""
    programs = list(programs)
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda p: compile_source(print_source(p), architecture), programs)
        return {p.name: compiled for p, compiled in zip(programs, made, strict=True)}


def all_programs(dtype: Any) -> list[Program]:
    """Return the distinct programs of all cases, of those with totals none: test_totals.py compiles their phases."""
    return list({p.name: p for p in (trace(rule, dtype) for rule in CASES.values()) if not p.totals}.values())


def storage_programs() -> list[Program]:
    """Return programs of Adam in every preset, of other rules in the presets that differ most, and one with noise."""
    chosen = [("adam", name) for name in PRESETS if name not in ("f32", "f64")]
    chosen += [
        (case, name)
        for case in ("momentum", "lion", "rmsprop-centered", "adam-amsgrad")
        for name in ("8bit", "bf16", "split_8bit")
    ]
    chosen.append(("noise-adam", "bf16_8bit"))
    return [trace(CASES[case], name) for case, name in chosen]


def selected_programs() -> list[Program]:
    """Return the programs that differ most: in buffers, branches, integers, noise, and scales of tiles."""
    cases = ("sgd", "adam-amsgrad-l2", "radam", "rmsprop-centered", "rmsprop-centered-momentum", "noise-adam")
    chosen: list[tuple[str, Any]] = [(case, dtype) for case in cases for dtype in (np.float32, np.float64)]
    chosen += [("adam", "8bit"), ("adam", "split_8bit"), ("noise-adam", "bf16_8bit")]
    return [trace(CASES[case], storage) for case, storage in chosen]


# (kernel, architecture) → allowed bytes of stack. In these kernels ptxas spills two words of one entry point: then the
# first needs only 80 registers and six blocks fit a multiprocessor, the second 128 and four. See docs/decisions/0009.
STACK_BYTES = {
    ("adam_amsgrad_pbf16_sr_gbf16_mbf16_sr_vbf16_sr_vmaxbf16_sr", 120): {8},
    ("madgrad_weight_decay_pf64_gf64_sf64_vf64_x0f64", 100): {8},
}


def assert_fits(program: Program, compiled: Compiled, architecture: int) -> None:
    """Assert that both entry points of a kernel are there, keep their values in registers, and need few of them."""
    name = entry(program)
    assert compiled.cubin[:4] == b"\x7fELF", name
    assert set(compiled.registers) == {name, f"{name}_captured"}
    allowed = {0} | STACK_BYTES.get((name, architecture), set())
    assert set(compiled.stack.values()) <= allowed, f"{name} spills to local memory on sm_{architecture}"
    # A multiprocessor has 65,536 registers: with at most 128 per thread four blocks of 128 threads are resident.
    # float64 kernels may use more: those with five buffers need 80 registers for data alone, with six (Adan) 96.
    most = 128 if program.dtype == np.float32 else 160 if len(program.buffers) < 6 else 192
    assert max(compiled.registers.values()) <= most, name


INTEGER = frozenset(
    "ISETP IADD3 VIADD IABS LEA LOP3 PLOP3 SHF PRMT SEL MOV VIMNMX VIMNMX3 FSEL FSETP FMNMX".split()  # noqa: SIM905
)
"""Instructions of the integer unit, which on sm_90 has half the throughput of the unit for float multiply and add."""


def issued(cubin: bytes, entry: str) -> list[str]:
    """Return the instructions, in order, that a warp issues for one complete tile of ordinary numbers.

    That is the shortest path through the control flow graph from the kernel's entry, through its wide loads and stores,
    to its exit. Other branches handle the tail, and denormals and infinities in division and square root. Where a
    scalar decides between two branches (RAdam), the shorter is counted.
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

    def successors(k: int) -> list[int]:
        guard, name, operands = code[k]
        kind = name.split(".")[0]
        if kind in ("CALL", "RET", "BRX") or (kind == "EXIT" and not guard):
            return []
        target = re.search(r"\((\.?[\w$]+)\)", operands)
        if kind != "BRA" or name == "BRA.DIV" or not target:
            return [k + 1]
        unconditional = not guard and not re.match(r"!?U?P\d", operands)
        return [labels[target[1]]] if unconditional else [labels[target[1]], k + 1]

    sizes = (".128",) if any(name.startswith("D") for _, name, _ in code) else (".64", ".128")
    wide_accesses = [
        k
        for k, (guard, name, _) in enumerate(code)
        if not guard and name.startswith(("LDG", "STG")) and any(size in name for size in sizes)
    ]
    path, at = [], 0
    for goal in (*wide_accesses, None):  # breadth-first search from each to the next; None stands for the exit
        predecessor: dict[int, int | None] = {at: None}
        queue = deque([at])
        while at != goal and not (goal is None and code[at][1] == "EXIT" and not successors(at)):
            at = queue.popleft()
            fresh = [k for k in successors(at) if k not in predecessor and k < len(code)]
            predecessor |= dict.fromkeys(fresh, at)
            queue += fresh
        segment, back = [], at
        while (before := predecessor[back]) is not None:
            segment.append(back)
            back = before
        path += segment[::-1]
    return [code[k][1].split(".")[0] for k in (0, *path)]


def _disassembled(cubin: bytes) -> str:
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        raise SystemExit("the disassembler is missing: pip install nvidia-cuda-nvdisasm") from None
    tool = next(str(f.locate()) for f in files if f.name.startswith("nvdisasm"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin + b"\0")  # CuPy drops the last byte, a zero
        return subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout


COLUMNS = [f"sm_{a}" for a in ARCHITECTURES] + ["instructions per parameter (sm_90)", "integer ones"]


def write_registers() -> None:
    """Write the table of registers and instructions: a row for each kernel, a column for each architecture.

    Every kernel is checked on every architecture, of which the tests compile most kernels for two.
    """
    programs = [p for dtype in (np.float32, np.float64) for p in all_programs(dtype)] + storage_programs()
    made = {a: compile_all(programs, a) for a in ARCHITECTURES}
    for a in ARCHITECTURES:
        for p in programs:
            assert_fits(p, made[a][p.name], a)
    with ThreadPoolExecutor() as pool:
        instructions = list(pool.map(lambda p: issued(made[90][p.name].cubin, entry(p)), programs))
    with REGISTERS.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["kernel (NVRTC {}.{})".format(*load_cupy().cuda.nvrtc.getVersion()), *COLUMNS])
        for p, names in zip(programs, instructions, strict=True):
            registers = [made[a][p.name].registers[entry(p)] for a in ARCHITECTURES]
            # Each lane handles 8 elements of a tile.
            rows.writerow([p.name, *registers, len(names) / 8, sum(name in INTEGER for name in names) / 8])


if __name__ == "__main__":
    write_registers()

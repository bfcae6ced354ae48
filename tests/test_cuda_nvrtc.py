"""Every printed CUDA kernel compiles to machine code for every architecture, as wide and as exact as meant."""

import csv
import re

import numpy as np
import pytest
from cuda_matrix import ARCHITECTURES, REGISTERS, all_programs, compile_all, compile_source

import fastopt
from fastopt.kernels import cuda, nvrtc
from fastopt.kernels.program import trace, walk

pytest.importorskip("cupy", reason="NVRTC is called through CuPy, which this platform has no wheel of")

PROGRAMS = [p for dtype in (np.float32, np.float64) for p in all_programs(dtype)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spilling(architecture):
    made = compile_all(PROGRAMS, architecture)
    for program in PROGRAMS:
        name, compiled = cuda.entry(program), made[program.name]
        assert compiled.cubin[:4] == b"\x7fELF", name
        assert set(compiled.registers) == {name, f"{name}_captured"}
        assert set(compiled.stack.values()) == {0}, f"{name} keeps values in local memory"
        # A multiprocessor has 65,536 registers: with at most 128 a thread it holds two blocks of 256 threads. The
        # float64 kernels with five buffers, 80 registers of data, may take more.
        assert max(compiled.registers.values()) <= (128 if program.dtype == np.float32 else 160), name
        if architecture == 90:
            require_exact_and_wide(program, compiled.ptx)


def require_exact_and_wide(program, ptx):
    assert not re.search(r"\b(fma|mad)\.(rn\.)?f(32|64)", ptx), f"{program.name}: contracted"
    assert ".ftz" not in ptx
    assert ".approx" not in ptx
    assert ".local" not in ptx
    # Per entry point, two (float32) or four (float64) packs of 16 bytes of each buffer that plays a part.
    packs = 8 * program.dtype.itemsize // 16
    used = {node.value for node in walk(program.results.values()) if node.op == "buffer"}
    wide = r"\.v4\.[bf]32" if program.dtype == np.float32 else r"\.v2\.[bf]64"
    read_only = [b.name for b in program.buffers if not b.written and b.name in used]
    assert len(re.findall(rf"ld\.global(\.nc)?{wide}", ptx)) == 2 * packs * len(used), program.name
    assert len(re.findall(rf"ld\.global\.nc{wide}", ptx)) == 2 * packs * len(read_only), program.name
    assert len(re.findall(rf"st\.global{wide}", ptx)) == 2 * packs * len(program.results), program.name


def test_a_kernel_that_contracts_would_be_noticed():
    source = cuda.print_source(trace(fastopt.Adam(), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "OPTIONS", ("-std=c++17",))
        contracted = compile_source(source, 90).ptx
    with pytest.raises(AssertionError, match="contracted"):
        require_exact_and_wide(trace(fastopt.Adam(), np.float32), contracted)


def test_the_registers_of_every_kernel_are_recorded():
    with REGISTERS.open() as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [f"sm_{a}" for a in ARCHITECTURES]
    assert [row[0] for row in rows] == [p.name for p in PROGRAMS], "run python tests/cuda_matrix.py"


def test_the_kernel_that_counts_replays_compiles():
    assert compile_source(cuda.ADVANCE, 75).registers["advance_row"] <= 16

"""Every printed CUDA kernel compiles: no spills, no contraction, accesses of full width."""

import csv
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from cuda_matrix import (
    ARCHITECTURES,
    COLUMNS,
    GREEDIEST,
    REGISTERS,
    all_programs,
    assert_fits,
    compile_all,
    compile_source,
    selected_programs,
    storage_programs,
)

import fastopt
from fastopt.kernels.compiler.graph import walk
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda import nvrtc
from fastopt.kernels.cuda.launch import ADVANCE
from fastopt.kernels.cuda.printer import entry as entry_of
from fastopt.kernels.cuda.printer import print_source

pytest.importorskip("cupy", reason="NVRTC is called through CuPy, which this platform has no wheel of")

PROGRAMS = [p for dtype in (np.float32, np.float64) for p in all_programs(dtype)]


# Every kernel is compiled where kernels need the most registers. What else could fail on another architecture is seen
# in kernels of each kind: of all text, only `warp_max` depends on the architecture. The table of registers, in which
# every new kernel must be, is only written if every kernel fits every architecture.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spilling(architecture):
    programs = PROGRAMS + storage_programs() if architecture in GREEDIEST else selected_programs()
    made = compile_all(programs, architecture)
    for program in programs:
        assert_fits(program, made[program.name], architecture)
        assert_uncontracted(program, made[program.name].ptx)
        if architecture < 100:  # from there on NVRTC writes other loads
            assert_wide(program, made[program.name].ptx)


def test_no_architecture_needs_more_registers_than_the_greediest():
    with REGISTERS.open() as file:
        for row in csv.DictReader(file):
            needed = {a: int(row[f"sm_{a}"]) for a in ARCHITECTURES}
            # Registers are allotted in units of 8 for each thread.
            assert max(needed.values()) <= max(needed[a] for a in GREEDIEST) + 8, row


def assert_uncontracted(program, ptx):
    """Assert that PTX has no fused or approximate operations."""
    assert not re.search(r"\b(fma|mad)\.(rn\.)?f(32|64)", ptx), f"{program.name}: contracted"
    assert ".ftz" not in ptx
    assert ".approx" not in ptx
    assert ".local" not in ptx


def assert_wide(program, ptx):
    """Assert that PTX has exactly the loads and stores of the widest packs."""
    # A lane loads or stores 8 elements of each array that is used, in packs or, in another branch, one by one; of an
    # array with one element for each tile, that element. A pack is 16 bytes of the array with the widest elements, and
    # as many elements of the other arrays.
    pack = 16 // max(b.dtype.itemsize for b in program.buffers if not b.tiled)
    used = {node.value for node in walk(program.results.values()) if node.op in ("buffer", "tile")}
    expected, wide_read_only = Counter(), 0
    for b in program.buffers:
        size = b.dtype.itemsize
        for kind, accessed in (("ld", b.name in used), ("st", b.written)):
            if accessed:
                expected[kind, size if b.tiled else pack * size] += 1 if b.tiled else 8 // pack
                expected[kind, size] += 0 if b.tiled else 8
        wide_read_only += (8 // pack) * (not b.written and b.name in used and pack * size >= 8)
    parts = re.split(r"\.entry (\w+)", ptx)[1:]
    found = {name: accesses(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    name = entry_of(program)
    for entry in (name, f"{name}_captured"):
        wide = {key: times for key, times in found[entry].items() if key.size > 8 or key.vector}
        assert sum(times for key, times in wide.items() if key.read_only) == wide_read_only, entry
    plain = Counter()
    for access, times in found[name].items():
        plain[access.kind, access.size] += times
    assert plain == +expected, name


class Access(NamedTuple):
    """A load ("ld") or store ("st"): whether it is a load of read-only data (.nc), whether a vector, its bytes."""

    kind: str
    read_only: bool
    vector: bool
    size: int


def accesses(ptx):
    """Count the accesses to global memory."""
    found = re.findall(r"\b(ld|st)\.global(\.nc)?(?:\.v(\d))?\.[bfus](\d+)\b", ptx)
    return Counter(Access(kind, bool(nc), bool(v), int(v or 1) * int(bits) // 8) for kind, nc, v, bits in found)


def test_a_contracted_kernel_fails_the_check():
    source = print_source(trace(fastopt.Adam(), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "OPTIONS", ("-std=c++17",))
        contracted = compile_source(source, 90).ptx
    with pytest.raises(AssertionError, match="contracted"):
        assert_uncontracted(trace(fastopt.Adam(), np.float32), contracted)


def test_the_recorded_table_has_every_kernel():
    with REGISTERS.open() as file:
        head, *rows = csv.reader(file)
    assert head[1:] == COLUMNS
    assert [row[0] for row in rows] == [p.name for p in PROGRAMS + storage_programs()], (
        "run python tests/cuda_matrix.py"
    )


def test_the_kernel_that_advances_the_row_compiles():
    assert compile_source(ADVANCE, 75).registers["advance_row"] <= 16

"""A multi-tensor step, which finds its tensors in a table, equals a reference step of each tensor, bit for bit.

g++ compiles the CUDA kernels to run on the host; NVRTC compiles them to machine code.
"""

import re
from typing import Any

import numpy as np
import pytest
from cases import CASES
from cuda_host import COMPILER
from cuda_matrix import ARCHITECTURES, compile_source
from values import assert_same_bits, step

import fastopt
from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning
from fastopt.kernels.cuda.launch import WRITE
from fastopt.kernels.cuda.printer import print_table_source
from fastopt.kernels.formats import TILE
from fastopt.kernels.launch import NumbersOfRows, Rows, run

SCALED = fastopt.ScaledGradient(CASES["adam-decoupled"], factor=-0.375)
PROGRAMS = {
    "sgd": (CASES["sgd"], "f32"),
    "adam": (CASES["adam"], "f32"),
    "adam-f64": (CASES["adam"], "f64"),
    "rmsprop-centered-momentum": (CASES["rmsprop-centered-momentum"], "f32"),
    "noise-adam": (CASES["noise-adam"], "f32"),
    "scaled": (SCALED, "f32"),
    "adam-bf16": (CASES["adam"], "bf16"),
    "adam-split_8bit": (CASES["adam"], "split_8bit"),
    "scaled-8bit": (SCALED, "8bit"),
}
SIZES = [1000, 0, 1, 256, 257, 3, 0, 511, 40_001, 1]


def make_problem(name, sizes=SIZES):
    """Return a program, its rule, each tensor's offset for noise, each tensor's memory, and the arrays inside it.

    The memory has 16 guard bytes before each array and 32 behind it.
    """
    rule, preset = PROGRAMS[name]
    program, rng = trace(rule, preset), np.random.default_rng(0)
    memory = [  # a row for each tensor, an entry for each buffer
        [rng.integers(0, 255, b.size(n) * b.dtype.itemsize + 48, np.uint8) for b in program.buffers] for n in sizes
    ]
    arrays = [[m[16 : m.size - 32].view(b.dtype) for m, b in zip(row, program.buffers, strict=True)] for row in memory]
    for row in arrays:
        for a, b in zip(row, program.buffers, strict=True):
            a[...] = 0
            if a.dtype.kind == "f":
                a[...] = rng.standard_normal(a.size) ** (2 if b.buffer not in ("p", "g") else 1)
            elif b.name in ("p", "g") and b.dtype == np.uint16:
                a[...] = (rng.standard_normal(a.size).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    offsets = np.cumsum([0, *(-(-n // TILE) * TILE + TILE for n in sizes[:-1])])
    return program, rule, offsets, memory, arrays


def expected(program, rule, offsets, arrays, steps):
    """Return what reference steps of each tensor make of the arrays."""
    truth = [[a.copy() for a in row] for row in arrays]
    scalars = host_scalars(program, rule)
    for t in steps:
        for row, offset in zip(truth, offsets, strict=True):
            noise = (*noise_keys(5, t), int(offset)) if program.noise else ()
            step("reference", program, row, noise, scalars(t))
    return truth


def assert_same_and_guards_intact(program, arrays, truth, memory, memory_before):
    """Assert that arrays have the bits of `truth` and that the guard bytes around them are unchanged."""
    for k, (row, wanted) in enumerate(zip(arrays, truth, strict=True)):
        for a, w, b in zip(row, wanted, program.buffers, strict=True):
            assert_same_bits(a, w, f"tensor {k}, {b.name}")
    for row, former in zip(memory, memory_before, strict=True):
        for m, f in zip(row, former, strict=True):
            assert (m[:16] == f[:16]).all()
            assert (m[-32:] == f[-32:]).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_multi_tensor_step_on_the_cpu_equals_a_step_of_each_tensor(name, threads, monkeypatch):
    monkeypatch.setattr(tuning, "PARALLEL_FROM", 0)  # use several threads for any size
    sizes = [*SIZES, 200_000]
    program, rule, offsets, memory, arrays = make_problem(name, sizes)
    memory_before = [[m.copy() for m in row] for row in memory]
    truth = expected(program, rule, offsets, arrays, (1, 2))
    default = fastopt.get_threads()
    fastopt.set_threads(threads)
    try:
        launch = bind("cpu", program, Rows(sizes, offsets, [[a.ctypes.data for a in row] for row in arrays]))
        for t in (1, 2):
            run(launch.calls(noise_keys(5, t) if program.noise else (), host_scalars(program, rule)(t)))
    finally:
        fastopt.set_threads(default)
    assert_same_and_guards_intact(program, arrays, truth, memory, memory_before)


@pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_multi_tensor_step_on_a_device_equals_a_step_of_each_tensor(name, cupy):
    program, rule, offsets, memory, arrays = make_problem(name)
    memory_before = [[m.copy() for m in row] for row in memory]
    truth = expected(program, rule, offsets, arrays, (1, 2))
    addresses = np.array([[a.ctypes.data for a in row] for row in arrays])
    launches: list[Any] = [
        bind("cuda", program, Rows(SIZES, offsets, np.zeros_like(addresses), own_numbers=own)) for own in (False, True)
    ]
    for k in range(len(program.buffers)):
        for launch in launches:
            launch.set_addresses(k, addresses[:, k])
    launch, of_each = launches
    scalars = host_scalars(program, rule)
    run(launch.calls(noise_keys(5, 1) if program.noise else (), scalars(1)))
    # The second step with the numbers of each row on the device, skipped once.
    rows = np.flatnonzero(SIZES).size
    table = np.tile(np.array(scalars(2), program.dtype), (rows, 1))
    keys, skip = np.tile(np.array(noise_keys(5, 2), np.uint32), (rows, 1)), np.zeros(1, np.int64)
    where = NumbersOfRows(*(x.ctypes.data for x in (table, keys, skip)))
    skip[0] = 1
    run(of_each.calls_with(where))
    skip[0] = 0
    run(of_each.calls_with(where))
    assert_same_and_guards_intact(program, arrays, truth, memory, memory_before)


@pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")
def test_each_row_has_numbers_of_its_own_on_the_device(cupy):
    rule, sizes, rng = fastopt.Adam(lr=0.1), [300, 5, 256], np.random.default_rng(0)
    program = trace(rule, "bf16")
    scalars = host_scalars(program, rule)
    ours = [[rng.integers(0, 1 << 14, n, np.uint16) for _ in program.buffers] for n in sizes]
    truth = [[a.copy() for a in row] for row in ours]
    offsets = [0, 512, 768]
    launch: Any = bind(
        "cuda", program, Rows(sizes, offsets, [[a.ctypes.data for a in r] for r in ours], own_numbers=True)
    )
    steps = (3, 17, 90)
    table = np.array([scalars(t) for t in steps], np.float32)
    keys, skip = np.array([noise_keys(1, t) for t in steps], np.uint32), np.zeros(1, np.int64)
    run(launch.calls_with(NumbersOfRows(*(x.ctypes.data for x in (table, keys, skip)))))
    for row, t, offset, found in zip(truth, steps, offsets, ours, strict=True):
        step("reference", program, row, (*noise_keys(1, t), offset), scalars(t))
        for a, b in zip(found, row, strict=True):
            assert_same_bits(a, b)


def test_a_multi_tensor_step_of_empty_tensors_launches_nothing():
    program = trace(fastopt.SGD(), np.float32)
    for backend in ("reference", "cpu", "cuda"):
        assert run(bind(backend, program, Rows([0, 0], [0, 0], [[0, 0]] * 2)).calls((), (0.1, 0.0))) is None
        for rows in (Rows([0, 0], [0, 0], [[0, 0]] * 2), Rows([], [], [])):
            assert backend == "reference" or bind(backend, program, rows).calls((), (0.1, 0.0)) == []


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("own_numbers", [False, True])
def test_nvrtc_compiles_multi_tensor_kernels_without_contraction_and_with_wide_accesses(
    own_numbers, name, architecture
):
    pytest.importorskip("cupy", reason="NVRTC is called through CuPy, which this platform has no wheel of")
    program = make_problem(name, [1])[0]
    made = compile_source(print_table_source(program, own_numbers=own_numbers), architecture)
    assert set(made.stack.values()) == {0}
    assert max(made.registers.values()) <= (128 if program.dtype == np.float32 else 160)
    assert not re.search(r"\b(fma|mad)\.(rn\.)?f(32|64)|\.ftz|\.approx|\.local", made.ptx)
    # A lane accesses 16 bytes of the widest buffer at once. The compiler cannot tell that addresses in a table are
    # global, so ".global" is optional.
    wide = 2 if program.dtype == np.float64 else 4
    assert re.search(rf"\bld(\.global)?(\.nc)?\.v{wide}\.", made.ptx)
    assert re.search(rf"\bst(\.global)?\.v{wide}\.", made.ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_kernel_that_writes_a_table_from_its_arguments(architecture):
    pytest.importorskip("cupy", reason="NVRTC is called through CuPy, which this platform has no wheel of")
    assert set(compile_source(WRITE, architecture).registers) == {"write_words"}

"""The complete printed CUDA kernels, run on the host without a GPU, equal the reference bit for bit.

The text is the one that NVRTC compiles, with its loads, tails and indexing by threads and blocks. g++ compiles it
together with `cuda_host.h`, which runs threads, warps and blocks in turn.

Over 300 lines: each property of a kernel is tried on the kernels that could lack it.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
from cases import CASES
from cuda_host import COMPILER, HostKernels, compile_library
from test_vocabulary import OPERATIONS, Operation
from values import (
    SIZES,
    adversarial_buffers,
    adversarial_values,
    assert_same_bits,
    guarded,
    guards_intact,
    special_values,
    step,
)

import fastopt
from fastopt.bench import elementwise
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda.launch import blocks
from fastopt.kernels.formats import PRESETS, STORAGES, TILE, pack
from fastopt.kernels.rules.rule import signature

DTYPES = (np.float32, np.float64)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")


@dataclass(frozen=True)
class AwkwardNames:
    """A rule whose scalars and state are named like C++ keywords or the kernel's variables, or in other scripts."""

    def scalars(self, t):
        names = ("float_", "NULL", "count", "i", "x0", "p_new", "place", "row", "n", "Word", "η", "uη", "p_tile",
                 "p_low", "p_low_tile", "int_scale", "top0", "tile", "number", "m_new_all")  # fmt: skip
        return {name: float(k + 1) for k, name in enumerate(names)}

    def update(self, p, g, int, first, β, *, float_, NULL, count, i, x0, p_new, place, row, n, Word, η, uη, p_tile,
               p_low, p_low_tile, int_scale, top0, tile, number, m_new_all):  # fmt: skip
        x = np.abs(g) + NULL * float_ + (p_low - p_low_tile) * int_scale
        y = x * count + i * x0 - top0 * tile / number * m_new_all
        step = np.where(y > p_new, y, place + row) * (n + Word + η) - uη / p_tile
        return p - step * x, int + y, first - step, β * y


# The kernels of rules with totals, one for each phase, run through the backend in test_totals.py.
ONE_KERNEL = {case: rule for case, rule in CASES.items() if not trace(rule, "f32").totals}
RULES = [*ONE_KERNEL.values(), *map(Operation, OPERATIONS), AwkwardNames()]


@dataclass(frozen=True)
class Shuffled:
    """A rule whose state buffers are overwritten, unchanged, swapped, constant, or huge where g is 0.

    The last must not raise the maximum of a tile: elements past the end of the arrays are loaded as 0.
    """

    lr: float = 0.1

    def scalars(self, t):
        return {"lr": self.lr, "one": 1.0}

    def update(self, p, g, last, left, a, b, same, huge, *, lr, one):
        return (
            p - lr * (last + left + g),
            g,
            left,
            b,
            a * p,
            np.full_like(p, 0.75) * one,
            np.where(g == 0.0, lr * 1e30, g),
        )


STORED = {
    **{case: CASES[case] for case in ("momentum", "rmsprop-centered", "adam", "adam-amsgrad", "lion")},
    "shuffled": Shuffled(),
}
NARROW = [s.name for s in STORAGES.values() if s.computes == np.float32 and not s.plain]


def store_all_in(rule, name):
    """Return the layout of `rule` that stores in format `name` every buffer that the format can hold."""
    kinds = {b: b if b in ("p", "g") else "state" for b in signature(rule).buffers}
    return {b: name for b, kind in kinds.items() if kind in STORAGES[name].holds}


LAYOUTS = {
    **{f"{case}-{name}": (rule, store_all_in(rule, name)) for case, rule in STORED.items() for name in NARROW},
    **{
        f"{case}-preset-{name}": (rule, name)
        for case, rule in STORED.items()
        for name in PRESETS
        if name not in ("f32", "f64")
    },
    "noise-adam-preset-bf16_8bit": (CASES["noise-adam"], "bf16_8bit"),
    "awkward-names-preset-split_8bit": (AwkwardNames(), "split_8bit"),
}


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory):
    programs = [trace(rule, dtype) for dtype in DTYPES for rule in RULES]
    programs += [trace(rule, storage) for rule, storage in LAYOUTS.values()]
    return HostKernels(programs, tmp_path_factory.mktemp("cuda"))


def noise(program, t, offset=0):
    """Return the noise arguments of step t, () for programs without noise."""
    return (*noise_keys(5, t), offset) if program.noise else ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ONE_KERNEL)
def test_the_cuda_kernel_equals_the_reference(case, dtype, host_kernels):
    rule, rng = CASES[case], np.random.default_rng(0)
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)
    for n in SIZES[1:]:
        ours = adversarial_buffers(program, rng, n)
        truth = [a.copy() for a in ours.values()]
        for t in (1, 2, 100):
            host_kernels.step(program, list(ours.values()), noise(program, t), scalars(t))
            step("reference", program, truth, noise(program, t), scalars(t))
        for (name, array), expected in zip(ours.items(), truth, strict=True):
            assert_same_bits(array, expected, f"{case}, n = {n}, {name}")
            assert guards_intact(array), f"{case}, n = {n}: wrote beyond {name}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 1000])
@pytest.mark.parametrize("case", ["adam-amsgrad-l2", "noise-adam"])
def test_results_do_not_depend_on_the_grid(case, blocks, descending, dtype, host_kernels):
    rule, rng, n = CASES[case], np.random.default_rng(1), 10_007
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)(3)
    ours = adversarial_buffers(program, rng, n)
    truth = [a.copy() for a in ours.values()]
    host_kernels.step(program, list(ours.values()), noise(program, 3), scalars, blocks=blocks, descending=descending)
    step("reference", program, truth, noise(program, 3), scalars)
    for (name, array), expected in zip(ours.items(), truth, strict=True):
        assert_same_bits(array, expected, name)
        assert guards_intact(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_may_begin_at_any_element(dtype, host_kernels):
    rule, rng = CASES["adam"], np.random.default_rng(2)
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)(1)
    size = np.dtype(dtype).itemsize
    for shifts in ([0] * 4, *([size * (k * j % 16) for j in range(1, 5)] for k in range(1, 16)), [0, 0, 0, size]):
        ours = [guarded(adversarial_values(rng, 1003, dtype), shift) for shift in shifts]
        assert [a.ctypes.data % 64 for a in ours] == [shift % 64 for shift in shifts]
        truth = [a.copy() for a in ours]
        host_kernels.step(program, ours, (), scalars)
        step("reference", program, truth, (), scalars)
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"at {shifts}")
            assert guards_intact(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_printed_operation_equals_numpy(name, dtype, host_kernels):
    x, y = (a.ravel().copy() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    host_kernels.step(trace(Operation(name), dtype), [x, y], (), ())
    assert_same_bits(x, expected, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rules_names_may_collide_with_names_in_the_kernel(dtype, host_kernels):
    rule, rng = AwkwardNames(), np.random.default_rng(0)
    program = trace(rule, dtype)
    ours = [rng.standard_normal(300).astype(dtype) for _ in program.buffers]
    truth = [a.copy() for a in ours]
    scalars = host_scalars(program, rule)(1)
    host_kernels.step(program, ours, (), scalars)
    step("reference", program, truth, (), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ONE_KERNEL)
def test_captured_steps_equal_plain_steps(case, dtype, host_kernels):
    rule, rng, n, steps = CASES[case], np.random.default_rng(3), 1003, 5
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)
    ours = list(adversarial_buffers(program, rng, n).values())
    truth = [a.copy() for a in ours]
    table = np.array([scalars(t) for t in range(1, steps + 1)], dtype)
    keys = np.array([noise_keys(5, t) for t in range(1, steps + 1)], np.uint32)
    row = np.zeros(1, np.int64)
    for t in range(1, steps + 1):
        host_kernels.captured_step(program, ours, keys, 7 * TILE, table, row, steps)
        host_kernels.step(program, truth, noise(program, t, 7 * TILE), scalars(t))
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"t = {t}")
        row += 1
    host_kernels.captured_step(program, ours, keys, 7 * TILE, table, row, steps)  # past the last row: writes nothing
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


def test_elements_beyond_two_to_the_32_are_reached(host_kernels):
    rule, n, rng = fastopt.GradientNoise(fastopt.SGD(lr=1.0)), 2**33 + 2**31 + 1003, np.random.default_rng(4)
    program = trace(rule, np.float32)
    scalars = host_scalars(program, rule)(1)
    size = 2048 + 1003
    ours = list(adversarial_buffers(program, rng, size).values())
    truth = [a.copy() for a in ours]
    host_kernels.step(program, ours, noise(program, 1, 11 * TILE), scalars, tail_of=n)
    step("reference", program, truth, noise(program, 1, 11 * TILE + n - size), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)
        assert guards_intact(array)


def test_the_grid_never_has_more_blocks_than_a_device_allows():
    assert [blocks(n) for n in (1, 1024, 1025, 2**40)] == [1, 1, 2, 2**30]
    assert blocks(2**60) == 2**31 - 1


@pytest.mark.parametrize("architecture", [750, 800])  # with shuffles, and with one reduction
def test_warp_max_returns_the_maximum_in_all_lanes(architecture, tmp_path):
    text = """
        #include "cuda_host.h"
        #include "tile.cuh"
        __global__ void maxima(Word* x) {
            x += first_tile() * LANES + lane();
            *x = warp_max(warp_max(*x));
        }
        extern "C" void run(void** arguments, bool descending) {
            host::launch(maxima, 4, 0, THREADS, arguments, descending);
        }
    """
    path = tmp_path / "maxima.so"
    library = compile_library(text, path, f"-D__CUDA_ARCH__={architecture}")
    rng = np.random.default_rng(0)
    for descending in (False, True):
        words = rng.integers(0, 2**32, 512, np.uint32)
        words[:32] = 0
        expected = np.repeat(words.reshape(16, 32).max(1), 32)
        pointer = np.uint64(words.ctypes.data)
        library.run((ctypes.c_void_p * 1)(np.atleast_1d(pointer).ctypes.data), descending)
        assert np.array_equal(words, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rule", [fastopt.Momentum(), fastopt.RMSprop(), fastopt.Adam()], ids=lambda r: type(r).__name__
)
def test_hand_written_kernels_equal_the_reference(rule, dtype, tmp_path):
    kernel, program = elementwise.CLASSIC[type(rule).__name__], trace(rule, dtype)
    read, written = kernel.read.removeprefix("T g, "), kernel.written.removeprefix("T p, ").replace("T ", "T* ")
    text = f"""
        #include "cuda_host.h"
        typedef {"float" if dtype == np.float32 else "double"} T;
        extern "C" void run(Py_ssize n, T* p_, T* g_, {written.replace(",", "_,")}_, T* scalars) {{
            T {", ".join(f"{name} = scalars[{k}]" for k, name in enumerate(program.scalars))};
            for (Py_ssize i = 0; i < n; ++i) {{
                T g = g_[i], &p = p_[i];
                T {", ".join(f"&{name} = {name}_[i]" for name in program.state)};
                {kernel.body}
            }}
        }}
    """.replace("Py_ssize", "long long")
    assert read == ", ".join(f"T {name}" for name in program.scalars)
    library = compile_library(text, tmp_path / "hand_written.so")
    rng, n = np.random.default_rng(6), 1003
    ours = list(adversarial_buffers(program, rng, n).values())
    truth = [a.copy() for a in ours]
    for t in (1, 2, 50):
        scalars = host_scalars(program, rule)(t)
        numbers = np.array(scalars, dtype)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*ours, numbers)]
        library.run(ctypes.c_longlong(n), *pointers)
        step("reference", program, truth, (), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


def random_bits(program, rng, n):
    """Return the planes of a program's buffers, filled with random bits."""
    return [rng.integers(0, 256, b.size(n) * b.dtype.itemsize, np.uint8).view(b.dtype) for b in program.buffers]


def encoded_values(program, rng, n):
    """Return the planes of a program's buffers, filled with encoded values of very different magnitudes."""
    planes = {}
    for b, storage in program.formats.items():
        packed = pack(storage, adversarial_values(rng, n, np.float32))
        planes |= dict(zip(storage.plane_names(b), packed, strict=True))
    return [planes[b.name] for b in program.buffers]


def assert_same_buffers(program, ours, truth, what=""):
    for b, array, expected in zip(program.buffers, ours, truth, strict=True):
        if b.dtype.kind == "f":
            assert_same_bits(array, expected, f"{what} {b.name}")
        else:
            differ = np.flatnonzero(array != expected)
            assert not differ.size, f"{what} {b.name}: {differ.size} differ, at {differ[:3]}"
        assert guards_intact(array), f"{what}: wrote beyond {b.name}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernel_of_any_storage_equals_the_reference(layout, host_kernels):
    rule, storage = LAYOUTS[layout]
    program, rng = trace(rule, storage), np.random.default_rng(0)
    scalars = host_scalars(program, rule)
    for n in (1, 255, 256, 257, 1003, 10_007):
        for fill in (random_bits, encoded_values):
            ours = [guarded(a) for a in fill(program, rng, n)]
            truth = [a.copy() for a in ours]
            for t in (1, 2, 100):
                host_kernels.step(program, ours, noise(program, t, 5 * TILE), scalars(t))
                step("reference", program, truth, noise(program, t, 5 * TILE), scalars(t))
                assert_same_buffers(program, ours, truth, f"n = {n}, t = {t}")


SELECTED = [
    "adam-preset-8bit", "adam-preset-split_8bit", "adam-preset-mixed_bf16", "adam-preset-bf16_kahan", "adam-split24",
    "shuffled-f8", "shuffled-uf8", "noise-adam-preset-bf16_8bit",
]  # fmt: skip


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 100])
@pytest.mark.parametrize("layout", SELECTED)
def test_results_of_storages_do_not_depend_on_the_grid(layout, blocks, descending, host_kernels):
    rule, storage = LAYOUTS[layout]
    program, rng = trace(rule, storage), np.random.default_rng(1)
    scalars = host_scalars(program, rule)(3)
    ours = [guarded(a) for a in encoded_values(program, rng, 10_007)]
    truth = [a.copy() for a in ours]
    host_kernels.step(program, ours, noise(program, 3), scalars, blocks=blocks, descending=descending)
    step("reference", program, truth, noise(program, 3), scalars)
    assert_same_buffers(program, ours, truth)


@pytest.mark.parametrize("layout", SELECTED)
def test_planes_may_begin_at_any_element(layout, host_kernels):
    rule, storage = LAYOUTS[layout]
    program, rng = trace(rule, storage), np.random.default_rng(2)
    scalars = host_scalars(program, rule)(1)
    sizes = [b.dtype.itemsize for b in program.buffers]
    one_shifted = [[size * (j == k) for j, size in enumerate(sizes)] for k in range(len(sizes))]
    for shifts in (*one_shifted, *([size * (k * (j + 1) % 16) for j, size in enumerate(sizes)] for k in range(16))):
        ours = [guarded(a, shift) for a, shift in zip(encoded_values(program, rng, 1003), shifts, strict=True)]
        assert [a.ctypes.data % 64 for a in ours] == shifts
        truth = [a.copy() for a in ours]
        host_kernels.step(program, ours, noise(program, 1), scalars)
        step("reference", program, truth, noise(program, 1), scalars)
        assert_same_buffers(program, ours, truth, f"at {shifts}")


@pytest.mark.parametrize("layout", SELECTED)
def test_captured_steps_of_storages_equal_the_reference(layout, host_kernels):
    rule, storage = LAYOUTS[layout]
    program, rng, n, steps = trace(rule, storage), np.random.default_rng(3), 1003, 3
    scalars = host_scalars(program, rule)
    ours = [guarded(a) for a in encoded_values(program, rng, n)]
    truth = [a.copy() for a in ours]
    table = np.array([scalars(t) for t in range(1, steps + 1)], np.float32)
    keys = np.array([noise_keys(5, t) for t in range(1, steps + 1)], np.uint32)
    row = np.zeros(1, np.int64)
    for t in range(1, steps + 1):
        host_kernels.captured_step(program, ours, keys, 7 * TILE, table, row, steps)
        step("reference", program, truth, noise(program, t, 7 * TILE), scalars(t))
        assert_same_buffers(program, ours, truth, f"t = {t}")
        row += 1
    host_kernels.captured_step(program, ours, keys, 7 * TILE, table, row, steps)  # past the last row: writes nothing
    assert_same_buffers(program, ours, truth)


@pytest.mark.parametrize("layout", SELECTED)
def test_elements_of_storages_beyond_two_to_the_33_are_reached(layout, host_kernels):
    rule, storage = LAYOUTS[layout]
    program, rng = trace(rule, storage), np.random.default_rng(4)
    scalars, size = host_scalars(program, rule)(1), 2048 + 1003
    n, before = 2**33 + 2**31 + 1003, 2**41  # noise offset of the first element: tile numbers need more than 32 bits
    ours = [guarded(a) for a in encoded_values(program, rng, size)]
    truth = [a.copy() for a in ours]
    host_kernels.step(program, ours, noise(program, 1, before), scalars, tail_of=n)
    step("reference", program, truth, noise(program, 1, before + n - size), scalars)
    assert_same_buffers(program, ours, truth)

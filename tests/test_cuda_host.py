"""The complete printed CUDA kernels, run on the CPU, equal the reference bit for bit. No GPU takes part.

What is run is the text that NVRTC compiles, loads, tails, grid and all; g++ compiles it behind `cuda_host.h`, which
plays threads, warps and blocks.
"""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
from cases import CASES
from cuda_player import COMPILER, Player, compile_library
from test_vocabulary import OPERATIONS, Operation
from values import SIZES, assert_same_bits, filled, guarded, guards_intact, nasty, special, step

import fastopt
from fastopt.bench import elementwise
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda.launch import blocks
from fastopt.kernels.formats import PRESETS, STORAGES, TILE, pack
from fastopt.kernels.rules.rule import signature

DTYPES = (np.float32, np.float64)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which plays the GPU's part")


@dataclass(frozen=True)
class AwkwardNames:
    """Scalars and state named like C++'s words, the kernel's own variables, and in other scripts."""

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


RULES = [*CASES.values(), *map(Operation, OPERATIONS), AwkwardNames()]


@dataclass(frozen=True)
class Shuffled:
    """State that is overwritten, left alone, exchanged, the same for all elements, or huge beyond the last of them."""

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


def everywhere(rule, name):
    """Keep whatever a format may hold in it."""
    kinds = {b: b if b in ("p", "g") else "state" for b in signature(rule).buffers}
    return {b: name for b, kind in kinds.items() if kind in STORAGES[name].holds}


LAYOUTS = {
    **{f"{case}-{name}": (rule, everywhere(rule, name)) for case, rule in STORED.items() for name in NARROW},
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
def player(tmp_path_factory):
    programs = [trace(rule, dtype) for dtype in DTYPES for rule in RULES]
    programs += [trace(rule, kept) for rule, kept in LAYOUTS.values()]
    return Player(programs, tmp_path_factory.mktemp("cuda"))


def noise(program, t, offset=0):
    return (*noise_keys(5, t), offset) if program.noise else ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_cuda_kernel_equals_the_reference(case, dtype, player):
    rule, rng = CASES[case], np.random.default_rng(0)
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)
    for n in SIZES[1:]:
        ours = filled(program, rng, n)
        truth = [a.copy() for a in ours.values()]
        for t in (1, 2, 100):
            player.step(program, list(ours.values()), noise(program, t), scalars(t))
            step("reference", program, truth, noise(program, t), scalars(t))
        for (name, array), expected in zip(ours.items(), truth, strict=True):
            assert_same_bits(array, expected, f"{case}, n = {n}, {name}")
            assert guards_intact(array), f"{case}, n = {n}: wrote beyond {name}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 1000])
@pytest.mark.parametrize("case", ["adam-amsgrad-l2", "noise-adam"])
def test_the_shape_of_the_grid_does_not_matter(case, blocks, descending, dtype, player):
    rule, rng, n = CASES[case], np.random.default_rng(1), 10_007
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)(3)
    ours = filled(program, rng, n)
    truth = [a.copy() for a in ours.values()]
    player.step(program, list(ours.values()), noise(program, 3), scalars, blocks=blocks, descending=descending)
    step("reference", program, truth, noise(program, 3), scalars)
    for (name, array), expected in zip(ours.items(), truth, strict=True):
        assert_same_bits(array, expected, name)
        assert guards_intact(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_may_begin_at_any_element(dtype, player):
    rule, rng = CASES["adam"], np.random.default_rng(2)
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)(1)
    size = np.dtype(dtype).itemsize
    for shifts in ([0] * 4, *([size * (k * j % 16) for j in range(1, 5)] for k in range(1, 16)), [0, 0, 0, size]):
        ours = [guarded(nasty(rng, 1003, dtype), shift) for shift in shifts]
        assert [a.ctypes.data % 64 for a in ours] == [shift % 64 for shift in shifts]
        truth = [a.copy() for a in ours]
        player.step(program, ours, (), scalars)
        step("reference", program, truth, (), scalars)
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"at {shifts}")
            assert guards_intact(array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_same_printed_in_cuda(name, dtype, player):
    x, y = (a.ravel().copy() for a in np.meshgrid(special(dtype), special(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    player.step(trace(Operation(name), dtype), [x, y], (), ())
    assert_same_bits(x, expected, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rules_own_names_may_be_any(dtype, player):
    rule, rng = AwkwardNames(), np.random.default_rng(0)
    program = trace(rule, dtype)
    ours = [rng.standard_normal(300).astype(dtype) for _ in program.buffers]
    truth = [a.copy() for a in ours]
    scalars = host_scalars(program, rule)(1)
    player.step(program, ours, (), scalars)
    step("reference", program, truth, (), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_steps_from_a_table_equal_steps_from_arguments(case, dtype, player):
    rule, rng, n, steps = CASES[case], np.random.default_rng(3), 1003, 5
    program = trace(rule, dtype)
    scalars = host_scalars(program, rule)
    ours = list(filled(program, rng, n).values())
    truth = [a.copy() for a in ours]
    table = np.array([scalars(t) for t in range(1, steps + 1)], dtype)
    keys = np.array([noise_keys(5, t) for t in range(1, steps + 1)], np.uint32)
    row = np.zeros(1, np.int64)
    for t in range(1, steps + 1):
        player.captured_step(program, ours, keys, 7 * TILE, table, row, steps)
        player.step(program, truth, noise(program, t, 7 * TILE), scalars(t))
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"t = {t}")
        row += 1
    player.captured_step(program, ours, keys, 7 * TILE, table, row, steps)  # no row is left: nothing happens
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


def test_elements_beyond_two_to_the_32_are_reached(player):
    rule, n, rng = fastopt.GradientNoise(fastopt.SGD(lr=1.0)), 2**33 + 2**31 + 1003, np.random.default_rng(4)
    program = trace(rule, np.float32)
    scalars = host_scalars(program, rule)(1)
    size = 2048 + 1003
    ours = list(filled(program, rng, size).values())
    truth = [a.copy() for a in ours]
    player.step(program, ours, noise(program, 1, 11 * TILE), scalars, tail_of=n)
    step("reference", program, truth, noise(program, 1, 11 * TILE + n - size), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)
        assert guards_intact(array)


def test_the_grid_never_has_more_blocks_than_a_device_takes():
    assert [blocks(n) for n in (1, 1024, 1025, 2**40)] == [1, 1, 2, 2**30]
    assert blocks(2**60) == 2**31 - 1


@pytest.mark.parametrize("architecture", [750, 800])  # with shuffles, and with one reduction
def test_a_warps_maximum_is_in_all_lanes(architecture, tmp_path):
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
def test_the_forms_written_by_hand_equal_the_reference(rule, dtype, tmp_path):
    form, program = elementwise.CLASSIC[type(rule).__name__], trace(rule, dtype)
    read, written = form.read.removeprefix("T g, "), form.written.removeprefix("T p, ").replace("T ", "T* ")
    text = f"""
        #include "cuda_host.h"
        typedef {"float" if dtype == np.float32 else "double"} T;
        extern "C" void run(Py_ssize n, T* p_, T* g_, {written.replace(",", "_,")}_, T* scalars) {{
            T {", ".join(f"{name} = scalars[{k}]" for k, name in enumerate(program.scalars))};
            for (Py_ssize i = 0; i < n; ++i) {{
                T g = g_[i], &p = p_[i];
                T {", ".join(f"&{name} = {name}_[i]" for name in program.state)};
                {form.body}
            }}
        }}
    """.replace("Py_ssize", "long long")
    assert read == ", ".join(f"T {name}" for name in program.scalars)
    library = compile_library(text, tmp_path / "form.so")
    rng, n = np.random.default_rng(6), 1003
    ours = list(filled(program, rng, n).values())
    truth = [a.copy() for a in ours]
    for t in (1, 2, 50):
        scalars = host_scalars(program, rule)(t)
        numbers = np.array(scalars, dtype)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*ours, numbers)]
        library.run(ctypes.c_longlong(n), *pointers)
        step("reference", program, truth, (), scalars)
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected)


def patterns(program, rng, n):
    """Give each plane random bits, every pattern there is."""
    return [rng.integers(0, 256, b.size(n) * b.dtype.itemsize, np.uint8).view(b.dtype) for b in program.buffers]


def encoded(program, rng, n):
    """Give planes that hold values of widely different sizes, special ones among them."""
    held = {}
    for b, storage in program.formats.items():
        packed = pack(storage, nasty(rng, n, np.float32))
        held |= dict(zip(storage.plane_names(b), packed, strict=True))
    return [held[b.name] for b in program.buffers]


def require_same(program, ours, truth, what=""):
    for b, array, expected in zip(program.buffers, ours, truth, strict=True):
        if b.dtype.kind == "f":
            assert_same_bits(array, expected, f"{what} {b.name}")
        else:
            differ = np.flatnonzero(array != expected)
            assert not differ.size, f"{what} {b.name}: {differ.size} differ, at {differ[:3]}"
        assert guards_intact(array), f"{what}: wrote beyond {b.name}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernel_of_any_storage_equals_the_reference(layout, player):
    rule, kept = LAYOUTS[layout]
    program, rng = trace(rule, kept), np.random.default_rng(0)
    scalars = host_scalars(program, rule)
    for n in (1, 255, 256, 257, 1003, 10_007):
        for fill in (patterns, encoded):
            ours = [guarded(a) for a in fill(program, rng, n)]
            truth = [a.copy() for a in ours]
            for t in (1, 2, 100):
                player.step(program, ours, noise(program, t, 5 * TILE), scalars(t))
                step("reference", program, truth, noise(program, t, 5 * TILE), scalars(t))
                require_same(program, ours, truth, f"n = {n}, t = {t}")


SOME = [
    "adam-preset-8bit", "adam-preset-split_8bit", "adam-preset-mixed_bf16", "adam-preset-bf16_kahan", "adam-split24",
    "shuffled-f8", "shuffled-uf8", "noise-adam-preset-bf16_8bit",
]  # fmt: skip


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 100])
@pytest.mark.parametrize("layout", SOME)
def test_the_shape_of_the_grid_does_not_matter_to_storages(layout, blocks, descending, player):
    rule, kept = LAYOUTS[layout]
    program, rng = trace(rule, kept), np.random.default_rng(1)
    scalars = host_scalars(program, rule)(3)
    ours = [guarded(a) for a in encoded(program, rng, 10_007)]
    truth = [a.copy() for a in ours]
    player.step(program, ours, noise(program, 3), scalars, blocks=blocks, descending=descending)
    step("reference", program, truth, noise(program, 3), scalars)
    require_same(program, ours, truth)


@pytest.mark.parametrize("layout", SOME)
def test_planes_may_begin_at_any_element(layout, player):
    rule, kept = LAYOUTS[layout]
    program, rng = trace(rule, kept), np.random.default_rng(2)
    scalars = host_scalars(program, rule)(1)
    sizes, planes_ = [b.dtype.itemsize for b in program.buffers], range(len(program.buffers))
    alone = [[size * (j == k) for j, size in enumerate(sizes)] for k in planes_]
    for shifts in (*alone, *([size * (k * (j + 1) % 16) for j, size in enumerate(sizes)] for k in range(16))):
        ours = [guarded(a, shift) for a, shift in zip(encoded(program, rng, 1003), shifts, strict=True)]
        assert [a.ctypes.data % 64 for a in ours] == shifts
        truth = [a.copy() for a in ours]
        player.step(program, ours, noise(program, 1), scalars)
        step("reference", program, truth, noise(program, 1), scalars)
        require_same(program, ours, truth, f"at {shifts}")


@pytest.mark.parametrize("layout", SOME)
def test_steps_of_storages_from_a_table_equal_the_reference(layout, player):
    rule, kept = LAYOUTS[layout]
    program, rng, n, steps = trace(rule, kept), np.random.default_rng(3), 1003, 3
    scalars = host_scalars(program, rule)
    ours = [guarded(a) for a in encoded(program, rng, n)]
    truth = [a.copy() for a in ours]
    table = np.array([scalars(t) for t in range(1, steps + 1)], np.float32)
    keys = np.array([noise_keys(5, t) for t in range(1, steps + 1)], np.uint32)
    row = np.zeros(1, np.int64)
    for t in range(1, steps + 1):
        player.captured_step(program, ours, keys, 7 * TILE, table, row, steps)
        step("reference", program, truth, noise(program, t, 7 * TILE), scalars(t))
        require_same(program, ours, truth, f"t = {t}")
        row += 1
    player.captured_step(program, ours, keys, 7 * TILE, table, row, steps)  # no row is left: nothing happens
    require_same(program, ours, truth)


@pytest.mark.parametrize("layout", SOME)
def test_elements_of_storages_beyond_two_to_the_33_are_reached(layout, player):
    rule, kept = LAYOUTS[layout]
    program, rng = trace(rule, kept), np.random.default_rng(4)
    scalars, size = host_scalars(program, rule)(1), 2048 + 1003
    n, before = 2**33 + 2**31 + 1003, 2**41  # elements before these arrays: the number of a tile has more than 32 bits
    ours = [guarded(a) for a in encoded(program, rng, size)]
    truth = [a.copy() for a in ours]
    player.step(program, ours, noise(program, 1, before), scalars, tail_of=n)
    step("reference", program, truth, noise(program, 1, before + n - size), scalars)
    require_same(program, ours, truth)

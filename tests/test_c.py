"""Exported C sources, compiled by what compilers there are, equal the reference bit for bit."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import test_totals
from c_kernels import COMPILERS, HAS_FMA, CKernels, compile_c
from cases import CASES
from test_cuda_host import LAYOUTS, AwkwardNames
from test_float_mode import _MODE, BITS, enter, leave
from test_same_bits import PRESET_CASES
from test_vocabulary import OPERATIONS, Operation
from values import adversarial_buffers, assert_same_bits, guarded, guards_intact, special_values, step

import fastopt
from fastopt.kernels.backends import bind
from fastopt.kernels.c.printer import print_export
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import TILE
from fastopt.kernels.launch import run

needs_gcc = pytest.mark.skipif(COMPILERS["gcc"] is None, reason="needs gcc")
SIZES = (0, 1, 255, 256, 257, 1003)


@dataclass(frozen=True)
class AwkwardInC:
    """A rule whose names are those of the printed functions, of the headers, or of C."""

    with_total: bool = False

    def scalars(self, t):
        names = ("tensor", "taken", "mode", "keys", "scalars", "linux", "sqrtf", "t", "lr", "FASTOPT_TILE", "double",
                 "_x", "k", "NAN", "fastopt_word")  # fmt: skip
        return {name: float(k + 1) for k, name in enumerate(names)}

    def update(self, p, g, work, totals, unusual, y0, restrict, tiles, *, tensor, taken, mode, keys, scalars, linux,
               sqrtf, t, lr, FASTOPT_TILE, double, _x, k, NAN, fastopt_word):  # fmt: skip
        x = tensor * g + taken * work - mode * totals + keys * unusual / (scalars + y0 * y0) + linux * restrict
        x = x + sqrtf * tiles + t * lr - FASTOPT_TILE / double + _x * k - NAN * fastopt_word
        if self.with_total:
            x = x / (1.0 + fastopt.total(x * x, over="all"))
        return p - x, work + x, 0.5 * totals, unusual - x, np.abs(y0), x * restrict, tiles + g


AT_ONCE = {name: rule for name, rule in CASES.items() if not trace(rule, "f32").totals}
RULES = {
    **{f"{name}-{storage}": (rule, storage) for name, rule in AT_ONCE.items() for storage in ("f32", "f64")},
    **LAYOUTS,
    **PRESET_CASES,
    **{f"awkward-names-{storage}": (AwkwardNames(), storage) for storage in ("f32", "f64")},
    **{f"awkward-in-c-{storage}": (AwkwardInC(), storage) for storage in ("f32", "split_8bit")},
}
CHOSEN = [
    "adam-amsgrad-l2-f32", "radam-f64", "noise-adam-f32", "rmsprop-centered-momentum-f32", "asgd-f64",
    "adam-preset-bf16", "adam-preset-8bit", "adam-preset-split_8bit", "adam-preset-bf16_kahan", "adam-preset-mixed_f16",
    "adam-split24", "shuffled-f8", "shuffled-uf8", "noise-adam-preset-bf16_8bit",
]  # fmt: skip
"""Of RULES those whose kernels differ most."""
OPTIONS = [
    (level, *vectors) for level in ("-O2", "-O3") for vectors in ((), ("-mavx2", "-mfma"))[: 1 + HAS_FMA]
]  # fmt: skip
MATRIX = [(c, *o) for c, o in product(COMPILERS, OPTIONS)]
OWN = ("-O3", "-march=native", "-fno-math-errno")
"""What an exported source asks to be compiled with."""
MATRIX += [(c, *o) for c, o in product(("gcc", "clang"), (("-O0",), OWN))]
OFTEN = [row for row in MATRIX if row[0] in ("gcc", "clang") or row[1:] == ("-O2",)]
OFTEN.remove(("gcc", "-O2"))  # by which every kernel is compiled
"""C++ compilers read the same text in another language: the parts that do the work are those of the C compilers."""


def noise_of(program, t, offset=5 * TILE):
    return (*noise_keys(5, t), offset) if program.noise else ()


def programs(names):
    """Return the distinct programs of some of RULES, with a rule of each."""
    return list({p.name: (p, rule) for p, rule in ((trace(*RULES[name]), RULES[name][0]) for name in names)}.values())


def assert_equals_the_reference(kernels, rule, storage, sizes=SIZES):
    program, rng = trace(rule, storage), np.random.default_rng(0)
    scalars = host_scalars(program, rule)
    for n in sizes:
        ours = list(adversarial_buffers(program, rng, n).values())
        truth = [a.copy() for a in ours]
        for t in (1, 2, 100):
            kernels.step(program, ours, noise_of(program, t), scalars(t))
            step("reference", program, truth, noise_of(program, t), scalars(t))
        for b, array, expected in zip(program.buffers, ours, truth, strict=True):
            assert_same_bits(array, expected, f"{program.name}, n = {n}, {b.name}")
            assert guards_intact(array), f"{program.name}, n = {n}: wrote beyond {b.name}"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Every kernel, by gcc -O2."""
    operations = [(trace(Operation(name), dtype), Operation(name)) for name in OPERATIONS for dtype in ("f32", "f64")]
    return CKernels([*programs(RULES), *operations], tmp_path_factory.mktemp("c"), "gcc", "-O2")


@needs_gcc
@pytest.mark.parametrize("name", RULES)
def test_the_c_kernel_equals_the_reference(name, kernels):
    assert_equals_the_reference(kernels, *RULES[name])


@pytest.mark.parametrize("options", OFTEN, ids=" ".join)
def test_every_compiler_makes_the_same_bits(options, tmp_path):
    compiler, *flags = options
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    made = CKernels(programs(CHOSEN), tmp_path, compiler, *flags)
    for name in CHOSEN:
        assert_equals_the_reference(made, *RULES[name])


@pytest.mark.slow
@pytest.mark.parametrize("options", MATRIX, ids=" ".join)
def test_every_compiler_makes_the_same_bits_of_every_kernel(options, tmp_path):
    compiler, *flags = options
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    made = CKernels(programs(RULES), tmp_path, compiler, *flags)
    for rule, storage in RULES.values():
        assert_equals_the_reference(made, rule, storage)


@pytest.mark.skipif(not HAS_FMA, reason="needs a processor with FMA instructions")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_without_its_pragmas_a_kernel_would_have_other_bits(compiler, tmp_path):
    """A control: these compilers do contract by default, so the tests above could fail."""
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    name = "adam-amsgrad-l2-f32"
    ((program, rule),) = programs([name])
    text = re.sub(r"#pragma (STDC|GCC) .*", "", print_export(program, rule, "fastopt export"))
    source = tmp_path / "contracted.c"
    source.write_text(text)
    compile_c(compiler, source, tmp_path / "contracted.so", "-shared", "-fPIC", "-O2", "-mfma")
    made = object.__new__(CKernels)
    made.library = ctypes.CDLL(str(tmp_path / "contracted.so"))
    with pytest.raises(AssertionError, match="differ"):
        assert_equals_the_reference(made, *RULES[name])


@pytest.mark.skipif(not HAS_FMA, reason="needs a processor with FMA instructions")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_comes_after_a_kernel_is_compiled_as_without_it(compiler, tmp_path):
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    source, assembly = tmp_path / "both.c", tmp_path / "both.s"
    own = "float own(float a, float b, float c);\nfloat own(float a, float b, float c) { return a * b + c; }\n"
    source.write_text(fastopt.export_source(fastopt.Adam()) + own)
    compile_c(compiler, source, assembly, "-O2", "-mfma", "-S", "-c")
    before, _, after = assembly.read_text().partition("\nown:")
    assert "vfmadd" in after
    assert "vfmadd" not in before


@needs_gcc
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-freciprocal-math", "-fno-signed-zeros"])
def test_options_that_change_bits_are_refused(flag, tmp_path):
    source = tmp_path / "kernel.c"
    source.write_text(fastopt.export_source(fastopt.SGD()))
    command: list[Any] = [COMPILERS["gcc"], flag, "-c", source, "-o", tmp_path / "x.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if flag == "-freciprocal-math" and not done.returncode:
        pytest.skip("this gcc does not show this option to a source")
    assert done.returncode == 1
    assert "fastopt: -ffast-math and its parts change the bits" in done.stderr


@pytest.mark.parametrize(
    ("compiler", "standard"),
    [*product(["gcc", "clang"], ["c99", "c17"]), *product(["g++", "clang++"], ["c++11", "c++20"])],
)
def test_the_source_is_standard_c_and_c_plus_plus(compiler, standard, tmp_path):
    if COMPILERS[compiler] is None:
        pytest.skip(f"needs {compiler}")
    rules = [(fastopt.Adam(), "split_8bit"), (fastopt.LAMB(), "f32"), (fastopt.ASGD(), "f64")]
    source = tmp_path / "kernels.c"
    source.write_text("\n".join(fastopt.export_source(rule, storage) for rule, storage in rules), encoding="utf-8")
    compile_c(compiler, source, tmp_path / "kernels.o", f"-std={standard}", "-c")


@needs_gcc
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_printed_operation_equals_numpy(name, dtype, kernels):
    x, y = (a.ravel().copy() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    kernels.step(trace(Operation(name), dtype), [x, y], (), ())
    assert_same_bits(x, expected, name)


@needs_gcc
@pytest.mark.parametrize("name", CHOSEN)
def test_arrays_may_begin_at_any_element(name, kernels):
    rule, storage = RULES[name]
    program, rng = trace(rule, storage), np.random.default_rng(2)
    scalars = host_scalars(program, rule)(1)
    for k in range(16):
        made = adversarial_buffers(program, rng, 1003)
        shifts = [b.dtype.itemsize * (k * (j + 1) % 16) for j, b in enumerate(program.buffers)]
        ours = [guarded(a, shift) for a, shift in zip(made.values(), shifts, strict=True)]
        truth = [a.copy() for a in ours]
        kernels.step(program, ours, noise_of(program, 1), scalars)
        step("reference", program, truth, noise_of(program, 1), scalars)
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"{name} at {shifts}")
            assert guards_intact(array)


@needs_gcc
@pytest.mark.parametrize("name", CHOSEN)
def test_threads_may_share_a_step_as_its_comment_says(name, kernels):
    rule, storage = RULES[name]
    program, rng, n = trace(rule, storage), np.random.default_rng(3), 40_007
    assert "pass the range's length as n" in " ".join(print_export(program, rule, "x").split())
    scalars = host_scalars(program, rule)(2)
    ours = list(adversarial_buffers(program, rng, n).values())
    truth = [a.copy() for a in ours]
    step("reference", program, truth, noise_of(program, 2, 0), scalars)
    bounds = [0, TILE, 9 * TILE, 100 * TILE, n]

    def share(first, end):
        part = [
            a[first // TILE : -(-end // TILE)] if b.tiled else a[first:end]
            for b, a in zip(program.buffers, ours, strict=True)
        ]
        kernels.step(program, part, noise_of(program, 2, first), scalars)

    threads = [threading.Thread(target=share, args=pair) for pair in pairwise(bounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for array, expected in zip(ours, truth, strict=True):
        assert_same_bits(array, expected, name)


@needs_gcc
@pytest.mark.skipif(not _MODE, reason="the modes of this processor are not known")
@pytest.mark.parametrize("name", ["adam-f32", "radam-f64", "adam-preset-8bit"])
def test_the_floating_point_mode_of_the_thread_changes_nothing_and_is_left_as_it_was(name, kernels):
    rule, storage = RULES[name]
    program, rng = trace(rule, storage), np.random.default_rng(4)
    scalars = tuple(np.array(host_scalars(program, rule)(1), program.dtype))  # rounded here, in the standard mode
    start = list(adversarial_buffers(program, rng, 1003).values())  # with subnormal numbers
    truth = [a.copy() for a in start]
    step("reference", program, truth, noise_of(program, 1), scalars)
    for bits in (*BITS, _MODE):
        ours = [a.copy() for a in start]
        enter(bits)
        kernels.step(program, ours, noise_of(program, 1), scalars)
        assert leave() == bits
        for array, expected in zip(ours, truth, strict=True):
            assert_same_bits(array, expected, f"mode {bits:#x}")


# ---- rules with totals


PHASED = test_totals.STORED
SKIPPING = {
    "skip": fastopt.SkipNonfinite(fastopt.Momentum()),
    "skip-above": fastopt.SkipNonfinite(fastopt.GradientNoise(fastopt.Adam()), skip_above=20.0),
    "skip-zero": fastopt.ZeroGradients(fastopt.SkipNonfinite(fastopt.Adam())),
}


@pytest.fixture(scope="module")
def phased(tmp_path_factory):
    rules = [(test_totals.RULES[name], storage) for name, storage in PHASED]
    rules += [(rule, storage) for rule in SKIPPING.values() for storage in ("f32", "bf16_8bit")]
    rules += [(AwkwardInC(True), "split_8bit")]
    made = {p.name: (p, rule) for p, rule in ((trace(*pair), pair[0]) for pair in rules)}
    return CKernels(made.values(), tmp_path_factory.mktemp("phased"), "gcc", "-O2")


def assert_phases_equal_the_reference(kernels, rule, storage, sizes, change=None):
    program = trace(rule, storage)
    (rows, truth), (_, ours) = (test_totals.rows_of(program, sizes) for _ in range(2))
    for arrays in (truth, ours):
        if change is not None:
            change(program, arrays)
    launch: Any = bind("reference", program, rows)
    taken = []
    for t in (1, 2):
        keys, scalars = noise_keys(7, t) if program.noise else (), host_scalars(program, rule)(t)
        run(launch.calls(keys, scalars))
        done, _ = kernels.step_all(program, ours, (*keys, rows.offsets) if keys else (), scalars)
        assert done == bool(launch.flags[0])
        taken.append(done)
    for row, expected in zip(ours, truth, strict=True):
        for b, x, y in zip(program.buffers, row, expected, strict=True):
            assert_same_bits(x, y, f"{program.name} {sizes} {b.name}")
    return taken


@needs_gcc
@pytest.mark.parametrize(("name", "storage"), PHASED)
def test_a_step_in_phases_equals_the_reference(name, storage, phased):
    for sizes in ([1], [255], [256], [257], [70_001], [1000, 0, 1, 256, 257, 3, 0, 511, 40_001, 1], [0, 0, 5], [0]):
        assert_phases_equal_the_reference(phased, test_totals.RULES[name], storage, sizes)


@needs_gcc
def test_names_may_be_those_of_the_function_that_steps_all_tensors(phased):
    assert_phases_equal_the_reference(phased, AwkwardInC(True), "split_8bit", [300, 0, 1003])


@needs_gcc
@pytest.mark.parametrize("storage", ["f32", "bf16_8bit"])
@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("value", [1.0, np.inf, np.nan])
def test_a_step_is_skipped_where_the_reference_skips_it(name, storage, value, phased):
    def change(program, arrays):
        g = next(k for k, b in enumerate(program.buffers) if b.name == "g")
        bad = np.full(1, value, np.float32)
        arrays[1][g][3] = bad[0] if arrays[1][g].dtype == np.float32 else (bad.view(np.uint32) >> 16)[0]

    taken = assert_phases_equal_the_reference(phased, SKIPPING[name], storage, [300, 40], change)
    # A gradient that was skipped is zero afterwards, where the rule says so, and the next step is taken.
    assert taken == ([True, True] if value == 1.0 else [False, name == "skip-zero"])

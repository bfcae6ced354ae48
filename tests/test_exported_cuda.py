"""Exported CUDA sources compile as they stand, with nvcc's own options, and have the bits of the reference."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import cuda_host
import numpy as np
import pytest
import test_c
import test_totals
from cases import CASES
from cuda_host import COMPILER, HostKernels, compile_library
from test_cuda_host import LAYOUTS, assert_same_buffers, encoded_values, noise
from values import adversarial_buffers, guarded, guards_intact, step

import fastopt
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda import nvrtc
from fastopt.kernels.cuda.exported import NVCC
from fastopt.kernels.cuda.printer import entry, print_entries
from fastopt.kernels.formats import TILE

CHOSEN = {
    **{f"{case}-{storage}": (CASES[case], storage) for case in ("adam-amsgrad-l2", "radam", "noise-adam", "rprop")
       for storage in ("f32", "f64")},
    **{name: LAYOUTS[name] for name in ("adam-preset-8bit", "adam-preset-split_8bit", "adam-preset-bf16",
                                        "noise-adam-preset-bf16_8bit")},
}  # fmt: skip
NAMES = ("add", "sub", "mul", "div")
ON_THE_HOST = (
    "\n".join(
        f"inline {kind} __{letter}{name}_rn({kind} a, {kind} b) {{ return a {sign} b; }}"
        for kind, letter in (("float", "f"), ("double", "d"))
        for name, sign in zip(NAMES, "+-*/", strict=True)
    )
    + "\ninline float __fsqrt_rn(float x) { return sqrt(x); }\ninline double __dsqrt_rn(double x) { return sqrt(x); }\n"
)
NVCC_PATH = shutil.which("nvcc")


@pytest.mark.parametrize("name", CHOSEN)
def test_an_exported_kernel_is_not_contracted_whatever_the_options(name):
    pytest.importorskip("cupy", reason="NVRTC is called through CuPy, which this platform has no wheel of")
    rule, storage = CHOSEN[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "OPTIONS", ("-std=c++17",))  # NVRTC's own, among them --fmad=true
        made = nvrtc.compile_source(fastopt.export_source(rule, storage, "cuda"), "sm_90")
        ptx = made.ptx.decode()
        assert not re.search(r"\b(fma|mad)\.(rn\.)?f(32|64)", ptx)
        assert f".entry {entry(trace(rule, storage))}(" in ptx


@pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")
def test_exported_kernels_equal_the_reference(tmp_path, monkeypatch):
    original = cuda_host.print_kernel
    monkeypatch.setattr(cuda_host, "print_kernel", lambda program: ON_THE_HOST + print_entries(program, NVCC))
    kernels = HostKernels([trace(*pair) for pair in CHOSEN.values()], tmp_path)
    assert "_rn(" in print_entries(trace(fastopt.SGD(), "f32"), NVCC)
    assert "_rn(" not in original(trace(fastopt.SGD(), "f32"))
    for rule, storage in CHOSEN.values():
        program, rng = trace(rule, storage), np.random.default_rng(0)
        scalars = host_scalars(program, rule)
        for n in (1, 257, 1003):
            plain = all(form.plain for form in program.formats.values())
            ours = (
                list(adversarial_buffers(program, rng, n).values())
                if plain
                else [guarded(a) for a in encoded_values(program, rng, n)]
            )
            truth = [a.copy() for a in ours]
            for t in (1, 2, 100):
                kernels.step(program, ours, noise(program, t, 5 * TILE), scalars(t))
                step("reference", program, truth, noise(program, t, 5 * TILE), scalars(t))
            assert_same_buffers(program, ours, truth, f"n = {n}")


@pytest.mark.skipif(NVCC_PATH is None, reason="needs nvcc")
@pytest.mark.parametrize("name", ["adam-amsgrad-l2-f32", "noise-adam-preset-bf16_8bit", "nadam", "awkward"])
def test_nvcc_compiles_an_exported_source_as_it_stands(name, tmp_path):
    from test_cuda_host import AwkwardNames

    others = {"nadam": (fastopt.NAdam(), "f64"), "awkward": (AwkwardNames(), "split_8bit")}
    rule, storage = (CHOSEN | others)[name]
    compile_with_nvcc(fastopt.export_source(rule, storage, "cuda"), tmp_path)


def compile_with_nvcc(text, folder):
    """Compile a source by nvcc's own options, without warnings."""
    source = folder / "kernel.cu"
    source.write_text(text, encoding="utf-8")
    command = [str(NVCC_PATH), "-O3", "-Werror", "all-warnings", "-c", str(source), "-o", str(folder / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- rules with totals: the whole file runs on the host, its launches as calls

RUNTIME = """
#include <cstddef>
#include <tuple>
typedef int cudaStream_t;
typedef int cudaError_t;
const cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* at, int byte, size_t size, cudaStream_t) {
    memset(at, byte, size);
    return cudaSuccess;
}
namespace host {
template <typename... P, typename... A, size_t... I>
void call(void (*kernel)(P...), unsigned blocks, int threads, std::index_sequence<I...>, A... given) {
    std::tuple<P...> values(given...);
    void* pointers[] = {&std::get<I>(values)...};
    launch(kernel, blocks, 0, threads, pointers, descending_lanes);
}
template <typename... P, typename... A>
void call(void (*kernel)(P...), unsigned blocks, int threads, A... given) {
    call(kernel, blocks, threads, std::index_sequence_for<P...>(), given...);
}
}
"""


def on_the_host(text):
    """Change an exported source so that g++ compiles it: a launch becomes a call of the kernel for each thread."""
    text = text.replace("NULL", "nullptr").replace("#include <cuda_runtime.h>", "")
    launch = re.compile(r"([\w:]+)<<<(.+?), (\w+), 0, stream>>>\(")
    return launch.sub(r"host::call(\1, \2, \3, ", text)


class ExportedOnHost:
    """Exported sources of rules with totals, each compiled for the host."""

    def __init__(self, rules, folder, *, descending):
        self._made, sources = {}, {}
        for rule, storage in rules:
            program = trace(rule, storage)
            text = on_the_host(fastopt.export_source(rule, storage, "cuda"))
            runtime = RUNTIME.replace("descending_lanes", str(descending).lower())
            sources[program.name] = f'#include "cuda_host.h"\n{ON_THE_HOST}{runtime}{text}'
        with ThreadPoolExecutor() as pool:
            paths = [folder / f"exported{k}.so" for k in range(len(sources))]
            self._made = dict(zip(sources, pool.map(compile_library, sources.values(), paths), strict=True))

    def step_all(self, program, tensors, noise, scalars):
        """Take one step of a program in phases on tensors, as `CKernels.step_all` does."""
        most = max(len(program.known_after(k)) for k in range(len(program.phases) - 1))
        fields = ["n", *(f"b{k}" for k in range(len(program.buffers))), *(["offset"] if program.noise else [])]
        table = np.zeros(len(tensors), [(f, np.uint64) for f in (*fields, "work", "totals")])
        tiles = [-(-arrays[0].size // TILE) for arrays in tensors]
        work = [guarded(np.full(most * t + 2 * -(-t // 256), np.nan)) for t in tiles]
        totals = np.full((len(tensors), len(program.totals)), np.nan)
        for k, arrays in enumerate(tensors):
            table[k]["n"], table[k]["work"], table[k]["totals"] = (
                arrays[0].size,
                work[k].ctypes.data,
                totals[k].ctypes.data,
            )
            for b, array in enumerate(arrays):
                table[k][f"b{b}"] = array.ctypes.data
            if program.noise:
                table[k]["offset"] = noise[2][k]
        over_all, flags = guarded(np.full(len(program.over_all), np.nan)), np.full(2, np.nan)
        keys, numbers = np.array(noise[:2], np.uint32), np.array(scalars, program.dtype)
        given = [ctypes.c_int(0), ctypes.c_size_t(len(tensors)), ctypes.c_void_p(table.ctypes.data)]
        passed = [(program.over_all, over_all), (program.condition is not None, flags), (program.noise, keys),
                  (program.scalars, numbers)]  # fmt: skip
        given += [ctypes.c_void_p(array.ctypes.data) for wanted, array in passed if wanted]
        assert getattr(self._made[program.name], f"{entry(program)}_launch")(*given) == 0
        assert all(map(guards_intact, (*work, over_all)))
        taken = True if program.condition is None else bool(flags[0])
        assert program.condition is None or flags.tolist() == ([1.0, 0.0] if taken else [0.0, 1.0])
        return taken, totals


WITH_TOTALS = {f"{name}-{storage}": (test_totals.RULES[name], storage) for name, storage in test_totals.STORED}
WITH_TOTALS |= {
    f"{name}-{storage}": (rule, storage) for name, rule in test_c.SKIPPING.items() for storage in ("f32", "bf16_8bit")
}
SIZES = ([1], [257], [1000, 0, 1, 256, 3, 0, 511, 4001, 1], [0, 0, 5], [0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return ExportedOnHost(WITH_TOTALS.values(), tmp_path_factory.mktemp("exported"), descending=False)


@pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")
@pytest.mark.parametrize("name", WITH_TOTALS)
def test_an_exported_step_with_totals_equals_the_reference(name, exported):
    rule, storage = WITH_TOTALS[name]
    twice = [[70_001]] if storage == "f32" else []  # whose sums are folded twice
    for sizes in (*SIZES, *twice):
        test_c.assert_phases_equal_the_reference(exported, rule, storage, sizes)


@pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")
@pytest.mark.parametrize("name", test_c.SKIPPING)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_exported_step_is_skipped_where_the_reference_skips_it(name, value, exported):
    def spoil(program, tensors):
        tensors[1][next(k for k, b in enumerate(program.buffers) if b.name == "g")][3] = value

    taken = test_c.assert_phases_equal_the_reference(exported, test_c.SKIPPING[name], "f32", [300, 40], spoil)
    # A gradient that was skipped is zero afterwards, where the rule says so, and the next step is taken.
    assert taken == [False, name == "skip-zero"]


@pytest.mark.skipif(NVCC_PATH is None, reason="needs nvcc")
@pytest.mark.parametrize("name", ["skip-above-bf16_8bit", *[name for name in WITH_TOTALS if "lamb" in name][:1]])
def test_nvcc_compiles_an_exported_source_with_totals(name, tmp_path):
    rule, storage = WITH_TOTALS[name]
    compile_with_nvcc(fastopt.export_source(rule, storage, "cuda"), tmp_path)

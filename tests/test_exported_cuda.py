"""Exported CUDA sources compile as they stand, with nvcc's own options, and have the bits of the reference."""

from __future__ import annotations

import re
import shutil
import subprocess

import cuda_host
import numpy as np
import pytest
from cases import CASES
from cuda_host import COMPILER, HostKernels
from test_cuda_host import LAYOUTS, assert_same_buffers, encoded_values, noise
from values import adversarial_buffers, guarded, step

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
    source = tmp_path / "kernel.cu"
    rule, storage = (CHOSEN | others)[name]
    source.write_text(fastopt.export_source(rule, storage, "cuda"), encoding="utf-8")
    command = [str(NVCC_PATH), "-O3", "-Werror", "all-warnings", "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_rule_with_totals_is_refused_by_name():
    with pytest.raises(fastopt.BackendError, match="takes totals over tensors") as caught:
        fastopt.export_source(fastopt.LAMB(), language="cuda")
    assert "LAMB" in str(caught.value)
    assert "--language c" in str(caught.value)

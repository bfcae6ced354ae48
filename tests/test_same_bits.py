"""Every rule in every form, on the CPU backend, equals the reference bit for bit."""

import numpy as np
import pytest
from cases import CASES
from values import SIZES, assert_same_bits, filled, guards_intact

import fastopt
from fastopt.kernels import cpu, intrinsics
from fastopt.kernels.program import trace

DTYPES = (np.float32, np.float64)
IN_STRIPS = 131_072 + 2 * 64 + 13  # so large that a step runs in prefetched strips, the last of them not a whole one


def test_the_large_size_is_one_that_runs_in_strips():
    assert cpu.STRIPS_FROM < IN_STRIPS < cpu.STRIPS_FROM + 1000
    assert IN_STRIPS % intrinsics.STRIP


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_cpu_kernel_equals_the_reference(case, dtype):
    rule, rng = CASES[case], np.random.default_rng(0)
    program = trace(rule, dtype)
    for n in (*SIZES, IN_STRIPS):
        ours = filled(program, rng, n)
        truth = {name: a.copy() for name, a in ours.items()}
        for t in (1, 2, 3, 100) if n < IN_STRIPS else (1, 100):
            fastopt.update(rule, t, ours, backend="cpu", seed=5)
            fastopt.update(rule, t, truth, backend="reference", seed=5)
        for name, array in ours.items():
            assert_same_bits(array, truth[name], f"{case}, n = {n}, {name}")
            assert guards_intact(array), f"{case}, n = {n}: wrote beyond {name}"


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("case", ["sgd", "adam-amsgrad-l2", "rmsprop-centered-momentum", "noise-adam"])
def test_the_number_of_threads_does_not_matter(case, threads, monkeypatch):
    monkeypatch.setattr(cpu, "PARALLEL_FROM", 0)
    monkeypatch.setattr(cpu, "CHUNK", 512)
    rule, rng = CASES[case], np.random.default_rng(1)
    ours = filled(trace(rule, np.float32), rng, IN_STRIPS)
    truth = {name: a.copy() for name, a in ours.items()}
    before = fastopt.get_threads()
    try:
        fastopt.set_threads(threads)
        for t in range(1, 6):
            fastopt.update(rule, t, ours)
            fastopt.update(rule, t, truth, backend="reference")
    finally:
        fastopt.set_threads(before)
    for name, array in ours.items():
        assert_same_bits(array, truth[name], f"{case}, {threads} threads, {name}")
        assert guards_intact(array)


@pytest.mark.parametrize("misalignment", range(4, 64, 4))
def test_any_alignment_of_whole_elements_works(misalignment):
    rule, rng = CASES["adam"], np.random.default_rng(2)
    n = 1003
    ours = {}
    for k, b in enumerate(trace(rule, np.float32).buffers):
        shift = (misalignment * (k + 1)) % 64
        raw = np.zeros(n * 4 + 128, np.uint8)
        start = -raw.ctypes.data % 64 + shift
        ours[b.name] = raw[start : start + 4 * n].view(np.float32)
        ours[b.name][...] = rng.standard_normal(n)
    truth = {name: a.copy() for name, a in ours.items()}
    fastopt.update(rule, 1, ours)
    fastopt.update(rule, 1, truth, backend="reference")
    for name, array in ours.items():
        assert_same_bits(array, truth[name], name)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    n = 2**31 + 1003
    p, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
    touched = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, n - 1]
    g[touched] = 1.0
    fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
    assert np.flatnonzero(p).tolist() == touched
    assert np.all(p[touched] == -0.5)

"""On the CPU backend every rule, in every variant and every storage format, equals the reference bit for bit."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from cases import CASES
from values import SIZES, adversarial_buffers, assert_same_bits, guarded, guards_intact, step

import fastopt
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning
from fastopt.kernels.formats import STORAGES, TILE
from fastopt.kernels.rules.rule import signature

DTYPES = (np.float32, np.float64)
IN_STRIPS = 131_072 + 2 * 64 + 13  # so large that a step runs in prefetched strips; the last strip is incomplete


@dataclass(frozen=True)
class SignMomentum:
    """A rule that is not part of fastopt, with two state buffers."""

    lr: float = 0.01
    beta: float = 0.9

    unsigned: ClassVar = ("size",)

    def scalars(self, t):
        return {"lr": self.lr, "beta": self.beta, "rest": 1 - self.beta}

    def update(self, p, g, m, size, *, lr, beta, rest):
        m = beta * m + rest * g
        size = beta * size + rest * np.abs(m)
        return p - lr * np.sign(m) * size, m, size


PRESET_CASES = {
    "noise-adam-bf16_8bit": (CASES["noise-adam"], "bf16_8bit"),
    "adam-amsgrad-split_8bit": (CASES["adam-amsgrad"], "split_8bit"),
    "rmsprop-centered-momentum-8bit": (CASES["rmsprop-centered-momentum"], "8bit"),
    "adadelta-bf16": (CASES["adadelta"], "bf16"),
    "momentum-bf16_kahan": (CASES["momentum"], "bf16_kahan"),
    "adam-mixed_f16": (CASES["adam"], "mixed_f16"),
    "mine-bf16_8bit": (SignMomentum(), "bf16_8bit"),
}


def steps(program: Program, rule: Any, arrays: dict[str, np.ndarray], ts: Iterable[int], backend: str = "cpu") -> None:
    """Take steps `ts` on arrays from `adversarial_buffers`, which are in the order of the program's buffers."""
    scalars = host_scalars(program, rule)
    for t in ts:
        step(backend, program, list(arrays.values()), (*noise_keys(5, t), 0) if program.noise else (), scalars(t))


def assert_cpu_equals_reference(program: Program, rule: Any, ours: dict[str, np.ndarray], ts: Iterable[int]) -> None:
    truth = {name: a.copy() for name, a in ours.items()}
    steps(program, rule, truth, ts, "reference")
    steps(program, rule, ours, ts)
    for name, array in ours.items():
        assert_same_bits(array, truth[name], f"{program.name}, {name}, {array.size} elements")
        assert guards_intact(array), f"{program.name}: wrote beyond {name}"


@pytest.fixture(autouse=True)
def _use_prefetched_strips(monkeypatch):
    """Run large steps in prefetched strips, also on processors where that is not the default."""
    monkeypatch.setattr(tuning, "processor_prefetches", lambda: True)


def test_the_large_size_is_one_that_runs_in_strips():
    assert tuning.prefetches(IN_STRIPS)
    assert tuning.STRIPS_FROM < IN_STRIPS < tuning.STRIPS_FROM + 1000
    assert IN_STRIPS % 64
    assert IN_STRIPS % TILE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_cpu_kernel_equals_the_reference(case, dtype, monkeypatch):
    rule, rng = CASES[case], np.random.default_rng(0)
    program = trace(rule, dtype)
    for n in (*SIZES, IN_STRIPS):
        assert_cpu_equals_reference(
            program, rule, adversarial_buffers(program, rng, n), (1, 2, 3, 100) if n < IN_STRIPS else (1, 100)
        )
    monkeypatch.setattr(tuning, "processor_prefetches", lambda: False)
    assert_cpu_equals_reference(program, rule, adversarial_buffers(program, rng, IN_STRIPS), (1, 100))


# layout → formats of p, g and all state. Together they use every format for each kind of buffer that it can store.
LAYOUTS = {
    "bf16": ("bf16", "bf16", "bf16"),
    "f16": ("f16", "f16", "f16"),
    "bf16_sr": ("bf16_sr", "f32", "bf16_sr"),
    "f16_sr": ("f16_sr", "f16", "f16_sr"),
    "f8": ("bf16_kahan", "bf16", "f8"),
    "uf8": ("split", "bf16", "uf8"),
    "f32_bf16": ("f32_bf16", "bf16", "f32"),
    "f32_f16": ("f32_f16", "f16", "f8"),
    "split24": ("split24", "f32", "f32"),
}
for name in STORAGES.keys() - {name for layout in LAYOUTS.values() for name in layout} - {"f64"}:
    p, g, state = (name if kind in STORAGES[name].holds else "f32" for kind in ("p", "g", "state"))
    LAYOUTS[name] = (p, g, state)
STORED = {name: CASES[name] for name in ("momentum", "rmsprop-centered", "adam", "adam-amsgrad", "lion")}
STORED["mine"] = SignMomentum()


def test_the_layouts_cover_every_format_for_each_kind_of_buffer():
    for k, kind in enumerate(("p", "g", "state")):
        formats = {name for name, s in STORAGES.items() if kind in s.holds and name not in ("f32", "f64")}
        assert formats <= {layout[k] for layout in LAYOUTS.values()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", STORED)
def test_the_cpu_kernel_equals_the_reference_in_every_format(case, layout):
    rule, rng = STORED[case], np.random.default_rng(1)
    p, g, state = LAYOUTS[layout]
    program = trace(rule, {b: {"p": p, "g": g}.get(b, state) for b in signature(rule).buffers})
    for n in (*SIZES, IN_STRIPS):
        ours = adversarial_buffers(program, rng, n)
        assert_cpu_equals_reference(program, rule, ours, (1, 2, 3, 100) if n < 10_000 else (1, 2))


@pytest.mark.parametrize("case", PRESET_CASES)
def test_the_cpu_kernel_equals_the_reference_in_presets(case):
    rule, name = PRESET_CASES[case]
    program, rng = trace(rule, name), np.random.default_rng(2)
    for n in (*SIZES, IN_STRIPS):
        assert_cpu_equals_reference(program, rule, adversarial_buffers(program, rng, n), (1, 2, 3))


@cache
def _reference_steps(case: str) -> tuple[Program, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a program, its arrays, and the same arrays after five steps on the reference backend."""
    rule = PRESET_CASES[case][0] if case in PRESET_CASES else CASES[case]
    program = trace(rule, PRESET_CASES[case][1]) if case in PRESET_CASES else trace(rule, np.float32)
    before = adversarial_buffers(program, np.random.default_rng(1), IN_STRIPS)
    after = {name: a.copy() for name, a in before.items()}
    steps(program, rule, after, range(1, 6), "reference")
    return program, before, after


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("case", ["sgd", "adam-amsgrad-l2", "rmsprop-centered-momentum", "noise-adam", *PRESET_CASES])
def test_results_do_not_depend_on_the_number_of_threads(case, threads, monkeypatch):
    monkeypatch.setattr(tuning, "PARALLEL_FROM", 0)
    monkeypatch.setattr(tuning, "CHUNK", 512)
    rule = PRESET_CASES[case][0] if case in PRESET_CASES else CASES[case]
    program, before, after = _reference_steps(case)
    ours = {name: guarded(a) for name, a in before.items()}
    default = fastopt.get_threads()
    try:
        fastopt.set_threads(threads)
        steps(program, rule, ours, range(1, 6))
    finally:
        fastopt.set_threads(default)
    for name, array in ours.items():
        assert_same_bits(array, after[name], f"{case}, {threads} threads, {name}")
        assert guards_intact(array)


@pytest.mark.parametrize("misalignment", range(4, 64, 4))
@pytest.mark.parametrize("case", ["adam-f32", "noise-adam-bf16_8bit", "adam-amsgrad-split_8bit"])
def test_results_do_not_depend_on_alignment(case, misalignment):
    rule, name = PRESET_CASES.get(case, (CASES["adam"], "f32"))
    program = trace(rule, name)
    arrays = adversarial_buffers(program, np.random.default_rng(2), 1003)
    shifts = [(misalignment // 4 * a.itemsize * (k + 1)) % 64 for k, a in enumerate(arrays.values())]
    ours = {name: guarded(a, shift) for (name, a), shift in zip(arrays.items(), shifts, strict=True)}
    assert any(a.ctypes.data % 64 for a in ours.values())
    assert_cpu_equals_reference(program, rule, ours, (1,))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    n = 2**31 + 1003
    p, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
    touched = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, n - 1]
    g[touched] = 1.0
    fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
    assert np.flatnonzero(p).tolist() == touched
    assert np.all(p[touched] == -0.5)

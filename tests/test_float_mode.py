"""The bits do not depend on the floating-point mode of the thread that steps, and the mode is left as it was."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
from cases import CASES
from numba import int64, njit
from values import assert_same_bits

import fastopt
from fastopt.kernels.cpu.jobs import _MODE, restore_mode, standard_mode
from fastopt.kernels.launch import run

pytestmark = pytest.mark.skipif(not _MODE, reason="the modes of this processor are not known")
BITS = [1 << k for k in range(32) if _MODE >> k & 1]


@njit(int64(int64))
def enter(bits):
    """Set these bits of the thread's mode, which had none of them, and return what it was."""
    mode = standard_mode()  # pyright: ignore[reportCallIssue] — an intrinsic
    restore_mode(mode | bits)  # pyright: ignore[reportCallIssue]
    return mode


@njit(int64())
def leave():
    """Go back to the standard mode, and return the bits that were set."""
    return standard_mode() & _MODE  # pyright: ignore[reportCallIssue]


def end(rule, storage: str, bits: int, backend: str = "cpu", n: int = 1003) -> dict:
    """Take steps with tiny numbers in a mode, and check that it is left as it was."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(n) * 10.0 ** rng.integers(-44, 5, n)).astype(np.float32)
    opt = fastopt.Optimizer(rule, {"w": w}, storage=storage, backend=backend)
    opt.grads["w"][...] = (rng.standard_normal(n) * 10.0 ** rng.integers(-30, 5, n)).astype(opt.grads["w"].dtype)
    for _ in range(3):
        calls = opt._calls(None)  # whose scalars are Python's
        enter(bits)
        run(calls)
        assert leave() == bits
    return {name: x for name, x in opt.state_dict().items() if "/" in name}


# Every case computes in float32. What a storage adds to a kernel is the same for every rule: each storage has Adam,
# with noise and without, and each rule has a storage.
STORAGES = ("bf16", "8bit", "split", "mixed_f16")
FIRST = {type(rule): case for case, rule in reversed(CASES.items())}
STORED = [(case, storage) for case in ("adam", "noise-adam") for storage in STORAGES]
STORED += [pair for pair in zip(FIRST.values(), cycle(STORAGES), strict=False) if pair not in STORED]


@pytest.mark.parametrize(("case", "storage"), [*((case, "f32") for case in CASES), *STORED])
def test_steps_have_the_same_bits_in_every_mode(case, storage):
    truth = end(CASES[case], storage, 0, "reference")
    for bits in (0, *BITS, _MODE):
        for name, x in end(CASES[case], storage, bits).items():
            assert_same_bits(x, truth[name], f"{name}, mode {bits:#x}")


def test_threads_do_not_mix_modes():
    rule, n = fastopt.SGD(lr=0.1), 6_000_000
    p, g = np.zeros(n, np.float32), np.full(n, 1e-38, np.float32)  # of which a step is subnormal
    fastopt.update(rule, 1, {"p": p, "g": g})  # workers are started here
    for _ in range(5):
        p.fill(0)
        enter(_MODE)
        fastopt.update(rule, 1, {"p": p, "g": g})
        leave()
        assert np.all(p < 0)


def test_the_modes_do_change_results_elsewhere():
    """A control: without `standard_mode` the tests above would fail."""
    add = njit("float64(float64, float64)", error_model="numpy")(lambda x, y: x + y)

    def sums() -> list[float]:
        return [add(x, y) for x in (1.0, -1.0, 5e-324) for y in (1e-17, -1e-17, 5e-324)]

    before, found = sums(), []
    for bits in BITS:
        enter(bits)
        found.append(sums())
        leave()
    assert sum(changed != before for changed in found) >= 3

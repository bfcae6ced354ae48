"""Gradients that a step sets to zero where it reads them last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES
from test_skip import BACKENDS, PARAMS, gradients, maybe_cupy, on_host, step
from values import assert_same_bits

import fastopt
from fastopt import LayoutError, SettingError, SkipNonfinite, ZeroGradients
from fastopt.kernels.compiler.trace import trace

__all__ = ["maybe_cupy"]  # a fixture


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("case", "storage"),
    [("sgd", "f32"), ("adam", "f64"), ("noise-adam", "bf16"), ("adam-decoupled", "split_8bit"), ("lion", "8bit"),
     ("rmsprop-centered-momentum", "bf16_8bit"), ("adam", "bf16_kahan"), ("noise-adam", "8bit")],
)  # fmt: skip
def test_all_else_is_as_without(case, storage, backend, maybe_cupy):
    """Plain tiles, tiles with a NaN, and those that are not whole."""
    opt = fastopt.Optimizer(ZeroGradients(CASES[case]), PARAMS, storage=storage, backend=backend, seed=3)
    plain = fastopt.Optimizer(CASES[case], PARAMS, storage=storage, backend="reference", seed=3)
    for t in range(5):  # two of them with a gradient that is not finite
        step(opt, gradients(t))
        step(plain, gradients(t))
        assert not on_host(opt.flat_grads.view(np.uint8) if backend != "cuda" else opt.flat_grads).any()
    state, expected = opt.state_dict(), plain.state_dict()
    for name in expected.keys() - {"rules"}:
        assert_same_bits(np.asarray(state[name]), np.asarray(expected[name]), name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_skipped_step_are_zero_too(backend, maybe_cupy):
    """Otherwise the next backward pass would add to a NaN."""
    for rule in (SkipNonfinite(ZeroGradients(fastopt.Adam())), ZeroGradients(SkipNonfinite(fastopt.Adam()))):
        opt = fastopt.Optimizer(rule, PARAMS, groups={"w1": {"lr": 0.1}}, backend=backend)
        for t in (2, 3, 4):
            step(opt, gradients(t))
            assert not on_host(opt.flat_grads).any()
        assert (opt.t, opt.skipped) == (1, 2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 70_001])
def test_gradients_are_zero_up_to_the_last(n, backend):
    guard = np.ones(n + 2, np.float32)
    p, g = np.ones(n, np.float32), guard[1:-1]
    fastopt.update(ZeroGradients(fastopt.SGD(lr=0.5)), 1, {"p": p, "g": g}, backend=backend)
    assert (p == 0.5).all()
    assert not g.any()
    assert guard[0] == guard[-1] == 1.0


def test_a_gradient_that_cannot_be_written_is_refused():
    p, g = np.ones(3), np.ones(3)
    g.flags.writeable = False
    with pytest.raises(LayoutError, match="read-only"):
        fastopt.update(ZeroGradients(fastopt.SGD()), 1, {"p": p, "g": g})
    assert p.tolist() == [1.0] * 3


def test_torch_s_gradients_are_not_written():
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    import fastopt.torch

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(SettingError, match="zero_grad"):
        fastopt.torch.Fused([p], ZeroGradients(fastopt.SGD(lr=1.0))).step()
    assert p.grad.tolist() == p.tolist() == [1.0] * 3


def test_bytes_per_parameter_are_four_more():
    for storage, more in (("f32", 4), ("bf16", 2), ("f64", 8)):
        adam = trace(fastopt.Adam(), storage).bytes_per_parameter
        assert trace(ZeroGradients(fastopt.Adam()), storage).bytes_per_parameter == adam + more

"""Clipped, skipped and averaged steps of fastopt.torch on a device, captured ones too: see test_torch_capture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_host import COMPILER

torch: Any = pytest.importorskip("torch", reason="fastopt.torch is for PyTorch")

from test_torch_capture import assert_same_state, device, on_the_cpu, parameters, set_gradients  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import LayoutError  # noqa: E402

__all__ = ["device"]  # a fixture

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")

BAD = (3, 5)


def give(params: list, t: int) -> None:
    set_gradients(params, t)
    if t in BAD:
        params[2].grad[5 * t] = float("nan")


CASES: dict[str, Any] = {
    "AdamW": {"lr": 0.1, "max_norm": 0.5},
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "max_norm": 0.5, "skip_nonfinite": True, "ema": 0.9},
    "NAdam": {"lr": 0.1, "skip_nonfinite": True},
    "Adam": {"lr": 0.1, "skip_nonfinite": True, "max_norm": 0.5, "storage": "8bit", "ema": 0.5},
}


@pytest.mark.parametrize(("kind", "flatten"), [("AdamW", True), ("SGD", False), ("NAdam", True), ("Adam", False)])
def test_captured_steps_are_those_of_the_cpu(kind, flatten, device):
    """Replays too: what is skipped is not counted, by the device alone."""
    options = CASES[kind]
    params, theirs = parameters(), parameters()
    make = getattr(fastopt.torch, kind)

    def groups(ps: list) -> list:
        return [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.05}]

    ours = make(groups(params), **options, flatten=flatten, capturable=True)
    twin = make(groups(theirs), **options, flatten=flatten)
    skips = options.get("skip_nonfinite", False)

    def step_twin(t: int) -> None:
        give(theirs, t)
        with on_the_cpu():
            twin.step()
            assert_same_state(ours, twin)
            if "max_norm" in options:
                torch.testing.assert_close(ours.grad_norm, twin.grad_norm, rtol=0, atol=0, equal_nan=True)

    for t in (1, 2, 3):
        if t in BAD and not skips:
            continue
        give(params, t)
        ours.step()
        step_twin(t)
    with device() as graphs:
        ours.step()
    for t in (4, 5, 6, 7):
        if t in BAD and not skips:
            continue
        give(params, t)
        graphs[0].launch()
        step_twin(t)
    assert ours.skipped == twin.skipped == (2 if skips else 0)


def test_a_scaler_and_the_step_itself_skip(device):
    """What GradScaler found is skipped where it is, and what it does not look at too."""
    params, theirs = parameters(), parameters()
    ours: Any = fastopt.torch.AdamW(params, lr=0.1, max_norm=0.5, skip_nonfinite=True, capturable=True)
    twin: Any = fastopt.torch.AdamW(theirs, lr=0.1, max_norm=0.5, skip_nonfinite=True)
    for t, found in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 0.0)):
        for opt, ps in ((ours, params), (twin, theirs)):
            give(ps, t)
            opt.found_inf, opt.grad_scale = torch.tensor([found]), torch.tensor([4.0])
        ours.step()
        with on_the_cpu():
            twin.step()
            assert_same_state(ours, twin)
    assert ours.state[params[0]]["step"] == 2
    assert ours.skipped == 2  # the device does not know for which reason


@pytest.mark.parametrize("storage", [None, "8bit"])
def test_clipping_on_a_device_is_that_of_the_cpu(storage, device):
    """Counted by the host, as nothing is skipped; parameters that miss a gradient are of another launch then."""
    params, theirs = parameters(), parameters()
    ours = fastopt.torch.AdamW(params, lr=0.1, max_norm=0.5, storage=storage)
    twin = fastopt.torch.AdamW(theirs, lr=0.1, max_norm=0.5, storage=storage)
    assert ours.grad_norm is None
    for t in (1, 2, 4, 6):
        for ps in (params, theirs):
            set_gradients(ps, t)
            if t == 2:
                ps[1].grad = None
        ours.step()
        with on_the_cpu():
            twin.step()
            assert_same_state(ours, twin)
        assert isinstance(ours.grad_norm, torch.Tensor)
        torch.testing.assert_close(ours.grad_norm, twin.grad_norm, rtol=0, atol=0)


def test_groups_that_are_counted_in_two_ways_take_no_totals_together(device):
    params = parameters()
    set_gradients(params, 1)
    kept = [p.detach().clone() for p in params]
    opt = fastopt.torch.AdamW([{"params": params[:2], "capturable": True}, {"params": params[2:]}], max_norm=1.0)
    with pytest.raises(LayoutError, match="all capturable or none"):
        opt.step()
    for p, q in zip(params, kept, strict=True):
        np.testing.assert_array_equal(p.detach(), q)

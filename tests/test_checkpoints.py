"""Checkpoints written by fastopt 0.1 load, and training continues to the same bits that 0.1 reached from them.

Where rounding is stochastic its random bits are others now: there the values are those that were saved, and training
continues as the reference does.
"""

from __future__ import annotations

import io
import lzma
import pickle
from functools import cache
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import AFTER, OPTIMIZERS, TORCH_OPTIMIZERS

from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.formats import STORAGES
from fastopt.kernels.rules import RULES


@cache
def stored() -> Any:
    """Return what `checkpoints.main` of 0.1 wrote: saved state, pickle and later parameters of each case."""
    return pickle.loads(lzma.decompress(checkpoints.FILE.read_bytes()))


def is_random(rule: Any, storage: Any) -> bool:
    """Whether steps round stochastically: by other bits than those of 0.1, see docs/decisions/0019."""
    return storage is not None and any(STORAGES[name].random for name in layout(rule, storage).values())


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=" ".join)
def test_an_optimizer_resumes_from_a_checkpoint_of_0_1(case, how):
    state, pickled, expected = stored()[case]
    if how == "pickle":
        opt = pickle.loads(pickled)
    else:
        opt = checkpoints.optimizer(*case)
        opt.load_state_dict(state)
    saved = opt.state_dict()
    assert saved["t"] == state["t"]
    for name, value in state.items():
        assert not isinstance(value, np.ndarray) or saved[name].tobytes() == value.tobytes(), name
    if is_random(checkpoints.RULES[case[0]], case[1]):
        truth = checkpoints.optimizer(*case, backend="reference")
        truth.load_state_dict(state)
        expected = checkpoints.advance(truth, AFTER)
    found = checkpoints.advance(opt, AFTER)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def resumed(torch: Any, case: tuple, how: str) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return parameters, their optimizer and its state as it was saved."""
    saved, pickled, _ = stored()[case]
    loaded = torch.load(io.BytesIO(saved))
    if how == "pickle":
        return *pickle.loads(pickled), loaded["state"]
    params, opt = checkpoints.torch_optimizer(*case, params=loaded["params"])
    opt.load_state_dict(loaded["state"])
    return params, opt, loaded["state"]


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", TORCH_OPTIMIZERS, ids=lambda case: " ".join(map(str, case)))
def test_fastopt_torch_resumes_from_a_checkpoint_of_0_1(case, how):
    torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")
    params, opt, saved = resumed(torch, case, how)
    now = opt.state_dict()["state"]
    for k, entries in saved["state"].items():
        for name in entries.keys() & now[k].keys():
            assert torch.equal(torch.as_tensor(now[k][name]), torch.as_tensor(entries[name])), name
        assert "step" in now[k] or case[0] == "SGD"
    expected = stored()[case][2]
    if is_random(RULES["adam"](), case[1]):  # then both ways to resume lead to the same
        others, other, _ = resumed(torch, case, "pickle" if how == "state_dict" else "state_dict")
        expected = checkpoints.advance_torch(others, other, AFTER)
    for found, value in zip(checkpoints.advance_torch(params, opt, AFTER), expected, strict=True):
        assert np.array_equal(found, value)

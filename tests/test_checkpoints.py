"""Checkpoints written by fastopt 0.1 load, and training continues to the same bits that 0.1 reached from them."""

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


@cache
def stored() -> Any:
    """Return what `checkpoints.main` of 0.1 wrote: saved state, pickle and later parameters of each case."""
    return pickle.loads(lzma.decompress(checkpoints.FILE.read_bytes()))


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=" ".join)
def test_an_optimizer_resumes_from_a_checkpoint_of_0_1(case, how):
    state, pickled, expected = stored()[case]
    if how == "pickle":
        opt = pickle.loads(pickled)
    else:
        opt = checkpoints.optimizer(*case)
        opt.load_state_dict(state)
    found = checkpoints.advance(opt, AFTER)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", TORCH_OPTIMIZERS, ids=lambda case: " ".join(map(str, case)))
def test_fastopt_torch_resumes_from_a_checkpoint_of_0_1(case, how):
    torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")
    saved, pickled, expected = stored()[case]
    if how == "pickle":
        params, opt = pickle.loads(pickled)
    else:
        loaded = torch.load(io.BytesIO(saved))
        params, opt = checkpoints.torch_optimizer(*case, params=loaded["params"])
        opt.load_state_dict(loaded["state"])
    for found, value in zip(checkpoints.advance_torch(params, opt, AFTER), expected, strict=True):
        assert np.array_equal(found, value)

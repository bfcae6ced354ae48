"""Checkpoints of 0.1 load, and training goes on to the bits to which 0.1 went on."""

from __future__ import annotations

import io
import lzma
import pickle
from functools import cache
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import ADAPTERS, AFTER, OPTIMIZERS


@cache
def written() -> Any:
    return pickle.loads(lzma.decompress(checkpoints.FILE.read_bytes()))


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=" ".join)
def test_a_checkpoint_of_an_optimizer_goes_on(case, how):
    state, pickled, expected = written()[case]
    if how == "pickle":
        opt = pickle.loads(pickled)
    else:
        opt = checkpoints.optimizer(*case)
        opt.load_state_dict(state)
    found = checkpoints.advance(opt, AFTER)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: " ".join(map(str, case)))
def test_a_checkpoint_of_fastopt_torch_goes_on(case, how):
    torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")
    saved, pickled, expected = written()[case]
    if how == "pickle":
        params, opt = pickle.loads(pickled)
    else:
        loaded = torch.load(io.BytesIO(saved))
        params, opt = checkpoints.adapter(*case, params=loaded["params"])
        opt.load_state_dict(loaded["state"])
    for found, value in zip(checkpoints.advance_adapter(params, opt, AFTER), expected, strict=True):
        assert np.array_equal(found, value)

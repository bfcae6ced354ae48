"""torch's optimizers on our buffers: set up as the tests prove them equal, and checked again before they are timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import fastopt
from tests.cases import CASES, fresh_buffers
from tests.peers import PEERS
from tests.values import assert_same_bits

# torch fuses these on the CPU; the others it runs as a chain of whole-array operations.
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}

# torch's float32 differs from ours by the order of operations: over five steps some fifty roundings of 6e-8 each,
# relative to values of about 1.
TOLERANCE = 1e-5
CHECKED, STEPS = 1003, 5


def torch(threads: int | None = None) -> Any:
    """Import torch, with this many threads or as many as fastopt uses; None where it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    torch.set_num_threads(threads or fastopt.get_threads())
    return torch


def torch_on(case: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """Make torch's optimizer for a row of CASES, to work in place on these very arrays; None without torch or a row."""
    row = PEERS.get(f"torch {case}")
    library: Any = torch()
    if row is None or library is None:
        return None
    p = library.nn.Parameter(library.from_numpy(arrays["p"]))
    p.grad = library.from_numpy(arrays["g"])
    optimizer = row.make(library, p)
    for group in optimizer.param_groups:
        group["fused"] = fused(optimizer)
    kept = arrays["p"].copy()
    optimizer.step()  # makes its state
    arrays["p"][...] = kept
    for ours, theirs in row.state.items():
        optimizer.state[p][theirs] = library.from_numpy(arrays[ours])
    if "step" in optimizer.state[p]:
        optimizer.state[p]["step"].zero_()
    return optimizer


def fused(optimizer: Any) -> bool:
    """Whether torch runs this optimizer in one pass."""
    return type(optimizer).__name__ in FUSED


def small(case: str) -> dict[str, np.ndarray]:
    """Give a small problem for a row of CASES: seeded values, the same at every call."""
    rng = np.random.default_rng(0)
    arrays = fresh_buffers(CASES[case], rng.standard_normal(CHECKED).astype(np.float32))
    arrays["g"][...] = rng.standard_normal(CHECKED)
    return arrays


def check_rule(case: str) -> dict[str, np.ndarray]:
    """Take steps on a small problem and raise unless the kernel's bits are the reference's; gives where they lead."""
    ours, truth = small(case), small(case)
    for t in range(1, STEPS + 1):
        fastopt.update(CASES[case], t, ours, backend="cpu")
        fastopt.update(CASES[case], t, truth, backend="reference")
    for name, array in ours.items():
        assert_same_bits(array, truth[name], f"{case}, {name}")
    return ours


def check_torch(case: str, ours: Mapping[str, np.ndarray]) -> None:
    """Take the same steps in torch and raise unless they lead to the same place, as float32 allows."""
    theirs = small(case)
    optimizer = torch_on(case, theirs)
    for _ in range(STEPS):
        optimizer.step()
    for name in ours:
        require_close(theirs[name], ours[name], f"torch {case}, {name}")


def require_close(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Raise an AssertionError unless two arrays differ by rounding alone."""
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)

"""Check a contestant before it is timed: compare a few steps on a small problem with the rule's NumPy definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import fastopt
from fastopt.arrays import library_of
from fastopt.bench import problem as memory
from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Peer

STEPS = 5
MANY = 1 << 16  # parameters; libraries with 8-bit state store that of small tensors in float32

# Other libraries compute in float32 with another order of operations: over five steps about fifty roundings differ, by
# 6e-8 each, relative to values of about 1.
TOLERANCE = 1e-5


class WrongResultError(AssertionError):
    """A contestant's result differs from the rule's by more than rounding."""


def small(case: Case, few: int = 1003) -> Case:
    """Return the case with few small tensors: up to three, or as many as there are groups."""
    each = MANY if "8bit" in case.storage else few
    count = max(case.groups, min(3, len(case.tensors)))
    return replace(case, size=f"{count}x{each}")


def start(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Return normally distributed parameters and gradients, the same at every call."""
    rng = np.random.default_rng(0)
    return {b: {name: rng.standard_normal(n).astype(np.float32) for name, n in case.tensors.items()} for b in "pg"}


def reference(case: Case) -> dict[str, np.ndarray]:
    """Return the parameters by the definition, in float32, or in bfloat16 rounded to nearest, as peers do."""
    storage = dict.fromkeys(case.program.formats, "bf16") if case.storage == "bf16" else "f32"
    made = memory.optimizer(case, backend="reference", storage=storage)
    _step(made, case)
    return made.master()


def _step(made: fastopt.Optimizer, case: Case) -> None:
    values = start(case)
    made.assign(values["p"])
    for name, g in values["g"].items():
        own = made.grads[name]
        library_of(own).copy(own, g.astype(own.dtype, copy=False))
    for _ in range(STEPS):
        made.step()


def check_ours(case: Case) -> None:
    """Raise unless the backend has the same bits as the reference, state included."""
    case = small(case)
    ours, reference = (memory.optimizer(case, backend=backend) for backend in (case.backend, "reference"))
    for made in (ours, reference):
        _step(made, case)
    expected = reference.state_dict()
    for name, array in ours.state_dict().items():
        if not np.array_equal(np.asarray(array), np.asarray(expected[name])):
            raise WrongResultError(f"{case.name}: fastopt's {name} differs from the reference")


def check_peer(case: Case, peer: Peer) -> None:
    """Raise unless a peer's parameters are those of the definition, up to the rounding of its arithmetic."""
    case = small(case, peer.check_size(case))
    problem = peer.problem(case)
    values = start(case)
    for arrays, of in ((problem.params, values["p"]), (problem.grads, values["g"])):
        for name, array in arrays.items():
            library_of(array).copy(array, of[name].astype(array.dtype, copy=False))
    contestant = peer.make(case, problem)
    for _ in range(STEPS):
        contestant.step()
    found, expected = contestant.params(), reference(case)
    for name, begin in values["p"].items():
        why = difference(case, begin, np.asarray(found[name], np.float32), expected[name])
        if why:
            raise WrongResultError(f"{peer.name} computes a different result: {why}")


def difference(case: Case, begin: np.ndarray, found: np.ndarray, expected: np.ndarray) -> str | None:
    """Describe how two results differ by more than rounding; None if they do not."""
    if "8bit" in case.storage:
        # 8-bit encodings differ between libraries: single steps differ by some per cent, their direction does not.
        together = float(np.corrcoef(found - begin, expected - begin)[0, 1])
        return None if together > 0.95 else f"its steps correlate {together:.3f} with those of float32"
    allowed = TOLERANCE + TOLERANCE * np.abs(expected)
    if case.storage == "bf16":
        # A step is about 1e-2 at most and rounded to 2⁻⁸ of the value: one rounding in the other direction is allowed.
        allowed = 2.0**-7 * np.abs(expected) + 1e-4
    if case.storage == "split":
        # The parameter can be read as bfloat16 only, and not every library rounds that to nearest.
        allowed = 2.0**-7 * np.abs(expected) + TOLERANCE
    error = np.abs(found - expected)
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error - allowed)))
    if np.all(error <= allowed):
        return None
    return f"{found[worst]:.6g} instead of {expected[worst]:.6g} after {STEPS} steps"

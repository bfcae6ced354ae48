"""Trajectories of other libraries' own implementations of the rules, on one test problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastopt.bench.glossary import ROWS, STEPS, Row

PEERS: Mapping[str, Row] = ROWS
STORED = (1, 2, 3, 5, 6, 10, 30, 60, 100)  # between 5 and 6 RAdam with β₂ = 0.999 begins to rectify
_INDEX = np.arange(12)
_CURVATURE = 2.0 ** (_INDEX - 8)  # from 1/256 to 8
START = 1 - (_INDEX % 5) / 2  # from −1 to 1


def gradient(p: np.ndarray, t: int) -> np.ndarray:
    """Return the gradient at step t.

    It is the sum of an ill-conditioned quadratic, a saturating term, a term that couples neighbours, and one that
    varies irregularly with t. Only + − × ÷ are used, so it has the same bits on every machine.
    """
    irregular = ((7 * t + 5 * _INDEX) % 11 - 5) / 8
    return _CURVATURE * (p - 0.5) + 3 * p / (1 + p * p) + (np.roll(p, 1) - p) / 4 + irregular


class Path(NamedTuple):
    """An optimizer's trajectory: the learning rate of each step, p after the steps STORED, the state after the last."""

    lr: np.ndarray
    p: np.ndarray
    state: dict[str, np.ndarray]


def path(peer: Row) -> Path:
    """Run `peer` for STEPS steps in float64. Its library must be installed."""
    return (_optax_path if peer.library == "optax" else _torch_path)(peer)


def _torch_path(peer: Row) -> Path:
    """Run an optimizer of torch's or of a library for torch."""
    import torch  # pyright: ignore[reportMissingImports]

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the type in which torch's NAdam stores its product of momenta
    try:
        p = torch.nn.Parameter(torch.tensor(START))
        optimizer = peer.make(torch, p)
        if hasattr(optimizer, "train"):
            optimizer.train()  # schedulefree's: p is the point at which gradients are computed
        scheduler = peer.schedule(torch, optimizer)
        lrs, ps = [], []
        for t in range(1, STEPS + 1):
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            p.grad = torch.tensor(gradient(p.detach().numpy(), t))
            optimizer.step()
            if scheduler:
                scheduler.step()
            ps.append(p.detach().numpy().copy())
        state = {ours: optimizer.state[p][theirs].numpy().copy() for ours, theirs in peer.state.items()}
    finally:
        torch.set_default_dtype(default)
    return Path(np.array(lrs), np.array(ps)[np.array(STORED) - 1], state)


def _optax_path(peer: Row) -> Path:
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    x64 = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        schedule = peer.schedule(optax)
        # optax counts from 0 in int32, for which its schedules compute a float32.
        lrs = [float(schedule(jax.numpy.int32(t))) for t in range(STEPS)]
        optimizer = peer.make(optax, lrs[0] if len(set(lrs)) == 1 else schedule)
        p = jax.numpy.asarray(START)
        state, ps = optimizer.init(p), []
        for t in range(1, STEPS + 1):
            g = jax.numpy.asarray(gradient(np.asarray(p), t))
            updates, state = optimizer.update(g, state, p)
            p = optax.apply_updates(p, updates)
            ps.append(np.asarray(p))
        found = {ours: np.asarray(_find(state, theirs)) for ours, theirs in peer.state.items()}
    finally:
        jax.config.update("jax_enable_x64", x64)
    return Path(np.array(lrs), np.array(ps)[np.array(STORED) - 1], found)


def _find(state: Any, field: str) -> Any:
    """Return the named field from the nested tuples that are optax's state."""
    if not isinstance(state, tuple):
        return None
    if field in getattr(state, "_fields", ()):
        return getattr(state, field)
    return next((x for x in (_find(s, field) for s in state) if x is not None), None)

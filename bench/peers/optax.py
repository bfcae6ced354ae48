"""optax under jax.jit, with parameters and state donated."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from fastopt.bench.cases import Case
from fastopt.bench.glossary import ROWS
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.bench.problem import Problem


class Optax(Peer):
    """A jitted step: `update` and `apply_updates`."""

    name, packages = "optax jit", ("jax", "optax")
    own_state = True

    def cannot(self, case: Case) -> str | None:
        """Refuse rules that optax does not have or computes differently, groups, and storages other than float32."""
        if f"optax {case.rule}" not in ROWS:
            return "optax does not have the rule with these settings"
        if case.groups > 1:
            return "the benchmark does not set up parameter groups for it"
        return None if case.storage == "f32" else "the benchmark sets it up for float32 only"

    def load(self, threads: int) -> None:
        """Import JAX for the CPU, and optax."""
        import_module("jax").config.update("jax_platforms", "cpu")
        import_module("optax")

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Step on copies in JAX arrays; each step returns new arrays, in the donated memory if XLA can reuse it."""
        jax: Any = import_module("jax")
        optax: Any = import_module("optax")
        row = ROWS[f"optax {case.rule}"]
        optimizer = row.make(optax, float(row.schedule(optax)(0)))
        grads = {name: jax.numpy.array(g) for name, g in problem.grads.items()}
        now: list[Any] = [{name: jax.numpy.array(p) for name, p in problem.params.items()}]
        now.append(optimizer.init(now[0]))

        @partial(jax.jit, donate_argnums=(1, 2))
        def update(g: Any, p: Any, state: Any) -> Any:
            updates, state = optimizer.update(g, state, p)
            return optax.apply_updates(p, updates), state

        compiled = update.lower(grads, *now).compile()

        def step() -> None:
            now[:] = jax.block_until_ready(compiled(grads, *now))

        return Contestant(step, lambda: {name: np.asarray(p) for name, p in now[0].items()})

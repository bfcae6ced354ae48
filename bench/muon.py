"""Muon beside torch.optim.Muon and optax.contrib.muon, and how much of a step its products of matrices are.

`python -m fastopt.bench.muon --out FILE` steps on 48 matrices of 768 × 3072 and 48 of 768 × 768, those of twelve layers
of a transformer four times over, in float32, prints a table, and appends to FILE a line of JSON with the machine and
every time. Contestants are timed in turns, each after a step that is not timed. torch.optim.Muon multiplies in
bfloat16; fastopt does in float32 or, told so, in bfloat16 too: these are two contestants.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.bench import clock, record
from fastopt.kernels.launch import run

SHAPES = {"wide": (768, 3072), "square": (768, 768)}
LR = 0.02


def matrices(each: int, seed: int) -> dict[str, np.ndarray]:
    """Return the matrices, `each` of every shape."""
    rng = np.random.default_rng(seed)
    named = {f"{name}{k}": shape for name, shape in SHAPES.items() for k in range(each)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in named.items()}


def of_numpy(values: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Return a step of `Optimizer`, and its products alone."""
    opt = fastopt.Optimizer(fastopt.Muon(lr=LR), values)
    for name, g in grads.items():
        opt.grads[name][...] = g
    launch: Any = opt._groups[0].launch
    return {"fastopt, NumPy": opt.step, "its products": lambda: run(launch.matrices.calls(0))}


def of_torch(values: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Return steps on torch's tensors."""
    torch: Any = import_module("torch")
    adapter: Any = import_module("fastopt.torch")

    def parameters() -> list[Any]:
        made = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in values.values()]
        for p, g in zip(made, grads.values(), strict=True):
            p.grad = torch.from_numpy(g)
        return made

    made = {
        "fastopt.torch": adapter.Muon(parameters(), lr=LR).step,
        "fastopt.torch, bfloat16": adapter.Muon(parameters(), lr=LR, ns_dtype="bfloat16").step,
    }
    if hasattr(torch.optim, "Muon"):
        made["torch.optim.Muon, bfloat16"] = torch.optim.Muon(parameters(), lr=LR).step
    return made


def of_optax(values: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Return a step of optax, compiled, with its memory donated."""
    jax, optax = (import_module(name) for name in ("jax", "optax"))
    rule = optax.contrib.muon(LR)
    state = {"p": {k: jax.numpy.asarray(x) for k, x in values.items()}}
    state["s"], g = rule.init(state["p"]), {k: jax.numpy.asarray(x) for k, x in grads.items()}

    def update(p: Any, s: Any, g: Any) -> Any:
        change, s = rule.update(g, s, p)
        return optax.apply_updates(p, change), s

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        state["p"], state["s"] = compiled(state["p"], state["s"], g)
        jax.block_until_ready(state["p"])

    return {"optax.contrib.muon": step}


def main(each: int, repeats: int, out: Path | None) -> dict[str, Any]:
    """Time all that is installed, print the table and save it."""
    values, grads = matrices(each, 0), matrices(each, 1)
    made = of_numpy(values, grads)
    made |= of_torch(values, grads) if find_spec("torch") else {}
    made |= of_optax(values, grads) if find_spec("optax") and find_spec("jax") else {}
    samples = clock.race({name: clock.timed(step) for name, step in made.items()}, repeats)
    first = next(iter(samples))
    print(f"{'':28} {'seconds':>9}   {first} is faster by")
    for name, seconds in samples.items():
        low, mid, high = clock.speed(samples[first], seconds)
        print(f"{name:28} {np.median(seconds):9.3f}   {mid:.2f}  ({low:.2f} to {high:.2f})", flush=True)
    outside = 1 - np.median(np.divide(samples["its products"], samples[first]))
    print(f"outside of the products: {100 * outside:.1f} % of a step")
    found = {
        **record.conditions(),
        "matrices": {name: [each, *shape] for name, shape in SHAPES.items()},
        "seconds": {name: list(x) for name, x in samples.items()},
    }
    if out is not None:
        record.append(out, found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fastopt.bench.muon", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--each", type=int, default=48, help="matrices of every shape (48)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, in which all are timed in turns (5)")
    parser.add_argument("--out", type=Path, help="a file to which a line of JSON is appended")
    options = parser.parse_args()
    main(options.each, options.repeats, options.out)

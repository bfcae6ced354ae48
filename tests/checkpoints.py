"""Checkpoints that fastopt 0.1 wrote, and the parameters to which it went on from them: data/checkpoints-0.1.pickle.xz.

    python tests/checkpoints.py FILE

writes such a file with the fastopt that is installed; `test_checkpoints.py` loads what 0.1 wrote.
"""

from __future__ import annotations

import io
import lzma
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastopt

FILE = Path(__file__).parent / "data" / "checkpoints-0.1.pickle.xz"
BEFORE, AFTER = range(3), range(3, 5)  # the steps that are taken before and after a checkpoint
RULES: dict[str, Any] = {
    "adam": fastopt.Adam(lr=0.01, amsgrad=True),
    "rmsprop": fastopt.RMSprop(lr=0.01, centered=True, momentum=0.5),
    "noise": fastopt.GradientNoise(fastopt.Momentum(lr=0.1), eta=0.1),
}
OPTIMIZERS = [(rule, storage) for storage in fastopt.PRESETS for rule in (["adam"] if storage != "f32" else RULES)]
TORCH: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "NAdam": {},
    "RMSprop": {"centered": True},
}
ADAPTERS = [
    *((kind, storage, flatten) for kind in TORCH for storage in (None, "split_8bit") for flatten in (False, True)),
    *(("AdamW", storage, False) for storage in ("8bit", "split", "bf16_kahan", "bf16")),
]


def optimizer(rule: str, storage: str) -> fastopt.Optimizer:
    """Make an optimizer of two groups."""
    dtype = np.float64 if storage == "f64" else np.float32
    values = {"a": np.linspace(-1, 1, 260, dtype=dtype), "b": np.ones((3, 4), dtype)}
    return fastopt.Optimizer(RULES[rule], values, groups={"b": {"lr": 0.5}}, storage=storage, seed=3)


def advance(opt: fastopt.Optimizer, steps: range) -> dict[str, np.ndarray]:
    """Take these steps and return the parameters."""
    for k in steps:
        random = np.random.default_rng(k)
        opt.step({name: random.standard_normal(g.shape).astype(g.dtype) for name, g in opt.grads.items()})
    return {name: np.array(value) for name, value in opt.master().items()}


def adapter(kind: str, storage: str | None, flatten: bool, params: list[Any] | None = None) -> tuple[list[Any], Any]:
    """Make parameters, unless they are given, and an optimizer of `fastopt.torch`."""
    import torch  # pyright: ignore[reportMissingImports]

    import fastopt.torch

    dtype = torch.float32 if storage in (None, "8bit") else torch.bfloat16
    values = params or [torch.linspace(-1, 1, 260).to(dtype), torch.ones(3, 4, dtype=dtype)]
    made = [torch.nn.Parameter(x.clone()) for x in values]
    return made, getattr(fastopt.torch, kind)(made, storage=storage, flatten=flatten, seed=2, **TORCH[kind])


def advance_adapter(params: list[Any], opt: Any, steps: range) -> list[np.ndarray]:
    """Take these steps and return the parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    for k in steps:
        random = np.random.default_rng(k)
        for p in params:
            p.grad = torch.from_numpy(random.standard_normal(tuple(p.shape))).to(p.dtype)
        opt.step()
    return [p.detach().float().numpy().copy() for p in params]


def saved_adapter(params: list[Any], opt: Any) -> bytes:
    """Return parameters and state as torch saves them."""
    import torch  # pyright: ignore[reportMissingImports]

    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "state": opt.state_dict()}, file)
    return file.getvalue()


def main(file: Path) -> None:
    """Write a file of checkpoints."""
    found: dict[tuple, tuple[Any, bytes, Any]] = {}
    for case in OPTIMIZERS:
        opt = optimizer(*case)
        advance(opt, BEFORE)
        found[case] = opt.state_dict(), pickle.dumps(opt), advance(opt, AFTER)
    for kind, storage, flatten in ADAPTERS:
        params, opt = adapter(kind, storage, flatten)
        advance_adapter(params, opt, BEFORE)
        saved, pickled = saved_adapter(params, opt), pickle.dumps((params, opt))
        found[kind, storage, flatten] = saved, pickled, advance_adapter(params, opt, AFTER)
    file.write_bytes(lzma.compress(pickle.dumps(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Checkpoints written by fastopt 0.1, and the parameters that 0.1 reached when it continued from them.

They are stored in data/checkpoints-0.1.pickle.xz, which `test_checkpoints.py` loads. To write such a file with the
fastopt that is installed:

    python tests/checkpoints.py FILE
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
BEFORE, AFTER = range(3), range(3, 5)  # the steps before and after the checkpoint
RULES: dict[str, Any] = {
    "adam": fastopt.Adam(lr=0.01, amsgrad=True),
    "rmsprop": fastopt.RMSprop(lr=0.01, centered=True, momentum=0.5),
    "noise": fastopt.GradientNoise(fastopt.Momentum(lr=0.1), eta=0.1),
}
OPTIMIZERS = [(rule, storage) for storage in fastopt.PRESETS for rule in (["adam"] if storage != "f32" else RULES)]
TORCH_SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "NAdam": {},
    "RMSprop": {"centered": True},
}
TORCH_OPTIMIZERS = [
    *((k, storage, flatten) for k in TORCH_SETTINGS for storage in (None, "split_8bit") for flatten in (False, True)),
    *(("AdamW", storage, False) for storage in ("8bit", "split", "bf16_kahan", "bf16")),
]


def optimizer(rule: str, storage: str, backend: str = "auto") -> fastopt.Optimizer:
    """Make an optimizer with two groups."""
    dtype = np.float64 if storage == "f64" else np.float32
    values = {"a": np.linspace(-1, 1, 260, dtype=dtype), "b": np.ones((3, 4), dtype)}
    return fastopt.Optimizer(RULES[rule], values, groups={"b": {"lr": 0.5}}, storage=storage, backend=backend, seed=3)


def advance(opt: fastopt.Optimizer, steps: range) -> dict[str, np.ndarray]:
    """Take these steps and return the parameters."""
    for k in steps:
        random = np.random.default_rng(k)
        opt.step({name: random.standard_normal(g.shape).astype(g.dtype) for name, g in opt.grads.items()})
    return {name: np.array(value) for name, value in opt.master().items()}


def torch_optimizer(
    kind: str, storage: str | None, flatten: bool, params: list[Any] | None = None
) -> tuple[list[Any], Any]:
    """Make parameters, copied from `params` if given, and an optimizer of `fastopt.torch` for them."""
    import torch  # pyright: ignore[reportMissingImports]

    import fastopt.torch

    dtype = torch.float32 if storage in (None, "8bit") else torch.bfloat16
    values = params or [torch.linspace(-1, 1, 260).to(dtype), torch.ones(3, 4, dtype=dtype)]
    made = [torch.nn.Parameter(x.clone()) for x in values]
    return made, getattr(fastopt.torch, kind)(made, storage=storage, flatten=flatten, seed=2, **TORCH_SETTINGS[kind])


def advance_torch(params: list[Any], opt: Any, steps: range) -> list[np.ndarray]:
    """Take these steps and return the parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    for k in steps:
        random = np.random.default_rng(k)
        for p in params:
            p.grad = torch.from_numpy(random.standard_normal(tuple(p.shape))).to(p.dtype)
        opt.step()
    return [p.detach().float().numpy().copy() for p in params]


def torch_checkpoint(params: list[Any], opt: Any) -> bytes:
    """Return parameters and optimizer state as the bytes that torch.save writes."""
    import torch  # pyright: ignore[reportMissingImports]

    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "state": opt.state_dict()}, file)
    return file.getvalue()


def main(file: Path) -> None:
    """Write the file of checkpoints."""
    found: dict[tuple, tuple[Any, bytes, Any]] = {}
    for case in OPTIMIZERS:
        opt = optimizer(*case)
        advance(opt, BEFORE)
        found[case] = opt.state_dict(), pickle.dumps(opt), advance(opt, AFTER)
    for kind, storage, flatten in TORCH_OPTIMIZERS:
        params, opt = torch_optimizer(kind, storage, flatten)
        advance_torch(params, opt, BEFORE)
        saved, pickled = torch_checkpoint(params, opt), pickle.dumps((params, opt))
        found[kind, storage, flatten] = saved, pickled, advance_torch(params, opt, AFTER)
    file.write_bytes(lzma.compress(pickle.dumps(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Other implementations of the rules that take norms, on one test problem with several tensors."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import fastopt

STEPS = 120
STORED = (1, 2, 3, 10, 40, 120)

# Of these, `zeros` starts at a norm of zero, and `late` has a gradient of zero in its first steps.
_SHAPES = {"matrix": (4, 3), "bias": (7,), "tiles": (300,), "scalar": (), "zeros": (5,), "late": (2, 2)}
_LATE = 4


def _index(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


START = {name: (1 - (_index(shape) % 5) / 2) * (name != "zeros") + 0.0 for name, shape in _SHAPES.items()}


def rate(t: int) -> float:
    """Return the factor on the learning rate at step t: it rises and falls irregularly, and falls in the long run."""
    return (0.5 + ((3 * t) % 7) / 8) * (1 - t / (2 * STEPS))


def gradients(params: Mapping[str, np.ndarray], t: int) -> dict[str, np.ndarray]:
    """Return the gradients at step t.

    They are those of peers.py: an ill-conditioned quadratic, a saturating term, and one that varies irregularly with t.
    Only + − × ÷ are used, so they have the same bits on every machine.
    """
    found = {}
    for k, name in enumerate(START):
        p = params[name]
        i = _index(p.shape)
        irregular = ((7 * t + 5 * i + 3 * k) % 11 - 5) / 8
        g = 2.0 ** (i % 12 - 8) * (p - 0.5) + 3 * p / (1 + p * p) + irregular
        found[name] = np.asarray(0.0 * g if name == "late" and t < _LATE else g)
    return found


@cache
def ours(rule: Any, steps: int = STEPS) -> dict[int, np.ndarray]:
    """Run a rule on the reference in float64 at its learning rate times `rate`; see `flat` for what is returned."""
    opt = fastopt.Optimizer(scheduled(rule), START, backend="reference")
    ps = {}
    for t in range(1, steps + 1):
        opt.step(gradients(opt.params, t))
        ps[t] = flat(opt.params)
    return ps


def scheduled(rule: Any) -> Any:
    """Return the rule, or the rule in it, with its learning rate times `rate`."""
    if not hasattr(rule, "lr"):
        return dataclasses.replace(rule, rule=scheduled(rule.rule))
    return dataclasses.replace(rule, lr=lambda t: rule.lr * rate(t))


def flat(params: Mapping[str, Any]) -> np.ndarray:
    """Return all parameters as one array."""
    return np.concatenate([np.asarray(p).ravel() for p in params.values()])


class Peer(NamedTuple):
    """An optimizer of another library, and the rule that it equals. `make` is called with the library.

    For torch's, `make(library, params)` returns an optimizer; for optax's, `make(library, schedule)`, of which the
    schedule is the learning rate at a count from 0.
    """

    rule: Any
    library: str
    make: Callable[[Any, Any], Any]
    settings: str = ""

    @property
    def name(self) -> str:
        """What its trajectory is recorded as."""
        return " ".join(filter(None, (self.library.split(".")[0], type(self.rule).__name__, self.settings)))

    def path(self) -> dict[int, np.ndarray]:
        """Run it for STEPS steps in float64."""
        return (_optax_path if self.library == "optax" else _torch_path)(load(self.library), self)


def load(library: str) -> Any:
    """Import a module; of timm only the module itself, because its packages import torchvision."""
    package, *within = library.split(".")
    if within and package not in sys.modules:
        found = find_spec(package)
        if found is None:
            raise ImportError(f"{package} is not installed")
        for k in range(len(within)):
            parts = (package, *within[:k])
            made = sys.modules[".".join(parts)] = ModuleType(".".join(parts))
            made.__path__ = [str(Path(where, *parts[1:])) for where in found.submodule_search_locations or ()]
    return import_module(library)


def lr_of(rule: Any) -> float:
    """Return the learning rate of a rule, or of the rule in it."""
    return rule.lr if hasattr(rule, "lr") else lr_of(rule.rule)


def _torch_path(library: Any, peer: Peer) -> dict[int, np.ndarray]:
    import torch  # pyright: ignore[reportMissingImports]

    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in START.items()}
    optimizer, ps = peer.make(library, list(params.values())), {}
    for t in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = lr_of(peer.rule) * rate(t)
        found = gradients({name: p.detach().numpy() for name, p in params.items()}, t)
        for name, p in params.items():
            p.grad = torch.tensor(found[name])
        optimizer.step()
        ps[t] = flat({name: p.detach().numpy() for name, p in params.items()})
    return ps


def _optax_path(optax: Any, peer: Peer) -> dict[int, np.ndarray]:
    import jax  # pyright: ignore[reportMissingImports]

    x64 = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        rates = jax.numpy.asarray([lr_of(peer.rule) * rate(t) for t in range(1, STEPS + 1)])
        optimizer, ps = peer.make(optax, lambda count: rates[count]), {}
        params = {name: jax.numpy.asarray(x) for name, x in START.items()}
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for t in range(1, STEPS + 1):
            found = gradients({name: np.asarray(p) for name, p in params.items()}, t)
            updates, state = update({name: jax.numpy.asarray(g) for name, g in found.items()}, state, params)
            params = optax.apply_updates(params, updates)
            ps[t] = flat({name: params[name] for name in START})
    finally:
        jax.config.update("jax_enable_x64", x64)
    return ps


PEERS = {
    peer.name: peer
    for peer in [
        Peer(
            fastopt.LAMB(lr=0.01, eps=1e-3, weight_decay=0.02),
            "optax",
            lambda o, lr: o.lamb(lr, eps=1e-3, weight_decay=0.02),
        ),
        Peer(
            fastopt.LAMB(lr=0.01, eps=1e-3, weight_decay=0.02),
            "timm.optim.lamb",
            lambda o, ps: o.Lamb(ps, eps=1e-3, weight_decay=0.02, max_grad_norm=None),
        ),
        Peer(
            fastopt.LARS(lr=0.5, trust_coefficient=0.02),
            "optax",
            lambda o, lr: o.lars(lr, trust_coefficient=0.02),
        ),
        Peer(
            fastopt.LARS(lr=0.5, trust_coefficient=0.02, eps=1e-3, nesterov=True),
            "optax",
            lambda o, lr: o.lars(lr, trust_coefficient=0.02, eps=1e-3, nesterov=True),
            "nesterov",
        ),
        Peer(
            fastopt.Cautious(fastopt.Adam(lr=0.01, eps=1e-3), weight_decay=0.5),
            "timm.optim.adamw",
            lambda o, ps: o.AdamWLegacy(ps, eps=1e-3, weight_decay=0.5, caution=True),
            "Adam",
        ),
        Peer(
            fastopt.Cautious(fastopt.Lion(lr=0.01), weight_decay=0.5),
            "timm.optim.lion",
            lambda o, ps: o.Lion(ps, weight_decay=0.5, caution=True),
            "Lion",
        ),
        Peer(
            fastopt.StableAdamW(lr=0.01, eps=1e-3, weight_decay=0.5),
            "pytorch_optimizer",
            lambda o, ps: o.StableAdamW(ps, eps=1e-3, weight_decay=0.5),
        ),
        Peer(
            fastopt.MARS(lr=0.01, eps=1e-3, gamma=0.1, weight_decay=0.5),
            "timm.optim.mars",
            lambda o, ps: o.Mars(ps, betas=(0.95, 0.99), eps=1e-3, gamma=0.1, weight_decay=0.5, optimize_1d=True),
        ),
        Peer(
            fastopt.NovoGrad(lr=0.01, eps=1e-3, weight_decay=0.02),
            "optax",
            lambda o, lr: o.novograd(lr, b1=0.95, b2=0.98, eps=1e-3, weight_decay=0.02),
        ),
        Peer(
            fastopt.Prodigy(lr=0.5, eps=1e-30, d0=1e-3, weight_decay=0.02),
            "prodigyopt",
            lambda o, ps: o.Prodigy(ps, eps=1e-30, d0=1e-3, weight_decay=0.02),
        ),
        Peer(
            fastopt.Prodigy(lr=0.5, eps=1e-30, d0=1e-3, weight_decay=0.02, bias_correction=True),
            "optax",
            lambda o, lr: o.contrib.prodigy(lr, eps=1e-30, estim_lr0=1e-3, weight_decay=0.02),
        ),
        Peer(
            fastopt.LARS(lr=0.5, trust_coefficient=0.02, momentum=0.0, eps=1e-3, weight_decay=0.02),
            "timm.optim.lars",
            lambda o, ps: o.Lars(ps, lr=0.5, trust_coeff=0.02, momentum=0.0, eps=1e-3, weight_decay=0.02),
            "without momentum",
        ),
    ]
}
"""By the name that a trajectory is recorded as.

With Prodigy's ε the others multiply the next d, not this one: it is too small to matter, but for 0/0.
timm multiplies the momentum of LARS by the learning rate after, not before: without momentum that is the same.
"""

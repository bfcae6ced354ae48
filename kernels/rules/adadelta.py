"""Adadelta: a step in units of the parameter, from the ratio of the sizes of past steps and past gradients."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import NONNEGATIVE, UNIT, Setting, check


@dataclass(frozen=True)
class Adadelta:
    """Adadelta: the root mean square of past steps over that of past gradients stands in place of a learning rate.

        g ← g + λ p                         weight_decay λ (L2)
        v ← ρ v + (1 − ρ) g²
        Δ = √(u + ε) / √(v + ε) · g         with u as the previous step left it
        u ← ρ u + (1 − ρ) Δ²
        p ← p − lr · Δ

    Buffers: v in units of the gradient's square, u, the running average of the squared steps, of the parameter's
    square; both start at zero. Settings: lr, eps, weight_decay ≥ 0; rho in [0, 1]. u grows from ε alone: at ε = 0 no
    parameter ever moves. float32: 28 bytes per parameter and step.

    Where others differ: the form here is torch's and optax's; the paper has lr = 1. Keras puts lr at 1e-3.

    >>> import numpy as np, fastopt
    >>> p, g, v, u = np.zeros(2), np.array([1.0, 10.0]), np.zeros(2), np.zeros(2)
    >>> for t in (1, 2):
    ...     fastopt.update(fastopt.Adadelta(), t, {"p": p, "g": g, "v": v, "u": u})
    >>> p.round(6)
    array([-0.006407, -0.006407])

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701.
    """

    unsigned: ClassVar = ("v", "u")

    lr: Setting = 1.0
    rho: Setting = 0.9
    eps: Setting = 1e-6
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, rho=UNIT, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − ρ."""
        return {"lr": self.lr, "rho": self.rho, "rest": 1 - self.rho, "eps": self.eps, "decay": self.weight_decay}

    def update(self, p, g, v, u, *, lr, rho, rest, eps, decay):
        """Update p, v and u."""
        if self.weight_decay:
            g = g + decay * p
        v = rho * v + rest * (g * g)
        # One root for two. The quotient underflows only where the gradient's square all but overflows.
        step = np.sqrt((u + eps) / (v + eps)) * g
        u = rho * u + rest * (step * step)
        return p - lr * step, v, u

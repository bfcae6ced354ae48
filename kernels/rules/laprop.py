"""LaProp: Adam that scales each gradient first and averages what comes out, so β₁ and β₂ are independent."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class LaProp:
    """LaProp: momentum of scaled gradients; stable for any β₁ and β₂, where Adam needs β₁² < β₂.

    With betas = (β₁, β₂) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        v ← β₂ v + (1 − β₂) g²
        m ← β₁ m + (1 − β₁) g / (√v̂ + ε),      v̂ = v / (1 − β₂ᵗ)
        p ← p − lr · m / (1 − β₁ᵗ)

    Buffers: m has no unit, v is in the square of the gradient's; both start at zero. Settings: lr, eps, weight_decay
    ≥ 0; betas in [0, 1); max_lr > 0 or None. float32: 28 bytes per parameter and step.

    Where others differ: the form here is the paper's. The authors' code, and timm, multiply by lr before they average,
    so that a change of the learning rate takes about 1/(1 − β₁) steps to show.

    >>> import numpy as np, fastopt
    >>> p, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, -4.0])):
    ...     fastopt.update(fastopt.LaProp(lr=0.1), t, {"p": p, "g": np.array(g), "m": m, "v": v})
    >>> p.round(6), m.round(6)
    (array([-0.180661,  0.213933]), array([ 0.153255, -0.216472]))

    Source: Ziyin, Wang & Ueda, "LaProp: Separating Momentum and Adaptivity in Adam", 2020, arXiv:2002.04839.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 4e-4
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-15
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE, max_lr=POSITIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − β, root = 1/√(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "step_size": self.lr / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "keep": 1 - decay_of_step(self),
        }

    def update(self, p, g, m, v, *, beta1, rest1, beta2, rest2, step_size, root, eps, keep):
        """Update p, m and v."""
        if self.weight_decay:
            p = keep * p
        v = beta2 * v + rest2 * (g * g)
        m = beta1 * m + rest1 * g / (np.sqrt(v) * root + eps)
        return p - step_size * m, m, v

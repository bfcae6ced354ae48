"""Adamax: Adam with the largest recent gradient in place of the root mean square."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Adamax:
    """Adamax: Adam in the infinity norm.

    With betas = (β₁, β₂) and t = 1, 2, …:

        g ← g + λ p                         weight_decay λ (L2)
        m ← β₁ m + (1 − β₁) g
        u ← max(β₂ u, |g| + ε)
        p ← p − lr/(1 − β₁ᵗ) · m / u

    Buffers: m and u are in units of the gradient and start at zero. u needs no bias correction: a maximum does not
    remember that it started at zero. Settings: lr, eps, weight_decay ≥ 0; betas in [0, 1). float32: 28 bytes a
    parameter and step.

    Where others differ: the form here is torch's and optax's; the paper has no ε. A NaN in the gradient stays in u.

    >>> import numpy as np, fastopt
    >>> p, g, m, u = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> for t, scale in ((1, 1.0), (2, 0.1)):
    ...     fastopt.update(fastopt.Adamax(lr=0.1), t, {"p": p, "g": scale * g, "m": m, "u": u})
    >>> p.round(6), u.round(6)
    (array([-0.152684,  0.152684]), array([0.4995, 1.998 ]))

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", section 7.1, ICLR 2015, arXiv:1412.6980.
    """

    unsigned: ClassVar = ("u",)

    lr: Setting = 2e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; step_size is the learning rate over the bias correction of m."""
        beta1, beta2 = self.betas
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "step_size": self.lr / (1 - beta1**t),
            "eps": self.eps,
            "decay": self.weight_decay,
        }

    def update(self, p, g, m, u, *, beta1, rest1, beta2, step_size, eps, decay):
        """Update p, m and u."""
        if self.weight_decay:
            g = g + decay * p
        m = beta1 * m + rest1 * g
        u, size = beta2 * u, np.abs(g) + eps
        # The larger of the two, NaN if either is: np.maximum leaves the sign of max(−0, +0) open.
        u = np.where((u > size) | (u != u), u, size)
        return p - step_size * m / u, m, u

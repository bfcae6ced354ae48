"""AdaBelief: Adam that divides by how far gradients are from their running average, not by how large they are."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class AdaBelief:
    """AdaBelief: long steps where gradients are as their average predicts, short ones where they are not.

    With betas = (β₁, β₂) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        m ← β₁ m + (1 − β₁) g
        s ← β₂ s + (1 − β₂) (g − m)² + ε
        p ← p − lr · m̂ / (√ŝ + ε),         m̂ = m / (1 − β₁ᵗ),  ŝ = s / (1 − β₂ᵗ)

    Buffers: m is in units of the gradient, s in its square; both start at zero. g − m may be far smaller than either,
    so presets store m in the computing precision. Settings: lr, eps, weight_decay ≥ 0; betas in [0, 1); max_lr > 0 or
    None. float32: 28 bytes per parameter and step.

    Where others differ: ε is added to s at each step and so adds up, to about ε / (1 − β₂), as in the paper; optax has
    a setting of its own for it, eps_root. The authors' code can rectify steps as RAdam does; this rule does not.

    >>> import numpy as np, fastopt
    >>> p, g, m, s = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> for t in (1, 2):
    ...     fastopt.update(fastopt.AdaBelief(lr=0.1), t, {"p": p, "g": g, "m": m, "s": s})
    >>> p.round(6)
    array([-0.227912,  0.227912])

    Source: Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS 2020,
    arXiv:2010.07468.
    """

    unsigned: ClassVar = ("s",)
    exact: ClassVar = ("m",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-16
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

    def update(self, p, g, m, s, *, beta1, rest1, beta2, rest2, step_size, root, eps, keep):
        """Update p, m and s."""
        if self.weight_decay:
            p = keep * p
        m = beta1 * m + rest1 * g
        surprise = g - m
        s = beta2 * s + rest2 * (surprise * surprise) + eps
        return p - step_size * m / (np.sqrt(s) * root + eps), m, s

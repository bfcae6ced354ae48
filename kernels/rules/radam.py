"""RAdam: Adam that steps without its second moment until that is known well enough."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class RAdam:
    """Rectified Adam: the variance of Adam's early steps made up for by a factor r, a warm-up that sets itself.

    With betas = (β₁, β₂), t = 1, 2, …, ρ∞ = 2/(1 − β₂) − 1 and ρ = ρ∞ − 2t β₂ᵗ/(1 − β₂ᵗ):

        g ← g + λ p                         weight_decay λ (L2); or p ← (1 − lr·λ) p with decoupled_weight_decay=True
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · m̂ r √(1 − β₂ᵗ) / (√v + ε)     where ρ > 5,  m̂ = m / (1 − β₁ᵗ)
        p ← p − lr · m̂                             otherwise; with β₂ = 0.999, in the first 5 steps
        r = √((ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ))

    Buffers: m is in units of the gradient, v in its square; both start at zero. Settings: lr, eps, weight_decay ≥ 0;
    betas in [0, 1); with β₂ ≤ ⅔, ρ never reaches 5 and every step is a plain one. The plain steps are those of
    Momentum(bias_correction=True), in units of the gradient and not of lr: large gradients make them large.
    float32: 28 bytes per parameter and step.

    Where others differ: the form here is torch's. optax.radam adds ε to √v̂ instead of √v (the two agree at ε = 0) and
    rectifies where ρ ≥ 5; the paper's algorithm rectifies where ρ > 4 and has no ε.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> for t in range(1, 7):
    ...     fastopt.update(fastopt.RAdam(lr=0.1), t, {"p": p, "g": g, "m": m, "v": v})
    ...     if t > 4:
    ...         print(t, p.round(6))
    5 [-0.25  1.  ]
    6 [-0.252582  1.002582]

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv:1908.03265;
    decoupled decay: arXiv:1711.05101.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    decoupled_weight_decay: bool = False

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rectified is 1 where v shapes the step, otherwise 0."""
        beta1, beta2 = self.betas
        step_size = self.lr / (1 - beta1**t)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)  # of the average v, in steps: ρ∞ and ρ
        rectified = length > 5
        if rectified:
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step_size *= sqrt(r * (1 - beta2**t))
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "step_size": step_size,
            "rectified": float(rectified),
            "eps": self.eps,
            "decay": self.weight_decay,
            "keep": 1 - self.lr * self.weight_decay,
        }

    def update(self, p, g, m, v, *, beta1, rest1, beta2, rest2, step_size, rectified, eps, decay, keep):
        """Update p, m and v."""
        if self.weight_decay and self.decoupled_weight_decay:
            p = keep * p
        elif self.weight_decay:
            g = g + decay * p
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        # A choice, not a factor of 0 or 1: dividing by 1 is exact, and in a plain step an infinite v must not show.
        denominator = np.where(rectified != 0, np.sqrt(v) + eps, 1.0)
        return p - step_size * m / denominator, m, v

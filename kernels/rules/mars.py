"""MARS: AdamW on a gradient corrected by its change since the last step, which reduces its variance."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.norms import norm
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class MARS:
    """MARS-AdamW: AdamW on a gradient that runs ahead of its own change, in each tensor of a norm of at most 1.

    With betas = (β₁, β₂), t = 1, 2, …, the gradient g′ of the step before and the norm over a tensor:

        c = g + γ β₁ / (1 − β₁) · (g − g′)  at t = 1, where there is no g′: c = g
        c ← c / max(1, ‖c‖)
        m ← β₁ m + (1 − β₁) c
        v ← β₂ v + (1 − β₂) c²
        p ← (1 − lr·λ) p − lr · m̂ / (√v̂ + ε),      m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ),  weight_decay λ
        g′ ← g

    Buffers: m is in units of the gradient, v in its square; the buffer `last` is g′, of which the rule takes
    differences, so presets store it in the computing precision. All start at zero. Settings: lr, gamma, eps,
    weight_decay ≥ 0; betas in [0, 1). float32: 44 bytes per parameter and step, of which 8 are the pass for the norm.

    Where others differ: this is the paper's approximate version, with the gradient that was computed at the last step;
    the exact one computes it again on the present batch. timm's Mars is the same for matrices and, with
    optimize_1d=True, for all tensors; without it tensors of one dimension take AdamW's step, here with `Adam` in a
    group of their own. pytorch_optimizer's takes g′ = 0 at t = 1.

    >>> import numpy as np, fastopt
    >>> buffers = {name: np.zeros(2) for name in ("p", "g", "m", "v", "last")}
    >>> for t, g in ((1, [0.5, -0.5]), (2, [0.5, 0.5])):
    ...     buffers["g"][:] = g
    ...     fastopt.update(fastopt.MARS(lr=0.1), t, buffers)
    >>> buffers["p"].round(5)
    array([-0.1998 ,  0.07056])

    Source: Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models", 2024,
    arXiv:2411.10438.
    """

    unsigned: ClassVar = ("v",)
    exact: ClassVar = ("last",)

    lr: Setting = 3e-3
    betas: tuple[Setting, Setting] = (0.95, 0.99)
    gamma: Setting = 0.025
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, gamma=NONNEGATIVE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; ahead = γ β₁ / (1 − β₁), keep = 1 − lr·λ, root = 1/√(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return {
            "ahead": self.gamma * beta1 / (1 - beta1) if t > 1 else 0.0,
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "step_size": self.lr / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "keep": 1 - self.lr * self.weight_decay,
        }

    def update(self, p, g, m, v, last, *, ahead, beta1, rest1, beta2, rest2, step_size, root, eps, keep):
        """Update p, m, v and last."""
        c = g + ahead * (g - last)
        size = norm(c)
        c = c / np.where(size < 1.0, 1.0, size)
        m = beta1 * m + rest1 * c
        v = beta2 * v + rest2 * (c * c)
        if self.weight_decay:
            p = keep * p
        return p - step_size * m / (np.sqrt(v) * root + eps), m, v, g

"""Adan: Nesterov's momentum with Adam's scaling, from gradients and their differences."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class Adan:
    """Adan: a running average of gradients, one of their changes from step to step, and one of the squares of both.

    With betas = (β₁, β₂, β₃), t = 1, 2, … and d = g − g of the previous step, 0 at t = 1:

        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) d
        n ← β₃ n + (1 − β₃) (g + β₂ d)²
        p ← (p − lr · (m̂ + β₂ v̂) / (√n̂ + ε)) / (1 + lr·λ),         each x̂ = x / (1 − βᵗ) with its own β

    weight_decay λ is decoupled and implicit: of the new p. With max_lr it is 1 + (lr/max_lr)·λ.

    Buffers: m and v are in units of the gradient, n in its square, `previous` is the gradient of the previous step; all
    start at zero. Presets store `previous` in the computing precision, because d may be far smaller. Settings: lr, eps,
    weight_decay ≥ 0; betas in [0, 1); max_lr > 0 or None. float32: 44 bytes per parameter and step.

    Where others differ: β here is what an average keeps, as in the authors' code; the paper's β is 1 − β. optax.adan
    multiplies d and v̂ by 1 − β₂ instead of β₂, and adds another ε to n̂.

    >>> import numpy as np, fastopt
    >>> p = np.zeros(2)
    >>> state = {name: np.zeros(2) for name in ("m", "v", "n", "previous")}
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, -4.0])):
    ...     fastopt.update(fastopt.Adan(lr=0.1), t, {"p": p, "g": np.array(g), **state})
    ...     print(p.round(6))
    [-0.1  0.1]
    [-0.17195   0.190736]

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", IEEE TPAMI 2024,
    arXiv:2208.06677.
    """

    unsigned: ClassVar = ("n",)
    exact: ClassVar = ("previous",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting, Setting] = (0.98, 0.92, 0.99)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE, max_lr=POSITIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; m_size and v_size are the learning rates of m and v."""
        beta1, beta2, beta3 = self.betas
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "beta3": beta3,
            "rest3": 1 - beta3,
            "m_size": self.lr / (1 - beta1**t),
            "v_size": self.lr * beta2 / (1 - beta2**t),
            "root": 1 / sqrt(1 - beta3**t),
            "eps": self.eps,
            "first": float(t == 1),
            "keep": 1 / (1 + decay_of_step(self)),
        }

    def update(
        self, p, g, m, v, n, previous,
        *, beta1, rest1, beta2, rest2, beta3, rest3, m_size, v_size, root, eps, first, keep,
    ):  # fmt: skip
        """Update p, m, v, n and the previous gradient."""
        d = np.where(first != 0, np.zeros_like(g), g - previous)
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * d
        ahead = g + beta2 * d
        n = beta3 * n + rest3 * (ahead * ahead)
        p = p - (m_size * m + v_size * v) / (np.sqrt(n) * root + eps)
        if self.weight_decay:
            p = keep * p
        return p, m, v, n, g

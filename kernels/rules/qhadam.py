"""QHAdam: Adam whose two averages are each mixed with the gradient of the step itself."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, UNIT, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class QHAdam:
    """Quasi-hyperbolic Adam: between RMSprop without momentum (ν₁ = 0) and Adam (ν₁ = ν₂ = 1).

    With betas = (β₁, β₂), nus = (ν₁, ν₂) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · ((1 − ν₁) g + ν₁ m̂) / (√((1 − ν₂) g² + ν₂ v̂) + ε),      m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    Buffers: m is in units of the gradient, v in its square; both start at zero. Settings: lr, eps, weight_decay ≥ 0;
    betas in [0, 1); nus in [0, 1]; max_lr > 0 or None. float32: 28 bytes per parameter and step.

    Where others differ: the authors' code has nus=(1.0, 1.0) by default, which is Adam; here they are the paper's
    recommendation. It stores m̂ and v̂ instead of m and v.

    >>> import numpy as np, fastopt
    >>> p, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, -4.0])):
    ...     fastopt.update(fastopt.QHAdam(lr=0.1), t, {"p": p, "g": np.array(g), "m": m, "v": v})
    >>> p.round(6)
    array([-0.184229,  0.205504])

    Source: Ma & Yarats, "Quasi-Hyperbolic Momentum and Adam for Deep Learning", ICLR 2019, arXiv:1810.06801.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    nus: tuple[Setting, Setting] = (0.7, 1.0)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "eps", "weight_decay"), NONNEGATIVE)
        check(self, betas=DECAY_RATE, nus=UNIT, max_lr=POSITIVE, **numbers)

    def scalars(self, t):
        """Compute the step's scalars in float64; m_size and g_size are the learning rates of m and g."""
        (beta1, beta2), (nu1, nu2) = self.betas, self.nus
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "m_size": self.lr * nu1 / (1 - beta1**t),
            "g_size": self.lr * (1 - nu1),
            "v_share": nu2 / (1 - beta2**t),
            "g_share": 1 - nu2,
            "eps": self.eps,
            "keep": 1 - decay_of_step(self),
        }

    def update(self, p, g, m, v, *, beta1, rest1, beta2, rest2, m_size, g_size, v_share, g_share, eps, keep):
        """Update p, m and v."""
        if self.weight_decay:
            p = keep * p
        square = g * g
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * square
        return p - (m_size * m + g_size * g) / (np.sqrt(v_share * v + g_share * square) + eps), m, v

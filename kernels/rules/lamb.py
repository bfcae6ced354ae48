"""LAMB: Adam's update, rescaled in each tensor to a length in proportion to that of the parameter."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.norms import norm
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class LAMB:
    """LAMB: each tensor moves by lr times its own norm, whatever the size of its gradients, for large batches.

    With betas = (β₁, β₂), t = 1, 2, … and norms over a tensor:

        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        u = m̂ / (√v̂ + ε) + λ p,            m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ),  weight_decay λ
        p ← p − lr · (‖p‖ / ‖u‖) · u        the trust ratio ‖p‖ / ‖u‖ is 1 where one of the norms is zero

    Buffers: m is in units of the gradient, v in its square; both start at zero. Settings: lr, eps, weight_decay ≥ 0;
    betas in [0, 1). float32: 44 bytes per parameter and step, because u is computed in two passes: one for its norm.

    Where others differ: the paper's φ, which may bound the norm of p, is the identity here, as in its experiments.
    optax.lamb is the same. NVIDIA's LAMB, which timm has too, clips gradients by their global norm before
    (`ClipByGlobalNorm(LAMB(…))` does) and takes no trust ratio where there is no weight decay. Biases and norms' scales
    are usually trained without weight decay, or with Adam in a group of their own.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.array([3.0, 4.0]), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.update(fastopt.LAMB(lr=0.1), 1, {"p": p, "g": g, "m": m, "v": v})
    >>> p.round(5)  # of u = (1, −1) the norm is √2, of p it was 5
    array([2.64645, 4.35355])

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
    arXiv:1904.00962.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-6
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − β, unbias = 1/(1 − β₁ᵗ), root = 1/√(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return {
            "lr": self.lr,
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "unbias": 1 / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "decay": self.weight_decay,
        }

    def update(self, p, g, m, v, *, lr, beta1, rest1, beta2, rest2, unbias, root, eps, decay):
        """Update p, m and v."""
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        u = unbias * m / (np.sqrt(v) * root + eps)
        if self.weight_decay:
            u = u + decay * p
        p_norm, u_norm = norm(p), norm(u)
        trust = np.where((p_norm > 0.0) & (u_norm > 0.0), p_norm / u_norm, 1.0)
        return p - lr * trust * u, m, v

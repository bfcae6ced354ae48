"""StableAdamW: AdamW whose learning rate shrinks in a tensor where the gradient outgrows its second moment."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.norms import mean
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class StableAdamW:
    """StableAdamW: AdamW with Adafactor's update clipping, so that a spike of the gradients is no spike of the loss.

    With betas = (β₁, β₂), t = 1, 2, …, each β̂ = β (1 − βᵗ⁻¹) / (1 − βᵗ) and the mean over a tensor:

        m ← β̂₁ m + (1 − β̂₁) g
        v ← β̂₂ v + (1 − β̂₂) g²
        η = lr / max(1, √mean(g² / max(v, ε²)))
        p ← p − η λ p                       weight_decay λ, decoupled
        p ← p − η · m / (√v + ε)

    Where v lags behind, the root is above 1 and the whole tensor takes shorter steps. Buffers: m is in units of the
    gradient, v in its square; both start at zero, and are averages without bias from the first step on, in place of
    Adam's corrections. Settings: lr, eps, weight_decay ≥ 0; betas in [0, 1). float32: 36 bytes per parameter and step,
    of which 8 are the pass for the mean.

    Where others differ: pytorch_optimizer's StableAdamW is the same, with weight_decay 1e-2 by default. timm's
    clipping_threshold divides the step only, and leaves the decay as it is.

    >>> import numpy as np, fastopt
    >>> p, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t, g in ((1, 1.0), (2, 1.0), (3, 100.0)):
    ...     fastopt.update(fastopt.StableAdamW(lr=0.1), t, {"p": p, "g": np.array([g, g]), "m": m, "v": v})
    ...     print(p.round(5))
    [-0.1 -0.1]
    [-0.2 -0.2]
    [-0.23753 -0.23753]

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", NeurIPS 2023,
    arXiv:2304.13013; the clipping is from Shazeer & Stern, "Adafactor", ICML 2018, arXiv:1804.04235.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.99)
    eps: Setting = 1e-6
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; beta = β̂ and rest = 1 − β̂, floor = ε²."""
        (beta1, rest1), (beta2, rest2) = (
            (beta * (1 - beta ** (t - 1)) / (1 - beta**t), (1 - beta) / (1 - beta**t)) for beta in self.betas
        )
        return {
            "lr": self.lr,
            "beta1": beta1,
            "rest1": rest1,
            "beta2": beta2,
            "rest2": rest2,
            "eps": self.eps,
            "floor": self.eps**2,
            "decay": self.weight_decay,
        }

    def update(self, p, g, m, v, *, lr, beta1, rest1, beta2, rest2, eps, floor, decay):
        """Update p, m and v."""
        square = g * g
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * square
        rms = np.sqrt(mean(square / np.where(v < floor, floor, v)))
        size = lr / np.where(rms < 1.0, 1.0, rms)
        if self.weight_decay:
            p = p - size * decay * p
        return p - size * m / (np.sqrt(v) + eps), m, v

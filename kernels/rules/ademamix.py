"""AdEMAMix: Adam with a second, far slower running average of the gradient beside the first."""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class AdEMAMix:
    """AdEMAMix: a step follows recent gradients and, by α, those of the last ten thousand steps.

    With betas = (β₁, β₂, β₃) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        m ← β₁ m + (1 − β₁) g
        slow ← β₃ᵗ slow + (1 − β₃ᵗ) g       β₃ᵗ and αᵗ as they are at step t
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · (m̂ + αᵗ slow) / (√v̂ + ε),         m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    With alpha_warmup, a number of steps T, αᵗ = min(t/T, 1) α. With beta3_warmup T, β₃ᵗ goes from β₁ to β₃ such that
    1 / ln β₃ᵗ, the length of the average, is linear in t up to T. The paper sets both to the length of the run: a slow
    average in full force from the start can make training diverge.

    Buffers: m and slow are in units of the gradient, v in its square; all start at zero, and slow is not corrected for
    it. Settings: lr, alpha, eps, weight_decay ≥ 0; betas in [0, 1); max_lr, alpha_warmup, beta3_warmup > 0 or None.
    float32: 36 bytes per parameter and step.

    Where others differ: optax.contrib.ademamix has α = 6 and takes schedules for α and β₃; a setting of fastopt's may
    be a schedule too.

    >>> import numpy as np, fastopt
    >>> p, g, m, slow, v = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> rule = fastopt.AdEMAMix(lr=0.1, betas=(0.9, 0.999, 0.99), alpha_warmup=2, beta3_warmup=2)
    >>> for t in (1, 2):
    ...     fastopt.update(rule, t, {"p": p, "g": g, "m": m, "slow": slow, "v": v})
    ...     print(p.round(6), slow.round(6))
    [-0.104546  0.104546] [ 0.009091 -0.036366]
    [-0.218546  0.218546] [ 0.014001 -0.056002]

    Source: Pagliardini, Ablin & Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", ICLR 2025, arXiv:2409.03137.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting, Setting] = (0.9, 0.999, 0.9999)
    alpha: Setting = 5.0
    alpha_warmup: Setting | None = None
    beta3_warmup: Setting | None = None
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "alpha", "eps", "weight_decay"), NONNEGATIVE)
        lengths = dict.fromkeys(("alpha_warmup", "beta3_warmup", "max_lr"), POSITIVE)
        check(self, betas=DECAY_RATE, **numbers, **lengths)

    def scalars(self, t):
        """Compute the step's scalars in float64; m_size and slow_size are the learning rates of m and slow."""
        beta1, beta2, beta3 = self.betas
        if self.beta3_warmup is not None and t < self.beta3_warmup:
            beta3 = min(_between(beta1, beta3, t / self.beta3_warmup), beta3)
        alpha = self.alpha if self.alpha_warmup is None else self.alpha * min(t / self.alpha_warmup, 1.0)
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "beta3": beta3,
            "rest3": 1 - beta3,
            "m_size": self.lr / (1 - beta1**t),
            "slow_size": self.lr * alpha,
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "keep": 1 - decay_of_step(self),
        }

    def update(self, p, g, m, slow, v, *, beta1, rest1, beta2, rest2, beta3, rest3, m_size, slow_size, root, eps, keep):
        """Update p, m, slow and v."""
        if self.weight_decay:
            p = keep * p
        m = beta1 * m + rest1 * g
        slow = beta3 * slow + rest3 * g
        v = beta2 * v + rest2 * (g * g)
        return p - (m_size * m + slow_size * slow) / (np.sqrt(v) * root + eps), m, slow, v


def _between(start, end, share):
    """Return the β whose average has the length that lies at this share of the way between those of two others."""
    length = (1 - share) * _length(start) + share * _length(end)
    return exp(-1 / length) if length else 0.0


def _length(beta):
    """Return the number of steps in which a running average forgets all but 1/e: −1 / ln β, 0 for β = 0."""
    return -1 / log(beta) if beta else 0.0

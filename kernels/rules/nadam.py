"""NAdam: Adam with Nesterov's look-ahead and a momentum that warms up."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.accumulated import accumulated
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class NAdam:
    """NAdam: Adam whose step uses the average m as it will be after the next gradient, not as it is.

    With betas = (β₁, β₂), momentum_decay ψ and t = 1, 2, …:

        g ← g + λ p                         weight_decay λ (L2); or p ← (1 − lr·λ) p with decoupled_weight_decay=True
        μₜ = β₁ (1 − ½ · 0.96^(t·ψ))        the momentum of step t, from near β₁/2 up to β₁;  Πₜ = μ₁ μ₂ ⋯ μₜ
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · (μₜ₊₁ m / (1 − Πₜ₊₁) + (1 − μₜ) g / (1 − Πₜ)) / (√v̂ + ε),    v̂ = v / (1 − β₂ᵗ)

    Buffers: m is in units of the gradient, v in its square; both start at zero. Settings: lr, eps, weight_decay,
    momentum_decay ≥ 0; betas in [0, 1). Πₜ depends on every step up to t, so β₁ and ψ are numbers, never schedules.
    float32: 28 bytes per parameter and step.

    Where others differ: the form here is torch's, which averages m with β₁ where the paper's m decays by μₜ; torch
    keeps Πₜ in float32 unless torch's default type is float64, which puts its steps off by some 1e-8. optax.nadam has
    no warm-up of the momentum; it is `momentum_decay=1e6` here, where 0.96^(t·ψ) is 0 and μₜ = β₁.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> for t in (1, 2):
    ...     fastopt.update(fastopt.NAdam(lr=0.1), t, {"p": p, "g": g, "m": m, "v": v})
    >>> p.round(6)
    array([-0.184014,  0.184014])

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop (not on arXiv); Adam is
    arXiv:1412.6980, decoupled decay arXiv:1711.05101.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 2e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    momentum_decay: Setting = 4e-3
    decoupled_weight_decay: bool = False

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "eps", "weight_decay", "momentum_decay"), NONNEGATIVE)
        check(self, betas=DECAY_RATE, **numbers)
        if callable(self.betas[0]) or callable(self.momentum_decay):
            raise SettingError(
                "step t uses the momenta of all steps up to t, so what they are made of cannot follow a schedule.",
                got=f"betas={self.betas!r}, momentum_decay={self.momentum_decay!r}",
                expected="numbers for betas[0] and momentum_decay",
                do="schedule lr, or choose how fast the momentum warms up by momentum_decay",
                where="NAdam",
            )

    def scalars(self, t):
        """Compute the step's scalars in float64; m_size and g_size are the learning rates of m and g."""
        return self.scalars_after(t, _product(t, self.betas[0], self.momentum_decay))

    def scalars_after(self, t, product):
        """Compute the step's scalars from the product Πₜ of the momenta so far, whatever they were."""
        beta1, beta2 = self.betas
        momentum, following = self.momentum(t), self.momentum(t + 1)
        # x / (√v / root + ε) = x·root / (√v + ε·root): one multiplication fewer for each element.
        root = sqrt(1 - beta2**t)
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "m_size": self.lr * root * following / (1 - product * following),
            "g_size": self.lr * root * (1 - momentum) / (1 - product),
            "eps": self.eps * root,
            "decay": self.weight_decay,
            "keep": 1 - self.lr * self.weight_decay,
        }

    def momentum(self, t):
        """Compute μₜ."""
        return _momentum(t, self.betas[0], self.momentum_decay)

    def update(self, p, g, m, v, *, beta1, rest1, beta2, rest2, m_size, g_size, eps, decay, keep):
        """Update p, m and v."""
        if self.weight_decay and self.decoupled_weight_decay:
            p = keep * p
        elif self.weight_decay:
            g = g + decay * p
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        return p - (m_size * m + g_size * g) / (np.sqrt(v) + eps), m, v


def _momentum(t, beta1, momentum_decay):
    return beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))


def _times(product, k, beta1, momentum_decay):
    return product * _momentum(k, beta1, momentum_decay)


def _product(t, beta1, momentum_decay):
    """Multiply μ₁ ⋯ μₜ from left to right.

    Each is at most β₁, so after 38/(1 − β₁) of them the product is below 2⁻⁵⁴, and 1 − Πₜ rounds to 1.
    """
    return accumulated(_times, min(t, int(38 / (1 - beta1))), 1.0, beta1, momentum_decay)

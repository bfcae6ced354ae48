"""Prodigy: Adam that finds its own learning rate, from how far the parameters have come along the gradients."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.total import total


@dataclass(frozen=True)
class Prodigy:
    """Prodigy: Adam with an estimate d of the distance to the solution as its learning rate, to be used at lr = 1.

    With betas = (β₁, β₂), β₃ = √β₂, the first parameters p₀, weight_decay λ, and sums over all parameters:

        d ← max(d, d_coef · Σ r / Σ |s|)    at t = 1, where r and s are zero: d = d0
        m ← β₁ m + (1 − β₁) d g
        v ← β₂ v + (1 − β₂) d² g²
        s ← β₃ s + lr (d²/d0) g
        r ← β₃ r + lr (d²/d0) g (p₀ − p)
        p ← (1 − lr·d·λ) p − lr · d · m / (√v + d ε)

    bias_correction=True multiplies lr by Adam's √(1 − β₂ᵗ) / (1 − β₁ᵗ) everywhere.

    Buffers: `p0` is p₀, taken from p at t = 1; Σ r is the numerator of the paper, of which every element keeps its own
    term; d, which starts at d0, is one number, which a rule, whose state is elementwise, stores once for each
    parameter. p0, r and d are stored in the computing precision by presets. So the state takes 24 bytes per parameter
    in float32, where 16 would do if a rule could keep single numbers (see docs/decisions/0022). Settings: lr, eps,
    weight_decay ≥ 0; betas in [0, 1); d0, d_coef > 0. float32: 68 bytes per parameter and step. In groups d is one for
    all; give them the same d0, betas and d_coef.

    Where others differ: prodigyopt and optax.contrib.prodigy take the next d with ε, not the one that is in m and v;
    optax corrects biases always, prodigyopt by setting, as here.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.Prodigy(), {"w": np.array([5.0, -3.0])})
    >>> for _ in range(300):
    ...     opt.step({"w": opt.params["w"].copy()})  # the gradient of half of the squared norm
    >>> bool(np.abs(opt.params["w"]).max() < 0.1), opt.state("d")["w"].round(1)
    (True, array([2.2, 2.2]))

    Source: Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024,
    arXiv:2306.06101.
    """

    unsigned: ClassVar = ("v",)
    exact: ClassVar = ("p0", "r", "d")

    lr: Setting = 1.0
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    d0: float = 1e-6
    d_coef: Setting = 1.0
    bias_correction: bool = False

    def __post_init__(self):
        check(
            self,
            lr=NONNEGATIVE,
            betas=DECAY_RATE,
            eps=NONNEGATIVE,
            weight_decay=NONNEGATIVE,
            d0=POSITIVE,
            d_coef=POSITIVE,
        )
        if callable(self.d0):
            raise SettingError("d0, at which d starts, cannot follow a schedule.", got=repr(self.d0), where="Prodigy")

    def initial(self):
        """Return the value at which the buffer d starts."""
        return {"d": self.d0}

    def scalars(self, t):
        """Compute the step's scalars in float64; size is lr, corrected; weight = size/d0; first says t = 1."""
        beta1, beta2 = self.betas
        size = self.lr * (sqrt(1 - beta2**t) / (1 - beta1**t) if self.bias_correction else 1.0)
        return {
            "first": float(t == 1),
            "size": size,
            "weight": size / self.d0,
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "beta3": sqrt(beta2),
            "d_coef": self.d_coef,
            "eps": self.eps,
            "decay": self.weight_decay,
        }

    def update(
        self, p, g, m, v, s, p0, r, d, *, first, size, weight, beta1, rest1, beta2, rest2, beta3, d_coef, eps, decay
    ):
        """Update p, m, v, s, p0, r and d."""
        p0 = np.where(first > 0.0, p, p0)
        found = d_coef * total(r, over="all") / total(np.abs(s), over="all")
        d = np.where(found > d, found, d)
        scaled = d * g
        m = beta1 * m + rest1 * scaled
        v = beta2 * v + rest2 * (scaled * scaled)
        term = weight * d * scaled
        s = beta3 * s + term
        r = beta3 * r + term * (p0 - p)
        if self.weight_decay:
            p = p - size * decay * d * p
        return p - size * d * m / (np.sqrt(v) + d * eps), m, v, s, p0, r, d

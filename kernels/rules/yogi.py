"""Yogi: Adam whose second moment grows and shrinks by steps of the same size."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class Yogi:
    """Yogi: the second moment follows g² by (1 − β₂) g² in either direction, so small gradients do not make it vanish.

    With betas = (β₁, β₂) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        m ← β₁ m + (1 − β₁) g
        v ← v − (1 − β₂) sign(v − g²) g²
        p ← p − lr · m̂ / (√v̂ + ε),         m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    Buffers: m is in units of the gradient, v in its square; both start at initial_accumulator_value. Settings: lr, eps,
    weight_decay, initial_accumulator_value ≥ 0; betas in [0, 1); max_lr > 0 or None. float32: 28 bytes per parameter
    and step.

    Where others differ: the paper has no bias correction; optax.yogi has it, and starts both buffers at 1e-6 too.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.zeros(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> for t, scale in ((1, 1.0), (2, 0.1)):
    ...     fastopt.update(fastopt.Yogi(betas=(0.9, 0.5)), t, {"p": p, "g": scale * g, "m": m, "v": v})
    ...     print(p.round(6), v)
    [-0.00998   0.009995] [0.125 2.   ]
    [-0.016443  0.01647 ] [0.12375 1.98   ]

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018 (not on arXiv).
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-2
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-3
    weight_decay: Setting = 0.0
    initial_accumulator_value: Setting = 1e-6
    max_lr: MaxLr = None

    def __post_init__(self):
        names = ("lr", "eps", "weight_decay", "initial_accumulator_value")
        check(self, betas=DECAY_RATE, max_lr=POSITIVE, **dict.fromkeys(names, NONNEGATIVE))
        if callable(self.initial_accumulator_value):
            raise SettingError(
                "m and v have one initial value: it cannot follow a schedule.",
                got=f"initial_accumulator_value={self.initial_accumulator_value!r}",
                expected=NONNEGATIVE,
                where="Yogi",
            )

    def initial(self):
        """Return the values at which m and v start."""
        return {"m": self.initial_accumulator_value, "v": self.initial_accumulator_value}

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − β, root = 1/√(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "rest2": 1 - beta2,
            "step_size": self.lr / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "keep": 1 - decay_of_step(self),
        }

    def update(self, p, g, m, v, *, beta1, rest1, rest2, step_size, root, eps, keep):
        """Update p, m and v."""
        if self.weight_decay:
            p = keep * p
        m = beta1 * m + rest1 * g
        square = g * g
        v = v - rest2 * np.sign(v - square) * square
        return p - step_size * m / (np.sqrt(v) * root + eps), m, v

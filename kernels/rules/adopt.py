"""ADOPT: Adam that divides each gradient by the second moment of those before it, and averages afterwards."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class ADOPT:
    """ADOPT: converges with any β₂, because g and the v that it is divided by are of different steps.

    With betas = (β₁, β₂), at t = 2, 3, …:

        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        c = g / max(√v, ε), limited to ±(t − 1)^¼
        m ← β₁ m + (1 − β₁) c
        p ← p − lr · m
        v ← β₂ v + (1 − β₂) g²

    At t = 1 only v ← g²: the first step moves nothing.

    Buffers: m has no unit, v is in the square of the gradient's; both start at zero. Settings: lr, eps, weight_decay
    ≥ 0; betas in [0, 1); max_lr > 0 or None. float32: 28 bytes per parameter and step.

    Where others differ: the form here is that of the authors' code and of optax.contrib.adopt, whose limit the paper's
    second version added.

    >>> import numpy as np, fastopt
    >>> p, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, -4.0])):
    ...     fastopt.update(fastopt.ADOPT(lr=0.1), t, {"p": p, "g": np.array(g), "m": m, "v": v})
    ...     print(p.round(6), v.round(6))
    [0. 0.] [0.25 4.  ]
    [-0.005  0.01 ] [0.249981 4.0012  ]

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate", NeurIPS 2024,
    arXiv:2411.02853.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.9999)
    eps: Setting = 1e-6
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE, max_lr=POSITIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64. At t = 1 the limit of c is 0, so m stays 0, and v becomes g²."""
        beta1, beta2 = self.betas
        return {
            "lr": self.lr,
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2 if t > 1 else 0.0,
            "rest2": 1 - beta2 if t > 1 else 1.0,
            "limit": (t - 1) ** 0.25,
            "eps": self.eps,
            "keep": 1 - decay_of_step(self) if t > 1 else 1.0,
        }

    def update(self, p, g, m, v, *, lr, beta1, rest1, beta2, rest2, limit, eps, keep):
        """Update p, m and v."""
        if self.weight_decay:
            p = keep * p
        root = np.sqrt(v)
        # The larger of the two, NaN if the root is: np.maximum leaves the sign of max(−0, +0) open.
        c = g / np.where(root < eps, eps, root)
        c = np.where(np.abs(c) > limit, np.copysign(limit, c), c)
        m = beta1 * m + rest1 * c
        return p - lr * m, m, beta2 * v + rest2 * (g * g)

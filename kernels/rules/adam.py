"""Adam: running averages of the gradient and of its square, each corrected for starting at zero."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class Adam:
    """Adam, with no, decoupled (AdamW) or L2 weight decay λ, and AMSGrad as a setting.

    With betas = (β₁, β₂) and t = 1, 2, …:

        p ← (1 − lr·λ) p                    decoupled weight decay; or g ← g + λ p with decoupled=False
        p ← (1 − (lr/max_lr)·λ) p           with max_lr: fully decoupled decay, which no learning rate scales
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr · m̂ / (√v̂ + ε),         m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    With amsgrad=True the largest v so far, the buffer `vmax`, stands in place of v in the last line.

    Buffers: m is in units of the gradient, v and vmax in its square; all start at zero.
    Settings: lr, eps, weight_decay ≥ 0; betas in [0, 1); max_lr > 0 or None, the peak of lr's schedule.
    float32: 28 bytes per parameter and step, AMSGrad 36.

    Where others differ: torch.optim.Adam means L2 decay by `weight_decay`, torch.optim.AdamW decoupled decay (and
    1e-2 by default); here decay is decoupled unless `decoupled=False`, and 0 by default. The maximum of AMSGrad is
    taken before the bias correction, as in the paper and in torch; optax.amsgrad takes it after.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.ones(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.update(fastopt.Adam(lr=0.1), 1, {"p": p, "g": g, "m": m, "v": v})
    >>> p.round(6)
    array([0.9, 1.1])

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980; Loshchilov & Hutter,
    "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101; Reddi, Kale & Kumar, "On the Convergence of
    Adam and Beyond", ICLR 2018, arXiv:1904.09237.
    """

    unsigned: ClassVar = ("v", "vmax")

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    decoupled: bool = True
    amsgrad: bool = False
    max_lr: MaxLr = None

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE, max_lr=POSITIVE)
        if self.max_lr is not None and not self.decoupled:
            raise SettingError(
                "L2 decay is part of the gradient: no learning rate scales it.",
                got=f"max_lr={self.max_lr!r} with decoupled=False",
                do="leave max_lr at None, or decoupled at True",
                where="Adam",
            )

    def scalars(self, t):
        """Compute the step's scalars in float64; keep = 1 − lr·λ, rest = 1 − β, root = 1/√(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "step_size": self.lr / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "decay": self.weight_decay,
            "keep": 1 - decay_of_step(self),
        }

    def update(self, p, g, m, v, vmax=None, *, beta1, rest1, beta2, rest2, step_size, root, eps, decay, keep):
        """Update p, m, v and, with amsgrad, vmax."""
        if self.weight_decay and self.decoupled:
            p = keep * p
        elif self.weight_decay:
            g = g + decay * p
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        second = v
        if self.amsgrad:
            # The larger of the two, NaN if either is: np.maximum leaves the sign of max(−0, +0) open.
            second = vmax = np.where((vmax > v) | (vmax != vmax), vmax, v)
        p = p - step_size * m / (np.sqrt(second) * root + eps)
        return p, m, v, vmax

"""NovoGrad: momentum of gradients that are divided by a running average of their tensor's norm."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check
from fastopt.kernels.rules.total import total


@dataclass(frozen=True)
class NovoGrad:
    """NovoGrad: Adam with one second moment for each tensor, and weight decay inside of the momentum.

    With betas = (β₁, β₂), weight_decay λ and the norm over a tensor:

        v ← β₂ v + (1 − β₂) ‖g‖²            v ← ‖g‖² at t = 1
        m ← β₁ m + g / (√v + ε) + λ p
        p ← p − lr · m

    Buffers: m has no unit and starts at zero. v is in units of the squared gradient and is one number for each tensor,
    which a rule, whose state is elementwise, stores once for each parameter: every element of v has the same value. So
    it takes as much memory as Adam's v, 4 bytes in float32 where the paper needs none, and 8 of the bytes moved.
    Presets with stochastic rounding round each element on its own, so that in them the values differ by rounding.
    Settings: lr, eps, weight_decay ≥ 0; betas in [0, 1). float32: 32 bytes per parameter and step.

    Where others differ: optax.novograd is the same, with betas of (0.9, 0.25) and ε of 1e-6 by default. NVIDIA's, which
    timm has, starts v anew from ‖g‖² whenever v is zero, and not only at t = 1.

    >>> import numpy as np, fastopt
    >>> p, g, m, v = np.zeros(2), np.array([3.0, -4.0]), np.zeros(2), np.zeros(2)
    >>> fastopt.update(fastopt.NovoGrad(lr=0.1), 1, {"p": p, "g": g, "m": m, "v": v})
    >>> p.round(6), v
    (array([-0.06,  0.08]), array([25., 25.]))

    Source: Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep
    Networks", 2019, arXiv:1905.11286.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.95, 0.98)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rest2 = 1 − β₂, and 1 at t = 1."""
        beta1, beta2 = self.betas[0], self.betas[1] if t > 1 else 0.0
        return {
            "lr": self.lr,
            "beta1": beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "eps": self.eps,
            "decay": self.weight_decay,
        }

    def update(self, p, g, m, v, *, lr, beta1, beta2, rest2, eps, decay):
        """Update p, m and v."""
        v = beta2 * v + rest2 * total(g * g)
        step = g / (np.sqrt(v) + eps)
        if self.weight_decay:
            step = step + decay * p
        m = beta1 * m + step
        return p - lr * m, m, v

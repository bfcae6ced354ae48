"""LARS: momentum whose steps have, in each tensor, a length in proportion to that of the parameter."""

from dataclasses import dataclass

import numpy as np

from fastopt.kernels.rules.norms import norm
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class LARS:
    """LARS: SGD with momentum, each tensor with a learning rate of its own, from its norm and that of its gradient.

    With norms over a tensor, trust_coefficient η, momentum μ and weight_decay λ:

        r = η ‖p‖ / (‖g‖ + λ ‖p‖ + ε)       1 where ‖p‖ or ‖g‖ is zero
        s = lr · r · (g + λ p)
        m ← μ m + s
        p ← p − m                           or, with nesterov=True, p ← p − (μ m + s)

    Buffer: m is in units of the parameter, because lr and r are in it, and starts at zero. Settings: lr,
    trust_coefficient, eps, weight_decay ≥ 0; momentum in [0, 1). float32: 28 bytes per parameter and step, of which 8
    are the pass for the norms.

    Where others differ: lr is inside of m, as in the paper and in optax.lars, so that a falling lr does not shorten the
    steps remembered; timm's Lars multiplies by it after. optax.lars takes ‖g + λ p‖ for ‖g‖ + λ ‖p‖. The ratio of 1
    for a norm of zero is optax's and timm's: without it p = 0 would stay. Biases and norms' scales are usually trained
    by Momentum in a group of their own.

    >>> import numpy as np, fastopt
    >>> p, g, m = np.array([3.0, 4.0]), np.array([0.6, -0.8]), np.zeros(2)
    >>> fastopt.update(fastopt.LARS(lr=1.0, trust_coefficient=0.1), 1, {"p": p, "g": g, "m": m})
    >>> p.round(6)  # ‖p‖ = 5 and ‖g‖ = 1: the step is 0.5 g
    array([2.7, 4.4])

    Source: You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.
    """

    lr: Setting = 1.0
    momentum: Setting = 0.9
    trust_coefficient: Setting = 1e-3
    eps: Setting = 0.0
    nesterov: bool = False
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(
            self,
            lr=NONNEGATIVE,
            momentum=DECAY_RATE,
            trust_coefficient=NONNEGATIVE,
            eps=NONNEGATIVE,
            weight_decay=NONNEGATIVE,
        )

    def scalars(self, t):
        """Return the settings, which do not depend on t unless they are schedules."""
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "eps": self.eps,
            "decay": self.weight_decay,
        }

    def update(self, p, g, m, *, lr, momentum, trust_coefficient, eps, decay):
        """Update p and m."""
        p_norm, g_norm = norm(p), norm(g)
        bottom = g_norm + eps
        if self.weight_decay:
            bottom = g_norm + decay * p_norm + eps
            g = g + decay * p
        trust = np.where((p_norm > 0.0) & (g_norm > 0.0), trust_coefficient * p_norm / bottom, 1.0)
        s = lr * trust * g
        m = momentum * m + s
        return p - (momentum * m + s if self.nesterov else m), m

"""Lion: a step of fixed size against the sign of an interpolation between momentum and gradient."""

from dataclasses import dataclass

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Lion:
    """Lion (evolved sign momentum): every element moves by lr, whatever its gradient's size.

    With betas = (β₁, β₂):

        c = β₁ m + (1 − β₁) g               what the step follows: nearer to g than the new m is
        m ← β₂ m + (1 − β₂) g
        p ← (1 − lr·λ) p − lr · sign(c)     weight_decay λ, decoupled; sign(0) = 0

    Buffer: m is in units of the gradient and starts at zero. Settings: lr, weight_decay ≥ 0; betas in [0, 1).
    float32: 20 bytes per parameter and step, of which Adam needs 28.

    Where others differ: optax.lion is the same with weight_decay 1e-3 by default; torch.optim has no Lion. The authors
    advise a learning rate 3 to 10 times smaller than Adam's, and a weight decay larger by the same factor.

    >>> import numpy as np, fastopt
    >>> p, g, m = np.zeros(3), np.array([0.5, -2.0, 0.0]), np.zeros(3)
    >>> fastopt.update(fastopt.Lion(lr=0.25), 1, {"p": p, "g": g, "m": m})
    >>> p, m.round(6)
    (array([-0.25,  0.25,  0.  ]), array([ 0.005, -0.02 ,  0.   ]))

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv:2302.06675.
    """

    lr: Setting = 1e-4
    betas: tuple[Setting, Setting] = (0.9, 0.99)
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, betas=DECAY_RATE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; keep = 1 − lr·λ, rest = 1 − β."""
        beta1, beta2 = self.betas
        return {
            "lr": self.lr,
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "keep": 1 - self.lr * self.weight_decay,
        }

    def update(self, p, g, m, *, lr, beta1, rest1, beta2, rest2, keep):
        """Update p and m."""
        if self.weight_decay:
            p = keep * p
        p = p - lr * np.sign(beta1 * m + rest1 * g)
        return p, beta2 * m + rest2 * g

"""Gradient descent: a step against the gradient."""

from dataclasses import dataclass

from fastopt.kernels.rules.settings import NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class SGD:
    """Gradient descent. Batch, mini-batch and stochastic descent differ only in the samples g is averaged over.

        g ← g + λ p                         weight_decay λ (L2)
        p ← p − lr · g

    Settings: lr, weight_decay ≥ 0. No state. float32: 12 bytes per parameter and step.

    Where others differ: torch.optim.SGD has momentum too; here that is `Momentum`.

    >>> import numpy as np, fastopt
    >>> p, g = np.array([1.0, 2.0]), np.array([10.0, -10.0])
    >>> fastopt.update(fastopt.SGD(lr=0.1), 1, {"p": p, "g": g})
    >>> p
    array([0., 3.])

    Source: Robbins & Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22(3), 1951.
    """

    lr: Setting = 1e-3
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Return the step's scalars."""
        return {"lr": self.lr, "decay": self.weight_decay}

    def update(self, p, g, *, lr, decay):
        """Update p."""
        if self.weight_decay:
            g = g + decay * p
        return p - lr * g

"""Sophia-G: momentum over an estimate of the Hessian's diagonal that the caller refreshes, each element clipped."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step

_SMALL = 1e-15


@dataclass(frozen=True)
class SophiaG:
    """Sophia with the Gauss–Newton–Bartlett estimate: a Newton step of each element, of at most lr.

    With betas = (β₁, β₂):

        m ← β₁ m + (1 − β₁) g
        p ← (1 − lr·λ) p                    weight_decay λ, decoupled; with max_lr: (1 − (lr/max_lr)·λ) p
        p ← p − lr · sign(m) · min(1, |m| / (ρ B h + 10⁻¹⁵))

    h is not of the step. Every ten steps or so the caller computes the gradient ĝ of the loss on labels drawn from the
    model's own predictions for a batch of B (of tokens, for a language model), and refreshes it:

        h = {name: rule.refreshed(h, ĝ[name]) for name, h in opt.state("h").items()}     h ← β₂ h + (1 − β₂) ĝ²
        opt.assign_state("h", h)

    Until the first time h is zero, and each element moves by lr, as in Signum.

    Buffers: m is in the gradient's units, h in their square and never negative; both start at zero. Settings: lr, rho,
    weight_decay ≥ 0; betas in [0, 1); batch_size B > 0, a number; max_lr > 0 or None. float32: 24 bytes per parameter
    and step.

    Where others differ: this is the authors' code, in which h is the average of ĝ² and B a factor of ρ; in the paper h
    contains B. pytorch_optimizer's SophiaH estimates the diagonal by Hutchinson's method.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.SophiaG(lr=0.1, rho=1.0, weight_decay=0.0)
    >>> opt = fastopt.Optimizer(rule, {"w": np.zeros(2)})
    >>> opt.assign_state("h", {"w": rule.refreshed(np.zeros(2), np.array([1.0, 10.0]))})
    >>> opt.step({"w": np.array([0.5, -2.0])})
    >>> opt.params["w"].round(6), opt.state("h")["w"].round(6)
    (array([-0.1  ,  0.007]), array([0.01, 1.  ]))

    Source: Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
    ICLR 2024, arXiv:2305.14342.
    """

    unsigned: ClassVar = ("h",)

    lr: Setting = 1e-4
    betas: tuple[Setting, Setting] = (0.965, 0.99)
    rho: Setting = 0.04
    weight_decay: Setting = 0.1
    batch_size: Setting = 1.0
    max_lr: MaxLr = None

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "rho", "weight_decay"), NONNEGATIVE)
        check(self, betas=DECAY_RATE, batch_size=POSITIVE, max_lr=POSITIVE, **numbers)

    def scalars(self, t):
        """Compute the step's scalars in float64."""
        beta1 = self.betas[0]
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "curvature": self.rho * self.batch_size,
            "small": _SMALL,
            "keep": 1 - decay_of_step(self),
            "lr": self.lr,
        }

    def refreshed(self, h, g):
        """Return the estimate h after the gradient ĝ = g of labels drawn from the model; arrays of any one shape."""
        beta2 = self.betas[1]
        return beta2 * h + (1 - beta2) * (g * g)

    def update(self, p, g, m, h, *, beta1, rest1, curvature, small, keep, lr):
        """Update p and m; h is as it was."""
        m = beta1 * m + rest1 * g
        step = np.abs(m) / (curvature * h + small)
        step = np.sign(m) * np.where(step > 1.0, 1.0, step)
        if self.weight_decay:
            p = keep * p
        return p - lr * step, m, h

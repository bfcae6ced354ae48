"""ASGD: gradient descent whose learning rate falls as theory asks, and an average of the parameters for evaluation."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import FINITE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class ASGD:
    """Averaged stochastic gradient descent: `ax` is the mean of the parameters of all steps after t0.

    With lambd Λ and t = 1, 2, …:

        g ← g + λ p                         weight_decay λ (L2)
        η = lr / (1 + Λ lr (t − 1))^α
        p ← (1 − Λ η) p − η g
        ax ← ax + μ (p − ax),               μ = 1 / max(1, t − 1 − t0): up to t0 it is p

    Buffer: ax is in units of the parameter; presets store it in the computing precision. Settings: lr, lambd, alpha,
    weight_decay ≥ 0; t0 any number, by default so large that averaging has to be switched on. float32: 20 bytes per
    parameter and step. `opt.state("ax")` are the averages; `opt.assign(…)` puts them in place of the parameters.

    Where others differ: the form here is torch's, whose η however uses the learning rate of the step before: with a
    constant lr both are the same. `EMA` around any rule averages with falling weights instead.

    >>> import numpy as np, fastopt
    >>> p, ax = np.zeros(1), np.zeros(1)
    >>> for t in (1, 2, 3):
    ...     fastopt.update(fastopt.ASGD(lr=1.0, lambd=0.0, t0=0), t, {"p": p, "g": np.ones(1), "ax": ax})
    ...     print(p, ax)
    [-1.] [-1.]
    [-2.] [-2.]
    [-3.] [-2.5]

    Source: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on Control and
    Optimization 30, 1992; Xu, "Towards Optimal One Pass Large Scale Learning with Averaged Stochastic Gradient
    Descent", 2011, arXiv:1107.2490.
    """

    exact: ClassVar = ("ax",)

    lr: Setting = 1e-2
    lambd: Setting = 1e-4
    alpha: Setting = 0.75
    t0: Setting = 1e6
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, t0=FINITE, **dict.fromkeys(("lr", "lambd", "alpha", "weight_decay"), NONNEGATIVE))

    def scalars(self, t):
        """Compute the step's scalars in float64; keep = 1 − Λ η."""
        eta = self.lr / (1 + self.lambd * self.lr * (t - 1)) ** self.alpha
        mu = 1 / max(1, t - 1 - self.t0)
        return {"eta": eta, "mu": mu, "keep": 1 - self.lambd * eta, "decay": self.weight_decay}

    def update(self, p, g, ax, *, eta, mu, keep, decay):
        """Update p and ax."""
        if self.weight_decay:
            g = g + decay * p
        p = keep * p - eta * g
        # A choice, because ax + 1 · (p − ax) rounds, and is NaN where ax was not finite.
        return p, np.where(mu == 1, p, ax + mu * (p - ax))

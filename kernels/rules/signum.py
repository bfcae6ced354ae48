"""Signum: a step of fixed size against the sign of the averaged gradient."""

from dataclasses import dataclass

import numpy as np

from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.weight_decay import MaxLr, decay_of_step


@dataclass(frozen=True)
class Signum:
    """Signum, sign descent with momentum: every element moves by lr, whatever its gradient's size.

        m ← β m + (1 − β) g
        p ← (1 − lr·λ) p − lr · sign(m)     weight_decay λ, decoupled; sign(0) = 0; with max_lr: (1 − (lr/max_lr)·λ) p

    With beta=0.0 it is signSGD, with beta=0.965 Tiger. Lion is the same with another β for the step than for m.

    Buffer: m is in units of the gradient and starts at zero. Settings: lr, weight_decay ≥ 0; beta in [0, 1);
    max_lr > 0 or None. float32: 20 bytes per parameter and step.

    Where others differ: optax.signum has no weight decay. Tiger's author also scales learning rates by the kind of the
    parameter; here that is `groups`.

    >>> import numpy as np, fastopt
    >>> p, g, m = np.zeros(3), np.array([0.5, -2.0, 0.0]), np.zeros(3)
    >>> fastopt.update(fastopt.Signum(lr=0.25), 1, {"p": p, "g": g, "m": m})
    >>> p, m.round(6)
    (array([-0.25,  0.25,  0.  ]), array([ 0.05, -0.2 ,  0.  ]))

    Source: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018, arXiv:1802.04434;
    Su, "Tiger: A Tight-fisted Optimizer", 2023, github.com/bojone/tiger.
    """

    lr: Setting = 1e-4
    beta: Setting = 0.9
    weight_decay: Setting = 0.0
    max_lr: MaxLr = None

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, beta=DECAY_RATE, weight_decay=NONNEGATIVE, max_lr=POSITIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − β."""
        return {"lr": self.lr, "beta": self.beta, "rest": 1 - self.beta, "keep": 1 - decay_of_step(self)}

    def update(self, p, g, m, *, lr, beta, rest, keep):
        """Update p and m."""
        if self.weight_decay:
            p = keep * p
        m = beta * m + rest * g
        return p - lr * np.sign(m), m

"""RMSprop: the gradient divided by the root of a running average of its square."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import NONNEGATIVE, UNIT, Setting, check


@dataclass(frozen=True)
class RMSprop:
    """RMSprop; centred, with momentum, and with ε inside the root as settings, because frameworks differ in all three.

        g ← g + λ p                         weight_decay λ (L2)
        v ← α v + (1 − α) g²
        a ← α a + (1 − α) g                 centered=True; then w = v − a², the variance, otherwise w = v
        s = g / (√w + ε)                    or g / √(w + ε) with eps_inside_sqrt=True
        m ← μ m + s;  p ← p − lr · m        momentum μ; p ← p − lr · s without

    Buffers: v in units of the gradient's square, a of the gradient, m without units; all start at zero.
    Settings: lr, eps, momentum, weight_decay ≥ 0, alpha in [0, 1]. float32: 20 bytes per parameter and step, 8 more for
    each of centered and momentum.

    Where others differ: the form here is torch's. optax.rmsprop has decay=0.9 (α) and ε inside the root by default, and
    its momentum adds up lr · s, so that a schedule acts on steps taken long ago less than here.
    The variance v − a² of a steady gradient can round to just below zero, where torch's root gives NaN; here such a
    variance is 0.

    >>> import numpy as np, fastopt
    >>> p, g, v = np.zeros(2), np.array([0.01, 100.0]), np.zeros(2)
    >>> fastopt.update(fastopt.RMSprop(lr=0.1, alpha=0.75), 1, {"p": p, "g": g, "v": v})
    >>> p.round(4)
    array([-0.2, -0.2])

    Source: Hinton, Srivastava & Swersky, "Neural Networks for Machine Learning", lecture 6e, 2012; centred: Graves,
    "Generating Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850.
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-2
    alpha: Setting = 0.99
    eps: Setting = 1e-8
    centered: bool = False
    momentum: Setting = 0.0
    eps_inside_sqrt: bool = False
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, alpha=UNIT, eps=NONNEGATIVE, momentum=NONNEGATIVE, weight_decay=NONNEGATIVE)

    @property
    def exact(self):
        """The averages whose difference is the variance."""
        return ("v", "a") if self.centered else ()

    def scalars(self, t):
        """Compute the step's scalars in float64; rest = 1 − α."""
        return {
            "lr": self.lr,
            "alpha": self.alpha,
            "rest": 1 - self.alpha,
            "eps": self.eps,
            "momentum": self.momentum,
            "decay": self.weight_decay,
        }

    def update(self, p, g, v, a=None, m=None, *, lr, alpha, rest, eps, momentum, decay):
        """Update p, v and, where the settings have them, a and m."""
        if self.weight_decay:
            g = g + decay * p
        v = alpha * v + rest * (g * g)
        w = v
        if self.centered:
            a = alpha * a + rest * g
            w = v - a * a
            w = np.where(w < 0, 0.0, w)
        s = g / (np.sqrt(w + eps) if self.eps_inside_sqrt else np.sqrt(w) + eps)
        if self.momentum:
            s = m = momentum * m + s
        return p - lr * s, v, a, m

"""Adagrad: the gradient divided by the root of the sum of all its squares so far."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Adagrad:
    """Adagrad: each parameter has its own learning rate, which falls with the squared gradients it has seen.

    With t = 1, 2, …:

        g ← g + λ p                         weight_decay λ (L2)
        v ← v + g²                          v starts at initial_accumulator_value
        p ← p − lr/(1 + (t − 1)·lr_decay) · g / (√v + ε)

    Buffer: v, the sum of the squared gradients, is in units of the gradient's square. Settings: lr, lr_decay,
    weight_decay, eps ≥ 0; initial_accumulator_value ≥ 0 and a number, not a schedule: it is used once, before any step.
    float32: 20 bytes per parameter and step.

    Where others differ: the form here is torch's. optax.adagrad starts v at 0.1, has ε inside the root (1e-7 by
    default) and does not move a parameter whose v is zero; at ε = 0 and v > 0 both agree. The paper has no ε.

    >>> import numpy as np, fastopt
    >>> p, g, v = np.zeros(2), np.array([3.0, -0.5]), np.zeros(2)
    >>> for t in (1, 2):
    ...     fastopt.update(fastopt.Adagrad(lr=0.1), t, {"p": p, "g": g, "v": v})
    >>> p.round(6), v
    (array([-0.170711,  0.170711]), array([18. ,  0.5]))

    Source: Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
    Journal of Machine Learning Research 12, 2011 (not on arXiv; an analysis is Ward, Wu & Bottou, arXiv:1806.01811).
    """

    unsigned: ClassVar = ("v",)

    lr: Setting = 1e-2
    lr_decay: Setting = 0.0
    weight_decay: Setting = 0.0
    initial_accumulator_value: Setting = 0.0
    eps: Setting = 1e-10

    def __post_init__(self):
        names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        check(self, **dict.fromkeys(names, NONNEGATIVE))
        if callable(self.initial_accumulator_value):
            raise SettingError(
                "v has one initial value: it cannot follow a schedule.",
                got=f"initial_accumulator_value={self.initial_accumulator_value!r}",
                expected=NONNEGATIVE,
                where="Adagrad",
            )

    def initial(self):
        """Return the value at which v starts."""
        return {"v": self.initial_accumulator_value}

    def scalars(self, t):
        """Compute the step's scalars in float64; step_size is the learning rate after its decay."""
        step_size = self.lr / (1 + (t - 1) * self.lr_decay)
        return {"step_size": step_size, "eps": self.eps, "decay": self.weight_decay}

    def update(self, p, g, v, *, step_size, eps, decay):
        """Update p and v."""
        if self.weight_decay:
            g = g + decay * p
        v = v + g * g
        return p - step_size * g / (np.sqrt(v) + eps), v

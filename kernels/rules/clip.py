"""Gradients clipped around any other rule: by their global norm, or each element by its size."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import POSITIVE, Setting, check
from fastopt.kernels.rules.total import GRADIENTS, total


@dataclass(frozen=True)
class ClipByGlobalNorm(Around):
    """Any rule, its gradients scaled down where their norm over all parameters is above a bound.

        n = √(Σ g²)  over all parameters of the step
        g ← min(1, max_norm / (n + 10⁻⁶)) · g

    and then the inner rule, weight decay included. That is torch.nn.utils.clip_grad_norm_ before a step, but in the
    step's own passes, and g itself stays as it was. Where n is not finite the gradients become what they become there:
    zero or NaN. Settings: rule, any rule, the user's own included; max_norm > 0. State: the inner rule's. Bytes per
    parameter: the inner rule's, and g once more (4 in float32).

    Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks".

    >>> import numpy as np, fastopt
    >>> p, g = np.zeros(2), np.array([3.0, 4.0])
    >>> fastopt.update(fastopt.ClipByGlobalNorm(fastopt.SGD(lr=1.0), max_norm=1.0), 1, {"p": p, "g": g})
    >>> p.round(6)
    array([-0.6, -0.8])
    """

    rule: Any
    max_norm: Setting = 1.0

    added = ("max_norm",)

    def __post_init__(self):
        super().__post_init__()
        check(self, max_norm=POSITIVE)

    def scalars(self, t):
        """Compute the inner rule's scalars, and the bound."""
        return {**self.rule.scalars(t), "max_norm": self.max_norm}

    @property
    def update(self):
        """The inner rule's update on the clipped gradient; its signature is the inner one's plus the bound."""

        def clipped(g, max_norm):
            factor = max_norm / (np.sqrt(total(g * g, over="all", of=GRADIENTS)) + 1e-6)
            return np.where(factor > 1.0, np.ones_like(factor), factor) * g

        return self.around(clipped)


@dataclass(frozen=True)
class ClipByValue(Around):
    """Any rule, each element of its gradient limited to ±max_value.

        g ← max(−max_value, min(max_value, g))

    as torch.nn.utils.clip_grad_value_ does, but in the step's own pass, and g itself stays as it was; NaN stays NaN.
    Settings: rule, any rule, the user's own included; max_value > 0. Buffers and bytes: the inner rule's.

    >>> import numpy as np, fastopt
    >>> p, g = np.zeros(3), np.array([0.5, 3.0, -4.0])
    >>> fastopt.update(fastopt.ClipByValue(fastopt.SGD(lr=1.0), max_value=1.0), 1, {"p": p, "g": g})
    >>> p
    array([-0.5, -1. ,  1. ])
    """

    rule: Any
    max_value: Setting = 1.0

    added = ("max_value",)

    def __post_init__(self):
        super().__post_init__()
        check(self, max_value=POSITIVE)

    def scalars(self, t):
        """Compute the inner rule's scalars, and the bound."""
        return {**self.rule.scalars(t), "max_value": self.max_value}

    @property
    def update(self):
        """The inner rule's update on the clipped gradient; its signature is the inner one's plus the bound."""
        return self.around(lambda g, limit: np.where(np.abs(g) > limit, np.copysign(limit, g), g))

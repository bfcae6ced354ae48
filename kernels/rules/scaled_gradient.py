"""A factor on the gradient around any other rule: to unscale it, or to climb instead of to descend."""

from dataclasses import dataclass
from typing import Any

from fastopt.checks import number
from fastopt.errors import raised_by
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import Setting


@dataclass(frozen=True)
class ScaledGradient(Around):
    """Any rule, its gradient multiplied by a factor in the same pass.

        g ← factor · g

    and then the inner rule, weight decay included. With 1/s it undoes a loss scaled by s, exactly where s is a power of
    two; with −1 the rule maximises. Settings: rule, any rule, the user's own included; factor, any finite number.
    Buffers and bytes: the inner rule's.

    >>> import numpy as np, fastopt
    >>> p = np.zeros(2)
    >>> rule = fastopt.ScaledGradient(fastopt.SGD(lr=0.5), factor=-1.0)
    >>> fastopt.update(rule, 1, {"p": p, "g": np.array([1.0, -2.0])})
    >>> p
    array([ 0.5, -1. ])
    """

    rule: Any
    factor: Setting = 1.0

    added = ("gradient_factor",)

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.factor):
            with raised_by("ScaledGradient"):
                object.__setattr__(self, "factor", number("factor", self.factor))

    def scalars(self, t):
        """Compute the inner rule's scalars, and the factor."""
        return {**self.rule.scalars(t), "gradient_factor": self.factor}

    @property
    def update(self):
        """The inner rule's update on the scaled gradient; its signature is the inner one's plus the factor."""
        return self.around(lambda g, factor: factor * g)

"""A factor on the gradient around any other rule: to unscale it, or to climb instead of to descend."""

import inspect
from dataclasses import dataclass
from typing import Any

from fastopt.errors import RuleError, SettingError, explain
from fastopt.kernels.form import require_rule
from fastopt.kernels.settings import Setting, initial, to_float


@dataclass(frozen=True)
class ScaledGradient:
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

    def __post_init__(self):
        require_rule(self.rule, "ScaledGradient")
        if "gradient_factor" in inspect.signature(self.rule.update).parameters:
            what = f"the inner rule {type(self.rule).__name__} already has a parameter 'gradient_factor'."
            raise RuleError(explain("ScaledGradient", what, do="scale once, or rename that parameter"))
        if not callable(self.factor):
            factor = to_float(self.factor)
            if not abs(factor) < float("inf"):
                what, got = "the setting factor is not a finite number.", f"factor={self.factor!r}"
                raise SettingError(explain("ScaledGradient", what, got=got))
            object.__setattr__(self, "factor", factor)

    @property
    def unsigned(self):
        """The inner rule's state that is never negative."""
        return getattr(self.rule, "unsigned", ())

    @property
    def exact(self):
        """The inner rule's state of which it takes differences."""
        return getattr(self.rule, "exact", ())

    def initial(self):
        """Give the inner rule's initial state."""
        return initial(self.rule)

    def scalars(self, t):
        """Compute the inner rule's scalars, and the factor."""
        return {**self.rule.scalars(t), "gradient_factor": self.factor}

    @property
    def update(self):
        """The inner rule's update on the scaled gradient; its signature is the inner one's plus the factor."""
        inner = inspect.signature(self.rule.update)

        def update(p, g, *state, gradient_factor, **scalars):
            return self.rule.update(p, gradient_factor * g, *state, **scalars)

        extra = inspect.Parameter("gradient_factor", inspect.Parameter.KEYWORD_ONLY)
        update.__signature__ = inner.replace(parameters=[*inner.parameters.values(), extra])  # type: ignore[attr-defined]
        return update

"""Annealed gradient noise around any other rule: how stochastic descent leaves saddle points."""

import inspect
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

from fastopt.errors import RuleError, explain
from fastopt.kernels.form import require_rule
from fastopt.kernels.settings import NONNEGATIVE, Setting, check, initial


@dataclass(frozen=True)
class GradientNoise:
    """Any rule, its gradient perturbed by normal noise that fades with the steps.

        g ← g + √(η / (1 + t)^γ) · z,       z ~ N(0, 1), independent for each step and element

    and then the inner rule. z is a hash of (seed, t, index of the element): it replays bit for bit on every backend,
    whatever the threads. An element's index is its place in the flat buffers, so an `Optimizer` repeats the noise of
    another, or goes on with it, only with the same parameters in the same order and the same groups. See
    `fastopt.kernels.noise.normal` for how z is made from exactly rounded operations.

    Settings: rule, any rule, the user's own included; eta, gamma ≥ 0. Buffers and bytes: the inner rule's.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.GradientNoise(fastopt.SGD(lr=0.1), eta=0.3)
    >>> p, q = np.zeros(3), np.zeros(3)
    >>> for x in (p, q):
    ...     fastopt.update(rule, 1, {"p": x, "g": np.zeros(3)}, seed=7)
    >>> bool(np.all(p == q)), bool(np.all(p != 0))
    (True, True)

    Source: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015,
    arXiv:1511.06807, which uses γ = 0.55 and η of 0.01, 0.3 or 1.
    """

    rule: Any
    eta: Setting = 0.01
    gamma: Setting = 0.55

    def __post_init__(self):
        require_rule(self.rule, "GradientNoise")
        taken = {"noise", "noise_scale"} & set(inspect.signature(self.rule.update).parameters)
        if taken:
            raise RuleError(
                explain(
                    "GradientNoise",
                    f"the inner rule {type(self.rule).__name__} already has a parameter {min(taken)!r}.",
                    do="add noise once, or rename that parameter",
                )
            )
        check(self, eta=NONNEGATIVE, gamma=NONNEGATIVE)

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
        """Compute the inner rule's scalars and the noise's standard deviation."""
        try:
            fading = (1 + t) ** self.gamma
        except OverflowError:  # Python's word for ∞
            fading = inf
        return {**self.rule.scalars(t), "noise_scale": sqrt(self.eta / fading)}

    @property
    def update(self):
        """The inner rule's update on the perturbed gradient; its signature is the inner one's plus the noise."""
        inner = inspect.signature(self.rule.update)

        def update(p, g, *state, noise_scale, noise, **scalars):
            return self.rule.update(p, g + noise_scale * noise, *state, **scalars)

        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("noise_scale", "noise")]
        update.__signature__ = inner.replace(parameters=[*inner.parameters.values(), *extra])  # type: ignore[attr-defined]
        return update

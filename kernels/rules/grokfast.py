"""Grokfast: gradients with their slow part amplified, around any other rule."""

from dataclasses import dataclass
from typing import Any

from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Grokfast(Around):
    """Any rule, with the running average of its gradients, times λ, added to the gradient.

        slow_g ← α slow_g + (1 − α) g       slow_g ← g at t = 1
        g ← g + λ slow_g

    and then the inner rule, weight decay included. What gradients have in common over 1/(1 − α) steps counts 1 + λ
    times, so that networks generalise earlier after they fit; the learning rate of a rule that is not scaled like
    Adam's has to be smaller by that factor. Settings: rule, any rule, the user's own included; alpha α in [0, 1),
    lamb λ ≥ 0. State: the inner rule's, and slow_g, in units of the gradient. Bytes per parameter: the inner rule's
    and, in float32, 8.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.Grokfast(fastopt.SGD(lr=1.0), alpha=0.5, lamb=2.0)
    >>> p, slow_g = np.zeros(1), np.zeros(1)
    >>> for t, g in ((1, 1.0), (2, 3.0)):
    ...     fastopt.update(rule, t, {"p": p, "g": np.array([g]), "slow_g": slow_g})
    ...     print(p, slow_g)
    [-3.] [1.]
    [-10.] [2.]

    Source: Lee et al., "Grokfast: Accelerated Grokking by Amplifying Slow Gradients", 2024, arXiv:2405.20233, of which
    this is Grokfast-EMA.
    """

    rule: Any
    alpha: Setting = 0.98
    lamb: Setting = 2.0

    added = ("slow_g", "grokfast_weight", "grokfast_lamb")

    def __post_init__(self):
        super().__post_init__()
        check(self, alpha=DECAY_RATE, lamb=NONNEGATIVE)

    def scalars(self, t):
        """Compute the inner rule's scalars, the weight of the new gradient in the average, and λ."""
        weight = 1.0 if t == 1 else 1 - self.alpha
        return {**self.rule.scalars(t), "grokfast_weight": weight, "grokfast_lamb": self.lamb}

    @property
    def update(self):
        """The inner rule's update on the amplified gradient, and the average of gradients."""

        def update(p, g, slow_g, *state, grokfast_weight, grokfast_lamb, **scalars):
            slow_g = slow_g + grokfast_weight * (g - slow_g)
            new, *rest = self.inner(p, g + grokfast_lamb * slow_g, *state, **scalars)
            return new, slow_g, *rest

        return self.with_state(update, "slow_g", "grokfast_weight", "grokfast_lamb")

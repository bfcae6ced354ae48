"""Annealed gradient noise around any other rule: how stochastic descent leaves saddle points."""

from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class GradientNoise(Around):
    """Any rule, its gradient perturbed by normal noise that fades with the steps.

        g ← g + √(η / (1 + t)^γ) · z,       z ~ N(0, 1), independent for each step and element

    and then the inner rule. z is a hash of (seed, t, index of the element): it replays bit for bit on every backend,
    whatever the threads. An element's index is its position in the flat buffers, so an `Optimizer` repeats the noise of
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

    added = ("noise_scale", "noise")

    def __post_init__(self):
        super().__post_init__()
        check(self, eta=NONNEGATIVE, gamma=NONNEGATIVE)

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
        return self.around(lambda g, scale, noise: g + scale * noise)

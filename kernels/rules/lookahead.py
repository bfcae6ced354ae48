"""Lookahead: slow weights that every k steps go part of the way to the fast ones, around any other rule."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.checks import Interval, number
from fastopt.errors import SettingError, raised_by
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import UNIT, Setting, check


@dataclass(frozen=True)
class Lookahead(Around):
    """Any rule, and slow weights that the parameters return to after every k of its steps.

        slow ← p                            before the first step
        p ← the inner rule's
        slow ← slow + α (p − slow),  p ← slow       at t = k, 2k, 3k, …

    The inner rule's state goes on over these points as if nothing had happened. Settings: rule, any rule, the user's
    own included; k, an integer ≥ 1; alpha α in [0, 1]. State: the inner rule's, and slow, which presets store in the
    computing precision. Bytes per parameter: the inner rule's and, in float32, 8. The best parameters for evaluation
    are `opt.state("slow")`, which p equals after a multiple of k steps.

    Where others differ: optax.lookahead is the same; its k is sync_period and its α slow_step_size.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.Lookahead(fastopt.SGD(lr=1.0), k=2, alpha=0.5), {"w": np.zeros(1)})
    >>> for _ in range(3):
    ...     opt.step({"w": np.ones(1)})
    ...     print(opt.params["w"], opt.state("slow")["w"])
    [-1.] [0.]
    [-1.] [-1.]
    [-2.] [-1.]

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, arXiv:1907.08610.
    """

    rule: Any
    k: float = 5.0
    alpha: Setting = 0.5

    added = ("slow", "lookahead_alpha", "lookahead_sync", "lookahead_first")

    def __post_init__(self):
        super().__post_init__()
        with raised_by("Lookahead"):
            object.__setattr__(self, "k", number("k", self.k, Interval(1.0)))
            if self.k != int(self.k):
                raise SettingError("k counts steps.", got=f"k={self.k!r}", expected="an integer ≥ 1")
        check(self, alpha=UNIT)

    @property
    def exact(self):
        """The inner rule's state of which it takes differences, and the slow weights."""
        return (*getattr(self.rule, "exact", ()), "slow")

    def scalars(self, t):
        """Compute the inner rule's scalars, α, and whether this step is the first and whether it synchronizes."""
        choices = {"lookahead_sync": float(t % self.k == 0), "lookahead_first": float(t == 1)}
        return {**self.rule.scalars(t), "lookahead_alpha": self.alpha, **choices}

    @property
    def update(self):
        """The inner rule's update, and the slow weights."""

        def update(p, g, slow, *state, lookahead_alpha, lookahead_sync, lookahead_first, **scalars):
            slow = np.where(lookahead_first != 0, p, slow)
            new, *rest = self.inner(p, g, *state, **scalars)
            slow = np.where(lookahead_sync != 0, slow + lookahead_alpha * (new - slow), slow)
            return np.where(lookahead_sync != 0, slow, new), slow, *rest

        return self.with_state(update, "slow", "lookahead_alpha", "lookahead_sync", "lookahead_first")

"""Decoupled weight decay, as the rules with a setting `max_lr` apply it."""

from typing import Any

from fastopt.kernels.rules.settings import Setting

__all__ = ["MaxLr", "decay_of_step"]

MaxLr = Setting | None
"""None: a step decays by lr·λ. The peak of lr: by (lr/max_lr)·λ, which does not depend on how high the peak is."""


def decay_of_step(rule: Any) -> float:
    """Return the share of p that decoupled weight decay takes in one step: lr·λ, or (lr/max_lr)·λ.

    With max_lr, the peak of the learning rate's schedule, decay is fully decoupled: λ is the share that a step takes
    at the peak, it fades as the schedule does, and another peak does not change it.

    >>> from fastopt import Adam
    >>> decay_of_step(Adam(lr=0.01, weight_decay=0.5))
    0.005
    >>> decay_of_step(Adam(lr=0.01, weight_decay=0.5, max_lr=0.02))
    0.25
    """
    return (rule.lr if rule.max_lr is None else rule.lr / rule.max_lr) * rule.weight_decay

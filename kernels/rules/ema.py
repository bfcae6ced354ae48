"""An exponentially weighted average of the parameters, kept in the same pass around any other rule."""

from dataclasses import dataclass
from typing import Any

from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import DECAY_RATE, Setting, check

AVERAGE = "ema"
"""Name of the state that is the average."""


@dataclass(frozen=True)
class EMA(Around):
    """Any rule, and an average of the parameters that it makes, for evaluation.

        p ← the inner rule's
        ema ← ema + w · (p − ema),        w = (1 − β) / (1 − βᵗ)

    so that ema is at each step the average with weights βᵏ, corrected for its start: after the first step it is p. With
    bias_correction=False w is 1 at the first step and then 1 − β, and the first parameters count for long: that is
    torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(β). Settings: rule, any rule, the user's own included;
    decay β in [0, 1); bias_correction. State: the inner rule's, and ema, which presets store in the computing
    precision. Bytes per parameter: the inner rule's and, in float32, 8.

    `opt.state("ema")` are the averages; within `with opt.averaged():` they are in place of the parameters.

    Polyak, Juditsky 1992, "Acceleration of stochastic approximation by averaging".

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.EMA(fastopt.SGD(lr=1.0), decay=0.5), {"w": np.zeros(1)})
    >>> for _ in range(3):
    ...     opt.step({"w": np.ones(1)})
    >>> opt.params["w"], opt.state("ema")["w"].round(3)  # −(3 · 4 + 2 · 2 + 1) / 7
    (array([-3.]), array([-2.429]))
    """

    rule: Any
    decay: Setting = 0.999
    bias_correction: bool = True

    added = ("ema", "ema_weight")

    def __post_init__(self):
        super().__post_init__()
        check(self, decay=DECAY_RATE)

    @property
    def exact(self):
        """The inner rule's state of which it takes differences, and the average."""
        return (*getattr(self.rule, "exact", ()), AVERAGE)

    def scalars(self, t):
        """Compute the inner rule's scalars, and the weight of the new parameters."""
        correction = 1 - self.decay**t if self.bias_correction else 1.0
        weight = 1.0 if t == 1 else (1 - self.decay) / correction
        return {**self.rule.scalars(t), "ema_weight": weight}

    @property
    def averaged(self):
        """What stands for the parameters in an evaluation: the average."""

        def averaged(ema):
            return ema

        return averaged

    @property
    def update(self):
        """The inner rule's update, and the average of what it returns for p."""

        def update(p, g, ema, *state, ema_weight, **scalars):
            new, *rest = self.inner(p, g, *state, **scalars)
            return new, ema + ema_weight * (new - ema), *rest

        return self.with_state(update, AVERAGE, "ema_weight")

"""Schedule-Free SGD and AdamW: an average of the iterates takes the place of a falling learning rate."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from fastopt.checks import Interval
from fastopt.errors import SettingError
from fastopt.kernels.rules.accumulated import accumulated
from fastopt.kernels.rules.settings import DECAY_RATE, FINITE, NONNEGATIVE, Setting, check

SHARE = Interval(0.0, 1.0, low_open=True)
"""Of x in y: at 0, x could not be computed from y and z."""


def average(y, z, share):
    """Return the average x, of which and z the point y is made: y = (1 − share) z + share x."""
    return y + (1 - 1 / share) * (z - y)


class _ScheduleFree:
    """What both rules share: the weight of a step in the average, and the average."""

    lr: Any
    warmup_steps: Any
    r: Any
    weight_lr_power: Any
    name_of_beta: ClassVar[str]

    def _beta(self):
        raise NotImplementedError

    def _check_constant(self):
        """Raise a SettingError if something that all steps so far depend on follows a schedule."""
        for name in ("warmup_steps", "r", "weight_lr_power"):
            if callable(getattr(self, name)):
                self._refuse(name, getattr(self, name))
        if callable(self._beta()):
            self._refuse(self.name_of_beta, self._beta())

    def _refuse(self, name, value):
        raise SettingError(
            "the average is of all steps so far, so what it is made of cannot follow a schedule.",
            got=f"{name}={value!r}",
            expected="a number",
            do="schedule lr, or warm it up by warmup_steps",
            where=type(self).__name__,
        )

    def _averaging(self, t):
        """Compute the scalars of the average and of the steps of y and z."""
        lr = self.lr * min(1.0, t / self.warmup_steps) if self.warmup_steps else self.lr
        share = _share(t, self.warmup_steps, self.r, self.weight_lr_power)
        return {
            "share": share,
            "y_size": lr * (1 - self._beta() * (1 - share)),
            "z_size": lr,
            "first": float(t == 1),
        }

    def averaged(self, p, z):
        """Return the average x, which is for evaluation, from the parameters p and the state z after a step.

        Both are arrays of any shape, or numbers; x is computed in their precision and has p's units. There is no x
        before the first step, which sets z.
        """
        return average(p, z, self._beta())


@dataclass(frozen=True)
class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-Free SGD: gradients are taken between the iterates z of plain SGD and their average x.

    With momentum β and t = 1, 2, …, p being y, the point at which gradients are computed:

        g ← g + λ y                         weight_decay λ (L2, at y)
        z ← z − γ g                         γ = lr · min(1, t/warmup_steps)
        x ← (1 − c) x + c z                 c = wₜ / (w₁ + … + wₜ),  wₜ = t^r · min(1, t/warmup_steps)^weight_lr_power
        y ← (1 − β) z + β x

    x is not stored: y and z determine it. `rule.averaged(p, z)` computes it, for evaluation and for the final model;
    `with opt.averaged():` puts it in place of the parameters.

    Buffer: z is in units of the parameter; the first step starts it at p. x is a difference of p and z, so presets
    store z in the computing precision. Settings: lr, weight_decay, warmup_steps ≥ 0; momentum in (0, 1]; r and
    weight_lr_power any numbers. All but lr and weight_decay are numbers, never schedules. float32: 20 bytes per
    parameter and step.

    Where others differ: schedulefree.SGDScheduleFree is the same; its weights are (largest lr so far)^weight_lr_power,
    which is this with a learning rate that rises in its warmup_steps alone. There p becomes x by optimizer.eval() and
    y by optimizer.train(); here p stays y. optax.contrib.schedule_free_sgd warms up from 0, one step later.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.ScheduleFreeSGD(lr=1.0, momentum=0.9)
    >>> p, z = np.zeros(1), np.zeros(1)
    >>> for t in (1, 2, 3):
    ...     fastopt.update(rule, t, {"p": p, "g": np.ones(1), "z": z})
    ...     print(p.round(3), z, rule.averaged(p, z).round(3))
    [-1.] [-1.] [-1.]
    [-1.55] [-2.] [-1.5]
    [-2.1] [-3.] [-2.]

    Source: Defazio et al., "The Road Less Scheduled", NeurIPS 2024, arXiv:2405.15682.
    """

    exact: ClassVar = ("z",)
    name_of_beta: ClassVar = "momentum"

    lr: Setting = 1.0
    momentum: Setting = 0.9
    weight_decay: Setting = 0.0
    warmup_steps: Setting = 0.0
    r: Setting = 0.0
    weight_lr_power: Setting = 2.0

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "weight_decay", "warmup_steps"), NONNEGATIVE)
        check(self, momentum=SHARE, r=FINITE, weight_lr_power=FINITE, **numbers)
        self._check_constant()

    def _beta(self):
        return self.momentum

    def scalars(self, t):
        """Compute the step's scalars in float64; share is c, y_size and z_size are the learning rates of y and z."""
        return {"decay": self.weight_decay, **self._averaging(t)}

    def update(self, p, g, z, *, decay, share, y_size, z_size, first):
        """Update p, which is y, and z."""
        z = np.where(first != 0, p, z)
        if self.weight_decay:
            g = g + decay * p
        return p + share * (z - p) - y_size * g, z - z_size * g


@dataclass(frozen=True)
class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-Free AdamW: as `ScheduleFreeSGD`, the average and the iterates of Adam without its first moment.

    With betas = (β₁, β₂) and t = 1, 2, …, p being y, the point at which gradients are computed:

        v ← β₂ v + (1 − β₂) g²
        d = g / (√v̂ + ε) + λ y,            v̂ = v / (1 − β₂ᵗ); weight_decay λ, decoupled, at y
        z ← z − γ d                         γ = lr · min(1, t/warmup_steps)
        x ← (1 − c) x + c z                 c = wₜ / (w₁ + … + wₜ),  wₜ = t^r · min(1, t/warmup_steps)^weight_lr_power
        y ← (1 − β₁) z + β₁ x

    `rule.averaged(p, z)` is x, for evaluation and for the final model: see `ScheduleFreeSGD`.

    Buffers: v is in the square of the gradient's units and starts at zero; z is in units of the parameter, the first
    step starts it at p, and presets store it in the computing precision. Settings: lr, eps, weight_decay, warmup_steps
    ≥ 0; β₁ in (0, 1), β₂ in [0, 1); r and weight_lr_power any numbers. Only lr, β₂, eps and weight_decay may follow
    schedules. float32: 28 bytes per parameter and step, those of Adam.

    Where others differ: schedulefree.AdamWScheduleFree is the same, with the differences of `ScheduleFreeSGD`; its
    learning rates, 1 to 10 times those of a scheduled AdamW, hold here too.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.ScheduleFreeAdamW(lr=0.1)
    >>> p, v, z = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t in (1, 2, 3):
    ...     fastopt.update(rule, t, {"p": p, "g": np.array([0.5, -2.0]), "v": v, "z": z})
    >>> p.round(6), z.round(6), rule.averaged(p, z).round(6)
    (array([-0.21,  0.21]), array([-0.3,  0.3]), array([-0.2,  0.2]))

    Source: Defazio et al., "The Road Less Scheduled", NeurIPS 2024, arXiv:2405.15682.
    """

    unsigned: ClassVar = ("v",)
    exact: ClassVar = ("z",)
    name_of_beta: ClassVar = "betas[0]"

    lr: Setting = 2.5e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    warmup_steps: Setting = 0.0
    r: Setting = 0.0
    weight_lr_power: Setting = 2.0

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "eps", "weight_decay", "warmup_steps"), NONNEGATIVE)
        check(self, betas=DECAY_RATE, r=FINITE, weight_lr_power=FINITE, **numbers)
        self._check_constant()
        if not self._beta():
            raise SettingError(
                "with betas[0]=0 the average x could not be computed from p and z.",
                got=f"betas={self.betas!r}",
                expected="betas[0] in (0, 1)",
                where="ScheduleFreeAdamW",
            )

    def _beta(self):
        return self.betas[0]

    def scalars(self, t):
        """Compute the step's scalars in float64; share is c, y_size and z_size are the learning rates of y and z."""
        beta2 = self.betas[1]
        return {
            "beta2": beta2,
            "rest2": 1 - beta2,
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "decay": self.weight_decay,
            **self._averaging(t),
        }

    def update(self, p, g, v, z, *, beta2, rest2, root, eps, decay, share, y_size, z_size, first):
        """Update p, which is y, v and z."""
        z = np.where(first != 0, p, z)
        v = beta2 * v + rest2 * (g * g)
        d = g / (np.sqrt(v) * root + eps)
        if self.weight_decay:
            d = d + decay * p
        return p + share * (z - p) - y_size * d, v, z - z_size * d


def _share(t, warmup_steps, r, power):
    """Return the weight of step t as a share of the weights of all steps up to t.

    Without r every step after the warm-up has the weight 1, so only those of the warm-up are added one by one.
    """
    if r:
        return _weight(t, warmup_steps, r, power) / _total(t, warmup_steps, r, power)
    rising = min(t, int(warmup_steps))
    return _weight(t, warmup_steps, r, power) / (_total(rising, warmup_steps, r, power) + (t - rising))


def _weight(t, warmup_steps, r, power):
    return t**r * (min(1.0, t / warmup_steps) ** power if warmup_steps else 1.0)


def _add(total, k, warmup_steps, r, power):
    return total + _weight(k, warmup_steps, r, power)


def _total(t, warmup_steps, r, power):
    """Add w₁ + … + wₜ from left to right."""
    return accumulated(_add, t, 0.0, warmup_steps, r, power)

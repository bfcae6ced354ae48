"""GPA-AdamW: Adam's steps at a point between their iterates and an exponentially weighted average of these."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.checks import Interval
from fastopt.errors import SettingError
from fastopt.kernels.rules.schedule_free import SHARE, average
from fastopt.kernels.rules.settings import DECAY_RATE, NONNEGATIVE, Setting, check

_COEFFICIENT = Interval(0.0, 1.0)


@dataclass(frozen=True)
class GPAAdamW:
    """AdamW with generalized primal averaging: Nesterov's momentum as an average of iterates, with two coefficients.

    With μ_y = train_interp_coeff, μ_x = eval_interp_coeff and p being y, the point at which gradients are computed:

        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        d = m̂ / (√v̂ + ε) + λ z,           m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ); weight_decay λ, decoupled, of z
        z ← z − lr d
        x ← μ_x x + (1 − μ_x) z
        y ← μ_y x + (1 − μ_y) z

    x is not stored: y and z determine it. `rule.averaged(p, z)` computes it, for evaluation and for the final model;
    `with opt.averaged():` puts it in place of the parameters.

    Buffers: m is in the gradient's units, v in their square, both start at zero; z is in units of the parameter, the
    first step starts it at p, and presets store it in the computing precision. Settings: lr, eps, weight_decay ≥ 0;
    betas in [0, 1); train_interp_coeff in (0, 1] and eval_interp_coeff in [0, 1], numbers and never schedules. float32:
    36 bytes per parameter and step.

    Where others differ: GPAAdamW of facebookresearch/optimizers is the same without weight decay, with beta1 and beta2
    for betas and lr=1 as its default. With weight decay it shrinks z as here, but moves y by 1 − μ_x of that instead of
    1 − μ_x μ_y, so that its x is not the average of its z; here decay is the paper's. eval_interp_coeff is chosen by
    the number of steps that the average is to span, 1/(1 − μ_x).

    >>> import numpy as np, fastopt
    >>> rule = fastopt.GPAAdamW(lr=0.1, eval_interp_coeff=0.9)
    >>> p, m, v, z = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t in (1, 2, 3):
    ...     fastopt.update(rule, t, {"p": p, "g": np.array([0.5, -2.0]), "m": m, "v": v, "z": z})
    >>> p.round(6), z.round(6), rule.averaged(p, z).round(6)
    (array([-0.12927,  0.12927]), array([-0.3,  0.3]), array([-0.0561,  0.0561]))

    Source: Defazio et al., "Smoothing DiLoCo with Primal Averaging for Faster Training of LLMs", 2025,
    arXiv:2512.17131.
    """

    unsigned: ClassVar = ("v",)
    exact: ClassVar = ("z",)

    lr: Setting = 1e-3
    betas: tuple[Setting, Setting] = (0.9, 0.999)
    eps: Setting = 1e-8
    weight_decay: Setting = 0.0
    train_interp_coeff: Setting = 0.7
    eval_interp_coeff: Setting = 0.9967

    def __post_init__(self):
        numbers = dict.fromkeys(("lr", "eps", "weight_decay"), NONNEGATIVE)
        check(self, betas=DECAY_RATE, train_interp_coeff=SHARE, eval_interp_coeff=_COEFFICIENT, **numbers)
        for name in ("train_interp_coeff", "eval_interp_coeff"):
            if callable(getattr(self, name)):
                what = "the average is of all steps so far, so what it is made of cannot follow a schedule."
                got = f"{name}={getattr(self, name)!r}"
                raise SettingError(what, got=got, expected="a number", where="GPAAdamW")

    def scalars(self, t):
        """Compute the step's scalars in float64; y_size and z_size are the learning rates of y and z."""
        (beta1, beta2), mu_y, mu_x = self.betas, self.train_interp_coeff, self.eval_interp_coeff
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "correction": 1 / (1 - beta1**t),
            "root": 1 / sqrt(1 - beta2**t),
            "eps": self.eps,
            "decay": self.weight_decay,
            "share": 1 - mu_x,
            "y_size": self.lr * (1 - mu_y * mu_x),
            "z_size": self.lr,
            "first": float(t == 1),
        }

    def averaged(self, p, z):
        """Return the average x, which is for evaluation, from the parameters p and the state z after a step."""
        return average(p, z, self.train_interp_coeff)

    def update(
        self, p, g, m, v, z, *, beta1, rest1, beta2, rest2, correction, root, eps, decay, share, y_size, z_size, first
    ):
        """Update p, which is y, and m, v and z."""
        z = np.where(first != 0, p, z)
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        d = correction * m / (np.sqrt(v) * root + eps)
        if self.weight_decay:
            d = d + decay * z
        return p + share * (z - p) - y_size * d, m, v, z - z_size * d

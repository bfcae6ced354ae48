"""Gradient descent with momentum: a running average of the gradient instead of the gradient."""

from dataclasses import dataclass

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import DECAY_RATE, FINITE, NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Momentum:
    """Momentum: in the averaged form by default, the heavy ball with `dampening`, Nesterov as a setting.

        g ← g + λ p                         weight_decay λ (L2)
        m ← β m + (1 − β) g                 dampening=None, the averaged form
        m ← β m + (1 − τ) g                 dampening=τ, the heavy ball; m ← g at t = 1, as in torch
        p ← p − lr · m                      or, with nesterov=True, p ← p − lr · (β m + (1 − β) g); heavy ball β m + g

    bias_correction=True (averaged form only) divides m by 1 − βᵗ, because m starts at zero and is too small at first;
    with Nesterov the two terms are divided by 1 − βᵗ⁺¹ and 1 − βᵗ, what each of them averages.

    Buffer: m is in units of the gradient and starts at zero. Settings: lr, weight_decay ≥ 0; beta in [0, 1),
    of the heavy ball ≥ 0; dampening any number or None. float32: 20 bytes per parameter and step.

    Where others differ: torch.optim.SGD(momentum=β) is `Momentum(beta=β, dampening=0.0)`; its steps are 1/(1 − β) times
    longer than those of the averaged form, so learning rates do not carry over. optax.trace is the heavy ball too,
    optax.ema the averaged form with bias correction.

    >>> import numpy as np, fastopt
    >>> p, m = np.array([1.0]), np.zeros(1)
    >>> for t in (1, 2):
    ...     fastopt.update(fastopt.Momentum(lr=1.0, beta=0.5), t, {"p": p, "g": np.array([1.0]), "m": m})
    >>> p, m
    (array([-0.25]), array([0.75]))

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Nesterov, "A method of
    solving a convex programming problem with convergence rate O(1/k²)", 1983; Sutskever et al., "On the importance of
    initialization and momentum in deep learning", ICML 2013.
    """

    lr: Setting = 1e-3
    beta: Setting = 0.9
    dampening: Setting | None = None
    nesterov: bool = False
    bias_correction: bool = False
    weight_decay: Setting = 0.0

    def __post_init__(self):
        own = DECAY_RATE if self.dampening is None else NONNEGATIVE  # at 1 the ball rolls without friction, as in torch
        check(self, lr=NONNEGATIVE, beta=own, dampening=FINITE, weight_decay=NONNEGATIVE)
        if self.dampening is not None and self.bias_correction:
            raise SettingError(
                "only the averaged form has a bias to correct.",
                got=f"dampening={self.dampening!r} with bias_correction=True",
                do="leave dampening at None, or bias_correction at False",
                where="Momentum",
            )
        if self.nesterov and self.dampening:
            raise SettingError(
                "Nesterov's step is defined without dampening.",
                got=f"nesterov=True with dampening={self.dampening!r}",
                expected="dampening=0.0 (heavy ball) or None (averaged form)",
                where="Momentum",
            )

    def scalars(self, t):
        """Compute the step's scalars in float64; m_size and g_size are the learning rates of m and, for Nesterov, g."""
        if self.dampening is None:
            rest = 1 - self.beta
        else:
            rest = 1.0 if t == 1 else 1 - self.dampening
        m_size, g_size = self.lr, self.lr * rest
        if self.nesterov:
            m_size *= self.beta
        if self.bias_correction:
            m_size /= 1 - self.beta ** (t + 1 if self.nesterov else t)
            g_size /= 1 - self.beta**t
        return {"beta": self.beta, "rest": rest, "m_size": m_size, "g_size": g_size, "decay": self.weight_decay}

    def update(self, p, g, m, *, beta, rest, m_size, g_size, decay):
        """Update p and m."""
        if self.weight_decay:
            g = g + decay * p
        m = beta * m + rest * g
        step = m_size * m
        if self.nesterov:
            step = step + g_size * g
        return p - step, m

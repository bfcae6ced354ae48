"""Rprop: each element has its own step size, which grows while its gradient's sign stays and shrinks when it turns."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.settings import NONNEGATIVE, POSITIVE, Setting, check


@dataclass(frozen=True)
class Rprop:
    """Rprop (resilient backpropagation): only the gradient's sign counts. For full batches: noise turns signs.

    With etas = (η₋, η₊) and step_sizes = (Δmin, Δmax):

        Δ ← lr                              at t = 1
        Δ ← η₊ Δ                            where the sign of g is that of the previous g
        Δ ← η₋ Δ,  g ← 0                    where it has turned; where one of the two is 0, Δ stays
        Δ ← max(Δmin, min(Δmax, Δ))
        p ← p − Δ sign(g)

    Buffers: `size` is Δ, in units of the parameter; `previous` is the g of the previous step, 0 where its sign had
    turned; both start at zero. Settings: lr ≥ 0, read at the first step and never again; 0 < η₋ < 1 < η₊; step_sizes
    > 0. float32: 28 bytes per parameter and step.

    Where others differ: the form here, Rprop− with g ← 0, is torch's. In optax.rprop lr is the same; the classical
    Rprop+ also takes back the step before a turn.

    >>> import numpy as np, fastopt
    >>> p, size, previous = np.zeros(2), np.zeros(2), np.zeros(2)
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, 4.0]), (3, [1.0, 1.0])):
    ...     state = {"size": size, "previous": previous}
    ...     fastopt.update(fastopt.Rprop(lr=0.1), t, {"p": p, "g": np.array(g), **state})
    ...     print(p.round(6), size.round(6))
    [-0.1  0.1] [0.1 0.1]
    [-0.22  0.1 ] [0.12 0.05]
    [-0.364  0.05 ] [0.144 0.05 ]

    Source: Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: the RPROP Algorithm",
    IEEE International Conference on Neural Networks 1993; Igel & Hüsken, "Empirical Evaluation of the Improved Rprop
    Learning Algorithms", Neurocomputing 50, 2003 (iRprop−).
    """

    unsigned: ClassVar = ("size",)

    lr: Setting = 1e-2
    etas: tuple[Setting, Setting] = (0.5, 1.2)
    step_sizes: tuple[Setting, Setting] = (1e-6, 50)

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, etas=POSITIVE, step_sizes=POSITIVE)
        down, up = self.etas
        if not (callable(down) or down < 1) or not (callable(up) or up > 1):
            raise SettingError(
                "a step size shrinks where the gradient turns, and grows where it does not.",
                got=f"etas={self.etas!r}",
                expected="0 < etas[0] < 1 < etas[1]",
                where="Rprop",
            )

    def scalars(self, t):
        """Return the step's scalars. At t = 1 both limits are lr, within the limits, so every size becomes that."""
        (down, up), (smallest, largest) = self.etas, self.step_sizes
        if t == 1:
            smallest = largest = min(max(self.lr, smallest), largest)
        return {"down": down, "up": up, "smallest": smallest, "largest": largest}

    def update(self, p, g, size, previous, *, down, up, smallest, largest):
        """Update p, size and the previous gradient."""
        product = g * previous
        size = np.where(product > 0, up * size, np.where(product < 0, down * size, size))
        size = np.where(size < smallest, smallest, np.where(size > largest, largest, size))
        g = np.where(product < 0, np.zeros_like(g), g)
        return p - size * np.sign(g), size, g

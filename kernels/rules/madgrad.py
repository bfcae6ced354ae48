"""MADGRAD: dual averaging from the starting point, divided by the cube root of the sum of squares."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from fastopt.kernels.rules.settings import NONNEGATIVE, UNIT, Setting, check


@dataclass(frozen=True)
class MADGRAD:
    """MADGRAD: all weighted gradients so far decide, from the starting point x0, where the parameters go.

    With momentum c and t = 1, 2, …:

        g ← g + λ p                         weight_decay λ (L2)
        s ← s + lr √t g
        v ← v + lr √t g²
        p ← c p + (1 − c) (x0 − s / (∛v + ε))

    Buffers: s in units of lr times the gradient, v in lr times its square, x0 is the parameter before the first step,
    which sets it. s and x0 decide where p is, so presets store them in the computing precision. Settings: lr, eps,
    weight_decay ≥ 0; momentum in [0, 1]. float32: 36 bytes per parameter and step. The cube root is computed from
    operations whose bits are the same everywhere, with one division in float32.

    Where others differ: the authors' code, and optax.contrib.madgrad, add ε to lr. L2 decay pulls for long, since s
    forgets nothing: the authors advise less of it than for Adam, or none.

    >>> import numpy as np, fastopt
    >>> p = np.zeros(2)
    >>> state = {name: np.zeros(2) for name in ("s", "v", "x0")}
    >>> for t, g in ((1, [0.5, -2.0]), (2, [0.25, -4.0])):
    ...     fastopt.update(fastopt.MADGRAD(lr=0.1), t, {"p": p, "g": np.array(g), **state})
    ...     print(p.round(6))
    [-0.0171    0.027144]
    [-0.041779  0.079672]

    Source: Defazio & Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method
    for Stochastic Optimization", JMLR 23, 2022, arXiv:2101.11075.
    """

    unsigned: ClassVar = ("v",)
    exact: ClassVar = ("s", "x0")

    lr: Setting = 1e-2
    momentum: Setting = 0.9
    eps: Setting = 1e-6
    weight_decay: Setting = 0.0

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, momentum=UNIT, eps=NONNEGATIVE, weight_decay=NONNEGATIVE)

    def scalars(self, t):
        """Compute the step's scalars in float64; weight = lr √t."""
        return {
            "weight": self.lr * sqrt(t),
            "momentum": self.momentum,
            "rest": 1 - self.momentum,
            "eps": self.eps,
            "decay": self.weight_decay,
            "first": float(t == 1),
        }

    def update(self, p, g, s, v, x0, *, weight, momentum, rest, eps, decay, first):
        """Update p, s, v and, in the first step, x0."""
        x0 = np.where(first != 0, p, x0)
        if self.weight_decay:
            g = g + decay * p
        s = s + weight * g
        v = v + weight * (g * g)
        return momentum * p + rest * (x0 - s / (cube_root(v) + eps)), s, v, x0


def cube_root(x):
    """Compute ∛x of x ≥ 0 from operations that are rounded correctly.

    The error is at most 1.5 ulp in float32 and 3 in float64.

    >>> cube_root(np.array([0.125, 27.0, 1e300]))
    array([5.e-001, 3.e+000, 1.e+100])
    """
    return _cube_root_32(x) if x.dtype == np.float32 else _cube_root_64(x)


def _cube_root_32(x):
    """Start with a third of the bits, which is within 3.3 % of the root, and multiply by ∛(x / y³), a polynomial.

    Of ∛(1 + d) the Taylor polynomial of degree 5 is taken, whose error at |d| ≤ 0.1 is below 3e-8. Numbers are brought
    between 2⁻⁹⁶ and 2⁹⁶ before, so that y³ neither overflows nor is subnormal.
    """
    small = x < 1.0
    scaled = x * np.where(small, np.float32(2.0**96), np.float32(2.0**-96))
    scaled = np.where(x == 0.0, np.float32(1.0), scaled)
    bits = scaled.view(np.uint32)
    third = (bits >> np.uint32(2)) + (bits >> np.uint32(4))
    third = third + (third >> np.uint32(4))
    third = third + (third >> np.uint32(8))
    y = (third + np.uint32(_THIRD)).view(np.float32)
    d = scaled / (y * y * y) - 1.0
    series = 1 / 3 + d * (-1 / 9 + d * (5 / 81 + d * (-10 / 243 + d * (22 / 729))))
    y = (y + y * d * series) * np.where(small, np.float32(2.0**-32), np.float32(2.0**32))
    return np.where((x > 0.0) & (x < np.inf), y, x)


_THIRD = 0x2A516800
"""Two thirds of the bits of 1.0, less what makes y³ differ from x by at most 9.5 % on either side."""


def _cube_root_64(x):
    """Start with roots, and let Halley's iteration end it.

    y ← (x y)^¼ has the fixed point x^⅓ and divides the error of log y by 4. From x^¼ it starts with log₂ x / 12: five
    steps bring it under 0.1 octaves. Each step of Halley's then cubes the error.
    """
    root = np.sqrt(x)
    y = np.sqrt(root)
    for _ in range(5):
        y = np.sqrt(root * np.sqrt(y))
    for _ in range(3):
        ratio = x / y / y / y  # x / y³, which is about 1, without overflow
        y = y * ((1 + 2 * ratio) / (2 + ratio))
    return np.where(y == y, y, x)  # 0 and ∞, for which the ratio is NaN, are their own roots

"""Muon: momentum whose every step is made orthogonal, by products of matrices that a library computes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from fastopt.checks import integer, to_float
from fastopt.errors import SettingError
from fastopt.kernels.rules.matrixwise import matrixwise
from fastopt.kernels.rules.rule import require_rule
from fastopt.kernels.rules.settings import DECAY_RATE, FINITE, NONNEGATIVE, POSITIVE, Setting, check
from fastopt.kernels.rules.total import total

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a x + b x³ + c x⁵: the slope at zero is steep, and singular values end between 0.7 and 1.2."""

ADJUSTED = (None, "original", "match_rms_adamw")


@dataclass(frozen=True)
class NewtonSchulz:
    """The function of matrices that brings all singular values near one: X ← a X + (b A + c A²) X, with A = X Xᵀ.

    X is the matrix or, where that is tall, its transpose; its singular values are at most one. A step has three
    products, of which two are symmetric. The result is scaled by what `adjust_lr_fn` makes of (rows, columns). With
    dtype="bfloat16" the products are of torch's bfloat16, and so is what is kept between them.
    """

    steps: int = 5
    coefficients: tuple[float, float, float] = COEFFICIENTS
    adjust_lr_fn: str | None = None
    dtype: str | None = None

    def scale(self, rows: int, columns: int) -> float:
        """Return the factor of the learning rate for a matrix."""
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / columns))

    def __call__(self, x: Any) -> Any:
        """Orthogonalize a batch of matrices, (matrices, rows, columns), of NumPy, CuPy or torch."""
        count, rows, columns = x.shape
        narrow = self._narrowed(x)
        one = count == 1  # for which torch has faster products than for a batch of one
        wide = narrow[0] if one else narrow
        wide = wide if rows <= columns else wide.swapaxes(-1, -2)
        for step in range(1, 1 + self.steps):
            factor = self.scale(rows, columns) if step == self.steps else 1.0
            wide = self._step(wide, factor)
        found = wide if rows <= columns else wide.swapaxes(-1, -2)
        return found[None] if one else found

    def _step(self, x: Any, factor: float) -> Any:
        """Compute factor · (a X + (b A + c A²) X)."""
        a, b, c = self.coefficients
        gram = x @ x.swapaxes(-1, -2)
        if hasattr(x, "addmm"):  # torch's: a sum with a product, rounded once
            add = type(x).addmm if x.ndim == 2 else type(x).baddbmm
            return add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=factor * a, alpha=factor)
        polynomial = gram @ gram.swapaxes(-1, -2)  # gram is symmetric: NumPy computes half of A Aᵀ, and not of A A
        polynomial *= factor * c
        gram *= factor * b
        polynomial += gram
        size = gram.shape[-1]
        polynomial.reshape(-1, size * size)[:, :: size + 1] += factor * a  # so that nothing else passes over X
        return polynomial @ x

    def _narrowed(self, x: Any) -> Any:
        if self.dtype is None:
            return x
        if not hasattr(x, "bfloat16"):
            what = "products of matrices in bfloat16 are torch's, and these are of another library."
            raise SettingError(what, got=type(x).__module__, do="leave out ns_dtype", where="Muon")
        return x.bfloat16()


@dataclass(frozen=True)
class Muon:
    """Muon: each step of momentum is replaced by the nearest matrix all of whose singular values are one.

        m ← β m + (1 − β) g
        u = (1 − β) g + β m with nesterov=True, else m
        O = the Newton–Schulz iteration of u / max(‖u‖, ε), ns_steps times with ns_coefficients
        p ← (1 − lr λ) p − lr s O,          weight_decay λ

    s is √max(1, rows / columns), or 0.2 √max(rows, columns) with adjust_lr_fn="match_rms_adamw", with which learning
    rates are those of AdamW. Of a tensor of more than two dimensions the matrix has shape[0] rows.

    Muon is for the matrices of hidden layers. Everything else goes to the rule `aux`: tensors of fewer than two
    dimensions, and those that a pattern of `aux_for` fits by name, as embeddings and the head. Without `aux` every
    parameter is to be a matrix.

    Buffer: m is in the gradient's units and starts at zero. Settings: lr, eps, weight_decay ≥ 0; momentum β in [0, 1);
    ns_steps from 1 to 99; ns_dtype="bfloat16" for products in it, which torch alone has. float32: 44 bytes per
    parameter and step outside of the products, in three passes: for the norm of u, for u, and for the step. In memory
    m and, while the optimizer lives, u.

    The products are those of the library of the parameters (NumPy, CuPy, torch), and their bits differ by library and
    processor; all else has the same bits on every backend.

    Where others differ: torch.optim.Muon is this with ns_dtype="bfloat16", and takes matrices alone.
    optax.contrib.muon corrects m for its start, and takes another u with Nesterov's form.

    >>> import numpy as np, fastopt
    >>> rule = fastopt.Muon(lr=0.1, weight_decay=0.0, aux=fastopt.Adam(lr=0.01))
    >>> opt = fastopt.Optimizer(rule, {"w": np.zeros((2, 3)), "b": np.zeros(2)})
    >>> opt.step({"w": np.array([[3.0, 0.0, 4.0], [0.0, 0.2, 0.0]]), "b": np.ones(2)})
    >>> opt.params["w"].round(3), opt.params["b"]
    (array([[-0.042,  0.   , -0.056],
           [ 0.   , -0.095,  0.   ]]), array([-0.01, -0.01]))

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; s for AdamW's learning
    rates: Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982.
    """

    lr: Setting = 1e-3
    momentum: Setting = 0.95
    weight_decay: Setting = 0.1
    nesterov: bool = True
    eps: Setting = 1e-7
    ns_steps: int = 5
    ns_coefficients: tuple[float, float, float] = field(default=COEFFICIENTS, metadata={"choice": True})
    adjust_lr_fn: str | None = None
    ns_dtype: str | None = None
    aux: Any = None
    aux_for: tuple[str, ...] = ()

    def __post_init__(self):
        check(self, lr=NONNEGATIVE, momentum=DECAY_RATE, weight_decay=NONNEGATIVE, eps=POSITIVE)
        for name in ("ns_coefficients", "aux_for"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        steps = "an integer from 1 to 99"
        object.__setattr__(self, "ns_steps", integer("ns_steps", self.ns_steps, 1, 100, expected=steps))
        numbers = tuple(map(to_float, self.ns_coefficients)) if isinstance(self.ns_coefficients, tuple) else ()
        own = {
            "ns_coefficients": (len(numbers) == 3 and all(x in FINITE for x in numbers), "three finite numbers"),
            "adjust_lr_fn": (self.adjust_lr_fn in ADJUSTED, 'None, "original" or "match_rms_adamw"'),
            "ns_dtype": (self.ns_dtype in (None, "bfloat16"), 'None or "bfloat16"'),
            "aux_for": (_are_strings(self.aux_for), "a tuple of patterns of names"),
        }
        for name, (right, expected) in own.items():
            if not right:
                got = f"{name}={getattr(self, name)!r}"
                raise SettingError(f"the setting {name} is out of its range.", got=got, expected=expected, where="Muon")
        object.__setattr__(self, "ns_coefficients", numbers)
        if isinstance(self.aux, Muon):
            raise SettingError(
                "aux is for what is no matrix, and Muon is for matrices.", got="aux=Muon(…)", where="Muon"
            )
        if self.aux is not None:
            require_rule(self.aux)
        elif self.aux_for:
            what = "aux_for says for which parameters another rule is, and there is none."
            raise SettingError(what, do="pass it as aux=fastopt.Adam(…)", where="Muon")

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return the rule for a tensor: aux for those that are no matrices, and for those of aux_for."""
        if self.aux is None:
            return self
        if len(shape) < 2 or any(fnmatchcase(name, pattern) for pattern in self.aux_for):
            return self.aux
        return dataclasses.replace(self, aux=None, aux_for=())

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of names by which `for_tensor` chooses."""
        return self.aux_for

    def scalars(self, t):
        """Compute the step's scalars in float64."""
        return {
            "beta": self.momentum,
            "rest": 1 - self.momentum,
            "eps": self.eps,
            "keep": 1 - self.lr * self.weight_decay,
            "step_size": self.lr,
        }

    def update(self, p, g, m, *, beta, rest, eps, keep, step_size):
        """Update p and m."""
        m = beta * m + rest * g
        u = rest * g + beta * m if self.nesterov else m
        norm = np.sqrt(total(u * u))
        x = u / np.where(norm < eps, eps, norm)
        o = matrixwise(x, NewtonSchulz(self.ns_steps, self.ns_coefficients, self.adjust_lr_fn, self.ns_dtype))
        return keep * p - step_size * o, m


def _are_strings(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(x, str) for x in value)

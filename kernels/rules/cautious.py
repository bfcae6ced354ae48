"""Caution around any other rule: no element moves against the gradient that has just been computed."""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.errors import SettingError
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.norms import mean
from fastopt.kernels.rules.settings import NONNEGATIVE, Setting, check


@dataclass(frozen=True)
class Cautious(Around):
    """Any rule, of whose step only the elements are taken that lead downhill by the present gradient.

    With the mean over a tensor, and d the change of p that the inner rule makes:

        p ← (1 − lr·λ) p                    weight_decay λ, which is not masked; lr is the inner rule's
        φ = 1 where d and g have opposite signs, 0 elsewhere
        p ← p + φ d / max(mean(φ), 10⁻³)

    so that a momentum that points elsewhere than the gradient waits, and the other elements move further in its place.
    The state is updated as without caution. Settings: rule, any rule, the user's own included; weight_decay ≥ 0, which
    needs an inner rule with a setting lr. State: the inner rule's. Bytes per parameter: the inner rule's, and once more
    what it reads: of Adam in float32 44.

    Weight decay: the paper masks the adaptive step, not decoupled decay, and so does this rule's own weight_decay, as
    timm does with caution=True. A decay that is a setting of the inner rule is part of d and masked with it; for
    AdamW with caution write `Cautious(Adam(lr=…), weight_decay=…)`. d is the difference of the rounded new p and p:
    an element whose step is below half a unit in the last place of p counts as one that does not move.

    >>> import numpy as np, fastopt
    >>> p, m = np.zeros(4), np.array([1.0, 1.0, -1.0, -1.0])
    >>> rule = fastopt.Cautious(fastopt.Momentum(lr=1.0, beta=0.5))
    >>> fastopt.update(rule, 1, {"p": p, "g": np.array([0.5, -0.5, -0.5, 0.0]), "m": m})
    >>> p  # m is now (0.75, 0.25, −0.75, −0.5): half of the steps agree with g and are taken twice
    array([-1.5,  0. ,  1.5,  0. ])

    Source: Liang et al., "Cautious Optimizers: Improving Training with One Line of Code", 2024, arXiv:2411.16085, whose
    algorithm divides by (nnz(φ) + 1) / n; the bound 10⁻³ on the mean is that of the authors' later code and of timm.
    """

    rule: Any
    weight_decay: Setting = 0.0

    added = ("cautious_keep",)

    def __post_init__(self):
        super().__post_init__()
        check(self, weight_decay=NONNEGATIVE)
        if self.weight_decay and _with_lr(self.rule) is None:
            raise SettingError(
                "the inner rule has no setting lr, in proportion to which weights decay.",
                got=f"weight_decay={self.weight_decay!r} around {type(self.rule).__name__}",
                do="leave weight_decay at 0, or name the rule's learning rate lr",
                where="Cautious",
            )

    def scalars(self, t):
        """Compute the inner rule's scalars, and 1 − lr·λ."""
        keep = 1 - _with_lr(self.rule).lr * self.weight_decay if self.weight_decay else 1.0
        return {**self.rule.scalars(t), "cautious_keep": keep}

    @property
    def update(self):
        """The inner rule's update, of which the change of p is masked."""
        inner = inspect.signature(self.rule.update)

        def update(p, g, *state, cautious_keep, **scalars):
            if self.weight_decay:
                p = cautious_keep * p
            returned = self.rule.update(p.copy(), g.copy(), *state, **scalars)  # it may change them in place
            new, *rest = returned if isinstance(returned, tuple) else (returned,)
            change = new - p
            agrees = ((change < 0.0) & (g > 0.0)) | ((change > 0.0) & (g < 0.0))
            mask = np.where(agrees, np.ones_like(p), np.zeros_like(p))
            share = mean(mask)
            return p + mask * change / np.where(share > 1e-3, share, 1e-3), *rest

        keep = inspect.Parameter("cautious_keep", inspect.Parameter.KEYWORD_ONLY)
        update.__signature__ = inner.replace(parameters=[*inner.parameters.values(), keep])  # type: ignore[attr-defined]
        return update


def _with_lr(rule: Any) -> Any:
    """Return the outermost rule that has a setting lr, or None."""
    while rule is not None and not hasattr(rule, "lr"):
        rule = getattr(rule, "rule", None)
    return rule

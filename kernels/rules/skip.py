"""`skip_unless`: a condition under which a step is taken; and gradients that are not finite, or too large, skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.errors import RuleError
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import POSITIVE, Setting, check
from fastopt.kernels.rules.total import GRADIENTS, total

LISTENER: ContextVar[Callable[[bool], None] | None] = ContextVar("LISTENER", default=None)
"""What is told of each condition: the reference backend, which then knows whether to write what a rule returned."""


def skip_unless(condition: Any) -> None:
    """Skip the whole step unless this holds: then nothing is written, and the step is not counted.

    For `update` of a rule. The condition is one of totals over all parameters, of scalars and of numbers, so that it is
    the same for every element; of several, all must hold. It is known after the passes that make those totals, and only
    the last pass is skipped. `Optimizer.t` then stays as it was, and `Optimizer.skipped` is one more. By itself, on
    NumPy's own truth values, it does nothing.

    Raises:
        RuleError: the condition is no comparison, or depends on no total over all, or on anything else.

    >>> import numpy as np, fastopt
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Careful:
    ...     def scalars(self, t):
    ...         return {"lr": 0.1}
    ...
    ...     def update(self, p, g, *, lr):
    ...         fastopt.skip_unless(fastopt.total(np.abs(g), over="all") < 10.0)
    ...         return p - lr * g
    >>> opt = fastopt.Optimizer(Careful(), {"w": np.ones(2)})
    >>> opt.step({"w": np.array([2.0, -9.0])})
    >>> opt.params["w"], opt.t, opt.skipped
    (array([1., 1.]), 0, 1)

    """
    traced = getattr(type(condition), "_skip_unless", None)
    if traced is not None:
        traced(condition)
        return
    if not isinstance(condition, bool | np.bool_):
        expected = 'a comparison, as fastopt.total(x, over="all") < 10.0'
        raise RuleError("a step is skipped by one truth value.", got=repr(condition)[:60], expected=expected)
    heard = LISTENER.get()
    if heard is not None:
        heard(bool(condition))


@contextmanager
def not_fixed() -> Iterator[None]:
    """Refuse truth values that are none of the step, while a rule is traced."""

    def refuse(condition: bool) -> None:
        what = "the condition of a step depends on no total."
        raise RuleError(what, got=condition, do="decide by t alone before you call step")

    before = LISTENER.set(refuse)
    try:
        yield
    finally:
        LISTENER.reset(before)


@dataclass(frozen=True)
class SkipNonfinite(Around):
    """Any rule, but no step where a gradient, of any parameter, is infinite or NaN, or where all are too large.

    Nothing is written then, the step is not counted, and `Optimizer.skipped` says how many there were; g itself stays
    as it was. With skip_above a step is also skipped where the norm √(Σ g²) over all parameters is above it, which is
    true of every norm that is not finite. It sees the gradient as it comes: put ClipByGlobalNorm inside. Settings:
    rule, any rule, the user's own included; skip_above > 0 or None. State: the inner rule's. Bytes per parameter: the
    inner rule's, and g once more (4 in float32).

    torch.amp.GradScaler skips like this, after a pass of its own.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.SkipNonfinite(fastopt.SGD(lr=1.0)), {"w": np.ones(2), "b": np.ones(1)})
    >>> opt.step({"w": np.array([1.0, 2.0]), "b": np.array([np.nan])})
    >>> opt.step({"w": np.array([1.0, 2.0]), "b": np.array([3.0])})
    >>> opt.params["w"], opt.t, opt.skipped
    (array([ 0., -1.]), 1, 1)
    """

    rule: Any
    skip_above: Setting | None = None

    @property
    def added(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The bound, if there is one."""
        return () if self.skip_above is None else ("skip_above",)

    def __post_init__(self):
        super().__post_init__()
        check(self, skip_above=POSITIVE)

    def scalars(self, t):
        """Compute the inner rule's scalars, and the bound if there is one."""
        bound = {} if self.skip_above is None else {"skip_above": self.skip_above}
        return {**self.rule.scalars(t), **bound}

    @property
    def update(self):
        """The inner rule's update, with the condition before it; its signature is the inner one's plus the bound."""

        def unless(g, *bound):
            if bound:
                skip_unless(np.sqrt(total(g * g, over="all", of=GRADIENTS)) <= bound[0])
            else:  # of finite numbers, and of no others, it is zero
                skip_unless(total(g * 0.0, over="all", of="zeros of finite gradients") == 0.0)
            return g

        return self.around(unless)

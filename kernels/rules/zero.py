"""Gradients set to zero in the pass that reads them, around any other rule."""

from dataclasses import dataclass
from typing import Any

from fastopt.kernels.rules.around import Around


@dataclass(frozen=True)
class ZeroGradients(Around):
    """Any rule; the gradient is zero afterwards, for a backward pass that adds to it.

    It is set to zero where the step reads it last, instead of in a pass of its own. Where a step is skipped
    (SkipNonfinite) it is zero too, and nothing else is written. In fastopt.torch, which never writes gradients, use
    zero_grad(). Settings: rule, any rule, the user's own included. State: the inner rule's. Bytes per parameter: the
    inner rule's, and g once more (4 in float32).

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.ZeroGradients(fastopt.SGD(lr=0.5)), {"w": np.zeros(2)})
    >>> for batch in (1.0, 3.0):
    ...     opt.grads["w"][...] += batch  # as a backward pass does
    ...     opt.step()
    >>> opt.params["w"], opt.grads["w"]
    (array([-2., -2.]), array([0., 0.]))
    """

    rule: Any

    @property
    def zero_gradients(self):
        """That the gradient is zero afterwards."""
        return True

    def scalars(self, t):
        """Compute the inner rule's scalars."""
        return self.rule.scalars(t)

    @property
    def update(self):
        """The inner rule's update."""
        return self.rule.update

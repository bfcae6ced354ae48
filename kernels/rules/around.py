"""What the rules around another rule share: its state, and its update with a changed gradient and more scalars."""

import inspect
from collections.abc import Callable
from typing import Any

from fastopt.errors import RuleError, raised_by
from fastopt.kernels.rules.rule import initial, require_rule


class Around:
    """A rule around another one, its setting `rule`. `added` names the scalars that it adds to the inner update's."""

    rule: Any
    added: tuple[str, ...] = ()

    def __post_init__(self):
        name = type(self).__name__
        with raised_by(name):
            require_rule(self.rule)
            if taken := set(self.added) & set(inspect.signature(self.rule.update).parameters):
                what = f"the inner rule {type(self.rule).__name__} already has a parameter {min(taken)!r}."
                raise RuleError(what, do=f"put one {name} around a rule, or rename that parameter")

    @property
    def unsigned(self):
        """The inner rule's state that is never negative."""
        return getattr(self.rule, "unsigned", ())

    @property
    def exact(self):
        """The inner rule's state of which it takes differences."""
        return getattr(self.rule, "exact", ())

    @property
    def zero_gradients(self):
        """Whether the gradient is zero afterwards, which is so if the inner rule says so."""
        return getattr(self.rule, "zero_gradients", False)

    def initial(self):
        """Return the inner rule's initial state."""
        return initial(self.rule)

    def around(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """Return the inner rule's update on `gradient(g, *added)`; the signature gains what is added."""
        inner = inspect.signature(self.rule.update)

        def update(p, g, *state, **scalars):
            changed = gradient(g, *(scalars.pop(name) for name in self.added))
            return self.rule.update(p, changed, *state, **scalars)

        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.added]
        update.__signature__ = inner.replace(parameters=[*inner.parameters.values(), *extra])  # type: ignore[attr-defined]
        return update

"""What the rules around another rule share: its state, and its update with a changed gradient, or with more state."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from fastopt.errors import RuleError, raised_by
from fastopt.kernels.rules.rule import for_tensor, initial, require_rule


class Around:
    """A rule around another one, its setting `rule`. `added` names the scalars and state that it adds."""

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

    @property
    def averaged(self) -> Callable[..., Any]:
        """The inner rule's average, if it has one."""
        return self.rule.averaged

    def initial(self):
        """Return the inner rule's initial state."""
        return initial(self.rule)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of names by which the inner rule chooses another one for some tensors."""
        return getattr(self.rule, "patterns", ())

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return this rule around what the inner one is for a tensor."""
        own = for_tensor(self.rule, name, shape)
        return self if own is self.rule else dataclasses.replace(self, rule=own)  # type: ignore[type-var]

    def around(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """Return the inner rule's update on `gradient(g, *added)`; the signature gains what is added."""
        inner = inspect.signature(self.rule.update)

        def update(p, g, *state, **scalars):
            changed = gradient(g, *(scalars.pop(name) for name in self.added))
            return self.rule.update(p, changed, *state, **scalars)

        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.added]
        update.__signature__ = inner.replace(parameters=[*inner.parameters.values(), *extra])  # type: ignore[attr-defined]
        return update

    def inner(self, *buffers: Any, **scalars: Any) -> tuple:
        """Return what the inner rule's update returns, as a tuple: p, then the state."""
        returned = self.rule.update(*buffers, **scalars)
        return returned if isinstance(returned, tuple) else (returned,)

    def with_state(self, update: Callable[..., Any], state: str, *scalars: str) -> Callable[..., Any]:
        """Return `update(p, g, state, *inner state, **all scalars)`, its signature the inner one with what is added."""
        inner = inspect.signature(self.rule.update)
        p, g, *others = inner.parameters.values()
        own = inspect.Parameter(state, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in scalars]
        update.__signature__ = inner.replace(parameters=[p, g, own, *others, *extra])  # type: ignore[attr-defined]
        return update

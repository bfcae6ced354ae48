"""What a rule is: the contract between an update rule and everything that traces, runs or stores it.

The signature of `update` is the contract: positional parameters are buffers (p, g, then the state), keyword-only
parameters are scalars, the returned values are the buffers written, in the order p, state. A state buffer whose default
is None exists only in those settings in which `update` does something with it. The keyword-only name `noise` stands for
a standard normal number, different for every seed, step and element. `total` is a sum over a tensor or all parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from fastopt.checks import to_float
from fastopt.errors import RuleError


class Rule(Protocol):
    """An instance of a frozen dataclass with `scalars` and `update`.

    It may also have `unsigned`, names of state that is never negative; `exact`, names of state of which it takes
    differences; `zero_gradients`, whether g is to be zero afterwards; `initial()`, the values at which state starts
    that does not start at zero; and `for_tensor(name, shape)`, the rule for one tensor, as for those that are no
    matrices, with `patterns`, those of names by which it chooses; and `averaged(p, <state>)`, which returns from p, or
    state, or both, what stands for the parameters in an evaluation.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def update(self) -> Callable[..., Any]:
        """The new values of the buffers from their old ones, element by element, in plain NumPy."""
        ...

    def scalars(self, t: int) -> dict[str, float]:
        """Compute on the host, in float64, whatever depends on settings and t alone."""
        ...


class Signature(NamedTuple):
    """What the signature of an `update` says."""

    buffers: tuple[str, ...]
    optional: frozenset[str]  # the state buffers that may be absent
    scalars: tuple[str, ...]
    noise: bool

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state buffers, the optional ones too."""
        return self.buffers[2:]


def is_rule(value: Any) -> bool:
    """Whether `value` is an instance of a dataclass with an `update`."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "update")


def require_rule(rule: Any) -> None:
    """Raise a RuleError unless `rule` is a rule: a frozen dataclass instance with `scalars` and `update`.

    Rules that are equal share a kernel, so a rule is hashable and every setting takes part in the comparison.
    """
    if isinstance(rule, type):
        what, do = "a rule's class arrived instead of a rule.", f"pass {rule.__name__}(…)"
    elif not dataclasses.is_dataclass(rule) or not rule.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        what, do = "a rule is an instance of a frozen dataclass.", "decorate the class with @dataclass(frozen=True)"
    elif not callable(getattr(rule, "update", None)) or not callable(getattr(rule, "scalars", None)):
        what, do = "a rule has the methods scalars(t) and update(p, g, …, *, …).", None
    elif uncompared := [f.name for f in dataclasses.fields(rule) if not f.compare]:
        what = f"rules that differ in {uncompared[0]} alone would count as equal."
        do = f"declare {uncompared[0]} without compare=False"
    elif not _is_hashable(rule):
        what, do = "a rule's settings must be hashable.", "use tuples, not lists"
    else:
        return
    raise RuleError(what, got=repr(rule), expected="for example fastopt.Adam(lr=1e-3)", do=do)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def signature(rule: Rule) -> Signature:
    """Read the signature of `rule.update`.

    Raises:
        RuleError: it does not begin with p and g, or has *args or **kwargs.

    """
    where = f"{type(rule).__name__}.update"
    names, optional, scalars = [], set(), []
    for x in inspect.signature(rule.update).parameters.values():
        if x.kind in (x.VAR_POSITIONAL, x.VAR_KEYWORD):
            raise RuleError("a rule names its buffers and scalars.", got=str(x), do="spell them out", where=where)
        if x.kind is x.KEYWORD_ONLY:
            scalars.append(x.name)
        else:
            names.append(x.name)
            if x.default is None:
                optional.add(x.name)
    if names[:2] != ["p", "g"]:
        raise RuleError(
            "the first buffers of a rule are the parameter p and the gradient g.",
            got=f"update({', '.join(names)}, *, {', '.join(scalars)})",
            expected="update(self, p, g, <state buffers>, *, <scalars>)",
            where=where,
        )
    noise = "noise" in scalars
    return Signature(tuple(names), frozenset(optional), tuple(s for s in scalars if s != "noise"), noise)


def for_tensor(rule: Rule, name: str, shape: tuple[int, ...]) -> Rule:
    """Return the rule for a tensor of this name and shape, which for most rules is the rule itself.

    Raises:
        RuleError: `for_tensor` of the rule returns no rule.

    """
    choose = getattr(rule, "for_tensor", None)
    if choose is None:
        return rule
    own = choose(name, tuple(shape))
    require_rule(own)
    return own


def initial(rule: Rule) -> dict[str, float]:
    """Return the values at which state buffers start, by name; those not named start at zero.

    Raises:
        RuleError: the rule's `initial()` does not return numbers by name.

    """
    values = rule.initial() if hasattr(rule, "initial") else {}  # type: ignore[attr-defined]
    if not isinstance(values, dict) or any(math.isnan(to_float(x)) for x in values.values()):
        raise RuleError(
            "initial() returns numbers by name of a state buffer.",
            got=repr(values)[:60],
            expected='for example {"v": 0.1}',
            where=f"{type(rule).__name__}.initial",
        )
    return {name: to_float(value) for name, value in values.items()}


def averages_of(rule: Rule) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
    """Return a rule's `averaged` and the buffers that it takes, or None if it has none."""
    averaged = getattr(rule, "averaged", None)
    return None if averaged is None else (averaged, tuple(inspect.signature(averaged).parameters))


def named_state(rule: Rule, attribute: str) -> tuple[str, ...]:
    """Return the state that a rule names in `unsigned` or `exact`; raise a RuleError where there is no such state."""
    names, state = getattr(rule, attribute, ()), signature(rule).state
    if not isinstance(names, tuple | list) or any(name not in state for name in names):
        raise RuleError(
            "this is not a tuple of names of state buffers.",
            got=repr(names)[:60],
            expected=f"some of {', '.join(state) or '(none)'}",
            where=f"{type(rule).__name__}.{attribute}",
        )
    return tuple(names)

"""A rule's form: what of its settings decides the kernel, and when two rules are the same.

The settings of a rule are numbers and choices (see `settings`). `update` runs once, on the form: there each number is
a `Number`, which tells whether it is zero and refuses to be read.
"""

from __future__ import annotations

import dataclasses
import numbers
from functools import lru_cache
from typing import Any

from fastopt.errors import RuleError, explain


def is_rule(value: Any) -> bool:
    """Whether `value` is an instance of a frozen dataclass with an `update`."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "update")


def require_rule(rule: Any, where: str) -> None:
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
    raise RuleError(explain(where, what, got=repr(rule), expected="for example fastopt.Adam(lr=1e-3)", do=do))


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


class Number:
    """What `update` sees of a number while it is traced: whether it is zero, and nothing else.

    A rule that reads its numbers inside `update` would bake them into a kernel and need another one for every value.
    To compare it with zero, None or a string is no reading: the answer is the same for all rules of a form.
    """

    __slots__ = ("name", "nonzero")

    def __init__(self, name: str, nonzero: bool):
        self.name, self.nonzero = name, nonzero

    def __bool__(self) -> bool:
        return self.nonzero

    def __repr__(self) -> str:
        return f"{self.name}{'≠' if self.nonzero else '='}0"

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, str):
            return False
        if isinstance(other, Number) and (self.name == other.name or not (self.nonzero and other.nonzero)):
            return self.nonzero == other.nonzero
        if isinstance(other, numbers.Real) and other == 0:
            return not self.nonzero
        return self._refuse()

    def __hash__(self) -> int:
        return hash((self.name, True)) if self.nonzero else hash(0)

    def _refuse(self, *_: object, **__: object) -> Any:
        raise RuleError(
            explain(
                "update",
                f"the rule reads the number self.{self.name} inside update.",
                expected="numbers as keyword-only parameters; self only to choose a form (`if self.nesterov:`)",
                do=f"return {self.name.split('[')[0]} from scalars(t) and take it as a keyword-only parameter",
            )
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __matmul__ = __rmatmul__ = _refuse
    __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __float__ = __int__ = __index__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse
    __array_ufunc__ = __array__ = _refuse


def form_of(field: dataclasses.Field, value: Any) -> Any:
    """Give what is left of a value of one field in a rule's form.

    What is a number is the field's to say, because 2 and 2.0 are equal and so are the rules that have them: any real
    number where the annotation or the default is a float, none where the annotation is int, elsewhere a float.
    """
    defaults = field.default if isinstance(field.default, tuple) else (field.default,)
    if "float" in str(field.type) or any(isinstance(x, float) for x in defaults):
        return _form_of(field.name, value, numbers.Real)
    return _form_of(field.name, value, () if field.type in (int, "int") else float)


def _form_of(name: str, value: Any, number: Any) -> Any:
    if is_rule(value):
        return form(value)
    if callable(value):
        return Number(name, True)
    if isinstance(value, number) and not isinstance(value, bool):
        return Number(name, bool(value != 0))
    if isinstance(value, tuple):
        return tuple(_form_of(f"{name}[{k}]", x, number) for k, x in enumerate(value))
    return value


def form(rule: Any) -> Any:
    """Give a copy of `rule` that keeps its choices and knows of each number only whether it is zero.

    Two rules whose forms are the same, as `exact` tells it, have the same kernel.
    """
    copy = object.__new__(type(rule))
    for f in dataclasses.fields(rule):
        object.__setattr__(copy, f.name, form_of(f, getattr(rule, f.name)))
    return copy


def exact(value: Any) -> tuple:
    """Give a key that only the same values share, at any depth: True is not 1, nor is −0.0 the same as 0.0.

    Equality alone would give a rule the kernel or the scalars of another.
    """
    kind = type(value)
    if kind in (float, int, bool, str):  # the usual ones, kept short because a rule may be made anew at each step
        return kind, value or repr(value)
    if names := _field_names(kind):
        return (kind, *[exact(getattr(value, name)) for name in names], value)
    if isinstance(value, tuple):
        return (kind, *map(exact, value))
    return kind, repr(value) if isinstance(value, numbers.Number) else value


@lru_cache(maxsize=1024)
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def describe(rule: Any) -> str:
    """Write a rule's type and those of its choices that are not the default, a number as "…".

    State means the same to rules that are described alike: their numbers may differ, zero or not.

    >>> import fastopt
    >>> describe(fastopt.GradientNoise(fastopt.Momentum(lr=0.1, dampening=0.0, weight_decay=0.1)))
    'GradientNoise(rule=Momentum(dampening=…))'
    """

    def text(x: Any) -> str:
        if isinstance(x, tuple):
            return f"({', '.join(map(text, x))})"
        return "…" if isinstance(x, Number) else describe(x) if is_rule(x) else repr(x)

    choices = []
    for f in dataclasses.fields(rule):
        own, default = text(form_of(f, getattr(rule, f.name))), text(form_of(f, f.default))
        if own != default:
            choices.append(f"{f.name}={own}")
    return f"{type(rule).__name__}({', '.join(choices)})" if choices else type(rule).__name__

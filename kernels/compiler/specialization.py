"""A rule's specialization: what of its settings decides the kernel, and when two rules share one.

The settings of a rule are numbers and choices (see `rules.settings`). `update` is traced on the specialization, in
which each number is a `Number`: it tells whether it is zero and refuses to be read.
"""

from __future__ import annotations

import dataclasses
import numbers
from functools import lru_cache
from typing import Any

from fastopt.errors import RuleError
from fastopt.kernels.rules.rule import Rule, is_rule


class Number:
    """What `update` sees of a number while it is traced: whether it is zero, and nothing else.

    A rule that read its numbers inside `update` would bake them into a kernel and need another one for every value.
    Comparing a number with zero, None or a string is allowed: the answer is the same for all rules of a specialization.
    """

    __slots__ = ("name", "nonzero")

    def __init__(self, name: str, nonzero: bool):
        self.name, self.nonzero = name, nonzero

    def __bool__(self) -> bool:
        return self.nonzero

    @property
    def __class__(self) -> Any:  # type: ignore[override] — isinstance(self.lr, float) is as true as outside of a trace
        return float

    def __getattr__(self, name: str) -> Any:
        if hasattr(float, name):
            self._refuse()
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"{self.name}{'≠' if self.nonzero else '='}0"

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, str):
            return False
        if type(other) is Number and (self.name == other.name or not (self.nonzero and other.nonzero)):
            return self.nonzero == other.nonzero
        if isinstance(other, numbers.Real) and other == 0:
            return not self.nonzero
        return self._refuse()

    def __hash__(self) -> int:
        return hash((self.name, True)) if self.nonzero else hash(0)

    def _refuse(self, *_: object, **__: object) -> Any:
        raise RuleError(
            f"the rule reads the number self.{self.name} inside update.",
            expected="numbers as keyword-only parameters; self only to choose a specialization (`if self.nesterov:`)",
            do=f"return {self.name.split('[')[0]} from scalars(t) and take it as a keyword-only parameter",
            where="update",
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __matmul__ = __rmatmul__ = _refuse
    __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __float__ = __int__ = __index__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse
    __array_ufunc__ = __array__ = __str__ = __format__ = _refuse


def specialize(rule: Rule) -> Any:
    """Return a copy of `rule` that has its choices, and of each number only whether it is zero."""
    copy = object.__new__(type(rule))
    for f in dataclasses.fields(rule):
        object.__setattr__(copy, f.name, specialized(f, getattr(rule, f.name)))
    return copy


def specialized(field: dataclasses.Field, value: Any) -> Any:
    """Return what a specialization has of the value of a field.

    What is a number is the field's to say, because 2 and 2.0 are equal and so are the rules that have them: any real
    number where the annotation or the default is a float, none where the annotation is int or the field's metadata
    say that it is a choice, elsewhere a float.
    """
    if field.metadata.get("choice"):
        return value
    defaults = field.default if isinstance(field.default, tuple) else (field.default,)
    if "float" in str(field.type) or any(isinstance(x, float) for x in defaults):
        return _specialized(field.name, value, numbers.Real)
    return _specialized(field.name, value, () if field.type in (int, "int") else float)


def _specialized(name: str, value: Any, number: Any) -> Any:
    if is_rule(value):
        return specialize(value)
    if callable(value):
        return Number(name, True)
    if isinstance(value, number) and not isinstance(value, bool):
        return Number(name, bool(value != 0))
    if isinstance(value, tuple):
        return tuple(_specialized(f"{name}[{k}]", x, number) for k, x in enumerate(value))
    return value


def specialization_key(rule: Rule) -> tuple:
    """Return a key that rules share exactly if they share a kernel."""
    return exact_key(specialize(rule))


def exact_key(value: Any) -> tuple:
    """Return a key that only the same values share, at any depth: True is not 1, nor is −0.0 the same as 0.0.

    Equality alone would give a rule the kernel or the scalars of another.
    """
    kind = type(value)
    if kind in (float, int, bool, str):  # the usual ones, short because a rule may be made anew at each step
        return kind, value or repr(value)
    if names := _field_names(kind):
        return (kind, *[exact_key(getattr(value, name)) for name in names], value)
    if isinstance(value, tuple):
        return (kind, *map(exact_key, value))
    return kind, repr(value) if isinstance(value, numbers.Number) else value


@lru_cache(maxsize=1024)
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def describe(rule: Rule) -> str:
    """Write a rule's type and those of its choices that are not the default, a number as "…".

    State means the same to rules that are described alike: their numbers may differ, zero or not.

    >>> import fastopt
    >>> describe(fastopt.GradientNoise(fastopt.Momentum(lr=0.1, dampening=0.0, weight_decay=0.1)))
    'GradientNoise(rule=Momentum(dampening=…))'
    """

    def text(x: Any) -> str:
        if isinstance(x, tuple):
            return f"({', '.join(map(text, x))})"
        return "…" if type(x) is Number else describe(x) if is_rule(x) else repr(x)

    choices = []
    for f in dataclasses.fields(rule):
        own, default = text(specialized(f, getattr(rule, f.name))), text(specialized(f, f.default))
        if own != default:
            choices.append(f"{f.name}={own}")
    return f"{type(rule).__name__}({', '.join(choices)})" if choices else type(rule).__name__


def name_parts(rule: Rule) -> list[str]:
    """Return a rule's type and each setting that differs from the default in a way that shapes the kernel, as words."""
    words = [type(rule).__name__.lower()]
    for f in dataclasses.fields(rule):
        value, default = getattr(rule, f.name), specialized(f, f.default)
        if is_rule(value):
            words += name_parts(value)
        elif not isinstance(value, tuple) and (type(value) is not type(default) or value != default):
            number = type(value) is Number or value is None
            words.append(
                f"{'' if value else 'no_'}{f.name}" if number or isinstance(value, bool) else f"{f.name}_{value}"
            )
    return ["".join(c if c.isascii() and c.isalnum() else "_" for c in word) for word in words]

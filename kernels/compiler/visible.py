"""What `update` reads besides its parameters, as far as it can be seen: a kernel would have it baked in.

Seen are numbers and arrays that the code of `update` names as globals or as class attributes, and draws from the global
random generators. Not seen are those behind a function that it calls, in a closure, or behind `type(x) is …`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Number
from types import CodeType
from typing import Any

import numpy as np

from fastopt.errors import RuleError
from fastopt.kernels.rules.rule import is_rule

_MISSING = object()
_GLOBAL, _ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")


def require_own(rule: Any, where: str) -> None:
    """Raise a RuleError if `update` of a rule, or of a rule in it, reads a number that is no field of the rule."""
    kind = type(rule)
    function: Any = getattr(kind.update, "__wrapped__", kind.update)
    code = getattr(function, "__code__", None)
    fields = {f.name for f in dataclasses.fields(rule)} if dataclasses.is_dataclass(rule) else set()
    do = "make it a field of the rule and return it from scalars(t), or write the number itself"
    for operation, name in _names(code):
        if operation in _GLOBAL and _is_number(function.__globals__.get(name, _MISSING)):
            what = f"update reads the global {name}, whose value now would stay in the kernel when it changes."
            raise RuleError(what, do=do, where=where)
        if operation in _ATTRIBUTE and name not in fields and _is_number(_class_attribute(kind, name)):
            what = f"update reads self.{name}, a class attribute, whose value now would stay in the kernel."
            raise RuleError(what, do=do, where=where)
    for name in fields:
        inner = getattr(rule, name, None)
        for value in inner if isinstance(inner, tuple) else (inner,):
            if is_rule(value):
                require_own(value, where)


def _names(code: CodeType | None) -> Iterator[tuple[str, str]]:
    """List what a function's code, and that of functions in it, loads by name."""
    import dis

    if code is None:
        return
    for instruction in dis.get_instructions(code):
        if instruction.opname in (*_GLOBAL, *_ATTRIBUTE):
            yield instruction.opname, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _class_attribute(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), _MISSING)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number | np.generic | np.ndarray)


@contextmanager
def nothing_random(where: str) -> Iterator[None]:
    """Raise a RuleError if what happens within draws from Python's or NumPy's global random generator."""
    before = _random_states()
    yield
    if _random_states() != before:
        what = "update draws a random number, which would stay in the kernel."
        raise RuleError(what, do="take noise as a keyword-only parameter, or wrap a rule in GradientNoise", where=where)


def _random_states() -> Any:
    import random  # 1 ms that `import fastopt` need not take, as dis above

    return random.getstate(), _numpy_state()


def _numpy_state() -> Any:
    kind, keys, position, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 — the global one, which a rule may have drawn from
    return kind, np.asarray(keys).tobytes(), position, *rest

"""`scalars(t)` of a rule as expressions, for languages other than Python: traced on symbols, or refused with a reason.

A rule's `scalars` is any Python. It is called on a symbol for t, and for each setting that a caller passes; where it
branches on one, it is called again for the other answer, so that what it computes becomes a tree of choices. A loop
over the steps up to t is followed where it is `accumulated`. What a symbol cannot follow (another loop that ends by t,
a cache, a function other than `sqrt`, `exp` and `log`) is refused, and so is an expression that is not equal to
`scalars` where both are tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from fastopt.errors import FastoptError
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.rules.rule import Rule, is_rule

MOST_CHOICES = 8
"""Answers on the way to one set of scalars: a rule that asks more often loops."""

TRIED = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 30, 100, 1000, 10_000, 123_457)
"""Steps at which the expressions are compared with `scalars`."""


class UntraceableError(FastoptError):
    """Why `scalars` of a rule does not become expressions."""


class Expression:
    """A float64 number that depends on t or on settings: an operation and its operands, or the name of an input."""

    __slots__ = ("args", "name", "op")
    __hash__ = None  # type: ignore[assignment]  # no key: a cache of Python's has nothing for it
    __array_ufunc__ = None

    def __init__(self, op: str, args: tuple[Operand, ...] = (), name: str = ""):
        self.op, self.args, self.name = op, args, name

    def _refuse(self, *_: Any) -> NoReturn:
        raise UntraceableError("scalars turns what depends on t into a number of Python's (float, int, math.…).")

    __float__ = __int__ = __index__ = __round__ = __floor__ = __ceil__ = __trunc__ = __complex__ = _refuse
    __iter__ = __len__ = __getitem__ = _refuse

    def __bool__(self) -> bool:
        return bool(Condition("not_equal", self, 0.0))

    def accumulated(self, step: FunctionType, start: Any, settings: tuple) -> Accumulation:
        """Return what `accumulated` is after as many steps as this says."""
        return Accumulation(self, step, start, settings)


class Accumulation(Expression):
    """xₙ of x₀ = start, xₖ = step(xₖ₋₁, k, *settings); `body` is a tree of "x", from the inputs "x" and "t", here k."""

    __slots__ = ("body", "reached", "start")

    def __init__(self, n: Expression, step: FunctionType, start: Any, settings: tuple):
        super().__init__("accumulated", (n,))
        if not isinstance(step, FunctionType):
            raise UntraceableError("scalars accumulates by what is no plain function of Python.")
        if any(isinstance(x, Expression) for x in (start, *settings)):
            raise UntraceableError("scalars accumulates over steps what a caller passes for one: lr, or a schedule.")
        traced = _rebound(step, {})
        x, k = Expression("input", name="x"), Expression("input", name="t")
        self.start = float(start)
        self.reached: tuple[int, float] = (0, self.start)
        """Steps computed by `evaluate` so far, and the number then."""
        self.body = _branches(lambda: {"x": operand(traced(x, k, *settings))})
        for e in expressions(self.body):
            if isinstance(e, Accumulation):
                raise UntraceableError("scalars accumulates over steps what is itself accumulated.")
            if e.op == "input" and e is not x and e is not k:
                raise UntraceableError(
                    "scalars accumulates over steps what a caller passes for one: lr, or a schedule."
                )


class Condition:
    """A comparison of two numbers, which is answered when Python asks."""

    __slots__ = ("a", "b", "op")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, op: str, a: Operand, b: Operand):
        self.op, self.a, self.b = op, a, b

    def __bool__(self) -> bool:
        return _PATH.get().answer(self)

    def __float__(self) -> float:
        return float(bool(self))

    def __int__(self) -> int:
        return int(bool(self))


Operand: TypeAlias = Expression | float


class Choice(NamedTuple):
    """A condition, and what follows where it holds and where it does not."""

    condition: Condition
    yes: Tree
    no: Tree


Tree: TypeAlias = Choice | dict[str, Operand]


class HostScalars(NamedTuple):
    """What computes the scalars of a step: its arguments besides t, and the tree.

    Arguments are settings by name: the learning rate, and those that are callables of t, whose values a caller passes.
    """

    arguments: dict[str, float | Callable[[int], float]]
    tree: Tree


class _Path:
    """The answers to the conditions of one call: given ones first, then yes."""

    def __init__(self, given: tuple[bool, ...]):
        self.given, self.asked = given, []

    def answer(self, condition: Condition) -> bool:
        for known, answer in zip(self.asked, (*self.given, *[True] * len(self.asked)), strict=False):
            if _same(known, condition):
                return answer
        self.asked.append(condition)
        if len(self.asked) > MOST_CHOICES:
            raise UntraceableError(f"scalars branches on t or on a setting more than {MOST_CHOICES} times, or loops.")
        return self.given[len(self.asked) - 1] if len(self.asked) <= len(self.given) else True


_PATH: ContextVar[_Path] = ContextVar("_PATH")


def _same(a: Any, b: Any, known: set[tuple[int, int]] | None = None) -> bool:
    """Whether two operands, or two conditions, are alike; pairs that are known to be are not compared again."""
    known = set() if known is None else known
    if (id(a), id(b)) not in known:
        if not _alike(a, b, known):
            return False
        known.add((id(a), id(b)))
    return True


def _alike(a: Any, b: Any, known: set[tuple[int, int]]) -> bool:
    """Whether two operands, or two conditions, are the same operations of the same inputs."""
    if isinstance(a, Condition) and isinstance(b, Condition):
        return a.op == b.op and _same(a.a, b.a, known) and _same(a.b, b.b, known)
    if isinstance(a, Accumulation) and isinstance(b, Accumulation):
        return a is b or (a.start == b.start and same(a.body, b.body, "x") and _same(a.args[0], b.args[0], known))
    if isinstance(a, Expression) and isinstance(b, Expression):
        alike = a.op == b.op and a.name == b.name and len(a.args) == len(b.args)
        return a is b or (alike and all(_same(x, y, known) for x, y in zip(a.args, b.args, strict=True)))
    return type(a) is type(b) is float and a == b


def operand(x: Any) -> Operand:
    """Check a number, and return it as a float."""
    if isinstance(x, Expression):
        return x
    if isinstance(x, Condition):
        return float(x)
    if isinstance(x, bool | int | float | np.floating | np.integer):
        return float(x)
    raise UntraceableError(f"scalars computes with {type(x).__name__}, which is no number.")


def _remainder(a: Expression, b: Any) -> Expression:
    """Return t % b, of which C's fmod is the same; of negative numbers it is not."""
    divisor = operand(b)
    if a.name != "t" or isinstance(divisor, Expression) or divisor <= 0.0:
        raise UntraceableError("scalars takes a remainder of what is not t, or by what is not a positive number.")
    return Expression("mod", (a, divisor))


def _define_operators() -> None:
    Expression.__mod__ = _remainder  # type: ignore[attr-defined]
    for name in ("add", "sub", "mul", "truediv", "pow"):
        setattr(Expression, f"__{name}__", lambda a, b, op=name: Expression(op, (a, operand(b))))
        setattr(Expression, f"__r{name}__", lambda a, b, op=name: Expression(op, (operand(b), a)))
    for name in ("neg", "abs"):
        setattr(Expression, f"__{name}__", lambda a, op=name: Expression(op, (a,)))
    for name, op in COMPARISONS.items():
        setattr(Expression, f"__{name}__", lambda a, b, op=op: Condition(op, a, operand(b)))


COMPARISONS = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
               "ne": "not_equal"}  # fmt: skip
_define_operators()


def _function(name: str) -> Callable[[Any], Any]:
    own = getattr(math, name)
    return lambda x: Expression(name, (x,)) if isinstance(x, Expression) else own(x)


_FUNCTIONS = {name: _function(name) for name in ("sqrt", "exp", "log")}
_REPLACED = {id(getattr(math, name)): function for name, function in _FUNCTIONS.items()}
_MATH = SimpleNamespace(**{**vars(math), **_FUNCTIONS})


def _rebound(function: FunctionType, known: dict[int, FunctionType]) -> FunctionType:
    """Copy a function, and those that it calls by name, so that `sqrt` and the like take symbols."""
    if id(function) in known:
        return known[id(function)]
    names = dict(function.__globals__)
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__["traced_from"] = function
    known[id(function)] = made
    for name in set(_names(function.__code__)) & names.keys():
        value = names[name]
        if id(value) in _REPLACED:
            names[name] = _REPLACED[id(value)]
        elif value is math:
            names[name] = _MATH
        elif isinstance(value, FunctionType):
            names[name] = _rebound(value, known)
    return made


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _symbolic(rule: Any, arguments: dict[str, Any], known: dict[int, FunctionType]) -> Any:
    """Copy a rule, with symbols for its learning rate and for callable settings, which are put into `arguments`."""
    members: dict[str, Any] = {}
    for kind in type(rule).__mro__[:-1]:
        for name, value in vars(kind).items():
            if name not in members and not name.startswith("__"):
                if isinstance(value, FunctionType):
                    members[name] = _rebound(value, known)
                elif isinstance(value, property) and isinstance(value.fget, FunctionType):
                    members[name] = property(_rebound(value.fget, known))
    copy = object.__new__(type(type(rule).__name__, (type(rule),), members))

    def symbol(name: str, value: Any) -> Expression:
        name = f"{name}_" if name == "t" else name
        while name in arguments:
            name = f"outer_{name}"  # a rule inside comes first
        arguments[name] = value
        return Expression("input", name=name)

    fields = sorted(dataclasses.fields(rule), key=lambda f: not is_rule(getattr(rule, f.name)))
    for name in (f.name for f in fields):
        value = getattr(rule, name)
        if is_rule(value):
            value = _symbolic(value, arguments, known)
        elif callable(value) or (name == "lr" and isinstance(value, float)):
            value = symbol(name, value)
        elif isinstance(value, tuple):
            value = tuple(symbol(f"{name}_{k}", x) if callable(x) else x for k, x in enumerate(value))
        object.__setattr__(copy, name, value)
    return copy


def _branches(leaf: Callable[[], dict[str, Operand]]) -> Tree:
    """Compute the leaves of a tree, calling `leaf` once for each of them."""
    runs = 0

    def tree(given: tuple[bool, ...]) -> Tree:
        nonlocal runs
        runs += 1
        if runs > 2**MOST_CHOICES:
            raise UntraceableError("scalars has too many branches.")
        path = _Path(given)
        before = _PATH.set(path)
        try:
            found = leaf()
        finally:
            _PATH.reset(before)
        if len(path.asked) == len(given):
            return found
        return Choice(path.asked[len(given)], tree((*given, True)), tree((*given, False)))

    return tree(())


def trace_scalars(program: Program, rule: Rule) -> HostScalars:
    """Trace `rule.scalars`.

    Raises:
        UntraceableError: it does what cannot be followed, or is not what its expressions compute.

    """
    arguments: dict[str, Any] = {}

    def leaf() -> dict[str, Operand]:
        found = _symbolic(rule, {}, {}).scalars(Expression("input", name="t"))
        return {name: operand(found[name]) for name in program.scalars}

    try:
        _symbolic(rule, arguments, {})
        made = HostScalars(arguments, _branches(leaf))
    except UntraceableError:
        raise
    except Exception as error:  # whatever Python's functions raise when a symbol arrives
        what = error.what if isinstance(error, FastoptError) else f"{type(error).__name__}: {error}"
        raise UntraceableError(f"scalars does what cannot be followed: {what}") from error
    _compare(made, program, rule)
    if made.arguments:
        _compare(made, program, _slower(rule))
    return made


def _compare(made: HostScalars, program: Program, rule: Rule) -> None:
    """Raise an UntraceableError unless the expressions compute what a rule, that differs in its rate alone, does."""
    true, compared = host_scalars(program, rule), 0
    arguments: dict[str, Any] = {}
    _symbolic(rule, arguments, {})
    slow = any(isinstance(x, Accumulation) for x in expressions(made.tree))
    for t in TRIED if not slow else [t for t in TRIED if t <= 10_000]:
        try:
            expected = true(t)
            passed: dict[str, Any] = {name: x(t) if callable(x) else x for name, x in arguments.items()}
        except Exception:  # a schedule that ends, or anything else of the user's
            continue
        ours = evaluate(made.tree, {"t": float(t), **{name: float(x) for name, x in passed.items()}})
        if any(ours[name] != x for name, x in zip(program.scalars, expected, strict=True)):
            raise UntraceableError(f"scalars({t}) is not what its expressions compute.")
        compared += 1
    if not compared:
        raise UntraceableError("scalars(t) raises an error at each step that was tried.")


def _slower(rule: Any) -> Any:
    """Return a rule with another learning rate, so that what `__post_init__` derives from it differs too."""
    changed = {f.name: _slower(x) for f in dataclasses.fields(rule) if is_rule(x := getattr(rule, f.name))}
    if isinstance(rate := getattr(rule, "lr", None), float):
        changed["lr"] = 0.75 * rate
    return dataclasses.replace(rule, **changed) if changed else rule


def evaluate(tree: Tree, values: dict[str, float]) -> dict[str, float]:
    """Compute what a tree stands for, as Python does."""
    known: dict[int, float] = {}
    while isinstance(tree, Choice):
        a, b = _evaluate(tree.condition.a, values, known), _evaluate(tree.condition.b, values, known)
        tree = tree.yes if bool(getattr(np, tree.condition.op)(a, b)) else tree.no
    return {name: _evaluate(x, values, known) for name, x in tree.items()}


def same(a: Tree, b: Tree, name: str) -> bool:
    """Whether two trees compute one of their numbers in the same way."""
    if isinstance(a, Choice) and isinstance(b, Choice):
        return _same(a.condition, b.condition) and same(a.yes, b.yes, name) and same(a.no, b.no, name)
    return isinstance(a, dict) and isinstance(b, dict) and _same(a[name], b[name])


def expressions(tree: Tree) -> Iterator[Expression]:
    """Go through all expressions of a tree, those of its conditions included."""
    if isinstance(tree, Choice):
        waiting: list[Operand] = [tree.condition.a, tree.condition.b]
        yield from (e for part in (tree.yes, tree.no) for e in expressions(part))
    else:
        waiting = list(tree.values())
    seen: set[int] = set()
    while waiting:
        x = waiting.pop()
        if isinstance(x, Expression) and id(x) not in seen:
            seen.add(id(x))
            yield x
            waiting += x.args


def _evaluate(x: Operand, values: dict[str, float], known: dict[int, float]) -> float:
    if not isinstance(x, Expression):
        return x
    if x.op == "input":
        return values[x.name]
    if id(x) not in known:
        known[id(x)] = _computed(x, [_evaluate(a, values, known) for a in x.args])
    return known[id(x)]


def _computed(x: Expression, args: list[float]) -> float:
    if isinstance(x, Accumulation):
        k, value = x.reached if x.reached[0] <= args[0] else (0, x.start)
        while k + 1 <= args[0]:
            k += 1
            value = evaluate(x.body, {"x": value, "t": float(k)})["x"]
        x.reached = (k, value)
        return value
    if x.op in _FUNCTIONS:
        return getattr(math, x.op)(*args)
    try:
        return getattr(float, f"__{x.op}__")(*args)
    except OverflowError:
        return math.inf  # as C computes it

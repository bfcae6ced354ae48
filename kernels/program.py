"""A Program: one rule traced in one precision. What every backend runs and prints, and nothing about how.

The signature of a rule's `update` is the contract: positional parameters are buffers (p, g, then the state),
keyword-only parameters are scalars, the returned values are the buffers written, in the order p, state. A state buffer
whose default is None exists only in those settings in which `update` does something with it. The keyword-only name
`noise` stands for a standard normal number, different for every seed, step and element.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastopt.errors import RuleError, SettingError, explain
from fastopt.kernels.form import Number, exact, form, form_of, is_rule, require_rule
from fastopt.kernels.settings import follow, to_float
from fastopt.kernels.storage import NAMES, centred, radius, random_bits, stretched
from fastopt.kernels.symbols import Node, Symbol, Trace


class Buffer(NamedTuple):
    """One array of the step: its name in the rule, the type of its elements, whether the step writes it."""

    name: str
    dtype: np.dtype
    written: bool


class Parameters(NamedTuple):
    """What the signature of an `update` says."""

    buffers: tuple[str, ...]
    optional: frozenset[str]
    scalars: tuple[str, ...]
    noise: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One rule traced in one precision.

    `results` maps each written buffer to the expression of its new value, over the inputs of kind "buffer" (one
    element), "scalar", and, when `noise` is set, "key" (two uint32, see `storage.noise_keys`) and "index" (the halves
    of the element's index). `stages` are the values on the way to the noise at which a backend may divide the work.
    `name` names the rule, the settings that shaped it, and the type of each buffer.
    """

    name: str
    rule: str
    dtype: np.dtype
    buffers: tuple[Buffer, ...]
    scalars: tuple[str, ...]
    noise: bool
    stages: tuple[Node, ...]
    results: dict[str, Node]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state buffers, in the rule's order."""
        return tuple(b.name for b in self.buffers[2:])

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes read and written for each parameter in one step."""
        return sum(b.dtype.itemsize * (1 + b.written) for b in self.buffers)


def parameters(rule: Any) -> Parameters:
    """Read the signature of `rule.update`.

    Raises:
        RuleError: it does not begin with p and g, or has *args or **kwargs.

    """
    where = f"{type(rule).__name__}.update"
    names, optional, scalars = [], set(), []
    for x in inspect.signature(rule.update).parameters.values():
        if x.kind in (x.VAR_POSITIONAL, x.VAR_KEYWORD):
            raise RuleError(explain(where, "a rule names its buffers and scalars.", got=str(x), do="spell them out"))
        if x.kind is x.KEYWORD_ONLY:
            scalars.append(x.name)
        else:
            names.append(x.name)
            if x.default is None:
                optional.add(x.name)
    if names[:2] != ["p", "g"]:
        raise RuleError(
            explain(
                where,
                "the first buffers of a rule are the parameter p and the gradient g.",
                got=f"update({', '.join(names)}, *, {', '.join(scalars)})",
                expected="update(self, p, g, <state buffers>, *, <scalars>)",
            )
        )
    noise = "noise" in scalars
    return Parameters(tuple(names), frozenset(optional), tuple(s for s in scalars if s != "noise"), noise)


def trace(rule: Any, dtype: Any) -> Program:
    """Trace `rule` for buffers of `dtype` (float32 or float64), or return the program it already has.

    Rules that differ only in the values of their numbers share a program.

    Raises:
        RuleError: the rule branches on a value, uses an unknown function, changes the precision, reads a number from
            self, or returns the wrong number of results.

    """
    require_rule(rule, "trace")
    traced = form(rule)
    return _trace(exact(traced), traced, np.dtype(dtype))


@lru_cache(maxsize=512)
def _trace(key: tuple, rule: Any, dtype: np.dtype) -> Program:
    where = f"{type(rule).__name__}.update"
    names, optional, scalars, noise = parameters(rule)
    inputs, results, stages = _call(rule, dtype, frozenset())
    absent = frozenset({b for b in optional if results[b] in (None, inputs[b])})
    present = [node for b, node in results.items() if b not in absent]
    for b in sorted(absent & {n.value for n in walk(present) if n.op == "buffer"}):
        raise RuleError(explain(where, f"the optional buffer {b} is read but never written.", do=f"return its new {b}"))
    if absent:  # None stands for them at every step, and the rule may ask
        inputs, results, stages = _call(rule, dtype, absent)
    for b in sorted(absent):
        if results.pop(b) is not None:
            what = f"the optional buffer {b} is returned as it came, but as something else where it is None."
            raise RuleError(explain(where, what, do=f"return {b} as it came, or its new value in every case"))
    new = {b: node for b, node in results.items() if node is not inputs[b]}
    names = [b for b in names if b not in absent]
    return Program(
        name=_name(rule, names, dtype),
        rule=type(rule).__name__,
        dtype=dtype,
        buffers=tuple(Buffer(b, dtype, written=b in new) for b in names),
        scalars=scalars,
        noise=noise,
        stages=stages,
        results=new,
    )


def _call(
    rule: Any, dtype: np.dtype, absent: frozenset[str]
) -> tuple[dict[str, Node], dict[str, Any], tuple[Node, ...]]:
    """Call `update` on symbols, on None for the absent buffers.

    Gives the node of each buffer before and after, and the stages of the noise.
    """
    where = f"{type(rule).__name__}.update"
    names, optional, scalars, noise = parameters(rule)
    tracing = Trace(where)
    buffers = {b: tracing.input("buffer", b, dtype, array=True) for b in names if b not in absent}
    before = {b: symbol._node for b, symbol in buffers.items()}
    inputs = {s: tracing.input("scalar", s, dtype, array=False) for s in scalars}
    stages: tuple[Node, ...] = ()
    if noise:
        inputs["noise"], stages = _noise(tracing, dtype)
    try:
        returned = rule.update(*[buffers.get(b) for b in names], **inputs)
    except AttributeError as error:
        if not is_rule(error.obj):
            raise
        what = f"update reads self.{error.name}, which is not a field of {type(error.obj).__name__}."
        do = "declare it as a field, with dataclasses.field(init=False) if __post_init__ computes it"
        raise RuleError(explain(where, what, do=do)) from error
    values = returned if isinstance(returned, tuple) else (returned,)
    targets = [b for b in names if b != "g"]
    if len(values) != len(targets):
        raise RuleError(
            explain(
                where,
                "a rule returns the new value of p and of each state buffer, in the order of its parameters.",
                got=f"{len(values)} result{'s' * (len(values) != 1)}",
                expected=f"{len(targets)}: {', '.join(targets)}",
            )
        )
    after = {
        b: None if value is None and b in optional else _result(where, b, value, dtype)
        for b, value in zip(targets, values, strict=True)
    }
    return before, after, stages


def _noise(tracing: Trace, dtype: np.dtype) -> tuple[Symbol, tuple[Node, ...]]:
    word = np.dtype(np.uint32)
    keys = [tracing.input("key", name, word, array=False) for name in ("key0", "key1")]
    index = [tracing.input("index", name, word, array=True) for name in ("index_low", "index_high")]
    x = centred(random_bits(*keys, *index))
    s = radius(x)
    return stretched(x, s).astype(dtype), (x._node, s._node)


def _result(where: str, name: str, value: Any, dtype: np.dtype) -> Node:
    if isinstance(value, Symbol) and value.dtype == dtype:
        return value._node
    raise RuleError(
        explain(
            where,
            f"the new {name} is not of the computing precision.",
            got=value.dtype.name if isinstance(value, Symbol) else repr(value)[:60],
            expected=f"{dtype.name}, computed from the buffers",
            do="np.where(c, 1.0, -1.0) is float64 and a comparison is bool: write np.where(c, np.ones_like(p), -1.0)",
        )
    )


def _name(rule: Any, buffers: list[str], dtype: np.dtype) -> str:
    types = "_".join(f"{b}{NAMES[dtype]}" for b in buffers)
    return f"{'_'.join(_words(rule))}_{types}"


def _words(rule: Any) -> list[str]:
    """Name a rule's form: its type, then each setting that differs from the default in a way that shapes the kernel."""
    words = [type(rule).__name__.lower()]
    for f in dataclasses.fields(rule):
        value, default = getattr(rule, f.name), form_of(f, f.default)
        if is_rule(value):
            words += _words(value)
        elif not isinstance(value, tuple) and (type(value) is not type(default) or value != default):
            number = isinstance(value, Number) or value is None
            words.append(
                f"{'' if value else 'no_'}{f.name}" if number or isinstance(value, bool) else f"{f.name}_{value}"
            )
    return ["".join(c if c.isascii() and c.isalnum() else "_" for c in word) for word in words]


def walk(roots: Any) -> list[Node]:
    """List every node the roots depend on, each once, operands before what uses them."""
    order: dict[int, Node] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, done = stack.pop()
        if done:
            order[id(node)] = node
        elif id(node) not in order:
            stack.append((node, True))
            stack += [(a, False) for a in reversed(node.args) if id(a) not in order]
    return list(order.values())


DEEPEST = 100
"""Operations inside one another in one expression: each may cost a pair of parentheses, of which Python reads 200."""


class Statement(NamedTuple):
    """One line of a kernel's body: a name, its type, the text of the expression it is given, and what it computes."""

    name: str
    dtype: np.dtype
    text: str
    node: Node


class Text(str):
    """The text of an expression; `binding` says how tightly its outermost operator binds (a name or call tightest)."""

    binding: int

    def __new__(cls, text: str, binding: int = 9):  # noqa: D102
        self = super().__new__(cls, text)
        self.binding = binding
        return self

    def within(self, binding: int) -> str:
        """Write it as an operand of an operator that binds this tightly."""
        return self if self.binding >= binding else f"({self})"


_OPERATORS = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "and": "&", "or": "|", "xor": "^",
    "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!=",
    "left_shift": "<<", "right_shift": ">>",
}  # fmt: skip


def infix(operation: str, left: Text, right: Text) -> Text:
    """Write a binary operation in C's and Python's common notation, with parentheses where either needs them."""
    operator = _OPERATORS[operation]
    binding = {"+": 2, "-": 2, "*": 3, "/": 3}.get(operator, 1)
    shared = max(binding, 2)  # around an operand of a comparison or bit operation, only arithmetic goes without
    return Text(f"{left.within(shared)} {operator} {right.within(shared + (binding > 1))}", binding)


def own_names(program: Program, reserved: frozenset[str]) -> dict[str, str]:
    """Give the name under which each buffer and scalar is printed: its own, or one that hides nothing of Python's."""
    names: dict[str, str] = {}
    for name in (*(b.name for b in program.buffers), *program.scalars):
        printed = name
        while (
            printed in reserved
            or hasattr(builtins, printed)
            or re.fullmatch(r"x\d+|.*_(new|at|i)", printed)
            or printed in names.values()
        ):
            printed += "_"
        names[name] = printed
    return names


def statements(program: Program, render: Callable[[Node, list[Text]], Text]) -> tuple[list[Statement], dict[str, str]]:
    """Turn the program's graph into lines in a backend's language.

    `render(node, operands)` gives the text of one operation. A value used more than once gets a name, and so do one
    that is `DEEPEST` operations deep and a stage of the noise; others are written where they are used. The names are
    <buffer>_new and x0, x1, …, which `own_names` keeps free. Returns the lines, and the text of each written buffer's
    new value.
    """
    nodes = walk(program.results.values())
    uses: dict[int, int] = {}
    for node in nodes:
        for a in node.args:
            uses[id(a)] = uses.get(id(a), 0) + 1
    new = {id(node): f"{b}_new" for b, node in program.results.items() if node.args}
    texts: dict[int, Text] = {}
    depths: dict[int, int] = {}
    lines: list[Statement] = []
    for node in nodes:
        text = render(node, [texts[id(a)] for a in node.args])
        depth = 1 + max([depths[id(a)] for a in node.args], default=0)
        if node.args and (id(node) in new or uses[id(node)] > 1 or depth > DEEPEST or node in program.stages):
            name = new.get(id(node), f"x{len(lines)}")
            lines.append(Statement(name, node.dtype, text, node))
            text, depth = Text(name), 0
        texts[id(node)], depths[id(node)] = text, depth
    return lines, {b: texts[id(node)] for b, node in program.results.items()}


Planned: TypeAlias = tuple[Program, Callable[[int], tuple[float, ...]]]


def plan(rule: Any, dtype: np.dtype) -> Planned:
    """Give the program of a rule and the function of t that computes its scalars; remembered while rules come again."""
    try:
        known = _planned(rule, dtype)
    except TypeError:  # not hashable
        require_rule(rule, "trace")
        raise
    for same, key, planned in known:
        if same is rule or key == exact(rule):
            return planned
    program = trace(rule, dtype)
    planned = program, host_scalars(program, rule)
    known.append((rule, exact(rule), planned))
    return planned


@lru_cache(maxsize=256)
def _planned(rule: Any, dtype: np.dtype) -> list[tuple[Any, tuple, Planned]]:
    """Give the list of what is planned for rules that equal this one; they may differ in a zero's sign or a type."""
    return []


def host_scalars(program: Program, rule: Any) -> Callable[[int], tuple[float, ...]]:
    """Give the function of t that computes a step's scalars in float64, in the order of `program.scalars`.

    That function raises:
        SettingError: a scalar is not a finite number of the computing precision, or a schedule gives one out of range.
        RuleError: `scalars(t)` does not give a dict of exactly the keyword-only parameters of `update`.

    """
    order, expected, limit = program.scalars, set(program.scalars), float(np.finfo(program.dtype).max)
    rule_at = follow(rule)

    def at_step(t: int) -> tuple[float, ...]:
        given = rule_at(t).scalars(t)
        if not isinstance(given, dict) or given.keys() != expected:
            raise RuleError(
                explain(
                    f"{type(rule).__name__}.scalars",
                    "scalars(t) gives a dict of exactly the keyword-only parameters of update.",
                    got=", ".join(map(str, given)) or "(none)" if isinstance(given, dict) else repr(given)[:60],
                    expected=", ".join(order) or "(none)",
                )
            )
        values = tuple([x if type(x := given[name]) is float else to_float(x) for name in order])
        if not math.hypot(*values) <= limit:  # one is too large or not a number, or several are close to the limit
            for name, value in zip(order, values, strict=True):
                if not abs(value) <= limit:
                    raise SettingError(
                        explain(
                            f"{type(rule).__name__}.scalars({t})",
                            f"the scalar {name} is not a finite {program.dtype.name}.",
                            got=repr(given[name])[:60],
                            do="check the settings and schedules of the rule",
                        )
                    )
        return values

    return at_step

"""The expression graph of one rule: nodes, and a Trace that makes them, typed exactly as NumPy types them.

Types follow NumPy because NumPy itself is asked (`ufunc.resolve_dtypes`). What is not in the vocabulary of
`operations`, or what NumPy would convert, is refused, not approximated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, TypeAlias

import numpy as np

from fastopt.errors import RuleError
from fastopt.kernels.compiler.operations import VOCABULARY

_LOGICAL = (np.logical_and, np.logical_or, np.logical_not)
_BOOL, _WORD = np.dtype(bool), np.dtype(np.uint32)

Operand: TypeAlias = Any
"""A node, a NumPy scalar or a Python number; anything else is refused by name."""


class Node:
    """One operation of the graph: its name, its type, its operands, and the value of a constant or name of an input."""

    __slots__ = ("args", "dtype", "op", "value")

    def __init__(self, op: str, dtype: np.dtype, args: tuple[Node, ...] = (), value: Any = None):
        self.op, self.dtype, self.args, self.value = op, dtype, args, value

    def __repr__(self) -> str:
        return self._text(3)

    def _text(self, depth: int) -> str:
        """Write it down to a depth: a graph is small, but the tree that it stands for may be endless."""
        if not self.args:
            return f"{self.op}({self.value})"
        return f"{self.op}({', '.join(a._text(depth - 1) for a in self.args) if depth else '…'})"


def text_of(root: Node) -> str:
    """Write a graph as a text, the same for graphs that compute the same in the same way."""
    names: dict[int, str] = {}
    lines = []
    for node in walk([root]):
        names[id(node)] = f"x{len(names)}"
        lines.append(f"{node.op} {node.dtype} {node.value} {' '.join(names[id(a)] for a in node.args)}")
    return "; ".join(lines)


def walk(roots: Iterable[Node]) -> list[Node]:
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


class Trace:
    """One tracing of one rule: makes each distinct node once, so that common subexpressions are shared."""

    def __init__(self, where: str):
        self.where = where
        self.totals: list[Node] = []  # each time that one was taken
        self.conditions: list[Node] = []  # without which the step is skipped
        self.matrices: list[Node] = []  # each call of a function of matrices
        self._nodes: dict[tuple, Node] = {}

    def node(self, op: str, dtype: np.dtype, args: tuple[Node, ...] = (), value: Any = None) -> Node:
        """Make a node, or return the one that is already there."""
        if op != "cast" and any(a.dtype == np.int8 for a in args):
            what = "an int8 has no operations; it is the way to a word of the same value."
            self.fail(what, got=op, do="write x.astype(np.int8).astype(np.uint32)")
        key_value = value.tobytes() if isinstance(value, np.generic) else value
        key = (op, dtype, tuple(map(id, args)), key_value)
        if key not in self._nodes:
            self._nodes[key] = Node(op, dtype, args, value)
        return self._nodes[key]

    def constant(self, value: Any, dtype: np.dtype) -> Node:
        """Make the node of a number."""
        if dtype == _WORD and isinstance(value, float | np.floating):
            self.fail("a number with a fraction is no word of 32 bits.", got=value, expected="an integer")
        try:
            with np.errstate(over="ignore"):  # a float beyond the largest is ∞, as it is to NumPy
                number = dtype.type(value)
        except OverflowError:
            size = value.bit_length()
            self.fail(f"an integer is out of the range of {dtype.name}.", got=value if size < 99 else f"{size} bits")
        return self.node("constant", dtype, value=number)

    def total(self, x: Node, over: str, of: str) -> Node:
        """Make the node of a total, whose value says over what it is, and of what."""
        self.totals.append(self.node("total", x.dtype, (x,), (over, of)))
        return self.totals[-1]

    def matrix(self, x: Node, function: Any) -> Node:
        """Make the node of a function of matrices."""
        self.matrices.append(self.node("matrix", x.dtype, (x,), function))
        return self.matrices[-1]

    def fail(self, what: str, **more: Any) -> NoReturn:
        """Raise the RuleError that says what is wrong with the rule."""
        raise RuleError(what, **more, where=self.where)

    def apply(self, ufunc: np.ufunc, *operands: Operand) -> Node:
        """Add the node of `ufunc` on nodes, NumPy scalars and Python numbers, typed as NumPy types it."""
        if ufunc in _LOGICAL:
            operands = tuple(self._truth(ufunc, x) for x in operands)
        loop, result = self.types(ufunc, operands)
        args = [x if isinstance(x, Node) else self.constant(x, dtype) for x, dtype in zip(operands, loop, strict=True)]
        return self._operation(ufunc, args, result)

    def _truth(self, ufunc: np.ufunc, x: Operand) -> Operand:
        """Return what NumPy's logical functions make of an operand, whatever its type: whether it is not zero."""
        if isinstance(x, Node):
            return x if x.dtype == _BOOL else self.apply(np.not_equal, x, 0)
        self.kind(ufunc, x)
        return bool(x)

    def types(self, ufunc: np.ufunc, operands: tuple[Operand, ...]) -> tuple[list[np.dtype], np.dtype]:
        """Ask NumPy in which types it computes `ufunc` on these operands, and refuse another precision than theirs."""
        kinds = [self.kind(ufunc, x) for x in operands]
        text = f"{ufunc.__name__}({', '.join(k.name if isinstance(k, np.dtype) else k.__name__ for k in kinds)})"
        try:
            *loop, result = ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))
        except TypeError:
            self.fail("NumPy has no such operation on these types.", got=text)
        for kind, dtype in zip(kinds, loop, strict=True):
            if isinstance(kind, np.dtype) and kind != dtype:
                self.fail(
                    "an operation would change the precision.",
                    got=f"{text}, which NumPy computes in {dtype.name}",
                    expected="operands of one type; plain Python numbers adapt to the others",
                    do="np.where(c, 1.0, -1.0) is float64: write np.where(c, np.ones_like(p), -1.0)",
                )
        return loop, result

    def _operation(self, ufunc: np.ufunc, args: list[Node], result: np.dtype) -> Node:
        """Make the node of an operation; for truth values and words, compose those that no backend has from others."""
        op, dtype = VOCABULARY[ufunc], args[0].dtype
        if dtype == _BOOL:
            op = {"add": "or", "multiply": "and"}.get(op, op)
        if dtype in (_BOOL, _WORD) and op in ("abs", "floor", "ceil", "trunc"):
            return args[0]
        if dtype == _WORD and op == "negative":
            return self.node("subtract", dtype, (self.constant(0, dtype), *args))
        if dtype == _WORD and op == "sign":
            zero, one = self.constant(0, dtype), self.constant(1, dtype)
            return self.node("select", dtype, (self.node("not_equal", _BOOL, (args[0], zero)), one, zero))
        if op in ("left_shift", "right_shift"):
            return self._shift(op, dtype, *args)
        return self.node(op, result, tuple(args))

    def _shift(self, op: str, dtype: np.dtype, x: Node, count: Node) -> Node:
        """Make the node of a shift: from 32 on, where processors differ, no bit is left."""
        if count.op == "constant":
            return self.node(op, dtype, (x, count)) if count.value < 32 else self.constant(0, dtype)
        within = self.node("and", dtype, (count, self.constant(31, dtype)))
        short = self.node("less", _BOOL, (count, self.constant(32, dtype)))
        return self.node("select", dtype, (short, self.node(op, dtype, (x, within)), self.constant(0, dtype)))

    def kind(self, function: Any, x: Operand) -> Any:
        """Return what NumPy's typing sees of an operand: a dtype, or the type of a Python number, which adapts."""
        if isinstance(x, Node | np.generic):
            return x.dtype
        if isinstance(x, bool):
            return np.dtype(bool)
        if isinstance(x, int | float):
            return type(x)
        self.fail(
            f"an operand of {function.__name__} is neither a buffer nor a number.",
            got=f"{type(x).__name__}: {x!r:.60}",
            expected="the buffers and scalars of update, and numbers",
        )

    def select(self, condition: Operand, a: Operand, b: Operand) -> Node:
        """Add the node of np.where."""
        if not isinstance(condition, Node) or condition.dtype != bool:
            self.fail("the condition of np.where is not a comparison.", got=repr(condition))
        kinds = [self.kind(np.where, x) for x in (a, b)]
        dtypes = {k for k in kinds if isinstance(k, np.dtype)}
        numbers = [kind(0) for kind in kinds if isinstance(kind, type)]
        if len(dtypes) != 1 or np.result_type(*dtypes, *numbers) not in dtypes:
            self.fail(
                "np.where would change the precision.",
                got=f"np.where(…, {a!r}, {b!r})",
                expected="at least one branch of the computing precision, and no other",
                do="write np.where(c, np.ones_like(p), -1.0) for np.where(c, 1.0, -1.0), which is float64",
            )
        (dtype,) = dtypes
        branches = tuple(x if isinstance(x, Node) else self.constant(x, dtype) for x in (a, b))
        return self.node("select", dtype, (condition, *branches))

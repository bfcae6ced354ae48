"""The tracer: NumPy code called on symbols instead of arrays leaves a small typed expression graph.

A `Symbol` takes part in arithmetic, comparisons and the NumPy functions of `VOCABULARY`; each operation adds a `Node`.
Types follow NumPy exactly, because NumPy itself is asked (`ufunc.resolve_dtypes`). Every operation in the vocabulary is
correctly rounded or exact, so every backend computes the same bits; whatever is not in it is refused, not approximated.
Only the sign and the payload of a NaN are open: they differ from one processor to another, and a rule that asks for
them, with np.copysign or .view, may get another answer on another backend.

Operators in place do what NumPy's do: `m *= β` changes an array, which everything that stands for that array then
sees, and makes another NumPy scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastopt.errors import RuleError, explain

# NumPy function → operation. The operations are what a backend has to print.
VOCABULARY: dict[Any, str] = {
    np.add: "add",
    np.subtract: "subtract",
    np.multiply: "multiply",
    np.true_divide: "divide",
    np.negative: "negative",
    np.sqrt: "sqrt",
    np.absolute: "abs",
    np.sign: "sign",
    np.rint: "rint",
    np.floor: "floor",
    np.ceil: "ceil",
    np.trunc: "trunc",
    np.copysign: "copysign",
    np.less: "less",
    np.less_equal: "less_equal",
    np.greater: "greater",
    np.greater_equal: "greater_equal",
    np.equal: "equal",
    np.not_equal: "not_equal",
    np.logical_and: "and",
    np.logical_or: "or",
    np.logical_not: "not",
    np.bitwise_and: "and",
    np.bitwise_or: "or",
    np.bitwise_xor: "xor",
    np.invert: "not",
    np.left_shift: "left_shift",
    np.right_shift: "right_shift",
}

_LOGICAL = (np.logical_and, np.logical_or, np.logical_not)
_DERIVED = (np.square, np.fabs, np.isnan, np.isfinite, np.isinf)  # what the operations above amount to
_BOOL, _WORD = np.dtype(bool), np.dtype(np.uint32)

_LARGER = "write np.where((a > b) | (a != a), a, b): NumPy leaves the sign of max(−0, +0) open"
_ON_THE_HOST = "not correctly rounded everywhere: if it depends on settings and t only, compute it in scalars(t)"
_HINTS: dict[Any, str] = {
    np.maximum: _LARGER,
    np.fmax: _LARGER,
    np.minimum: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.fmin: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.clip: "write two np.where",
    np.round: "write np.rint(x)",
    np.power: "write x * x or x**2; other powers are " + _ON_THE_HOST,
    **dict.fromkeys(
        (np.exp, np.expm1, np.exp2, np.log, np.log1p, np.log2, np.tanh, np.sin, np.cos, np.cbrt), _ON_THE_HOST
    ),
}


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


class Trace:
    """One tracing of one rule: makes each distinct node once, so that common subexpressions are shared."""

    def __init__(self, where: str):
        self.where = where
        self._nodes: dict[tuple, Node] = {}

    def node(self, op: str, dtype: np.dtype, args: tuple[Node, ...] = (), value: Any = None) -> Node:
        """Make a node, or give the one that is already there."""
        key_value = value.tobytes() if isinstance(value, np.generic) else value
        key = (op, dtype, tuple(map(id, args)), key_value)
        if key not in self._nodes:
            self._nodes[key] = Node(op, dtype, args, value)
        return self._nodes[key]

    def input(self, op: str, name: str, dtype: np.dtype, *, array: bool) -> Symbol:
        """Make the symbol of a buffer's element, a scalar or an index."""
        return Symbol(self, self.node(op, dtype, value=name), array)

    def constant(self, value: Any, dtype: np.dtype) -> Node:
        """Make the node of a number."""
        try:
            with np.errstate(over="ignore"):  # a float beyond the largest is ∞, as it is to NumPy
                number = dtype.type(value)
        except OverflowError:
            size = value.bit_length()
            self.fail(f"an integer is out of the range of {dtype.name}.", got=value if size < 99 else f"{size} bits")
        return self.node("constant", dtype, value=number)

    def fail(self, what: str, **more: Any) -> NoReturn:
        """Raise the RuleError that says what is wrong with the rule."""
        raise RuleError(explain(self.where, what, **more))

    def apply(self, ufunc: np.ufunc, *operands: Any) -> Symbol:
        """Add the node for `ufunc` on symbols, NumPy scalars and Python numbers, typed as NumPy types it."""
        if ufunc in _LOGICAL:
            operands = tuple(self._truth(ufunc, x) for x in operands)
        loop, result = self.types(ufunc, operands)
        args = [
            x._node if isinstance(x, Symbol) else self.constant(x, dtype)
            for x, dtype in zip(operands, loop, strict=True)
        ]
        return Symbol(self, self._operation(ufunc, args, result), _is_array(operands))

    def _truth(self, ufunc: np.ufunc, x: Any) -> Any:
        """Give what NumPy's logical functions make of an operand, whatever its type: whether it is other than zero."""
        if isinstance(x, Symbol):
            return x if x.dtype == _BOOL else self.apply(np.not_equal, x, 0)
        self._kind(ufunc, x)
        return bool(x)

    def types(self, ufunc: np.ufunc, operands: tuple) -> tuple[list[np.dtype], np.dtype]:
        """Ask NumPy in which types it computes `ufunc` on these operands, and refuse another precision than theirs."""
        kinds = [self._kind(ufunc, x) for x in operands]
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
        """Make the node of an operation, and of those that no backend has for truth values and words, from others."""
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
        """Make the node of a shift: all bits are gone from 32 on, which processors do not define."""
        if count.op == "constant":
            return self.node(op, dtype, (x, count)) if count.value < 32 else self.constant(0, dtype)
        within = self.node("and", dtype, (count, self.constant(31, dtype)))
        short = self.node("less", _BOOL, (count, self.constant(32, dtype)))
        return self.node("select", dtype, (short, self.node(op, dtype, (x, within)), self.constant(0, dtype)))

    def _kind(self, function: Any, x: Any) -> Any:
        """Give what NumPy's typing sees of an operand: a dtype, or the type of a Python number, which adapts."""
        if isinstance(x, Symbol | np.generic):
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

    def select(self, condition: Any, a: Any, b: Any) -> Symbol:
        """Add the node for np.where."""
        if not isinstance(condition, Symbol) or condition.dtype != bool:
            self.fail("the condition of np.where is not a comparison.", got=repr(condition))
        kinds = [self._kind(np.where, x) for x in (a, b)]
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
        args = tuple(x._node if isinstance(x, Symbol) else self.constant(x, dtype) for x in (a, b))
        return Symbol(self, self.node("select", dtype, (condition._node, *args)), _is_array((condition, a, b)) or None)


def _is_array(operands: tuple) -> bool:
    """Whether NumPy's result is an array: one of the operands is, and has a dimension."""
    return any(x._array for x in operands if isinstance(x, Symbol))


class Symbol:
    """What `update` meets while it is traced: an element of a buffer, a scalar, or what was computed of them.

    `_array` is True where it stands for an array, False for a NumPy scalar, None for an array without dimensions, which
    np.where and np.zeros_like make of scalars.
    """

    __slots__ = ("_array", "_node", "_trace")

    def __init__(self, trace: Trace, node: Node, array: bool | None):
        self._trace, self._node, self._array = trace, node, array

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type of the value."""
        return self._node.dtype

    def __repr__(self) -> str:
        return repr(self._node)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        name = f"np.{ufunc.__name__}"
        if method != "__call__":
            self._trace.fail(f"{name}.{method} is not elementwise.", expected="each element updated on its own")
        if kwargs:
            self._trace.fail(f"{name} was called with {', '.join(kwargs)}=.", do="assign the result to a name instead")
        if ufunc in _DERIVED:
            self._trace.types(ufunc, inputs)
        if ufunc is np.square:
            return self._trace.apply(np.multiply, *inputs, *inputs)
        if ufunc is np.fabs:
            ufunc = np.absolute  # type: ignore[assignment]
        if ufunc is np.isnan:
            return self._trace.apply(np.not_equal, *inputs, *inputs)
        if ufunc in (np.isfinite, np.isinf):
            compare = np.less if ufunc is np.isfinite else np.equal
            return self._trace.apply(compare, self._trace.apply(np.absolute, *inputs), float("inf"))
        if ufunc not in VOCABULARY:
            self._unknown(ufunc, name)
        return self._trace.apply(ufunc, *inputs)

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Symbol:
        if function is np.where and len(args) == 3 and not kwargs:
            return self._trace.select(*args)
        fills = {np.zeros_like: 0.0, np.ones_like: 1.0}
        if function in fills and args == (self,) and not kwargs:
            return self._filled(fills[function])
        if function is np.full_like and len(args) == 2 and args[0] is self and not kwargs:
            self._trace._kind(function, args[1])
            return self._filled(args[1])
        self._unknown(function, f"np.{function.__name__}")

    def _filled(self, value: Any) -> Symbol:
        return Symbol(self._trace, self._trace.constant(value, self.dtype), self._array or None)

    def _unknown(self, function: Any, name: str) -> NoReturn:
        known = sorted({f.__name__ for f in VOCABULARY} | {f.__name__ for f in _DERIVED} | {"where"})
        known_text = ", ".join(known)
        self._trace.fail(
            f"{name} is not known to the tracer.", expected=f"one of {known_text}", do=_HINTS.get(function)
        )

    def __pow__(self, exponent: Any) -> Symbol:
        if type(exponent) in (int, float) and exponent == 2 and self._array and self.dtype != _BOOL:
            return self._trace.apply(np.multiply, self, self)
        self._unknown(np.power, "this power")

    def _become(self, result: Symbol) -> Symbol:
        """Take over the value of an operation in place, and give what its left side then stands for."""
        if self._array is False:
            return result
        if self._array is None:
            self._trace.fail(
                "an operation in place changes what np.where or np.zeros_like makes of scalars.",
                expected="arrays like p, or scalars as they come",
                do="write x = x * y for x *= y",
            )
        self._node = result._node
        return self

    def __round__(self, digits: int | None = None) -> NoReturn:
        self._unknown(np.round, "round")

    def astype(self, dtype: Any) -> Symbol:
        """Convert a uint32 to a float, or a float32 to a float64."""
        to = np.dtype(dtype)
        known = {(np.dtype(np.uint32), np.dtype(np.float32)), (np.dtype(np.float32), np.dtype(np.float64))}
        if to != self.dtype and (self.dtype, to) not in known:
            self._trace.fail("this conversion is not known to the tracer.", got=f"{self.dtype.name} to {to.name}")
        node = self._node if to == self.dtype else self._trace.node("cast", to, (self._node,))
        return Symbol(self._trace, node, self._array)

    def copy(self) -> Symbol:
        """Give another array of the same values, which operations in place on this one leave as it is."""
        return self.astype(self.dtype)

    def view(self, dtype: Any) -> Symbol:
        """Read the bits of a float32 as a uint32, or back, in the same memory."""
        to = np.dtype(dtype)
        if {self.dtype, to} != {np.dtype(np.float32), np.dtype(np.uint32)}:
            self._trace.fail("this view is not known to the tracer.", got=f"{self.dtype.name} as {to.name}")
        return View(self, to)

    def __bool__(self) -> bool:
        self._trace.fail(
            "the rule branches on a value (if, while, and, or, not, max, min), which differs from element to element.",
            got=repr(self)[:100],
            do="use np.where for a choice, & | ~ between comparisons; a choice by t alone belongs in scalars(t)",
        )

    def _not_a_number(self, *_: Any) -> NoReturn:
        self._trace.fail(
            "the rule turns a value into a Python number or an array (float, int, math.…, np.asarray, iteration).",
            do="use the NumPy function of the same name, or compute it in scalars(t)",
        )

    __float__ = __int__ = __index__ = __trunc__ = __floor__ = __ceil__ = _not_a_number
    __len__ = __iter__ = __getitem__ = __setitem__ = __array__ = _not_a_number  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._trace.fail(f"the rule uses the attribute .{name} of a value.", expected="operators and NumPy functions")

    def __hash__(self) -> int:
        self._trace.fail("the rule uses a value as a key, of a dict or a set.", do="give it a name of its own")


class View(Symbol):
    """A symbol's memory read as another type: an operation in place on either shows in both."""

    __slots__ = ("_kind", "_of")

    def __init__(self, of: Symbol, kind: np.dtype):
        self._trace, self._array, self._of, self._kind = of._trace, of._array, of, kind

    @property
    def _node(self) -> Node:  # type: ignore[override]
        return self._trace.node("bitcast", self._kind, (self._of._node,))

    @_node.setter
    def _node(self, node: Node) -> None:
        self._of._node = self._trace.node("bitcast", self._of.dtype, (node,))


def _operators() -> None:
    """Give Symbol Python's operators, each NumPy's function of that meaning, and their in-place forms.

    Among them are some that the vocabulary lacks, so that they are refused in the same words as the function.
    """
    arithmetic = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "xor": np.bitwise_xor,
        "and": np.bitwise_and, "or": np.bitwise_or, "lshift": np.left_shift, "rshift": np.right_shift,
        "mod": np.remainder, "floordiv": np.floor_divide, "divmod": np.divmod, "matmul": np.matmul,
    }  # fmt: skip
    comparisons = {
        "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
        "eq": np.equal, "ne": np.not_equal,
    }  # fmt: skip
    for name, ufunc in {**arithmetic, **comparisons}.items():
        setattr(Symbol, f"__{name}__", lambda a, b, f=ufunc: f(a, b))
    for name, ufunc in arithmetic.items():
        setattr(Symbol, f"__r{name}__", lambda a, b, f=ufunc: f(b, a))
        setattr(Symbol, f"__i{name}__", lambda a, b, f=ufunc: a._become(f(a, b)))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(Symbol, f"__{name}__", lambda a, f=ufunc: f(a))
    Symbol.__pos__ = Symbol.copy  # type: ignore[attr-defined]
    Symbol.__ipow__ = lambda a, b: a._become(a**b)  # type: ignore[attr-defined]
    Symbol.__rpow__ = lambda a, b: np.power(b, a)  # type: ignore[attr-defined]


_operators()

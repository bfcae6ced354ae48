"""The tracer: NumPy code called on symbols instead of arrays leaves a small typed expression graph.

A `Symbol` takes part in arithmetic, comparisons and the NumPy functions of `VOCABULARY`; each operation adds a `Node`.
Types follow NumPy exactly, because NumPy itself is asked (`ufunc.resolve_dtypes`). Every operation in the vocabulary is
correctly rounded or exact, so every backend computes the same bits; whatever is not in it is refused, not approximated.
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

_LARGER = "write np.where((a > b) | (a != a), a, b): NumPy leaves the sign of max(−0, +0) open"
_ON_THE_HOST = "not correctly rounded everywhere: if it depends on settings and t only, compute it in scalars(t)"
_HINTS: dict[Any, str] = {
    np.maximum: _LARGER,
    np.fmax: _LARGER,
    np.minimum: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.fmin: _LARGER.replace("a > b", "a < b").replace("max", "min"),
    np.clip: "write two np.where",
    np.power: "write x * x or x**2; other powers are " + _ON_THE_HOST,
    **dict.fromkeys(
        (np.exp, np.expm1, np.exp2, np.log, np.log1p, np.log2, np.tanh, np.sin, np.cos, np.cbrt), _ON_THE_HOST
    ),
}


class Node:
    """One operation of the graph: its name, its type, its operands, and the value of a constant or name of an input.

    `uniform` says that it depends on scalars and constants only, so it is the same for every element.
    """

    __slots__ = ("args", "dtype", "op", "uniform", "value")

    def __init__(self, op: str, dtype: np.dtype, args: tuple[Node, ...] = (), value: Any = None, uniform: bool = True):
        self.op, self.dtype, self.args, self.value = op, dtype, args, value
        self.uniform = uniform and all(a.uniform for a in args)

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.args)) if self.args else self.value
        return f"{self.op}({inner})"


class Trace:
    """One tracing of one rule: makes each distinct node once, so that common subexpressions are shared."""

    def __init__(self, where: str):
        self.where = where
        self._nodes: dict[tuple, Node] = {}

    def node(
        self, op: str, dtype: np.dtype, args: tuple[Node, ...] = (), value: Any = None, uniform: bool = True
    ) -> Node:
        """Make a node, or give the one that is already there."""
        key_value = value.tobytes() if isinstance(value, np.generic) else value
        key = (op, dtype, tuple(map(id, args)), key_value)
        if key not in self._nodes:
            self._nodes[key] = Node(op, dtype, args, value, uniform)
        return self._nodes[key]

    def input(self, op: str, name: str, dtype: np.dtype, *, uniform: bool) -> Symbol:
        """Make the symbol of a buffer's element, a scalar or an index."""
        return Symbol(self, self.node(op, dtype, value=name, uniform=uniform))

    def constant(self, value: Any, dtype: np.dtype) -> Node:
        """Make the node of a number."""
        return self.node("constant", dtype, value=dtype.type(value))

    def fail(self, what: str, **more: Any) -> NoReturn:
        """Raise the RuleError that says what is wrong with the rule."""
        raise RuleError(explain(self.where, what, **more))

    def apply(self, ufunc: np.ufunc, *operands: Any) -> Symbol:
        """Add the node for `ufunc` on symbols, NumPy scalars and Python numbers, typed as NumPy types it."""
        kinds = [self._kind(ufunc, x) for x in operands]
        text = f"{ufunc.__name__}({', '.join(k.name if isinstance(k, np.dtype) else k.__name__ for k in kinds)})"
        try:
            *loop, result = ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))
        except TypeError:
            self.fail("NumPy has no such operation on these types.", got=text)
        args = []
        for x, kind, dtype in zip(operands, kinds, loop, strict=True):
            if isinstance(kind, np.dtype) and kind != dtype:
                self.fail(
                    "an operation would change the precision.",
                    got=f"{text}, which NumPy computes in {dtype.name}",
                    expected="operands of one type; plain Python numbers adapt to the others",
                    do="np.where(c, 1.0, -1.0) is float64: write np.where(c, np.ones_like(p), -1.0)",
                )
            args.append(x._node if isinstance(x, Symbol) else self.constant(x, dtype))
        return Symbol(self, self.node(VOCABULARY[ufunc], result, tuple(args)))

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
        if len(dtypes) != 1:
            self.fail(
                "np.where would change the precision.",
                got=f"np.where(…, {a!r}, {b!r})",
                expected="at least one branch of the computing precision, and no other",
                do="write np.where(c, np.ones_like(p), -1.0) for np.where(c, 1.0, -1.0), which is float64",
            )
        (dtype,) = dtypes
        args = tuple(x._node if isinstance(x, Symbol) else self.constant(x, dtype) for x in (a, b))
        return Symbol(self, self.node("select", dtype, (condition._node, *args)))


class Symbol:
    """What `update` meets while it is traced: an element of a buffer, a scalar, or what was computed of them."""

    __slots__ = ("_node", "_trace")

    def __init__(self, trace: Trace, node: Node):
        self._trace, self._node = trace, node

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
            return Symbol(self._trace, self._trace.constant(fills[function], self.dtype))
        if function is np.full_like and len(args) == 2 and args[0] is self and not kwargs:
            return Symbol(self._trace, self._trace.constant(args[1], self.dtype))
        self._unknown(function, f"np.{function.__name__}")

    def _unknown(self, function: Any, name: str) -> NoReturn:
        known = sorted({f.__name__ for f in VOCABULARY} | {"square", "isnan", "isfinite", "isinf", "where"})
        known_text = ", ".join(known)
        self._trace.fail(
            f"{name} is not known to the tracer.", expected=f"one of {known_text}", do=_HINTS.get(function)
        )

    def __pow__(self, exponent: Any) -> Symbol:
        if isinstance(exponent, int | float) and exponent == 2 and not self._node.uniform:
            return self._trace.apply(np.multiply, self, self)
        self._unknown(np.power, "this power")

    def astype(self, dtype: Any) -> Symbol:
        """Convert a uint32 to a float, or a float32 to a float64."""
        to = np.dtype(dtype)
        known = {(np.dtype(np.uint32), np.dtype(np.float32)), (np.dtype(np.float32), np.dtype(np.float64))}
        if to != self.dtype and (self.dtype, to) not in known:
            self._trace.fail("this conversion is not known to the tracer.", got=f"{self.dtype.name} to {to.name}")
        return self if to == self.dtype else Symbol(self._trace, self._trace.node("cast", to, (self._node,)))

    def view(self, dtype: Any) -> Symbol:
        """Read the bits of a float32 as a uint32, or back."""
        to = np.dtype(dtype)
        if {self.dtype, to} != {np.dtype(np.float32), np.dtype(np.uint32)}:
            self._trace.fail("this view is not known to the tracer.", got=f"{self.dtype.name} as {to.name}")
        return Symbol(self._trace, self._trace.node("bitcast", to, (self._node,)))

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

    __float__ = __int__ = __index__ = __len__ = __iter__ = __getitem__ = __setitem__ = __array__ = _not_a_number  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._trace.fail(f"the rule uses the attribute .{name} of a value.", expected="operators and NumPy functions")

    __hash__ = None  # type: ignore[assignment]


def _operators() -> None:
    """Give Symbol Python's operators, each NumPy's function of that meaning. No in-place ones: m *= β rebinds m."""
    arithmetic = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "xor": np.bitwise_xor,
        "and": np.bitwise_and, "or": np.bitwise_or, "lshift": np.left_shift, "rshift": np.right_shift,
    }  # fmt: skip
    comparisons = {
        "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
        "eq": np.equal, "ne": np.not_equal,
    }  # fmt: skip
    for name, ufunc in {**arithmetic, **comparisons}.items():
        setattr(Symbol, f"__{name}__", lambda a, b, f=ufunc: f(a, b))
    for name, ufunc in arithmetic.items():
        setattr(Symbol, f"__r{name}__", lambda a, b, f=ufunc: f(b, a))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(Symbol, f"__{name}__", lambda a, f=ufunc: f(a))
    Symbol.__pos__ = lambda a: a  # type: ignore[attr-defined]


_operators()

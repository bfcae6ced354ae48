"""Symbols: what `update` receives instead of arrays while it is traced. Each operation on one adds a node to the graph.

A `Symbol` takes part in arithmetic, comparisons and the NumPy functions of the vocabulary. Only the sign and the
payload of a NaN are open: they differ from one processor to another, and a rule that asks for them, with np.copysign or
.view, may get another answer on another backend.

Operators in place do what NumPy's do: `m *= β` changes an array, which everything that stands for that array then
sees, and makes another NumPy scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastopt.kernels.compiler.graph import Node, Trace
from fastopt.kernels.compiler.operations import DERIVED, HINTS, VOCABULARY
from fastopt.kernels.compiler.powers import is_exact_power, power

_BOOL = np.dtype(bool)


class Symbol:
    """An element of a buffer, a scalar, or what was computed from them.

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

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        """What NumPy's value is, so that isinstance(p, np.ndarray) is as true as outside of a trace."""
        return self.dtype.type if self._array is False else np.ndarray

    def __repr__(self) -> str:
        return repr(self._node)

    def _print(self, *_: Any) -> NoReturn:
        self._trace.fail(
            "the rule prints a value, or makes a text of it, which no kernel does.",
            do="call update on arrays to look at them: rule.update(p, g, …)",
        )

    __str__ = __format__ = _print  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        name = f"np.{ufunc.__name__}"
        if method != "__call__":
            self._trace.fail(f"{name}.{method} is not elementwise.", expected="each element updated on its own")
        if kwargs:
            self._trace.fail(f"{name} was called with {', '.join(kwargs)}=.", do="assign the result to a name instead")
        nodes, apply = _nodes(inputs), self._trace.apply
        if ufunc in DERIVED:
            self._trace.types(ufunc, nodes)
        if ufunc is np.square:
            node = apply(np.multiply, *nodes, *nodes)
        elif ufunc is np.isnan:
            node = apply(np.not_equal, *nodes, *nodes)
        elif ufunc in (np.isfinite, np.isinf):
            compare = np.less if ufunc is np.isfinite else np.equal
            node = apply(compare, apply(np.absolute, *nodes), float("inf"))
        elif ufunc is np.fabs:
            node = apply(np.absolute, *nodes)
        elif ufunc in VOCABULARY:
            node = apply(ufunc, *nodes)
        else:
            self._unknown(ufunc, name)
        return Symbol(self._trace, node, _is_array(inputs))

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Symbol:
        if function is np.where and len(args) == 3 and not kwargs:
            return Symbol(self._trace, self._trace.select(*_nodes(args)), _is_array(args) or None)
        fills = {np.zeros_like: 0.0, np.ones_like: 1.0}
        if function in fills and args == (self,) and not kwargs:
            return self._filled(fills[function])
        if function is np.full_like and len(args) == 2 and args[0] is self and not kwargs:
            self._trace.kind(function, *_nodes(args[1:]))
            return self._filled(args[1])
        self._unknown(function, f"np.{function.__name__}")

    def _filled(self, value: Any) -> Symbol:
        return Symbol(self._trace, self._trace.constant(value, self.dtype), self._array or None)

    def _unknown(self, function: Any, name: str) -> NoReturn:
        known = sorted({f.__name__ for f in VOCABULARY} | {f.__name__ for f in DERIVED} | {"where"})
        self._trace.fail(
            f"{name} is not known to the tracer.", expected=f"one of {', '.join(known)}", do=HINTS.get(function)
        )

    def __pow__(self, exponent: Any) -> Symbol:
        if self._array and self.dtype.kind == "f" and is_exact_power(exponent):
            return power(self, exponent)
        if self._array and self.dtype.kind == "u" and type(exponent) is int and exponent == 2:
            return np.multiply(self, self)  # type: ignore[return-value,arg-type]
        self._unknown(np.power, "this power")

    def _assign(self, result: Symbol) -> Symbol:
        """Take the value of an operation in place, and return what its left side then stands for."""
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
        """Convert a uint32 to a float, a float32 to a float64, or a uint32 to an int8, its lowest bits, and back."""
        to = np.dtype(dtype)
        if to != self.dtype and (self.dtype.name, to.name) not in _CONVERSIONS:
            self._trace.fail("this conversion is not known to the tracer.", got=f"{self.dtype.name} to {to.name}")
        node = self._node if to == self.dtype else self._trace.node("cast", to, (self._node,))
        return Symbol(self._trace, node, self._array)

    def copy(self) -> Symbol:
        """Return another array of the same values, which operations in place on this one leave as it is."""
        return self.astype(self.dtype)

    def _total(self, over: str, of: str) -> Symbol:
        """Add the node of `total`."""
        if not self._array or self.dtype.kind != "f":
            got = f"{self.dtype.name}, {'an array' if self._array else 'a number'}"
            self._trace.fail("a total is of values of floating point, one for each element.", got=got)
        return Symbol(self._trace, self._trace.total(self._node, over, of), False)

    def _matrixwise(self, function: Any) -> Symbol:
        """Add the node of `matrixwise`."""
        if not self._array or self.dtype.kind != "f":
            got = f"{self.dtype.name}, {'an array' if self._array else 'a number'}"
            self._trace.fail("a function of matrices takes values of floating point, one for each element.", got=got)
        try:
            hash(function)
        except TypeError:
            self._trace.fail("a function of matrices is not hashable.", got=repr(function)[:60], do="see matrixwise")
        if not callable(function):
            self._trace.fail("this is no function of matrices.", got=repr(function)[:60], expected="a callable")
        return Symbol(self._trace, self._trace.matrix(self._node, function), True)

    def _skip_unless(self) -> None:
        """Add a condition of the step."""
        if self._array or self.dtype != bool:
            got = f"{self.dtype.name}, {'an array' if self._array else 'a number'}"
            do = 'compare a total over all, as fastopt.total(x, over="all") < 10.0'
            self._trace.fail("a step is skipped by one truth value.", got=got, do=do)
        self._trace.conditions.append(self._node)

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


_CONVERSIONS = {("uint32", "float32"), ("float32", "float64"), ("uint32", "int8"), ("int8", "uint32")}


def _nodes(operands: tuple) -> tuple:
    """Replace symbols by their nodes."""
    return tuple(x._node if isinstance(x, Symbol) else x for x in operands)


def _is_array(operands: tuple) -> bool:
    """Whether NumPy's result is an array: one of the operands is, and has a dimension."""
    return any(x._array for x in operands if isinstance(x, Symbol))


def _define_operators() -> None:
    """Define Python's operators on Symbol, each as NumPy's function of that meaning, and their in-place forms.

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
        setattr(Symbol, f"__i{name}__", lambda a, b, f=ufunc: a._assign(f(a, b)))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
        setattr(Symbol, f"__{name}__", lambda a, f=ufunc: f(a))
    Symbol.__pos__ = Symbol.copy  # type: ignore[attr-defined]
    Symbol.__ipow__ = lambda a, b: a._assign(a**b)  # type: ignore[attr-defined]
    Symbol.__rpow__ = lambda a, b: np.power(b, a)  # type: ignore[attr-defined]


_define_operators()

"""Prints as JavaScript what Python computes on the host at a step t: a rule's `scalars`, a schedule's `at`.

They are plain functions of settings and t, which branch and loop, so they are not traced: their source is translated
statement by statement, and so are the functions that they call. The operations of `host.js` give the bits of Python's;
a power or a cosine whose bits are not known there raises an error instead: see `powers.py`.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import textwrap
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from fastopt.errors import RuleError
from fastopt.kernels.javascript.language import WORDS
from fastopt.kernels.rules.accumulated import accumulated

_KNOWN: dict[Any, str] = {
    math.sqrt: "Math.sqrt",
    math.cos: "$cos",
    math.exp: "$exp",
    math.log: "$log",
    min: "$min",
    max: "$max",
    float: "Number",
    int: "Math.trunc",
    accumulated: "$accumulated",
}
"""What is called by another name; names with a dollar hide none of Python's."""
_OPERATORS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
    ast.GtE: ">=", ast.Eq: "===", ast.NotEq: "!==", ast.Is: "===", ast.IsNot: "!==", ast.And: "&&", ast.Or: "||",
    ast.USub: "-", ast.Not: "!",
}  # fmt: skip


def print_host(methods: Mapping[str, tuple[type, str]]) -> str:
    """Print methods and what they call, from a table: name of the printed function → class and name of the method.

    The printed function's first argument is an object with the settings, in which tuples are arrays. Integers are below
    2⁵³. Where Python raises an error because it divides by zero, JavaScript goes on with ∞ or NaN.

    >>> from fastopt.schedules import InverseTime
    >>> print(print_host({"decayed": (InverseTime, "at")}))
    function decayed(self, t) {
      return self.start / (1 + (self.k * t));
    }

    Raises:
        RuleError: the source has something that is not translated.

    """
    printer = _Printer()
    for name, (cls, method) in methods.items():
        printer.add(getattr(cls, method), cls, name)
    return "\n\n".join(printer.printed.values())


class _Printer:
    """The functions printed so far, by name; what one calls is printed before it."""

    def __init__(self) -> None:
        self.printed: dict[str, str] = {}
        self._names: dict[Any, str] = {}

    def name_of(self, function: Any, cls: type | None = None) -> str:
        """Return the name of a function that others call; print it if it is new."""
        plain = inspect.unwrap(function)
        key = (plain, cls)
        if key not in self._names:
            parts = [plain.__module__.rpartition(".")[2], *([cls.__name__] if cls else []), plain.__name__]
            self._names[key] = "_".join(part.strip("_") for part in parts)
            self.add(function, cls, self._names[key])
        return self._names[key]

    def add(self, function: Any, cls: type | None, name: str) -> None:
        """Print a function under a name."""
        plain = inspect.unwrap(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(plain))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        self.printed[name] = _Function(self, plain, cls, tree).text(name)


class _Function:
    """One function of Python, translated."""

    def __init__(self, printer: _Printer, function: FunctionType, cls: type | None, tree: ast.FunctionDef):
        self._printer, self._function, self._class, self._tree = printer, function, cls, tree

    def text(self, name: str) -> str:
        """Write the function."""
        a = self._tree.args
        if a.defaults or a.kwonlyargs or a.vararg or a.kwarg:
            raise self._refuse(a)
        parameters = [a.arg for a in self._tree.args.args]
        stored = {n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        looped = {
            n.id
            for c in ast.walk(self._tree)
            if isinstance(c, ast.comprehension)
            for n in ast.walk(c.target)
            if isinstance(n, ast.Name)
        }
        self._local = {*parameters, *stored}
        parameters = [self._local_name(x) for x in parameters]
        variables = sorted({self._local_name(x) for x in stored - looped} - set(parameters))
        declared = [f"let {', '.join(variables)};"] if variables else []
        lines = [*declared, *self._block(self._tree.body)]
        return "\n".join([f"function {name}({', '.join(parameters)}) {{", *(f"  {line}" for line in lines), "}"])

    def _local_name(self, name: str) -> str:
        """Return a variable's name, changed where it would be a word of JavaScript's or hide one that is used."""
        return f"{name}$" if name in WORDS else name

    def _refuse(self, node: ast.AST) -> RuleError:
        return RuleError(
            "this part of a function of settings and t cannot be printed as JavaScript.",
            got=ast.unparse(node)[:80],
            expected="assignments, if, while, return, arithmetic, sqrt, min, max and functions of these",
            where=self._function.__qualname__,
        )

    def _block(self, body: list[ast.stmt]) -> list[str]:
        return [line for statement in body for line in self._statement(statement)]

    def _statement(self, s: ast.stmt) -> list[str]:
        match s:
            case ast.Expr(value=ast.Constant()):  # a docstring
                return []
            case ast.Return(value=ast.expr() as value):
                return [f"return {self._expression(value)};"]
            case ast.Assign():
                return [f"{' = '.join(map(self._expression, [*s.targets, s.value]))};"]
            case ast.AugAssign():
                value = ast.BinOp(ast.Name(s.target.id) if isinstance(s.target, ast.Name) else s.target, s.op, s.value)
                return [f"{self._expression(s.target)} = {self._expression(value)};"]
            case ast.If() | ast.While():
                word = "if" if isinstance(s, ast.If) else "while"
                lines = [f"{word} ({self._expression(s.test)}) {{", *(f"  {line}" for line in self._block(s.body)), "}"]
                if s.orelse and isinstance(s, ast.If):
                    lines[-1:] = ["} else {", *(f"  {line}" for line in self._block(s.orelse)), "}"]
                return lines
        raise self._refuse(s)

    def _expression(self, e: ast.expr) -> str:
        match e:
            case ast.Constant(value=None):
                return "null"
            case ast.Constant(value=bool() as truth):
                return str(truth).lower()
            case ast.Constant(value=int() | float() as number):
                return repr(number)
            case ast.Name():
                return self._local_name(e.id) if e.id in self._local else self._global(e)
            case ast.Attribute(value=ast.Name(id=name)) if name not in self._local:
                return self._global(e)
            case ast.Attribute():
                return f"{self._expression(e.value)}.{e.attr}"
            case ast.Subscript(slice=ast.Constant(value=int() as index)):
                return f"{self._expression(e.value)}[{index}]"
            case ast.Tuple() | ast.List():
                return f"[{', '.join(map(self._expression, e.elts))}]"
            case ast.Dict():
                pairs = zip(e.keys, e.values, strict=True)
                items = [f"{ast.unparse(k)}: {self._expression(v)}" if k else f"...{self._within(v)}" for k, v in pairs]
                return f"{{ {', '.join(items)} }}"
            case ast.BinOp(op=ast.Pow()):
                return f"$power({self._expression(e.left)}, {self._expression(e.right)})"
            case ast.BinOp(op=ast.Mod()):
                return f"$mod({self._expression(e.left)}, {self._expression(e.right)})"
            case ast.BinOp(op=ast.FloorDiv()):
                return f"Math.floor({self._within(e.left)} / {self._within(e.right)})"
            case ast.BinOp() if type(e.op) in _OPERATORS:
                return f"{self._within(e.left)} {_OPERATORS[type(e.op)]} {self._within(e.right)}"
            case ast.UnaryOp() if type(e.op) in _OPERATORS:
                return f"{_OPERATORS[type(e.op)]}{self._within(e.operand)}"
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return f"{self._within(e.left)} {_OPERATORS[type(op)]} {self._within(right)}"
            case ast.BoolOp():
                return f" {_OPERATORS[type(e.op)]} ".join(map(self._within, e.values))
            case ast.IfExp():
                return f"{self._within(e.test)} ? {self._within(e.body)} : {self._within(e.orelse)}"
            case ast.GeneratorExp(generators=[ast.comprehension(target=ast.Name(id=name), iter=iterated, ifs=[])]):
                return f"{self._within(iterated)}.map(({self._local_name(name)}) => {self._within(e.elt)})"
            case ast.Call(keywords=[]):
                return self._call(e)
        raise self._refuse(e)

    def _call(self, e: ast.Call) -> str:
        given = [self._expression(a) for a in e.args]
        function = e.func
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "self" and self._class:
            method = inspect.getattr_static(self._class, function.attr, None)
            if not inspect.isfunction(inspect.unwrap(method)):
                raise self._refuse(e)
            return f"{self._printer.name_of(method, self._class)}({', '.join(['self', *given])})"
        if ast.unparse(function) == "value_at":  # of a schedule, which checks what `at` returns
            return f"{given[0]}.at({given[1]})"
        if isinstance(function, ast.Name) and function.id not in self._local:
            name = self._global(function)
            if name in ("$min", "$max") and len(given) != 2:
                raise self._refuse(e)
            return f"{name}({', '.join(given)})"
        if isinstance(function, ast.Attribute):
            return f"{self._expression(function)}({', '.join(given)})"
        raise self._refuse(e)

    def _global(self, e: ast.Name | ast.Attribute) -> str:
        """Write a name of the module: a number, a known function, or one that is translated too."""
        name = e.id if isinstance(e, ast.Name) else ast.unparse(e.value)
        found = self._function.__globals__.get(name, getattr(builtins, name, None))
        if isinstance(e, ast.Attribute):
            if not isinstance(found, ModuleType):
                raise self._refuse(e)
            found = getattr(found, e.attr)
        if isinstance(found, float | int):
            return repr(found)
        if isinstance(found, type | FunctionType) or callable(found):
            if found in _KNOWN:
                return _KNOWN[found]
            if inspect.isfunction(inspect.unwrap(found)):
                return self._printer.name_of(found)
        raise self._refuse(e)

    def _within(self, e: ast.expr) -> str:
        """Write an operand."""
        text = self._expression(e)
        compound = ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.UnaryOp
        simple = isinstance(e, ast.BinOp) and isinstance(e.op, ast.Pow | ast.Mod | ast.FloorDiv)
        return f"({text})" if isinstance(e, compound) and not simple else text

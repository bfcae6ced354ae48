"""Expressions as text, with no more parentheses than they need, and writers for the common notations."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

LOOSE, COMPARE, SUM, PRODUCT, PREFIX, ATOM = 0, 1, 2, 3, 4, 9
"""How tightly an expression's outermost operator binds: a name or a call tightest."""


class Text(str):
    """The text of an expression; `binding` says how tightly its outermost operator binds."""

    binding: int

    def __new__(cls, text: str, binding: int = ATOM):  # noqa: D102
        self = super().__new__(cls, text)
        self.binding = binding
        return self

    def within(self, binding: int) -> str:
        """Write it as an operand of an operator that binds this tightly."""
        return self if self.binding >= binding else f"({self})"


Writer: TypeAlias = Callable[[Any, Sequence[Text]], Text]
"""Writes one operation: from its node and the texts of its operands."""


def infix(operator: str, binding: int = COMPARE, *, around: int = SUM) -> Writer:
    """Return the writer of a binary operator; operands that bind less tightly than `around` are parenthesized."""
    left = max(binding, around)
    right = left + (binding > COMPARE)

    def write(node: Any, args: Sequence[Text]) -> Text:
        a, b = args
        return Text(f"{_bare(a).within(left)} {operator} {_bare(b).within(right)}", binding)

    return write


def _bare(operand: Text) -> Text:
    """Write a word that is a number as one: beside another word Numba need not be told, and compiles twice as fast."""
    return Text(operand[5:-1]) if operand.startswith("word(") and operand[5:-1].isdecimal() else operand


def prefix(operator: str, binding: int = PREFIX) -> Writer:
    """Return the writer of a unary operator."""
    return lambda node, args: Text(f"{operator}{args[0].within(ATOM)}", binding)


def call(name: str) -> Writer:
    """Return the writer of a function call."""
    return lambda node, args: Text(f"{name}({', '.join(args)})")


def wrapped(head: str, items: list[str], tail: str) -> list[str]:
    """Write a Python call or definition on one line, or with its items wrapped where it is long."""
    line = f"{head}{', '.join(items)}{tail}"
    if len(line) <= 100:
        return [line]
    whole = ", ".join(items) + ","
    lines = textwrap.wrap(whole, 100, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    return [head, *lines, tail]

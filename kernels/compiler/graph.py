"""The expression graph that tracing leaves: nodes, and the order in which to visit them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


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

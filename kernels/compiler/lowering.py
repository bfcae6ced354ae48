"""What the printers share: a Program divided into loops over a tile, and its graph turned into lines of text.

Most programs are one loop. A scale is the largest of something over a whole tile, so what follows it needs another
loop, and so does a value that a backend asks to have kept (see `cpu`). Whatever a later loop needs of an earlier one is
kept in between, unless computing it again is as cheap.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fastopt.kernels.program import Program, walk
from fastopt.kernels.symbols import Node

DEEPEST = 100
"""Operations inside one another in one expression: each may cost a pair of parentheses, of which Python reads 200."""


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


class Value(NamedTuple):
    """A name, its type, and the text of the expression it is given."""

    name: str
    dtype: np.dtype
    text: Text


class Loop(NamedTuple):
    """One loop over the elements of a tile, and what comes before and after it."""

    uniform: list[Value]  # computed once, before the loop
    loads: dict[str, np.dtype]  # buffers whose elements it reads, and as what
    taken: list[Value]  # values that an earlier loop kept
    lines: list[Value]
    kept: list[Value]  # values to be kept for a later loop
    tops: list[Value]  # words of which it finds the largest
    stores: list[tuple[str, str]]  # buffer, text of the element's new value
    tile_stores: list[tuple[str, str]]  # likewise, once, before the loop


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
        printed = name.replace(".", "_")
        while (
            printed in reserved
            or hasattr(builtins, printed)
            or re.fullmatch(r"(x|top)\d+|.*_(new|at|i|all|0|1|last)", printed)
            or printed in names.values()
        ):
            printed += "_"
        names[name] = printed
    return names


_INPUTS = ("buffer", "place")
_OF_TILE = ("tile", "tile_number", "tile_max")
_UNIFORM = ("scalar", "key", "constant", *_OF_TILE)
# What is computed again rather than kept: an instruction or two, where a store and a load cost more.
_CHEAP = ("bitcast", "and", "or", "not", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal",
          "left_shift", "right_shift")  # fmt: skip


class _Level:
    """What is needed in one loop, in the order in which it is computed."""

    def __init__(self):
        self.order: list[Node] = []
        self.loads: list[Node] = []
        self.taken: list[Node] = []
        self.kept: list[Node] = []
        self.uniform: list[Node] = []
        self.peaks: list[Node] = []
        self.results: list[str] = []


def _levels(program: Program, keep: Iterable[Node]) -> tuple[list[_Level], set[int], set[int]]:
    """Divide the graph into loops.

    Gives also the ids of the nodes that are the same for a whole tile, and of those of them that several loops need.
    """
    nodes = walk(program.results.values())
    keep = [k for k in keep if any(k is node for node in nodes)]
    uniform: set[int] = set()
    first: dict[int, int] = {}  # the loop in which a node can be computed first, of a maximum the one after its own
    for node in nodes:
        if node.op in _UNIFORM or (node.args and all(id(a) in uniform for a in node.args)):
            uniform.add(id(node))
        after = [first[id(a)] + any(a is k for k in keep) for a in node.args]
        first[id(node)] = max(after, default=0) + (node.op == "tile_max")
    least = len(keep)  # nothing is written before all that was to be kept is
    at = {b: max(least, first[id(node)]) for b, node in program.results.items()}
    levels = [_Level() for _ in range(1 + max(at.values(), default=0))]
    done: dict[int, int] = {}
    shared: set[int] = set()
    for number, level in enumerate(levels):
        level.results = [b for b in program.results if at[b] == number]
        level.peaks = [n.args[0] for n in nodes if n.op == "tile_max" and first[id(n)] == number + 1]
        wanted = [program.results[b] for b in level.results] + level.peaks
        level.kept = [k for k in keep if first[id(k)] == number]
        seen: set[int] = set()
        stack = [(node, False) for node in reversed(wanted + level.kept)]
        while stack:
            node, ready = stack.pop()
            if ready:
                (level.uniform if id(node) in uniform else level.order).append(node)
                done.setdefault(id(node), number)
                continue
            if id(node) in seen:
                continue
            seen.add(id(node))
            earlier = done.get(id(node), number) < number
            if earlier and id(node) in uniform:
                shared.add(id(node))
            elif earlier and node.op not in _CHEAP:
                level.taken.append(node)
                if not any(node is k for k in levels[done[id(node)]].kept):
                    levels[done[id(node)]].kept.append(node)
            elif node.op in _INPUTS:
                level.loads.append(node)
                done[id(node)] = number
            elif node.args and node.op != "tile_max":
                stack.append((node, True))
                stack += [(a, False) for a in reversed(node.args) if id(a) not in seen]
    return levels, uniform, shared


def loops(
    program: Program, names: dict[str, str], render: Callable[[Node, list[Text]], Text], keep: Iterable[Node] = ()
) -> list[Loop]:
    """Turn the program's graph into loops of lines in a backend's language.

    `render(node, operands)` gives the text of one operation, `names` what buffers and scalars are called; after each
    node of `keep` a new loop begins. A value used more than once in a loop gets a name, and so does one that is
    `DEEPEST` operations deep; others are written where they are used. The names are <buffer>_new, x0, x1, … and, for
    the largest of a tile, top0, top1, …, which `own_names` keeps free.
    """
    levels, uniform, shared = _levels(program, keep)
    new = {id(node): f"{names[b]}_new" for b, node in program.values.items() if node.args}
    fixed: dict[int, Text] = {}  # names that hold in every loop
    order = {b.name: k for k, b in enumerate(program.buffers)}
    tiled = {b.name for b in program.buffers if b.tiled}
    made, tops, result = 0, 0, []

    def of_tile(node: Node) -> bool:
        return any(n.op in _OF_TILE for n in walk([node]))

    for level in levels:
        texts: dict[int, Text] = dict(fixed)
        depths: dict[int, int] = {}
        uses: dict[int, int] = {}
        roots = [program.results[b] for b in level.results] + level.peaks
        for node in (*level.uniform, *level.order):
            for a in node.args:
                uses[id(a)] = uses.get(id(a), 0) + 1
        for node in (*roots, *level.kept):
            uses[id(node)] = uses.get(id(node), 0) + 1
        kept = {id(node) for node in level.kept}
        in_loop = {id(a) for node in level.order for a in node.args}
        found: dict[bool, list[Value]] = {True: [], False: []}

        def text_of(node: Node, texts: dict[int, Text] = texts) -> Text:
            if id(node) not in texts:  # an input or a constant
                texts[id(node)] = render(node, [])
            return texts[id(node)]

        for node in (*level.uniform, *level.order):
            if id(node) in fixed:
                continue
            operands = [text_of(a) for a in node.args]
            text, once = render(node, operands), id(node) in uniform
            depth = 1 + max([depths.get(id(a), 0) for a in node.args], default=0)
            lasting = id(node) in kept or id(node) in shared or (once and id(node) in in_loop and of_tile(node))
            if id(node) in new or uses[id(node)] > 1 or depth > DEEPEST or lasting:
                name = new.get(id(node)) if id(node) not in uniform else None
                if name is None or name in fixed.values() or any(v.name == name for v in found[False]):
                    name, made = f"x{made}", made + 1
                found[once].append(Value(name, node.dtype, text))
                text, depth = Text(name), 0
                if id(node) in kept or once:
                    fixed[id(node)] = text
            texts[id(node)], depths[id(node)] = text, depth
        peaks = []
        for node in level.peaks:
            peaks.append(Value(f"top{tops}", node.dtype, text_of(node)))
            maximum = next(n for n in walk(program.results.values()) if n.op == "tile_max" and n.args[0] is node)
            fixed[id(maximum)], tops = Text(f"top{tops}"), tops + 1
        for node in level.kept:
            fixed[id(node)] = text_of(node)
        stores = {
            once: [
                (b, text_of(program.results[b])) for b in level.results if (id(program.results[b]) in uniform) == once
            ]
            for once in (True, False)
        }
        result.append(
            Loop(
                uniform=found[True],
                loads={
                    node.value: node.dtype
                    for node in sorted(level.loads, key=lambda n: order.get(n.value, 0))
                    if node.op == "buffer"
                },
                taken=[Value(fixed[id(n)], n.dtype, Text("")) for n in level.taken],
                lines=found[False],
                kept=[Value(text_of(n), n.dtype, Text("")) for n in level.kept],
                tops=peaks,
                stores=[(b, text) for once in (True, False) for b, text in stores[once] if b not in tiled],
                tile_stores=[(b, text) for once in (True, False) for b, text in stores[once] if b in tiled],
            )
        )
    return result

"""Lowering: a Program divided into loops over a tile, and each loop turned into lines of text.

Most programs are one loop. A scale is the largest of something over a whole tile, so what follows it needs another
loop, and so does what follows a value after which a backend asks for a new one (see `cpu.printer`). A value that a
later loop needs is spilled to memory in between, unless computing it again is as cheap.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastopt.kernels.compiler.graph import Node, walk
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.program import Program, total_name
from fastopt.kernels.compiler.text import COMPARE, SUM, Text

DEEPEST = 100
"""Operations inside one another in one expression: each may cost a pair of parentheses, of which Python reads 200."""


class Value(NamedTuple):
    """A name, its type, and the text of the expression it stands for."""

    name: str
    dtype: np.dtype
    text: Text


class Sequence(NamedTuple):
    """A word that grows by the same from element to element.

    With `halved` only its upper 16 bits are wanted, and the lower ones of the step are zero.
    """

    name: str
    first: Text
    step: Text
    halved: bool

    def value(self, word: str) -> str:
        """Write what a word of the sequence stands for."""
        return f"{word} >> 16" if self.halved else word


class Loop(NamedTuple):
    """One loop over the elements of a tile, and what comes before and after it."""

    uniform: list[Value]  # computed once, before the loop
    loads: dict[str, np.dtype]  # buffers whose elements it reads, and their types
    reloads: list[Value]  # values that an earlier loop spilled
    lines: list[Value]
    spills: list[Value]  # values that a later loop reloads
    sequences: list[Sequence]
    maxima: list[Value]  # words of which it finds the largest
    largest: list[Node]  # the nodes of which maxima are the values, in the same order
    watched: list[str]  # buffers of which it looks for NaN in what it stores
    nan: str  # the largest of the 16 bits, without the sign, that it stores there
    quiet: list[str]  # buffers in which NaN is to become the canonical one after the loop, if it found one
    stores: list[tuple[str, str]]  # buffer, text of the element's new value
    tile_stores: list[tuple[str, str]]  # likewise, once, before the loop


def printed_names(program: Program, reserved: frozenset[str]) -> dict[str, str]:
    """Return the name under which each buffer and scalar is printed: its own, or one that hides nothing of Python's."""
    names: dict[str, str] = {}
    for name in (*(b.name for b in program.buffers), *program.scalars):
        printed = name.replace(".", "_").replace(" ", "")
        while (
            printed in reserved
            or hasattr(builtins, printed)
            or re.fullmatch(r"(x|max|step_|group)\d+|.*_(new|at|i|spill|word|each|step|last|(pair)?\d)", printed)
            or printed in names.values()
        ):
            printed += "_"
        names[name] = printed
    return names


_PER_ELEMENT = ("buffer", "index")
_PER_TILE = ("tile", "tile_number", "tile_max", "tile_sum")
_UNIFORM = ("scalar", "total", "key", "constant", *_PER_TILE)
# What is computed again rather than spilled: an instruction or two, where a store and a load cost more.
_CHEAP = ("sequence", "bitcast", "and", "or", "not", "less", "less_equal", "greater", "greater_equal", "equal",
          "not_equal", "left_shift", "right_shift")  # fmt: skip


@dataclass
class _Schedule:
    """What one loop computes, in order."""

    order: list[Node] = field(default_factory=list)
    loads: list[Node] = field(default_factory=list)
    reloads: list[Node] = field(default_factory=list)
    spills: list[Node] = field(default_factory=list)
    uniform: list[Node] = field(default_factory=list)
    peaks: list[Node] = field(default_factory=list)  # of which it finds the maxima
    results: list[str] = field(default_factory=list)


def _schedules(
    results: dict[str, Node], split_after: Iterable[Node], *, plain: bool, apart: bool
) -> tuple[list[_Schedule], set[int], set[int]]:
    """Divide the graph of new elements into loops. With `plain` nothing is written before all maxima are known.

    With `apart` what depends on two maxima or more has a loop of its own, and what depends on none the next one.

    Returns also the ids of the nodes that are the same for a whole tile, and of those among them that several loops
    need.
    """
    nodes = walk(results.values())
    splits = [s for s in split_after if any(s is node for node in nodes)]
    uniform: set[int] = set()
    first: dict[int, int] = {}  # the loop in which a node can be computed first; of a maximum the one after its own
    for node in nodes:
        if node.op in _UNIFORM or (node.args and node.op != "sequence" and all(id(a) in uniform for a in node.args)):
            uniform.add(id(node))
        after = [first[id(a)] + any(a is s for s in splits) for a in node.args]
        first[id(node)] = max(after, default=0) + (node.op in ("tile_max", "tile_sum"))
    last = max((first[id(s)] + 1 for s in splits), default=0)
    least = max([1, *(first[id(node)] for node in nodes if node.op == "tile_max")]) if plain else 0
    at: dict[str, int] = {}
    for b, node in results.items():
        # What is made of the element itself has read it by then; of anything else a later loop may still read it.
        own = any(n.op == "buffer" and n.value == b for n in walk([node]))
        at[b] = max(least, first[id(node)], 0 if own else last)
    end = max(at.values(), default=0)
    if apart:
        own = {b: any(n.op == "tile_max" for n in walk([node])) for b, node in results.items() if at[b] == end}
        if sum(results[b].op == "code" for b in own) >= 2:
            at |= {b: end + 1 for b, of_maximum in own.items() if not of_maximum}
            end = max(at.values())
    at |= {b: end for b, node in results.items() if node.op == "constant"}  # after every loop that reads what was there
    schedules = [_Schedule() for _ in range(1 + max(at.values(), default=0))]
    done: dict[int, int] = {}
    shared: set[int] = set()
    for number, loop in enumerate(schedules):
        loop.results = [b for b in results if at[b] == number]
        loop.peaks = [n.args[0] for n in nodes if n.op == "tile_max" and first[id(n)] == number + 1]
        wanted = [results[b] for b in loop.results] + loop.peaks
        loop.spills = [s for s in splits if first[id(s)] == number]
        loop.spills += [n.args[0] for n in nodes if n.op == "tile_sum" and first[id(n)] == number + 1]
        seen: set[int] = set()
        stack = [(node, False) for node in reversed(wanted + loop.spills)]
        while stack:
            node, ready = stack.pop()
            if ready:
                (loop.uniform if id(node) in uniform else loop.order).append(node)
                done.setdefault(id(node), number)
                continue
            if id(node) in seen:
                continue
            seen.add(id(node))
            earlier = done.get(id(node), number) < number
            if earlier and id(node) in uniform:
                shared.add(id(node))
            elif earlier and node.op not in _CHEAP:
                loop.reloads.append(node)
                if not any(node is s for s in schedules[done[id(node)]].spills):
                    schedules[done[id(node)]].spills.append(node)
            elif node.op in _PER_ELEMENT:
                loop.loads.append(node)
                done[id(node)] = number
            elif node.op == "tile_sum":
                loop.uniform.append(node)
            elif node.args and node.op != "tile_max":
                stack.append((node, True))
                stack += [(a, False) for a in reversed(node.args) if id(a) not in seen]
    return schedules, uniform, shared


_KEEP_NAN = frozenset(
    ["add", "subtract", "multiply", "divide", "negative", "sqrt", "abs", "sign", "rint", "floor", "ceil", "trunc"]
)


def _watched(results: dict[str, Node]) -> dict[str, list[str]]:
    """Return in which buffers to look for NaN, and in which each of these shows it: where one makes it one.

    They are those whose encoders leave open which NaN is stored. Where Adam's moments are NaN, so are the parameters.
    """
    values = {node.value[1]: node.args[0] for node in walk(results.values()) if node.op == "or_nan"}
    shown = {}
    for b, value in values.items():
        found, stack = {id(value)}, [value]
        while stack:
            node = stack.pop()
            more = [a for a in node.args if node.op in _KEEP_NAN and id(a) not in found]
            found |= set(map(id, more))
            stack += more
        shown[b] = [other for other in values if id(values[other]) in found]
    chosen: dict[str, list[str]] = {}
    for b in sorted(shown, key=lambda b: -len(shown[b])):
        if not any(b in others for others in chosen.values()):
            chosen[b] = shown[b]
    return chosen


def _write(node: Node, operands: list[Text], names: Mapping[str, str], target: Target) -> Text:
    """Write a node whose operands are written."""
    if node.op in ("buffer", "tile"):
        return Text(f"{names[node.value]}_i")
    if node.op in ("scalar", "total"):
        return Text(names[node.value])
    if node.op in ("key", "tile_number", "index"):
        return Text(node.value)
    return target.write(node, operands)


def common(
    program: Program, names: dict[str, str], target: Target, numbered: dict[str, int]
) -> tuple[list[str], dict[int, Text]]:
    """Return lines that compute, for a tile, what both ways to step it have in common, and its names."""
    assert program.plain is not None
    graphs = [walk(results.values()) for results in (program.results, program.plain.results)]
    both = set(map(id, graphs[0])) & set(map(id, graphs[1]))
    hashed: dict[int, Node] = {}  # what depends on the tile's number and on nothing else that changes
    for node in graphs[0]:
        if node.op == "tile_number" or (
            node.op != "sequence"
            and any(id(a) in hashed for a in node.args)
            and all(id(a) in hashed or a.op in ("key", "constant") for a in node.args)
        ):
            hashed[id(node)] = node
    uses: dict[int, int] = {}
    for node in {id(n): n for graph in graphs for n in graph}.values():
        for a in node.args:
            uses[id(a)] = uses.get(id(a), 0) + (1 if id(node) in hashed else 2)
    lines, texts = [], {}
    known: dict[int, Text] = {}
    for node in hashed.values():
        if id(node) not in both:
            continue
        operands = [texts.get(id(a)) or _write(a, [], names, target) for a in node.args]
        text = _write(node, operands, names, target)
        if node.args and uses.get(id(node), 0) > 1:  # twice, or by something that is not in these lines
            numbered["x"] += 1
            name = f"x{numbered['x'] - 1}"
            lines.append(f"{name} = {text}")
            known[id(node)] = text = Text(name)
        texts[id(node)] = text
    return lines, known


def lower(
    program: Program,
    names: dict[str, str],
    target: Target,
    split_after: Iterable[Node] = (),
    *,
    plain: bool = False,
    apart: bool = False,
    numbered: dict[str, int] | None = None,
    known: Mapping[int, Text] | None = None,
) -> list[Loop]:
    """Turn the program's graph into loops of lines in the language of a target.

    `names` are those of buffers and scalars, from `printed_names`; after each node of `split_after` a new loop begins.
    With `plain` it is the graph of plain tiles, of which nothing is written before all maxima are known. With `apart`
    the codes of several buffers are written in a loop of their own, for processors of few registers. `numbered`
    says, and is told, which numbers of names are taken, `known` which nodes have names already: see `common`.

    A value used more than once in a loop gets a name, and so does one that is `DEEPEST` operations deep; others are
    written where they are used. The names are <buffer>_new, x0, x1, … and, for the largest of a tile, max0, max1, ….
    """
    graph: Any = program.plain if plain else program
    results: dict[str, Node] = graph.results
    schedules, uniform, shared = _schedules(results, split_after, plain=plain, apart=apart)
    new = {id(node): f"{names[b]}_new" for b, node in graph.values.items() if node.args}
    fixed = dict(known or {})  # names that hold in every loop
    order = {b.name: k for k, b in enumerate(program.buffers)}
    tiled = {b.name for b in program.buffers if b.tiled}
    quiet = _watched(results) if target.repairs_nan else {}
    numbered, loops = {"x": 0, "max": 0} if numbered is None else numbered, []

    def write(node: Node, operands: list[Text]) -> Text:
        return _write(node, operands, names, target)

    def numbered_name(kind: str) -> str:
        numbered[kind] += 1
        return f"{kind}{numbered[kind] - 1}"

    def of_tile(node: Node) -> bool:
        return any(n.op in _PER_TILE for n in walk([node]))

    for loop in schedules:
        texts: dict[int, Text] = dict(fixed)
        depths: dict[int, int] = {}
        uses: dict[int, int] = {}
        roots = [results[b] for b in loop.results] + loop.peaks
        sequences: list[Sequence] = []
        halved: dict[int, Text] = {}  # the upper halves of sequences of which only these are wanted
        watched = [b for b in loop.results if b in quiet]
        for node in (*loop.uniform, *loop.order):
            for a in node.args:
                uses[id(a)] = uses.get(id(a), 0) + 1
        for node in (*roots, *loop.spills):
            uses[id(node)] = uses.get(id(node), 0) + 1
        for b in watched:  # what is stored is looked at again
            uses[id(results[b])] += 1
        spilled = {id(node) for node in loop.spills}
        in_loop = {id(a) for node in loop.order for a in node.args}
        named: dict[bool, list[Value]] = {True: [], False: []}  # what is uniform, what is not

        def text_of(node: Node, texts: dict[int, Text] = texts) -> Text:
            if id(node) not in texts:  # an input or a constant
                texts[id(node)] = write(node, [])
            return texts[id(node)]

        for node in (*loop.uniform, *loop.order):
            if id(node) in fixed:
                continue
            operands = [text_of(a) for a in node.args]
            if target.sums_in_loops and node.op == "sequence":
                first, step = operands
                half = target.adds_halves and node.value == 16
                other = next((s for s in sequences if s.halved and s.step == step), None) if half else None
                name = Text(numbered_name("x"))
                if other is None:
                    sequences.append(Sequence(name, first, step, half))
                else:  # which differs by the same everywhere
                    distance = numbered_name("x")
                    upper = [f"({x.within(SUM)} >> 16)" for x in (first, other.first)]
                    text = Text(f"({' - '.join(upper)}) & 0xFFFF")
                    named[True].append(Value(distance, node.dtype, text))
                    named[False].append(Value(name, node.dtype, Text(f"add_halves({other.name}, {distance})")))
                if half:
                    halved[id(node)] = name
                texts[id(node)] = Text(f"{name} << 16", COMPARE) if half else name
                continue
            if node.op == "right_shift" and id(node.args[0]) in halved and node.args[1].value == 16:
                texts[id(node)] = halved[id(node.args[0])]
                continue
            text, once = write(node, operands), id(node) in uniform
            depth = 1 + max([depths.get(id(a), 0) for a in node.args], default=0)
            lasting = (
                node.op == "tile_sum"
                or id(node) in spilled
                or id(node) in shared
                or (once and id(node) in in_loop and of_tile(node))
            )
            if id(node) in new or uses[id(node)] > 1 or depth > DEEPEST or lasting:
                name = new.get(id(node)) if id(node) not in uniform else None
                if name is None or name in fixed.values() or any(v.name == name for v in named[False]):
                    name = numbered_name("x")
                named[once].append(Value(name, node.dtype, text))
                text, depth = Text(name), 0
                if id(node) in spilled or once:
                    fixed[id(node)] = text
            texts[id(node)], depths[id(node)] = text, depth
        maxima, largest = [], []
        for node in loop.peaks:
            maxima.append(Value(numbered_name("max"), node.dtype, text_of(node)))
            maximum = next(n for n in walk(results.values()) if n.op == "tile_max" and n.args[0] is node)
            fixed[id(maximum)] = Text(maxima[-1].name)
            largest.append(maximum)
        for node in loop.spills:
            fixed[id(node)] = text_of(node)
        stores = {
            once: [(b, text_of(results[b])) for b in loop.results if (id(results[b]) in uniform) == once]
            for once in (True, False)
        }
        loops.append(
            Loop(
                uniform=named[True],
                loads={
                    node.value: node.dtype
                    for node in sorted(loop.loads, key=lambda n: order.get(n.value, 0))
                    if node.op == "buffer"
                },
                reloads=[Value(fixed[id(n)], n.dtype, Text("")) for n in loop.reloads],
                lines=named[False],
                spills=[Value(text_of(n), n.dtype, Text("")) for n in loop.spills],
                sequences=sequences,
                maxima=maxima,
                largest=largest,
                watched=watched,
                nan=numbered_name("max") if watched else "",
                quiet=list(dict.fromkeys(b for w in watched for b in quiet[w])),
                stores=[(b, text) for once in (True, False) for b, text in stores[once] if b not in tiled],
                tile_stores=[(b, text) for once in (True, False) for b, text in stores[once] if b in tiled],
            )
        )
    return loops


def condition_lines(program: Program, target: Target) -> list[Value]:
    """Turn the condition of a program into lines, of which the last is its value: see `Program.condition_inputs`.

    Number k of its totals is called totalk, and of its scalars sk.
    """
    totals, scalars = program.condition_inputs
    names = {total_name(k): f"total{k}" for k in totals} | {program.scalars[k]: f"s{k}" for k in scalars}
    lines, texts = [], {}
    for node in walk([program.condition] if program.condition else []):
        text = _write(node, [texts[id(a)] for a in node.args], names, target)
        if node.args:
            lines.append(Value(f"x{len(lines)}", node.dtype, text))
            text = Text(lines[-1].name)
        texts[id(node)] = text
    return lines

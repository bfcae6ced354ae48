"""Phases: a program whose rule takes totals, cut into one program for each pass over memory.

A total must be known before anything that depends on it, so what it sums is computed in a pass before. So is the
argument of a function of matrices. Passes before the last write nothing but the sums of tiles and these arguments; what
they computed is computed again where it is needed, from the same buffers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fastopt.kernels.compiler.graph import Node, walk
from fastopt.kernels.compiler.program import SKIPPED, Buffer, Plain, Program, matrix_name, sum_name, total_name

_SUM = np.dtype(np.float64)


def cut(program: Program, plain_cuts: list[Node]) -> Program:
    """Return the program with its phases; `plain_cuts` are what in its plain graph are its totals and matrices."""
    totals, matrices = program.totals, program.matrices
    inputs = [Node("total", node.dtype, value=total_name(k)) for k, node in enumerate(totals)]
    inputs += [Node("buffer", node.dtype, value=matrix_name(k)) for k, node in enumerate(matrices)]
    known = {id(node): new for node, new in zip((*totals, *matrices), inputs, strict=True)}
    known |= {id(node): new for node, new in zip(plain_cuts, inputs, strict=True)}
    level: dict[int, int] = {}  # how many phases come before a node is known, one after the other
    cuts = {id(node) for node in (*totals, *matrices)}
    for node in walk([*totals, *matrices]):
        level[id(node)] = max((level[id(a)] for a in node.args), default=0) + (id(node) in cuts)
    phases = []
    for depth in range(1, 1 + max(level[i] for i in cuts)):
        summed = {sum_name(k): _copied(x.args[0], known) for k, x in enumerate(totals) if level[id(x)] == depth}
        results = {name: Node("tile_sum", _SUM, (Node("term", node.dtype, (node,)),)) for name, node in summed.items()}
        if results:
            phases.append(_phase(program, f"{program.name}_totals{depth}", results, known))
        results = {matrix_name(k): _copied(x.args[0], known) for k, x in enumerate(matrices) if level[id(x)] == depth}
        if results:
            phases.append(_phase(program, f"{program.name}_matrices{depth}", results, known))
    values, results = ({b: _copied(n, known) for b, n in graph.items()} for graph in (program.values, program.results))
    plain = program.plain
    if plain is not None:
        plain = Plain(
            {b: _copied(n, known) for b, n in plain.values.items()},
            {b: _copied(n, known) for b, n in plain.results.items()},
            plain.codes,
            [(_copied(n, known), limit) for n, limit in plain.limits],
            tuple(_copied(n, known) for n in plain.stages),
            tuple(_copied(n, known) for n in plain.roots),
        )
    graph = walk([*results.values(), *(plain.results.values() if plain else ())])
    condition = program.condition and _copied(program.condition, known)
    skipped = [Buffer(SKIPPED, SKIPPED, _SUM, True, False, False, "", of_row=True)] if condition else []
    last = dataclasses.replace(
        program,
        name=f"{program.name}_step",
        buffers=(*program.buffers, *_matrices(graph, program.dtype), *_totals(graph), *skipped),
        stages=tuple(_copied(n, known) for n in program.stages),
        roots=tuple(_copied(n, known) for n in program.roots),
        values=values,
        results=results,
        plain=plain,
        totals=(),
        condition=None,
        matrices=(),
    )
    return dataclasses.replace(program, condition=condition, phases=(*phases, last))


def _phase(program: Program, name: str, results: dict[str, Node], known: dict[int, Node]) -> Program:
    """Make the program that writes the sums of tiles."""
    graph = walk(results.values())
    read = {node.value for node in graph if node.op in ("buffer", "tile")}
    found = set(map(id, graph))
    stages = tuple(n for n in (_copied(n, known) for n in program.stages) if id(n) in found)
    return dataclasses.replace(
        program,
        name=name,
        buffers=(
            *(b._replace(read=True, written=False) for b in program.buffers if b.name in read),
            *_matrices(graph, program.dtype),
            *(Buffer(b, b, x.dtype, False, True, x.op == "tile_sum", "") for b, x in results.items()),
            *_totals(graph),
        ),
        noise=any(node.op in ("key", "tile_number", "index") for node in graph),
        stages=stages,
        roots=(),
        values={},
        results=results,
        plain=None,
        totals=(),
        condition=None,
        matrices=(),
    )


def _matrices(graph: list[Node], dtype: np.dtype) -> list[Buffer]:
    """List the buffers of the values of functions of matrices that a graph reads."""
    read = sorted({n.value for n in graph if n.op == "buffer" and n.value.startswith(matrix_name(0)[:-1])})
    return [Buffer(b, b, dtype, read=True, written=False, tiled=False, view="") for b in read]


def _totals(graph: list[Node]) -> list[Buffer]:
    """List the buffers of the totals that a graph reads."""
    names = sorted({node.value for node in graph if node.op == "total"})
    return [Buffer(b, b, _SUM, read=True, written=False, tiled=False, view="", of_row=True) for b in names]


def _copied(root: Node, known: dict[int, Node]) -> Node:
    """Return a node in whose graph totals are replaced by inputs; `known` says which, and is told of all others."""
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if id(node) in known:
            continue
        if not ready:
            stack.append((node, True))
            stack += [(a, False) for a in node.args]
            continue
        args = tuple(known[id(a)] for a in node.args)
        same = all(a is b for a, b in zip(args, node.args, strict=True))
        known[id(node)] = node if same else Node(node.op, node.dtype, args, node.value)
    return known[id(root)]

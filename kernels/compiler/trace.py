"""Tracing: one call of `update` on symbols, between the decoding and the encoding of its buffers, becomes a Program."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from fastopt.errors import RuleError
from fastopt.kernels.compiler.graph import Node, Trace, walk
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.noise import (
    RoundingBits,
    centred,
    radius,
    random_bits,
    rounding_order,
    stretched,
    tile_bits,
)
from fastopt.kernels.compiler.phases import cut
from fastopt.kernels.compiler.program import Buffer, Plain, Program
from fastopt.kernels.compiler.specialization import exact_key, name_parts, specialize
from fastopt.kernels.compiler.symbols import Symbol
from fastopt.kernels.compiler.visible import nothing_random, require_own
from fastopt.kernels.formats import BF16, STORAGES, BF16Kahan, Format, Scaled, Split
from fastopt.kernels.rules.rule import Rule, is_rule, require_rule, signature
from fastopt.kernels.rules.skip import not_fixed

_WORD = np.dtype(np.uint32)


def trace(rule: Rule, storage: Any) -> Program:
    """Trace `rule`, or return the program it already has.

    Rules that differ only in the values of their numbers share a program.

    Args:
        rule: any rule.
        storage: how its buffers are stored, as for `layout`.

    Raises:
        RuleError: the rule branches on a value, uses an unknown function, changes the precision, reads a number from
            self, or returns the wrong number of results.
        SettingError: there is no such buffer or format, or the buffer cannot be stored in it.

    """
    require_rule(rule)
    specialization = specialize(rule)
    return _trace(exact_key(specialization), specialization, tuple(layout(rule, storage).items()))


@lru_cache(maxsize=512)
def _trace(key: tuple, rule: Any, chosen: tuple[tuple[str, str], ...]) -> Program:
    where = f"{type(rule).__name__}.update"
    _, optional, scalars, _ = signature(rule)
    formats = {b: STORAGES[name] for b, name in chosen}
    require_own(rule, where)
    call = _Call(rule, formats, frozenset())
    absent = frozenset({b for b in optional if call.after[b] in (None, call.before[b])})
    present = [node for b, node in call.after.items() if b not in absent]
    for b in sorted(absent & {n.value for n in walk(present) if n.op == "buffer"}):
        raise RuleError(f"the optional buffer {b} is read but never written.", do=f"return its new {b}", where=where)
    if absent:  # None stands for them at every step, and the rule may ask
        call = _Call(rule, formats, absent)
    for b in sorted(absent):
        if call.after.pop(b) is not None:
            what = f"the optional buffer {b} is returned as it came, but as something else where it is None."
            raise RuleError(what, do=f"return {b} as it came, or its new value in every case", where=where)
        del formats[b]
    values = {b: node for b, node in call.after.items() if node is not call.before[b]}
    results = call.encoded(values)
    zeros = {}
    if getattr(rule, "zero_gradients", False):
        for name, plane in formats["g"].plane_names("g").items():
            kind = plane.dtype if plane.dtype.kind == "f" else _WORD
            zeros[name] = call.tracing.constant(0, kind)
    results |= zeros
    plain, plain_totals, plain_matrices = None, call.totals, call.matrices
    if any(isinstance(form, Scaled) for form in formats.values()):
        fast = _Call(rule, formats, absent, plain=True, tracing=call.tracing)
        now = {b: fast.after[b] for b in values}
        made = fast.encoded(now) | zeros
        plain_totals, plain_matrices = fast.totals, fast.matrices
        plain = Plain(now, made, fast.codes, fast.limits, fast.stages, _roots(fast.stages, made))
    buffers = [
        Buffer(name, b, plane.dtype, plane.read, name in results, plane.tiled, plane.view)
        for b, form in formats.items()
        for name, plane in form.plane_names(b).items()
    ]
    condition = _condition(call.conditions, call.tracing)
    graph = walk([*results.values(), *([condition] if condition else [])])
    order, matrices = _first_calls(call.totals, graph), _first_calls(call.matrices, graph)
    chosen_totals, chosen_matrices = sorted(order.values()), sorted(matrices.values())
    program = Program(
        name=_name(rule, formats),
        specialization=rule,
        dtype=formats["p"].computes,
        formats=formats,
        buffers=tuple(b for b in buffers if b.read or b.written),
        scalars=scalars,
        noise=call.uses_bits,
        stages=call.stages,
        roots=_roots(call.stages, results),
        values=values,
        results=results,
        plain=plain,
        totals=tuple(call.totals[k] for k in chosen_totals),
        total_calls=tuple(chosen_totals.index(order[id(node)]) if id(node) in order else None for node in call.totals),
        condition=condition,
        matrices=tuple(call.matrices[k] for k in chosen_matrices),
    )
    if not (chosen_totals or chosen_matrices):
        return program
    return cut(program, [plain_totals[k] for k in chosen_totals] + [plain_matrices[k] for k in chosen_matrices])


def _first_calls(called: list[Node], graph: list[Node]) -> dict[int, int]:
    """Return by identity the nodes that a graph needs, and which call of the rule made each first."""
    needed = set(map(id, graph))
    return {id(node): k for k, node in reversed(list(enumerate(called))) if id(node) in needed}


def _condition(conditions: list[Node], tracing: Trace) -> Node | None:
    """Return what must hold for the step to be taken, or None if it always is.

    Raises:
        RuleError: it depends on no total over all, or on what differs from element to element or from tensor to tensor.

    """
    for condition in conditions:
        stack, totals = [condition], 0
        while stack:
            node = stack.pop()
            if node.op == "total":
                totals += 1
            apart = node.op not in ("total", "scalar", "constant") and not node.args
            if apart or (node.op == "total" and node.value[0] == "tensor"):
                what = "the condition of a step depends on more than totals over all parameters and scalars."
                tracing.fail(what, got=repr(condition)[:60], do='take totals with over="all"')
            stack += [] if node.op == "total" else node.args
        if not totals:
            what, do = "the condition of a step depends on no total.", "decide by t alone before you call step"
            tracing.fail(what, got=repr(condition)[:60], do=do)
    return reduce(lambda a, b: tracing.apply(np.logical_and, a, b), conditions) if conditions else None


def _roots(of_noise: tuple[Node, ...], results: dict[str, Node]) -> tuple[Node, ...]:
    """Return the rule's roots, but for those of its noise."""
    known = set(map(id, of_noise))
    return tuple(n for n in walk(results.values()) if n.op == "sqrt" and id(n) not in known)


class _Call:
    """One call of `update` on symbols, on None for the absent buffers, and what comes before and after it.

    `before` and `after` are the nodes of each buffer's value, `stages` those of the rule's noise. With `plain` it is
    for tiles that are: `codes` and `limits` say which are; what it has in common with another call of the same
    `tracing` are the same nodes.
    """

    def __init__(
        self,
        rule: Rule,
        formats: dict[str, Format],
        absent: frozenset[str],
        *,
        plain: bool = False,
        tracing: Any = None,
    ):
        self.where = f"{type(rule).__name__}.update"
        self.formats, self.dtype, self._plain = formats, formats["p"].computes, plain
        self.tracing = tracing or Trace(self.where)
        self._of_tile: Any = None  # 32 random bits of the tile
        self._rounding: Any = None  # what gives each buffer's elements theirs
        self.codes: dict[str, tuple[int, int, int]] = {}
        self.limits: list[tuple[Node, int]] = []
        names, optional, scalars, noise = signature(rule)
        buffers = {b: self._decode(b) for b in names if b not in absent}
        self.before = {b: symbol._node for b, symbol in buffers.items()}
        inputs = {s: self._input("scalar", s, self.dtype, array=False) for s in scalars}
        self.stages: tuple[Node, ...] = ()
        if noise:
            x = centred(random_bits(self._tile_bits(), self._input("index", "index", _WORD, array=True)))
            s = radius(x)
            inputs["noise"], self.stages = stretched(x, s).astype(self.dtype), (x._node, s._node)
        noted = self.tracing.totals, self.tracing.conditions, self.tracing.matrices
        before = [len(nodes) for nodes in noted]
        returned = self._run(rule, [buffers.get(b) for b in names], inputs)
        self.totals, self.conditions, self.matrices = (nodes[n:] for nodes, n in zip(noted, before, strict=True))
        values = returned if isinstance(returned, tuple) else (returned,)
        targets = [b for b in names if b != "g"]
        if len(values) != len(targets):
            raise RuleError(
                "a rule returns the new value of p and of each state buffer, in the order of its parameters.",
                got=f"{len(values)} result{'s' * (len(values) != 1)}",
                expected=f"{len(targets)}: {', '.join(targets)}",
                where=self.where,
            )
        self.after: dict[str, Any] = {
            b: None if value is None and b in optional else self._result(b, value)
            for b, value in zip(targets, values, strict=True)
        }
        self._quiet = self._is_quiet()

    @property
    def uses_bits(self) -> bool:
        """Whether anything in the step is random."""
        return self._of_tile is not None

    def _is_quiet(self) -> bool:
        """Whether the low half of any NaN of the step is zero: arithmetic on a CPU makes such ones, or keeps one."""
        if not all(self.formats[b].quiet for b in self.before):
            return False
        decoded = set(map(id, walk(self.before.values())))
        added = [n for n in walk(n for n in self.after.values() if n is not None) if id(n) not in decoded]
        return not any(n.op in ("bitcast", "cast", "matrix") for n in added)

    def _input(self, op: str, name: str, dtype: np.dtype, *, array: bool) -> Symbol:
        """Make the symbol of a buffer's element, a scalar or an index."""
        return Symbol(self.tracing, self.tracing.node(op, dtype, value=name), array)

    def _run(self, rule: Rule, buffers: list, inputs: dict) -> Any:
        try:
            with nothing_random(self.where), not_fixed():
                return rule.update(*buffers, **inputs)
        except RuleError as error:  # of a total or a condition, which does not know in whose update it is
            error.where = error.where or self.where
            raise
        except AttributeError as error:
            if not is_rule(error.obj):
                raise
            what = f"update reads self.{error.name}, which is not a field of {type(error.obj).__name__}."
            do = "declare it as a field, with dataclasses.field(init=False) if __post_init__ computes it"
            raise RuleError(what, do=do, where=self.where) from error

    def _decode(self, buffer: str) -> Symbol:
        """Make the symbols of a buffer's planes, words for what is narrower than 32 bits, and decode them."""
        found = [
            self._input(
                "tile" if plane.tiled else "buffer", name, plane.dtype if plane.dtype.kind == "f" else _WORD, array=True
            )
            for name, plane in self.formats[buffer].plane_names(buffer).items()
            if plane.read
        ]
        form = self.formats[buffer]
        if self._plain and isinstance(form, Scaled):
            self.codes[buffer] = form.plain_codes
            return Symbol(self.tracing, form.plain_decode(*found)._node, True)
        return Symbol(self.tracing, form.decode(*found)._node, True)

    def encoded(self, values: dict[str, Node]) -> dict[str, Node]:
        """Return the new elements of the planes of all buffers, in their order."""
        made = {b: self._encode(b, values[b]) for b in rounding_order(values)}
        return {name: node for b in values for name, node in made[b].items()}

    def _encode(self, buffer: str, value: Node) -> dict[str, Node]:
        """Return the new elements of a buffer's planes that hold a value."""
        form, x = self.formats[buffer], Symbol(self.tracing, value, True)
        bits = self._rounding_bits().of_next_buffer(form.random) if form.random else None
        if isinstance(form, Scaled):
            peak = form.plain_peak(x) if self._plain else form.peak(x)
            largest = Symbol(self.tracing, self.tracing.node("tile_max", peak.dtype, (peak._node,)), True)
            if self._plain:
                self.limits.append((largest._node, form.plain_limit))
                scale = form.plain_scale(largest)
                word = form.plain_encode(x, bits, scale)
                code = self.tracing.node("code", _WORD, (word._node,), form.plain_codes[1])
                encoded = (Symbol(self.tracing, code, True), scale)
            else:
                scale = form.scale(largest)
                encoded = (*form.encode(x, bits, scale), scale)
        elif isinstance(form, BF16) and self._quiet:
            encoded = (self._or_nan(x, 0x7FC0, form.quiet_encode(x, bits), buffer),)
        elif isinstance(form, BF16Kahan) and self._quiet:
            word = self._or_nan(x, 0x7FC0, BF16().quiet_encode(x, bits), buffer)
            encoded = form.with_error(x, word)
        elif isinstance(form, Split):
            encoded = form.divided(self._or_nan(x, 0x7FC00000, x.view(np.uint32), buffer))
        else:
            encoded = form.encode(x, bits)
        return {name: e._node for name, e in zip(form.plane_names(buffer), encoded, strict=True)}

    def _or_nan(self, x: Symbol, canonical: int, word: Symbol, buffer: str) -> Symbol:
        node = self.tracing.node("or_nan", _WORD, (x._node, word._node), (canonical, buffer))
        return Symbol(self.tracing, node, True)

    def _tile_bits(self) -> Symbol:
        if self._of_tile is None:
            keys = [self._input("key", name, _WORD, array=False) for name in ("key0", "key1")]
            tile = [self._input("tile_number", name, _WORD, array=True) for name in ("tile_low", "tile_high")]
            self._of_tile = tile_bits(*keys, *tile)
        return self._of_tile

    def _rounding_bits(self) -> RoundingBits:
        if self._rounding is None:
            self._rounding = RoundingBits(self._tile_bits(), self._sequence)
        return self._rounding

    def _sequence(self, first: Symbol, step: Symbol, bits: int) -> Symbol:
        """Make the word of an element in a tile's sequence."""
        return Symbol(self.tracing, self.tracing.node("sequence", _WORD, (first._node, step._node), bits), True)

    def _result(self, buffer: str, value: Any) -> Node:
        if isinstance(value, Symbol) and value.dtype == self.dtype:
            return value._node
        raise RuleError(
            f"the new {buffer} is not of the computing precision.",
            got=value.dtype.name if isinstance(value, Symbol) else repr(value)[:60],
            expected=f"{self.dtype.name}, computed from the buffers",
            do="np.where(c, 1.0, -1.0) is float64 and a comparison is bool: write np.where(c, np.ones_like(p), -1.0)",
            where=self.where,
        )


def _name(rule: Rule, formats: Mapping[str, Format]) -> str:
    return f"{'_'.join(name_parts(rule))}_{'_'.join(f'{b}{f.name}' for b, f in formats.items())}"

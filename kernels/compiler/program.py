"""A Program: one rule traced with one layout in memory. What every backend runs and prints, and nothing about how.

The signature of a rule's `update` is the contract: positional parameters are buffers (p, g, then the state),
keyword-only parameters are scalars, the returned values are the buffers written, in the order p, state. A state buffer
whose default is None exists only in those settings in which `update` does something with it. The keyword-only name
`noise` stands for a standard normal number, different for every seed, step and element.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastopt.errors import RuleError, SettingError, explain, suggest
from fastopt.kernels.form import Number, exact, form, form_of, is_rule, require_rule
from fastopt.kernels.noise import centred, dither_bits, more_bits, radius, random_bits, stretched, tile_bits
from fastopt.kernels.settings import follow, scheduled, to_float
from fastopt.kernels.storage import NAMES, STORAGES, TILE, Plane, Scaled, Storage
from fastopt.kernels.symbols import Node, Symbol, Trace


class Buffer(NamedTuple):
    """One array of the step: a plane of what the rule calls a buffer, "p" for example or "p.low"."""

    name: str
    buffer: str
    dtype: np.dtype
    read: bool
    written: bool
    tiled: bool  # one element for each tile
    view: str  # the type that its bits are of, where `dtype` is an unsigned integer in its stead

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of it that are read and written for each parameter in one step."""
        moved = self.dtype.itemsize * (self.read + self.written)
        return moved / TILE if self.tiled else moved

    def size(self, n: int) -> int:
        """Give the number of elements it has for n parameters."""
        return -(-n // TILE) if self.tiled else n


class Parameters(NamedTuple):
    """What the signature of an `update` says."""

    buffers: tuple[str, ...]
    optional: frozenset[str]
    scalars: tuple[str, ...]
    noise: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One rule traced with one format for each of its buffers.

    `values` maps each buffer that the rule writes to the expression of its new value, `results` each array to that of
    its new element. The inputs are of kind "buffer" (one element), "tile" (the element of its tile), "scalar", and,
    when `noise` is set, "key" (two uint32, see `noise.noise_keys`), "tile_number" (the halves of the number of the
    element's tile) and "place" (the element's place in it). "tile_max" is the largest of a tile's words. `stages` are
    the values on the way to a rule's noise at which a backend may divide the work. `name` names the rule, the settings
    that shaped it, and the format of each buffer.
    """

    name: str
    rule: str
    dtype: np.dtype
    storages: dict[str, Storage]
    buffers: tuple[Buffer, ...]
    scalars: tuple[str, ...]
    noise: bool
    stages: tuple[Node, ...]
    values: dict[str, Node]
    results: dict[str, Node]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state buffers, in the rule's order."""
        return tuple(self.storages)[2:]

    @cached_property
    def tiled(self) -> bool:
        """Whether some values share a scale with their tile."""
        return any(b.tiled for b in self.buffers)

    @cached_property
    def bytes_per_parameter(self) -> float:
        """Bytes read and written for each parameter in one step."""
        return sum(b.bytes_per_parameter for b in self.buffers)


def parameters(rule: Any) -> Parameters:
    """Read the signature of `rule.update`.

    Raises:
        RuleError: it does not begin with p and g, or has *args or **kwargs.

    """
    where = f"{type(rule).__name__}.update"
    names, optional, scalars = [], set(), []
    for x in inspect.signature(rule.update).parameters.values():
        if x.kind in (x.VAR_POSITIONAL, x.VAR_KEYWORD):
            raise RuleError(explain(where, "a rule names its buffers and scalars.", got=str(x), do="spell them out"))
        if x.kind is x.KEYWORD_ONLY:
            scalars.append(x.name)
        else:
            names.append(x.name)
            if x.default is None:
                optional.add(x.name)
    if names[:2] != ["p", "g"]:
        raise RuleError(
            explain(
                where,
                "the first buffers of a rule are the parameter p and the gradient g.",
                got=f"update({', '.join(names)}, *, {', '.join(scalars)})",
                expected="update(self, p, g, <state buffers>, *, <scalars>)",
            )
        )
    noise = "noise" in scalars
    return Parameters(tuple(names), frozenset(optional), tuple(s for s in scalars if s != "noise"), noise)


def trace(rule: Any, kept: Any) -> Program:
    """Trace `rule`, or return the program it already has.

    Rules that differ only in the values of their numbers share a program.

    Args:
        rule: any rule.
        kept: float32 or float64, for buffers that are all of that type; or name of a buffer → name of its format.
            Buffers that are not named are kept in the computing precision, which the format of p decides.

    Raises:
        RuleError: the rule branches on a value, uses an unknown function, changes the precision, reads a number from
            self, or returns the wrong number of results.
        SettingError: there is no such buffer or format, or the buffer cannot be kept in it.

    """
    require_rule(rule, "trace")
    traced = form(rule)
    return _trace(exact(traced), traced, tuple(formats(rule, kept).items()))


def formats(rule: Any, kept: Any) -> dict[str, str]:
    """Give the name of the format of each buffer of `rule`, the optional ones too, in the rule's order."""
    names = parameters(rule).buffers
    if not isinstance(kept, Mapping):
        return dict.fromkeys(names, NAMES[np.dtype(kept)])
    where = f"storage of {type(rule).__name__}"
    for b, name in kept.items():
        if b not in names:
            raise SettingError(explain(where, f"there is no buffer {b!r}.", do=suggest(str(b), list(names))))
        if not isinstance(name, str) or name not in STORAGES:
            do = suggest(str(name), list(STORAGES))
            raise SettingError(explain(where, f"{b!r}: there is no such format.", got=repr(name), do=do))
    computes = STORAGES[kept.get("p", "f32")].computes
    chosen = {b: kept.get(b, NAMES[computes]) for b in names}
    for b, name in chosen.items():
        kind = b if b in ("p", "g") else "state"
        known = [s.name for s in STORAGES.values() if kind in s.holds and s.computes == computes]
        if name not in known:
            what = f"{b!r}, {_KINDS[kind]}, is not kept in the format {name}."
            if kind in STORAGES[name].holds:
                what = f"the format {name} of {b!r} holds {STORAGES[name].computes}, and p is computed in {computes}."
            raise SettingError(explain(where, what, expected=", ".join(known)))
    return chosen


_KINDS = {"p": "the parameter", "g": "a gradient, which others write", "state": "a state"}


@lru_cache(maxsize=512)
def _trace(key: tuple, rule: Any, kept: tuple[tuple[str, str], ...]) -> Program:
    where = f"{type(rule).__name__}.update"
    _, optional, scalars, _ = parameters(rule)
    storages = {b: STORAGES[name] for b, name in kept}
    call = _Call(rule, storages, frozenset())
    absent = frozenset({b for b in optional if call.after[b] in (None, call.before[b])})
    present = [node for b, node in call.after.items() if b not in absent]
    for b in sorted(absent & {n.value for n in walk(present) if n.op == "buffer"}):
        raise RuleError(explain(where, f"the optional buffer {b} is read but never written.", do=f"return its new {b}"))
    if absent:  # None stands for them at every step, and the rule may ask
        call = _Call(rule, storages, absent)
    for b in sorted(absent):
        if call.after.pop(b) is not None:
            what = f"the optional buffer {b} is returned as it came, but as something else where it is None."
            raise RuleError(explain(where, what, do=f"return {b} as it came, or its new value in every case"))
        del storages[b]
    values = {b: node for b, node in call.after.items() if node is not call.before[b]}
    results: dict[str, Node] = {}
    for b, node in values.items():
        results |= call.encode(b, node)
    buffers = [
        Buffer(name, b, plane.dtype, plane.read, name in results, plane.tiled, plane.view)
        for b, storage in storages.items()
        for name, plane in planes(b, storage).items()
    ]
    return Program(
        name=_name(rule, storages),
        rule=type(rule).__name__,
        dtype=storages["p"].computes,
        storages=storages,
        buffers=tuple(b for b in buffers if b.read or b.written),
        scalars=scalars,
        noise=call.uses_bits,
        stages=call.stages,
        values=values,
        results=results,
    )


def _plane_name(buffer: str, plane: Plane) -> str:
    return f"{buffer}.{plane.suffix}" if plane.suffix else buffer


def planes(buffer: str, storage: Storage) -> dict[str, Plane]:
    """Give the planes of a buffer by the names of their arrays."""
    return {_plane_name(buffer, plane): plane for plane in storage.planes}


class _Call:
    """One call of `update` on symbols, on None for the absent buffers, and what comes before and after it.

    `before` and `after` are the nodes of each buffer's value, `stages` those of the rule's noise.
    """

    def __init__(self, rule: Any, storages: dict[str, Storage], absent: frozenset[str]):
        self.where = f"{type(rule).__name__}.update"
        self.storages, self.dtype = storages, storages["p"].computes
        self.tracing = Trace(self.where)
        self._bits: Any = None  # 32 random bits of the element, of which …
        self._left = 0  # … so many are not used yet
        names, optional, scalars, noise = parameters(rule)
        buffers = {b: self._decode(b) for b in names if b not in absent}
        self.before = {b: symbol._node for b, symbol in buffers.items()}
        inputs = {s: self.tracing.input("scalar", s, self.dtype, array=False) for s in scalars}
        self.stages: tuple[Node, ...] = ()
        if noise:
            x = centred(random_bits(self._more_bits()))
            s = radius(x)
            inputs["noise"], self.stages = stretched(x, s).astype(self.dtype), (x._node, s._node)
        returned = self._run(rule, [buffers.get(b) for b in names], inputs)
        values = returned if isinstance(returned, tuple) else (returned,)
        targets = [b for b in names if b != "g"]
        if len(values) != len(targets):
            raise RuleError(
                explain(
                    self.where,
                    "a rule returns the new value of p and of each state buffer, in the order of its parameters.",
                    got=f"{len(values)} result{'s' * (len(values) != 1)}",
                    expected=f"{len(targets)}: {', '.join(targets)}",
                )
            )
        self.after: dict[str, Any] = {
            b: None if value is None and b in optional else _result(self.where, b, value, self.dtype)
            for b, value in zip(targets, values, strict=True)
        }

    @property
    def uses_bits(self) -> bool:
        return self._bits is not None

    def _run(self, rule: Any, buffers: list, inputs: dict) -> Any:
        try:
            return rule.update(*buffers, **inputs)
        except AttributeError as error:
            if not is_rule(error.obj):
                raise
            what = f"update reads self.{error.name}, which is not a field of {type(error.obj).__name__}."
            do = "declare it as a field, with dataclasses.field(init=False) if __post_init__ computes it"
            raise RuleError(explain(self.where, what, do=do)) from error

    def _decode(self, name: str) -> Symbol:
        """Make the symbols of a buffer's planes, words for what is narrower than 32 bits, and decode them."""
        found = [
            self.tracing.input(
                "tile" if plane.tiled else "buffer",
                _plane_name(name, plane),
                plane.dtype if plane.dtype.kind == "f" else np.dtype(np.uint32),
                array=True,
            )
            for plane in self.storages[name].planes
            if plane.read
        ]
        return Symbol(self.tracing, self.storages[name].decode(*found)._node, True)

    def encode(self, name: str, value: Node) -> dict[str, Node]:
        """Give the new elements of a buffer's planes that hold a value."""
        storage, x = self.storages[name], Symbol(self.tracing, value, True)
        bits = self._sixteen_bits() if storage.random else None
        if isinstance(storage, Scaled):
            peak = storage.peak(x)
            largest = self.tracing.node("tile_max", peak.dtype, (peak._node,))
            scale = storage.scale(Symbol(self.tracing, largest, True))
            encoded = (*storage.encode(x, bits, scale), scale)
        else:
            encoded = storage.encode(x, bits)
        return {_plane_name(name, plane): e._node for plane, e in zip(storage.planes, encoded, strict=True)}

    def _more_bits(self) -> Symbol:
        if self._bits is None:
            word = np.dtype(np.uint32)
            keys = [self.tracing.input("key", name, word, array=False) for name in ("key0", "key1")]
            tile = [self.tracing.input("tile_number", name, word, array=True) for name in ("tile_low", "tile_high")]
            place = self.tracing.input("place", "place", word, array=True)
            self._bits = dither_bits(tile_bits(*keys, *tile), place)
        else:
            self._bits = more_bits(self._bits)
        return self._bits

    def _sixteen_bits(self) -> Symbol:
        """Give a word whose upper half are random bits that nobody has had: those of a word, then its lower half."""
        if not self._left:
            self._more_bits()
        self._left = 16 - self._left
        return self._bits if self._left else self._bits << 16


def _result(where: str, name: str, value: Any, dtype: np.dtype) -> Node:
    if isinstance(value, Symbol) and value.dtype == dtype:
        return value._node
    raise RuleError(
        explain(
            where,
            f"the new {name} is not of the computing precision.",
            got=value.dtype.name if isinstance(value, Symbol) else repr(value)[:60],
            expected=f"{dtype.name}, computed from the buffers",
            do="np.where(c, 1.0, -1.0) is float64 and a comparison is bool: write np.where(c, np.ones_like(p), -1.0)",
        )
    )


def _name(rule: Any, storages: Mapping[str, Storage]) -> str:
    return f"{'_'.join(_words(rule))}_{'_'.join(f'{b}{s.name}' for b, s in storages.items())}"


def _words(rule: Any) -> list[str]:
    """Name a rule's form: its type, then each setting that differs from the default in a way that shapes the kernel."""
    words = [type(rule).__name__.lower()]
    for f in dataclasses.fields(rule):
        value, default = getattr(rule, f.name), form_of(f, f.default)
        if is_rule(value):
            words += _words(value)
        elif not isinstance(value, tuple) and (type(value) is not type(default) or value != default):
            number = isinstance(value, Number) or value is None
            words.append(
                f"{'' if value else 'no_'}{f.name}" if number or isinstance(value, bool) else f"{f.name}_{value}"
            )
    return ["".join(c if c.isascii() and c.isalnum() else "_" for c in word) for word in words]


def walk(roots: Any) -> list[Node]:
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


Planned: TypeAlias = tuple[Program, Callable[[int], tuple[float, ...]]]


def plan(rule: Any, kept: Hashable) -> Planned:
    """Give the program of a rule and the function of t that computes its scalars; remembered while rules come again.

    `kept` is a type, or a tuple of (buffer, name of its format).
    """
    try:
        known = _planned(rule, kept)
    except TypeError:  # not hashable
        require_rule(rule, "trace")
        raise
    for same, key, planned in known:
        if same is rule or key == exact(rule):
            return planned
    program = trace(rule, dict(kept) if isinstance(kept, tuple) else kept)
    planned = program, host_scalars(program, rule)
    known.append((rule, exact(rule), planned))
    return planned


@lru_cache(maxsize=256)
def _planned(rule: Any, kept: Hashable) -> list[tuple[Any, tuple, Planned]]:
    """Give the list of what is planned for rules that equal this one; they may differ in a zero's sign or a type."""
    return []


def host_scalars(program: Program, rule: Any) -> Callable[[int], tuple[float, ...]]:
    """Give the function of t that computes a step's scalars in float64, in the order of `program.scalars`.

    That function raises:
        SettingError: a scalar is not a finite number of the computing precision, or a schedule gives one out of range.
        RuleError: `scalars(t)` does not give a dict of exactly the keyword-only parameters of `update`.

    """
    order, limit = program.scalars, float(np.finfo(program.dtype).max)
    pick, count = _picker(order), len(order)
    rule_at, still = follow(rule), not scheduled(rule)

    def at_step(t: int) -> tuple[float, ...]:
        now = rule if still else rule_at(t)
        given = now.scalars(t)
        try:
            values = pick(given) if len(given) == count else None
        except (KeyError, TypeError):
            values = None
        if values is None or not isinstance(given, dict):
            raise RuleError(
                explain(
                    f"{type(rule).__name__}.scalars",
                    "scalars(t) gives a dict of exactly the keyword-only parameters of update.",
                    got=", ".join(map(str, given)) or "(none)" if isinstance(given, dict) else repr(given)[:60],
                    expected=", ".join(order) or "(none)",
                )
            )
        try:
            size = math.hypot(*values)
        except (TypeError, OverflowError):  # one is not a number, or an integer beyond the largest float
            size = math.nan
        if not size <= limit:  # or one is too large, or NaN, or several are close to the limit
            values = tuple(map(to_float, values))
            for name, value in zip(order, values, strict=True):
                if not abs(value) <= limit:
                    raise SettingError(
                        explain(
                            f"{type(rule).__name__}.scalars({t})",
                            f"the scalar {name} is not a finite {program.dtype.name}.",
                            got=repr(given[name])[:60],
                            do="check the settings and schedules of the rule",
                        )
                    )
        return values

    return at_step


def _picker(names: tuple[str, ...]) -> Callable[[dict], tuple]:
    """Give the function that takes the values of these keys out of a dict, always as a tuple."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda given: tuple([given[name] for name in names])

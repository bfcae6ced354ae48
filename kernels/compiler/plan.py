"""A Plan: a rule ready to step, its program and what it computes on the host at each step."""

from __future__ import annotations

import math
import unicodedata
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np

from fastopt.checks import to_float
from fastopt.errors import RuleError, SettingError, suggest
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.specialization import exact_key
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules.rule import Rule, initial, require_rule
from fastopt.kernels.rules.settings import follow, is_scheduled

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Plan:
    """A rule and its program; `scalars(t)` and `keys(seed, t)` are what a launch needs for step t.

    `scalars` returns the step's scalars, computed in float64, in the order of `program.scalars`. `keys` returns the two
    keys of the step's noise, and nothing if the program has none.

    `scalars` raises:
        SettingError: a scalar is not a finite number of the computing precision, or a schedule returns one out of
            range.
        RuleError: the rule's `scalars` does not return a dict of exactly the keyword-only parameters of `update`.
    """

    rule: Rule
    program: Program
    scalars: Callable[[int], tuple[float, ...]]
    keys: Callable[[int, int], tuple[int, ...]]

    def initial_state(self) -> dict[str, float]:
        """Return the values at which state starts that does not start at zero.

        Raises:
            RuleError: there is no such state, or it starts beyond the largest number of the computing precision.

        """
        values, where = initial(self.rule), f"{type(self.rule).__name__}.initial"
        state, largest = self.program.state, float(np.finfo(self.program.dtype).max)
        for name, value in values.items():
            if name not in state:
                raise RuleError(f"there is no state {name!r}.", do=suggest(str(name), list(state)), where=where)
            if not math.isinf(value) and abs(value) > largest:
                what = f"the state {name!r} starts beyond {self.program.dtype.name}."
                raise RuleError(what, got=value, where=where)
        return values


def plan(rule: Rule, storage: Hashable) -> Plan:
    """Return the plan of a rule; remembered while equal rules come again, and of one with schedules while it lives.

    `storage` is as for `layout`, but hashable: a mapping comes as a tuple of (buffer, name of its format).
    """
    if _STILL.get(rule) is None:
        try:
            moving = is_scheduled(rule)
        except TypeError:  # it is no dataclass
            require_rule(rule)
            raise
        if moving:
            return make_plan(_program(rule, storage), rule)
        _STILL.put(rule, True)
    try:
        known = _known_plans(rule, storage)
    except TypeError:  # not hashable
        require_rule(rule)
        raise
    for same, key, made in known:
        if same is rule or key == exact_key(rule):
            return made
    made = make_plan(trace(rule, dict(storage) if isinstance(storage, tuple) else storage), rule)
    known.append((rule, exact_key(rule), made))
    return made


class WhileAlive(Generic[V]):
    """Values kept for objects by identity, while these live: for rules, which need not be hashable.

    What was kept for objects that are gone is dropped when there has come to be twice as much. A callback of each weak
    reference would do that at once, but Python prints what is raised in a callback and goes on: Ctrl-C would be lost.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], V]] = {}
        self._most = 256

    def get(self, owner: object) -> V | None:
        """Return what is kept for this object, or None."""
        kept = self._kept.get(id(owner))
        return kept[1] if kept is not None and kept[0]() is owner else None

    def put(self, owner: object, value: V) -> bool:
        """Keep a value; return False for an object that no weak reference can name, as of a class with slots."""
        try:
            self._kept[id(owner)] = weakref.ref(owner), value
        except TypeError:
            return False
        if len(self._kept) > self._most:
            for number, kept in list(self._kept.items()):
                if kept[0]() is None and self._kept.get(number) is kept:
                    self._kept.pop(number, None)
            self._most = max(256, 2 * len(self._kept))
        return True


_STILL = WhileAlive[bool]()
"""Rules without schedules: frozen, so that they need not be looked through at each `update`."""


def _program(rule: Rule, storage: Hashable) -> Program:
    """Return the program of a rule with schedules, which may hold anything: a trainer with its model, for example."""
    wanted = dict(storage) if isinstance(storage, tuple) else storage
    known = _PROGRAMS.get(rule)
    if known is None:
        known = {}
        if not _PROGRAMS.put(rule, known):
            return trace(rule, wanted)
    if storage not in known:
        known[storage] = trace(rule, wanted)
    return known[storage]


_PROGRAMS = WhileAlive[dict[Hashable, Program]]()
"""The programs of rules with schedules; programs hold nothing of their rules."""


@lru_cache(maxsize=256)
def _known_plans(rule: Rule, storage: Hashable) -> list[tuple[Rule, tuple, Plan]]:
    """Return the list of plans for rules that equal this one; they may differ in a zero's sign or a type."""
    return []


def make_plan(program: Program, rule: Rule) -> Plan:
    """Make the plan of a rule whose program is known."""
    return Plan(rule, program, host_scalars(program, rule), noise_keys if program.noise else lambda seed, t: ())


def host_scalars(program: Program, rule: Rule) -> Callable[[int], tuple[float, ...]]:
    """Return the function of t that computes a step's scalars: see `Plan`."""
    order, limit = program.scalars, _largest(program.dtype)
    pick, count = _picker(order), len(order)
    rule_at, still = follow(rule), not is_scheduled(rule)

    def at_step(t: int) -> tuple[float, ...]:
        now = rule if still else rule_at(t)
        returned: Any = now.scalars(t)
        try:
            values = pick(returned) if len(returned) == count else None
        except (KeyError, TypeError):
            values = _normalized(returned, order)
        if values is None or not isinstance(returned, dict):
            raise RuleError(
                "scalars(t) returns a dict of exactly the keyword-only parameters of update.",
                got=", ".join(map(str, returned)) or "(none)" if isinstance(returned, dict) else repr(returned)[:60],
                expected=", ".join(order) or "(none)",
                where=f"{type(rule).__name__}.scalars",
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
                        f"the scalar {name} is not a finite {program.dtype.name}.",
                        got=repr(returned.get(name, value))[:60],
                        do="check the settings and schedules of the rule",
                        where=f"{type(rule).__name__}.scalars({t})",
                    )
        return values

    return at_step


def _normalized(returned: Any, order: tuple[str, ...]) -> tuple | None:
    """Return values by names that differ in how they are written: µ has two code points, of which Python takes one."""
    if not isinstance(returned, dict):
        return None
    found = {unicodedata.normalize("NFKC", name): x for name, x in returned.items() if isinstance(name, str)}
    return tuple([found[name] for name in order]) if found.keys() == set(order) else None


@lru_cache(maxsize=8)
def _largest(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).max)


@lru_cache(maxsize=512)
def _picker(names: tuple[str, ...]) -> Callable[[dict], tuple]:
    """Return the function that takes the values of these keys out of a dict, always as a tuple."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda found: tuple([found[name] for name in names])

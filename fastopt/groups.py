"""What an Optimizer is built of: the parameters' first values, their precision, and which of them share a rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import numpy as np

from fastopt import dispatch
from fastopt.errors import LayoutError, RuleError, SettingError, explain, suggest
from fastopt.kernels import settings
from fastopt.kernels.form import exact, is_rule, require_rule
from fastopt.kernels.program import Program
from fastopt.kernels.storage import NAMES


def take_values(params: Any) -> dict[str, np.ndarray]:
    """View the parameters' first values as arrays, by name, or raise a LayoutError."""
    values = {}
    given = dispatch.mapping(params, "Optimizer", "parameters")
    for name, value in given.items():
        if not isinstance(name, str):
            raise LayoutError(explain("Optimizer", "a parameter's name is a string.", got=repr(name)))
        if f"{name}.npy" in given:
            what = f"the names {name!r} and {name + '.npy'!r} are the same to np.load."
            raise LayoutError(explain("Optimizer", what, do="rename one of them"))
        values[name] = array = dispatch.lend(value, name, "Optimizer")
        if array.dtype.name not in ("float32", "float64", "float16", "bfloat16"):
            what, expected = f"the parameter {name!r} has the wrong type.", "floating-point numbers"
            raise LayoutError(explain("Optimizer", what, got=str(array.dtype), expected=expected))
    if not values:
        raise LayoutError(
            explain("Optimizer", "there are no parameters.", got="{}", expected='for example {"w": w, "b": b}')
        )
    return values


def precision(values: dict[str, np.ndarray]) -> np.dtype:
    """Give the type that these values share, or raise a LayoutError."""
    dtypes = {array.dtype for array in values.values()}
    first = {dtype: next(name for name, a in values.items() if a.dtype == dtype) for dtype in dtypes}
    for dtype, name in first.items():
        if dtype not in NAMES:
            what, expected = f"the parameter {name!r} has the wrong type.", " or ".join(str(d) for d in NAMES)
            do = "choose how parameters are kept, for example storage='split' or 'bf16'"
            raise LayoutError(explain("Optimizer", what, got=str(dtype), expected=expected, do=do))
    if len(dtypes) > 1:
        raise LayoutError(
            explain(
                "Optimizer",
                "the parameters have different precisions.",
                got=", ".join(f"{name!r} {dtype}" for dtype, name in first.items()),
                do='convert them, or choose one for all with storage="f32" or "f64"',
            )
        )
    return dtypes.pop()


def own_groups(groups: Any) -> dict[str, Any]:
    """Copy the table of groups, so that the caller may change theirs, or raise a SettingError."""
    groups = {} if groups is None else groups
    if not isinstance(groups, Mapping) or not all(isinstance(pattern, str) for pattern in groups):
        expected = 'for example {"*.bias": {"weight_decay": 0.0}}'
        raise SettingError(
            explain("Optimizer", "groups go by patterns of names.", got=repr(groups)[:60], expected=expected)
        )
    for pattern, change in groups.items():
        if not isinstance(change, Mapping) and not is_rule(change):
            what = "a group is a dict of settings, or a rule."
            raise SettingError(explain(f"Optimizer, group {pattern!r}", what, got=repr(change)))
    return {p: dict(change) if isinstance(change, Mapping) else change for p, change in groups.items()}


def sort(rule: Any, names: list[str], groups: dict[str, Any]) -> list[tuple[Any, list[str]]]:
    """Sort the parameters by the rule they end up with: each such rule, and the names of its parameters.

    Raises:
        SettingError: a pattern fits no parameter, or a setting is unknown or out of its range.
        RuleError: a group's rule is none.

    """
    for pattern in groups:
        if not any(_fits(name, pattern) for name in names):
            raise SettingError(
                explain("Optimizer", f"the group {pattern!r} fits no parameter.", do=suggest(pattern, names))
            )
    members: dict[tuple, tuple[Any, list[str]]] = {}
    for name in names:
        own = rule
        for pattern, change in groups.items():
            if _fits(name, pattern):
                where = f"Optimizer, group {pattern!r}"
                own = changed(own, change, where) if isinstance(change, dict) else change
                require_rule(own, where)
        members.setdefault(exact(own), (own, []))[1].append(name)
    return list(members.values())


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def changed(rule: Any, change: dict[str, Any], where: str) -> Any:
    """Replace settings of a rule; those it does not have itself are settings of the rules inside it."""
    own = {f.name: change.get(f.name, getattr(rule, f.name)) for f in dataclasses.fields(rule) if f.init}
    inner = {name: settings_of(value) for name, value in own.items()}
    known = [*own, *chain.from_iterable(inner.values())]
    for setting in change:
        if setting not in known:
            what = f"{type(rule).__name__} has no setting {setting!r}."
            raise SettingError(explain(where, what, do=suggest(str(setting), known)))
    for name, theirs in inner.items():
        inside = {setting: change[setting] for setting in theirs if setting in change and setting not in own}
        if inside:
            own[name] = changed(own[name], inside, where)
    return dataclasses.replace(rule, **own)


def settings_of(value: Any) -> dict[str, Any]:
    """Give the settings of a rule and of the rules inside it, the outer one's first; what is no rule has none."""
    if not is_rule(value):
        return {}
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    inner = {setting: x for rule in own.values() for setting, x in settings_of(rule).items()}
    return own | {setting: x for setting, x in inner.items() if setting not in own}


def initial_state(rule: Any, program: Program) -> dict[str, float]:
    """Give the values at which the state of `program` starts, or raise a RuleError where there is no such state."""
    initial = settings.initial(rule)
    where, largest = f"{type(rule).__name__}.initial", float(np.finfo(program.dtype).max)
    for name, value in initial.items():
        if name not in program.state:
            raise RuleError(explain(where, f"there is no state {name!r}.", do=suggest(str(name), list(program.state))))
        if not math.isinf(value) and abs(value) > largest:
            raise RuleError(explain(where, f"the state {name!r} starts beyond {program.dtype.name}.", got=value))
    return initial

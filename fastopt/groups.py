"""Which parameters of an Optimizer share a rule: groups by patterns of names, and the layout of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from fastopt.errors import SettingError, raised_by, suggest
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.specialization import exact_key
from fastopt.kernels.rules.rule import Rule, for_tensor, is_rule, require_rule, signature


def own_groups(groups: Any) -> dict[str, Any]:
    """Copy the table of groups, so that the caller may change theirs, or raise a SettingError."""
    groups = {} if groups is None else groups
    if not isinstance(groups, Mapping) or not all(isinstance(pattern, str) for pattern in groups):
        expected = 'for example {"*.bias": {"weight_decay": 0.0}}'
        raise SettingError("groups go by patterns of names.", got=repr(groups)[:60], expected=expected)
    for pattern, change in groups.items():
        if not isinstance(change, Mapping) and not is_rule(change):
            what = "a group is a dict of settings, or a rule."
            raise SettingError(what, got=repr(change), where=f"Optimizer, group {pattern!r}")
    return {p: dict(change) if isinstance(change, Mapping) else change for p, change in groups.items()}


def sort(rule: Rule, shapes: Mapping[str, tuple[int, ...]], groups: dict[str, Any]) -> list[tuple[Rule, list[str]]]:
    """Sort the parameters by the rule they end up with: each such rule, and the names of its parameters.

    Raises:
        SettingError: a pattern fits no parameter, or a setting is unknown or out of its range.
        RuleError: a group's rule is no rule.

    """
    names = list(shapes)
    order = {pattern: k for k, pattern in enumerate(groups)}
    wild = [pattern for pattern in groups if set(pattern) & set("*?[")]
    fits: dict[str, list[str]] = {}  # of each name, its patterns; most are whole names, of which there may be thousands
    for name in names:
        found = {pattern for pattern in wild if fnmatchcase(name, pattern)} | ({name} & order.keys())
        fits[name] = sorted(found, key=order.__getitem__)
    used = {pattern for patterns in fits.values() for pattern in patterns}
    for pattern in groups:
        if pattern not in used:
            raise SettingError(f"the group {pattern!r} fits no parameter.", do=suggest(pattern, names))
    for pattern in getattr(rule, "patterns", ()):
        if not any(fnmatchcase(name, pattern) for name in names):
            what = f"the pattern {pattern!r} of {type(rule).__name__} fits no parameter."
            raise SettingError(what, do=suggest(pattern, names))
    members: dict[tuple, tuple[Rule, list[str]]] = {}
    for name in names:
        own = rule
        for pattern in fits[name]:
            change = groups[pattern]
            with raised_by(f"Optimizer, group {pattern!r}"):
                own = changed(own, change) if isinstance(change, dict) else change
                require_rule(own)
        with raised_by(f"Optimizer, parameter {name!r}"):
            own = for_tensor(own, name, shapes[name])
        members.setdefault(exact_key(own), (own, []))[1].append(name)
    return list(members.values())


def changed(rule: Rule, change: dict[str, Any]) -> Any:
    """Replace settings of a rule; those it does not have itself are settings of the rules inside it."""
    own = {f.name: change.get(f.name, getattr(rule, f.name)) for f in dataclasses.fields(rule) if f.init}
    inner = {name: settings_of(value) for name, value in own.items()}
    known = [*own, *chain.from_iterable(inner.values())]
    for setting in change:
        if setting not in known:
            what = f"{type(rule).__name__} has no setting {setting!r}."
            raise SettingError(what, do=suggest(str(setting), known))
    for name, theirs in inner.items():
        inside = {setting: change[setting] for setting in theirs if setting in change and setting not in own}
        if inside:
            own[name] = changed(own[name], inside)
    return dataclasses.replace(rule, **own)  # type: ignore[type-var]


def settings_of(value: Any) -> dict[str, Any]:
    """Return the settings of a rule and of the rules inside it, the outer one's first; what is no rule has none."""
    if not is_rule(value):
        return {}
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    inner = {setting: x for rule in own.values() for setting, x in settings_of(rule).items()}
    return own | {setting: x for setting, x in inner.items() if setting not in own}


def layouts(rules: Sequence[Rule], storage: Any) -> list[dict[str, str]]:
    """Return the format of each buffer of each rule; a dict may name buffers that only some of the rules have.

    Raises:
        SettingError: there is no such preset, format or buffer, or it does not hold what it is to hold.

    """
    if not isinstance(storage, Mapping):
        return [layout(rule, storage) for rule in rules]
    buffers = [signature(rule).buffers for rule in rules]
    known = sorted({b for names in buffers for b in names})
    for b in storage:
        if b not in known:
            raise SettingError(f"storage: there is no buffer {b!r}.", do=suggest(str(b), known))
    return [
        layout(rule, {b: name for b, name in storage.items() if b in names})
        for rule, names in zip(rules, buffers, strict=True)
    ]

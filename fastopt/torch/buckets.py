"""The buckets of an optimizer's groups: made of its parameters, stepped together, saved and loaded together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import is_distributed
from fastopt.errors import LayoutError
from fastopt.kernels.formats import STORAGES
from fastopt.kernels.rules.rule import Rule
from fastopt.torch.bucket import Advance, ParamBucket
from fastopt.torch.guards import Check, same_objects
from fastopt.torch.observed import ObservedState
from fastopt.torch.requirements import LOAD, formats_for, require_step_count, require_values
from fastopt.torch.state import Settings, StateNames


def labels_of(groups: Sequence[dict[str, Any]], k: int) -> list[str]:
    """Return what errors call the parameters of group k."""
    group = groups[k]
    names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
    return [f"{name} of group {k}" for name in names]


class Buckets:
    """The buckets of torch's `param_groups`, group by group. Parameters whose bucket is among `former` stay in it."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        rules: Sequence[Rule],
        names: StateNames,
        settings: Settings,
        former: Buckets | None = None,
    ):
        known = {tuple(map(id, bucket.params)): bucket for bucket in former or ()}
        self.groups: list[list[ParamBucket]] = []
        self._seed, first = settings.seed, 0
        for k, (group, rule) in enumerate(zip(groups, rules, strict=True)):
            sorts: dict[tuple, list[int]] = {}
            for i, p in enumerate(group["params"]):
                sorts.setdefault((p.dtype, p.device, is_distributed(p)), []).append(i)
            labels, buckets = labels_of(groups, k), []
            for members in sorts.values():
                params = [group["params"][i] for i in members]
                bucket = known.get(tuple(map(id, params)))
                if bucket is None or int(bucket.offsets[0]) != first:
                    own = [labels[i] for i in members]
                    bucket = ParamBucket(params, own, first, names, rule, settings)
                first = bucket.end
                buckets.append(bucket)
            self.groups.append(buckets)
        self._all = [bucket for buckets in self.groups for bucket in buckets]

    def __iter__(self) -> Iterator[ParamBucket]:
        return iter(self._all)

    def are_of(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether groups have the parameters that they had; others hold their lists and may have changed them."""
        if len(self.groups) != len(groups):
            return False
        for group, buckets in zip(groups, self.groups, strict=True):
            params = group["params"]
            if len(buckets) == 1:
                if not same_objects(params, buckets[0].params):
                    return False
            elif sorted(map(id, params)) != sorted(id(p) for bucket in buckets for p in bucket.params):
                return False
        return True

    def follow(self, rules: Sequence[Rule]) -> None:
        """Take each group's rule as it is now."""
        for rule, buckets in zip(rules, self.groups, strict=True):
            for bucket in buckets:
                bucket.follow(rule)

    def check(self) -> list[Check]:
        """Check all buckets, and raise a LayoutError where a step is impossible, before anything is written."""
        return [bucket.check() for bucket in self._all]

    def calls(self, checks: list[Check], state: ObservedState, advance: Advance) -> dict[torch.device, list[tuple]]:
        """Prepare a step of what was checked, the calls for each device. Missing state is made and shown in `state`."""
        calls: dict[torch.device, list[tuple]] = {}
        for bucket, check in zip(self._all, checks, strict=True):
            arranged = bucket.prepare(check, state)
            calls.setdefault(bucket.device, []).extend(bucket.calls(arranged, self._seed, advance))
        return calls

    def clear_gradients(self, *, set_to_none: bool) -> None:
        """Set the gradients in flat buffers to zero."""
        for bucket in self:
            assert bucket.flat is not None
            bucket.flat.clear_gradients(bucket.params, set_to_none=set_to_none)

    # State.

    def reread(self, state: ObservedState) -> None:
        """Follow the state as it is now, also where others have changed it."""
        for bucket in self:
            bucket.arranged = None
            for i, p in enumerate(bucket.params):
                entries = state.observe(p) if p in state else {}
                bucket.state.reread(i, entries)
                if entries:
                    bucket.state.expose(i, state)

    def decoded(self, state: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the state in torch's form: plain dicts, without what only this memory layout has."""
        found = {p: dict(x) if isinstance(x, dict) else x for p, x in state.items()}
        for bucket in self:
            for i, p in enumerate(bucket.params):
                if p in found:
                    found[p] = bucket.state.decoded(i, found[p])
        return found

    def load(self, given: Mapping[Any, Any], state: ObservedState) -> None:
        """Forget all state and copy what was given, which has been checked."""
        for bucket in self:
            bucket.arranged = None
            bucket.state.forget()
            for i, p in enumerate(bucket.params):
                if given.get(p):
                    state.observe(p)
                    bucket.state.take(i, given[p], copy=True)
                    bucket.state.expose(i, state)


def require_loadable(
    given: Mapping[Any, Any],
    groups: Sequence[dict[str, Any]],
    rule_of: Callable[[dict[str, Any]], Rule],
    names: StateNames,
    storage: Any,
) -> None:
    """Raise a LayoutError unless this is state of these groups' parameters, in values."""
    for k, group in enumerate(groups):
        rule = rule_of(group)
        for p, label in zip(group["params"], labels_of(groups, k), strict=True):
            _require_state(given.get(p, {}), p, formats_for(rule, storage, p.dtype), names, storage, label)


def _require_state(given: Any, p: Any, formats: Mapping[str, str], names: StateNames, storage: Any, label: str) -> None:
    if not isinstance(given, Mapping):
        raise LayoutError(f"the state of {label} is not a dict.", got=repr(given)[:60], do=LOAD)
    if given.get("step") is not None:
        require_step_count(given["step"], f"the state 'step' of {label}")
    buffers = {names.of_value(b): b for b in formats if b != "g"}
    known = ["step", *names.entries, *buffers]
    for entry, value in given.items():
        if entry.startswith("param."):  # for the storage that it is of, which has the master beside it
            continue
        text = f"the state {entry!r} of {label}"
        if entry not in known:
            raise LayoutError(f"{text} fits nothing here.", expected=", ".join(known), do=LOAD)
        if entry in buffers and value is not None:
            b = buffers[entry]
            require_values(value, p, b, STORAGES[formats[b]], text, exactly=storage is None)

"""The buckets of an optimizer's groups: made of its parameters, stepped together, saved and loaded together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import element_type
from fastopt.errors import LayoutError
from fastopt.kernels.backends import require_together, steps
from fastopt.kernels.compiler.specialization import exact_key
from fastopt.kernels.formats import STORAGES
from fastopt.kernels.launch import only_if
from fastopt.kernels.rules.rule import Rule, for_tensor
from fastopt.kernels.rules.total import GRADIENTS
from fastopt.torch.bucket import ParamBucket, Regroup, kind_of, running
from fastopt.torch.device_numbers import Advance
from fastopt.torch.guards import Check, same_objects
from fastopt.torch.observed import ObservedState, ParameterState
from fastopt.torch.requirements import (
    LOAD,
    formats_for,
    is_steppable,
    may_wait,
    require_beside,
    require_parameter,
    require_step_count,
    require_values,
)
from fastopt.torch.state import Settings, StateNames, is_beside


def names_of(group: dict[str, Any]) -> list[str]:
    """Return the names of a group's parameters, by which a rule may choose; those that have none are numbered."""
    return group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]


def labels_of(groups: Sequence[dict[str, Any]], k: int) -> list[str]:
    """Return what errors call the parameters of group k."""
    return [f"{name} of group {k}" for name in names_of(groups[k])]


class OnDevice:
    """What a step with totals leaves on a device for torch: flags, the squared norm, and how many were skipped."""

    def __init__(self, device: torch.device):
        with torch.inference_mode(mode=False):
            self.flags = torch.zeros(2, dtype=torch.float64, device=device)
            self.bools = torch.zeros(2, dtype=torch.bool, device=device)  # taken, skipped
            self.norm = torch.full((1,), -1.0, dtype=torch.float64, device=device)
            self.skipped = torch.zeros((), dtype=torch.float64, device=device)
        self.read = [(self.bools.copy_, self.flags), (self.skipped.add_, self.flags[1])]


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
        self._listed = [list(group["params"]) for group in groups]
        self._capturable = [bool(group.get("capturable")) for group in groups]
        self._waiting: list[tuple[Any, str]] = []  # parameters that no step could take, and what errors call them
        self._seed, first = settings.seed, 0
        # The memory of the squared norm of all gradients, of the last step, and its precision.
        self.squared_norm: tuple[Any, Any] | None = former.squared_norm if former is not None else None
        self.skipped: Any = np.zeros(1, np.int64) if former is None else former.skipped  # the number of such steps
        self.on_device: OnDevice | None = None if former is None else former.on_device
        for k, (group, rule) in enumerate(zip(groups, rules, strict=True)):
            kinds: dict[tuple, list[int]] = {}
            labels, called, buckets = labels_of(groups, k), names_of(group), []
            for i, p in enumerate(group["params"]):
                if may_wait(p) and not is_steppable(p):
                    self._waiting.append((p, labels[i]))
                else:
                    kind, own = kind_of(p), for_tensor(rule, called[i], tuple(p.shape))
                    apart = (i,) if settings.apart else ()
                    kinds.setdefault((kind, None if own is rule else exact_key(own), *apart), []).append(i)
            for (kind, *_), members in kinds.items():
                params = [group["params"][i] for i in members]
                bucket, capturable = known.get(tuple(map(id, params))), self._capturable[k]
                same = bucket is not None and (bucket.kind, bucket.capturable) == (kind, capturable)
                if bucket is None or not same or int(bucket.offsets[0]) != first:
                    own = [labels[i] for i in members]
                    bucket = ParamBucket(params, own, first, names, rule, settings, capturable=capturable)
                bucket.group = k
                first = bucket.end
                buckets.append(bucket)
            self.groups.append(buckets)
        self._all = [bucket for buckets in self.groups for bucket in buckets]
        self._by_parameter = {bucket.params[0]: bucket for bucket in self._all} if settings.apart else {}

    def __iter__(self) -> Iterator[ParamBucket]:
        return iter(self._all)

    def are_of(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether groups have the parameters that they had; others hold their lists and may have changed them."""
        if len(self._listed) != len(groups):
            return False
        for group, listed, capturable in zip(groups, self._listed, self._capturable, strict=True):
            if not same_objects(group["params"], listed) or bool(group.get("capturable")) is not capturable:
                return False
        return True

    def follow(self, rules: Sequence[Rule]) -> None:
        """Take each group's rule as it is now."""
        for rule, buckets in zip(rules, self.groups, strict=True):
            for bucket in buckets:
                bucket.follow(rule)

    def check(self, only: Any = None) -> list[tuple[ParamBucket, Check]]:
        """Check all buckets, or that of one parameter where each has its own, before anything is written.

        Raises:
            LayoutError: a step is impossible.
            Regroup: a parameter belongs into another bucket now.

        """
        if only is not None:
            if only not in self._by_parameter:
                raise Regroup
            bucket = self._by_parameter[only]
            return [(bucket, bucket.check())]
        for p, label in self._waiting:
            if p.grad is not None:
                require_parameter(p, label)
                raise Regroup
        return [(bucket, bucket.check()) for bucket in self._all]

    def calls(
        self,
        checks: list[tuple[ParamBucket, Check]],
        state: ObservedState,
        advance: Advance,
        groups: Sequence[dict[str, Any]],
        unscale: Any,
        *,
        captured: bool = False,
    ) -> dict[torch.device, list[tuple]]:
        """Prepare a step of what was checked, the calls for each device. Missing state is made and shown in `state`."""
        calls: dict[torch.device, list[tuple]] = {}
        numbers = {  # which may fail, before anything is made
            id(bucket): bucket.numbers(advance, groups[bucket.group], unscale, captured=captured)
            for bucket, _ in checks
            if bucket.capturable
        }
        together: list[tuple] = []
        totals = [bucket for bucket, _ in checks if bucket.plan.program.totals]
        if totals:
            self._require_together([bucket for bucket, _ in checks])
        for bucket, check in checks:
            arranged = bucket.prepare(check, state)
            if bucket.capturable:
                if bucket.plan.program.over_all and self.on_device is None:
                    self.on_device = OnDevice(bucket.device)
                own = bucket.calls_on_device(arranged, self._seed, numbers[id(bucket)], together, self.on_device)
            else:
                own = bucket.calls(arranged, self._seed, advance, together)
            calls.setdefault(bucket.device, []).extend(own)
        if together:
            (bucket, _), *_ = checks
            calls[bucket.device] += self._calls_together(bucket, together)
        elif any(bucket.plan.program.place_of(GRADIENTS) is not None for bucket in totals):
            self.squared_norm = np.zeros(1), np.dtype(np.float32)  # there was no gradient
        return calls

    def _require_together(self, buckets: Sequence[ParamBucket]) -> None:
        """Raise an error unless these can take a step together."""
        require_together([bucket.plan.program for bucket in buckets])
        kinds = {(str(bucket.device), bucket.capturable) for bucket in buckets}
        if len(kinds) > 1 and any(bucket.plan.program.over_all for bucket in buckets):
            what = "totals over all parameters need them on one device, all capturable or none."
            raise LayoutError(
                what, got=", ".join(sorted({device for device, _ in kinds})), do="clip in passes of its own"
            )

    def _calls_together(self, bucket: ParamBucket, together: list[tuple]) -> list[tuple]:
        """Prepare a step of all buckets at once, and what is called after it."""
        program, launch, *_ = together[-1]
        ends = [call for *_, own in together for call in own]
        place = program.place_of(GRADIENTS)
        norm = None if place is None else launch.over_all(program.over_all[place][1])
        with running(bucket.device):
            calls = steps(bucket.backend, [(launch, keys, scalars) for _, launch, keys, scalars, _ in together])
        if isinstance(norm, np.ndarray):
            self.squared_norm = norm, program.dtype
        elif norm is not None:  # to where torch reads it
            self.on_device = self.on_device or OnDevice(bucket.device)
            calls.append(launch.report(norm, self.on_device.norm.data_ptr()))
            self.squared_norm = self.on_device.norm, program.dtype
        if program.condition is None:
            return calls + ends
        if bucket.capturable:
            assert self.on_device is not None
            return [*calls, launch.report(launch.flags, self.on_device.flags.data_ptr()), *self.on_device.read, *ends]
        return [
            *calls,
            *only_if(launch.flags, 0, ends),
            *only_if(launch.flags, 1, [(np.add, self.skipped, 1, self.skipped)]),
        ]

    def count_skipped(self) -> int:
        """Return how many steps were skipped; on a device this waits for it."""
        return int(self.skipped[0]) + (0 if self.on_device is None else int(self.on_device.skipped))

    def zero_gradients(self) -> None:
        """Set the gradients to zero, in flat buffers."""
        for bucket in self:
            assert bucket.flat is not None
            if bucket.flat.zero_gradients(bucket.params):
                bucket.arranged = None

    # State.

    def reread(self, state: ObservedState) -> None:
        """Follow the state as it is now, also where others have changed it."""
        for bucket in self:
            bucket.arranged = None
            for i, p in enumerate(bucket.params):
                entries = state.observe(p) if p in state else ParameterState(state.changes)
                bucket.state.reread(i, entries)
                if entries:
                    bucket.state.expose(i, state)

    def load(self, given: Mapping[Any, Any], state: ObservedState) -> None:
        """Replace all state by copies of what was given, which has been checked; an error leaves it as it was."""
        former: list[tuple[ParamBucket, tuple]] = []
        try:
            for bucket in self:
                former.append((bucket, bucket.state.forget()))  # noqa: PERF401 — all that were forgotten are restored
            for bucket in self:
                bucket.arranged = None
                for i, p in enumerate(bucket.params):
                    if given.get(p):
                        entries = state.observe(p)
                        bucket.state.take(i, given[p], copy=True)
                        others = {name: x for name, x in given[p].items() if not bucket.state.is_own(name)}
                        _copy_entries(others, entries)
                        bucket.state.expose(i, state)
            for p, _ in self._waiting:
                if given.get(p):
                    _copy_entries(given[p], state.observe(p))
        except BaseException:
            for bucket, before in former:
                bucket.state.restore(before)
            raise


def _copy_entries(given: Mapping[str, Any], entries: ParameterState) -> None:
    for name, value in given.items():
        entries.show(name, value.clone() if isinstance(value, torch.Tensor) else value)


def require_loadable(
    given: Mapping[Any, Any],
    groups: Sequence[dict[str, Any]],
    rule_of: Callable[[dict[str, Any]], Rule],
    names: StateNames,
    storage: Any,
) -> None:
    """Raise a LayoutError unless this is state of these groups' parameters, in values."""
    for k, group in enumerate(groups):
        rule, formats = rule_of(group), {}
        for p, label, name in zip(group["params"], labels_of(groups, k), names_of(group), strict=True):
            if may_wait(p) and not is_steppable(p):
                continue
            own = for_tensor(rule, name, tuple(p.shape))
            kind = p.dtype, None if own is rule else exact_key(own)
            if kind not in formats:  # once, and not for each of a model's tensors
                formats[kind] = formats_for(own, storage, p.dtype)
            _require_state(given.get(p, {}), p, formats[kind], names, storage, label)


def _require_state(given: Any, p: Any, formats: Mapping[str, str], names: StateNames, storage: Any, label: str) -> None:
    if not isinstance(given, Mapping):
        raise LayoutError(f"the state of {label} is not a dict.", got=repr(given)[:60], do=LOAD)
    if given.get("step") is not None:
        require_step_count(given["step"], f"the state 'step' of {label}")
    buffers = {names.of_value(b): b for b in formats if b != "g"}
    known = [*names.counts, *buffers]
    others = [entry for entry in given if entry not in known and not is_beside(entry)]
    if others and len(buffers) > 1 and not given.keys() & buffers.keys() - {"master"}:  # not someone's beside ours
        what = f"the state {others[0]!r} of {label} fits nothing here."
        raise LayoutError(what, expected=", ".join(known), do=LOAD)
    for entry, b in buffers.items():
        text = f"the state {entry!r} of {label}"
        if given.get(entry) is not None:
            require_values(given[entry], p, b, STORAGES[formats[b]], text, exactly=storage is None)
    for name, plane in STORAGES[formats["p"]].plane_names("p").items():
        beside = given.get(f"param.{plane.suffix}") if plane.view and name != "p" else None
        if beside is not None:
            require_beside(beside, p, element_type(plane), f"the state 'param.{plane.suffix}' of {label}")

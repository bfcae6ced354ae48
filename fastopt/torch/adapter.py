"""What all optimizers here share: torch's Optimizer around fastopt's steps."""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch._C._autograd import _profiler_enabled  # pyright: ignore[reportMissingImports]
from torch._compile import _disable_dynamo  # pyright: ignore[reportMissingImports]
from torch.optim.optimizer import (  # pyright: ignore[reportMissingImports]
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fastopt import devices, dispatch
from fastopt.errors import BackendError, LayoutError, SettingError, explain
from fastopt.kernels.launch import run
from fastopt.kernels.storage import STORAGES
from fastopt.torch.before import way_of
from fastopt.torch.kept import formats, require_state
from fastopt.torch.options import Rules, numbers
from fastopt.torch.part import Part
from fastopt.torch.tensors import is_wrapped, on_stream, require_parameter
from fastopt.torch.watched import Entries, Flag, Watched

_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()  # the optimizers of this process


class Settings(NamedTuple):
    """What fastopt's optimizers are told beyond torch's options."""

    flatten: bool
    storage: Any
    seed: int


class _Loaded:
    """A parameter's saved state on its way through torch's `load_state_dict`, which would cast its tensors."""

    def __init__(self, entries: Any):
        self.entries = entries


class Adapter(torch.optim.Optimizer):
    """torch's Optimizer whose `step` is one call of a compiled kernel for each group, whatever the number of tensors.

    `names` says what torch calls a rule's buffers, `entries` which scalars torch keeps as state beside the number of
    steps, and at what they start; `counted` whether torch keeps that number.
    """

    names: ClassVar[dict[str, str]] = {}
    entries: ClassVar[dict[str, float]] = {}
    counted: ClassVar[bool] = True
    _step_supports_amp_scaling = True  # so GradScaler leaves unscaling and skipping to the step

    def __init__(
        self, params: Any, *args: Any, flatten: bool = False, storage: Any = None, seed: int = 0, **options: Any
    ):
        where = type(self).__name__
        if not isinstance(flatten, bool):
            raise SettingError(explain(where, "flatten is not a bool.", got=repr(flatten), expected="False or True"))
        kept = dict(storage) if isinstance(storage, Mapping) else storage
        self._settings = Settings(flatten, kept, dispatch.seed_number(seed, where))
        self._parts: list[list[Part]] | None = None
        self._unlock()
        super().__init__(params, *args, **options)
        self._begin(self.state)
        if flatten:
            self._build()

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        theirs = next((base for base in cls.__mro__ if base.__module__.startswith("torch.optim")), None)
        own = theirs if theirs is not torch.optim.Optimizer else None
        if own is not None and "__init__" not in cls.__dict__:
            first = list(inspect.signature(own.__init__).parameters.values())[1:]
            named = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d) for n, d in _OWN.items()]
            cls.__signature__ = inspect.Signature([*first, *named])  # type: ignore[attr-defined]

    def _unlock(self) -> None:
        """Make the lock of the step, which a child that is forked makes anew: who held it may not be there."""
        self._lock = threading.RLock()
        _ALIVE.add(self)

    def _begin(self, state: Mapping) -> None:
        """Watch the state."""
        self._flag = Flag()
        self._watched = Entries(self._flag, state)
        self.state: Any = self._watched

    # Groups.

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch does.

        Raises:
            LayoutError: a parameter is sparse, complex, of an unknown type or device, does not fill one run of memory,
                is there twice, or does not fit the storage.
            SettingError: an option is out of its range or not supported. Nothing is changed then.

        """
        where, given = type(self).__name__, param_group["params"]
        if not isinstance(given, torch.Tensor | set):
            given = param_group["params"] = list(given)
            once = {id(p[1] if isinstance(p, tuple) else p) for p in given}
            if len(once) < len(given):
                what, got = "a parameter is in the group twice.", f"{len(given)} entries, {len(once)} of them different"
                raise LayoutError(explain(where, what, got=got, do="tie weights by one nn.Parameter, listed once"))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            rule = self._rule(numbers(group, self.defaults, where))
            for p, name in zip(group["params"], self._named(len(self.param_groups) - 1), strict=True):
                require_parameter(p, where, name)
                formats(rule, self._settings.storage, p.dtype, where)
                if self._settings.flatten and is_wrapped(p):
                    what, do = f"{name} is distributed: its memory is not ours to move.", "leave flatten=False"
                    raise LayoutError(explain(where, what, got=type(p).__name__, do=do))
        except BaseException:
            self.param_groups.pop()
            raise
        if self._parts is not None:
            self._build()

    def _named(self, k: int) -> list[str]:
        group = self.param_groups[k]
        names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
        return [f"{name} of group {k}" for name in names]

    def _build(self) -> None:
        """Sort the parameters of each group by type and device, and take over what state they have."""
        former = {id(part): part for parts in self._parts or [] for part in parts}
        known = {tuple(map(id, part.params)): part for part in former.values()}
        built, first = [], 0
        for k, group in enumerate(self.param_groups):
            sorts: dict[tuple, list[int]] = {}
            for i, p in enumerate(group["params"]):
                sorts.setdefault((p.dtype, p.device, is_wrapped(p)), []).append(i)
            names, parts = self._named(k), []
            for members in sorts.values():
                params = [group["params"][i] for i in members]
                part = known.get(tuple(map(id, params)))
                if part is None or int(part.offsets[0]) != first:
                    chosen = [names[i] for i in members]
                    part = Part(params, chosen, first, self.entries, flatten=self._settings.flatten)
                first = part.end
                parts.append(part)
            built.append(parts)
        self._rules = Rules(self.defaults, len(built), type(self).__name__)
        self._parts = built
        self._reread("step")

    def _reread(self, method: str) -> None:
        """Take over the state as it is now, whoever made it."""
        assert self._parts is not None
        if self.state is not self._watched:
            self._begin(self.state)
        for k, parts in enumerate(self._parts):
            rule = self._current(k, None)
            for part in parts:
                part.follow(rule, self._settings.storage, self._where(method))
                for i, p in enumerate(part.params):
                    entries = self._watch(p) if p in self.state else {}
                    part.reread(i, entries, self.names, self._where(method))
                    if entries:
                        part.expose(i, self.names, self.state, counted=self.counted)
        self._flag.raised = False

    def _watch(self, p: Any) -> Watched:
        """Give a parameter's entry in the state as a dict that is watched."""
        entries = self.state[p]
        if not isinstance(entries, Watched) or entries.flag is not self._flag:
            entries = Watched(self._flag, entries)
            dict.__setitem__(self.state, p, entries)
        return entries

    def _where(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    # Options.

    def _rule(self, options: dict[str, Any]) -> Any:
        """Make the rule of these options."""
        raise NotImplementedError

    def _advance(self, rule: Any, t: int, entries: dict[str, float]) -> tuple[Any, dict[str, float]]:
        """Give the rule of step t, and what torch keeps of it beside t."""
        return rule, entries

    def _current(self, k: int, unscale: float | None) -> Any:
        """Give the rule of a group as its options are now: the same object while they are the same."""
        return self._rules.current(k, self.param_groups[k], unscale, self._rule)

    # Steps.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: one compiled call for each group, and one more for each number of steps taken so far.

        Parameters whose gradient is None are left alone and do not count it. Gradients are read, never written.

        Args:
            closure: evaluates the model again and returns the loss, which is returned.

        Raises:
            LayoutError: a gradient is sparse, complex, of another type or order than its parameter, or memory overlaps.
            SettingError: an option is out of its range.
            In each case parameters, state and counts are as they were.

        """
        if (
            _profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        ):
            return self._observed() if closure is None else self._observed(closure)  # as a hook expects it
        loss = self._evaluated(closure)
        self._optimizer_step_code()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # or torch puts 10 µs around each step, for hooks and a profiler

    def _evaluated(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step, unless GradScaler says not to, and give the loss of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = getattr(self, "found_inf", None)
        if found is not None and float(found):
            return loss
        scale = getattr(self, "grad_scale", None)
        self._alone(None if scale is None else 1.0 / float(scale))
        return loss

    _observed = torch.optim.Optimizer.profile_hook_step(_evaluated)

    @_disable_dynamo  # torch.compile has nothing to gain here, and fails within
    def _alone(self, unscale: float | None) -> None:
        """Step while no other thread does, which would write to the same tables."""
        with torch.no_grad(), self._lock:
            try:
                self._step(unscale)
            finally:
                for parts in self._parts or ():
                    for part in parts:
                        part.release()

    def _step(self, unscale: float | None) -> None:
        where = self._where("step")
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            what = "the current stream is being captured into a CUDA graph, which would replay this step's t unchanged."
            raise BackendError(explain(where, what, do="step outside of the capture, or use fastopt.Optimizer"))
        parts = self._parts
        if parts is None or not self._same_groups(parts):
            self._build()
        elif self._flag.raised or self.state is not self._watched:
            self._reread("step")
        assert self._parts is not None
        for k, parts in enumerate(self._parts):
            rule = self._current(k, unscale)
            for part in parts:
                part.follow(rule, self._settings.storage, where)
                part.look(where)
        calls: dict[torch.device, list[tuple]] = {}
        for parts in self._parts:
            for part in parts:
                part.prepare(self.names, self.state, counted=self.counted, where=where)
                calls.setdefault(part.device, []).extend(part.calls(self._settings.seed, self._advance))
        for parts in self._parts:
            for part in parts:
                part.before.raise_versions()
        for device, prepared in calls.items():
            if device.type == "cpu":
                run(prepared)
            else:
                with on_stream(device, where):
                    devices.require_not_frozen(where)
                    run(prepared)

    def _same_groups(self, built: list[list[Part]]) -> bool:
        """Whether groups have the parameters they had; only lists that others hold can differ."""
        if len(built) != len(self.param_groups):
            return False
        for group, parts in zip(self.param_groups, built, strict=True):
            given = group["params"]
            if len(parts) != 1:
                if sorted(map(id, given)) != sorted(id(p) for part in parts for p in part.params):
                    return False
            elif not parts[0].holds(given):
                return False
        return True

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients: to None, as torch does, or to zero where they are in flat buffers.

        With `flatten`, a parameter that has had a gradient keeps one, so that the next is added up where the step reads
        it: what gets no gradient afterwards is updated with zeros, as with torch's set_to_none=False. A parameter that
        never had one still has none and is left alone.
        """
        if not self._settings.flatten:
            super().zero_grad(set_to_none)
            return
        with torch.no_grad():
            if self._parts is None or not self._same_groups(self._parts):
                self._build()
            for parts in self._parts or []:
                for part in parts:
                    assert part.flat is not None
                    part.flat.clear(part.params, set_to_none=set_to_none)

    # State.

    def _decoded(self) -> dict[Any, Any]:
        """Give the state as torch keeps it: plain dicts, without what only this memory layout has."""
        if self._parts is not None and (self._flag.raised or self.state is not self._watched):
            with torch.no_grad():
                self._reread("state_dict")
        state = {p: dict(x) if isinstance(x, dict) else x for p, x in self.state.items()}
        with torch.no_grad():
            for parts in self._parts or []:
                for part in parts:
                    for i, p in enumerate(part.params):
                        if p in state:
                            entries = part.decoded(i, state[p], self.names)
                            clones = [n for n in ("step", *self.entries) if n in entries]
                            state[p] = entries | {n: entries[n].clone() for n in clones}  # ours are views of one vector
        return state

    def state_dict(self) -> dict[str, Any]:
        """Give what `load_state_dict` of this optimizer, or of torch's of the same name, takes.

        State that is kept in fewer bits is given as float32 values, and so are parameters whose storage keeps more than
        the model sees, as "master". Tensors that are kept as they are are not copied.
        """
        watched, self.state = self.state, defaultdict(dict, self._decoded())
        try:
            return super().state_dict()
        finally:
            self.state = watched

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` of this optimizer, or of torch's of the same name, gave. Values are copied.

        A group that was saved with capturable=True, which says how torch took its steps, goes on without.

        Raises:
            LayoutError: state is of another shape or another optimizer, or would lose precision.
            SettingError: a saved option is not supported or out of its range.
            ValueError: the groups have other sizes. In each case nothing is changed.

        """
        hook = self.register_load_state_dict_pre_hook(_wrapped)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("defaults", "param_groups", "_settings")
        return {"state": self._decoded(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_settings" not in state:
            self._load(state["state"], state["param_groups"])
            return
        self._parts = None  # unpickled, or a deep copy
        self._unlock()
        super().__setstate__({**state, "state": defaultdict(dict, state["state"])})
        self._begin(self.state)
        if self._settings.flatten:
            self._build()

    @torch.no_grad()
    def _load(self, state: Mapping[Any, Any], groups: list[dict[str, Any]]) -> None:
        """Take over groups and state from torch's `load_state_dict`, all or nothing."""
        where, former = self._where("load_state_dict"), self.param_groups
        given = {p: x.entries if isinstance(x, _Loaded) else x for p, x in state.items()}
        self.param_groups = groups
        try:
            for k, group in enumerate(groups):
                rule = self._rule(numbers({**self.defaults, **group}, self.defaults, type(self).__name__))
                for p, name in zip(group["params"], self._named(k), strict=True):
                    kept = formats(rule, self._settings.storage, p.dtype, where)
                    self._require_state(given.get(p, {}), p, kept, where, name)
        except BaseException:
            self.param_groups = former
            raise
        super().__setstate__({"state": defaultdict(dict), "param_groups": groups})
        self._begin({p: x for p, x in given.items() if not isinstance(p, torch.Tensor)})
        if self._parts is None:
            self._build()
        self._rules = Rules(self.defaults, len(groups), type(self).__name__)
        for k, parts in enumerate(self._parts or []):
            rule = self._current(k, None)
            for part in parts:
                part.forget()
                part.follow(rule, self._settings.storage, where)
                for i, p in enumerate(part.params):
                    if given.get(p):
                        self._watch(p)
                        part.take(i, given[p], self.names, where=where, copy=True)
                        part.expose(i, self.names, self.state, counted=self.counted)

    def _require_state(self, given: Any, p: Any, kept: dict[str, str], where: str, name: str) -> None:
        """Raise a LayoutError unless this is a parameter's state, in values."""
        do = "load what this optimizer saved, or torch's"
        if not isinstance(given, Mapping):
            raise LayoutError(explain(where, f"the state of {name} is not a dict.", got=repr(given)[:60], do=do))
        if given.get("step") is not None and not _is_count(given["step"]):
            what, got = f"the state 'step' of {name} is no number of steps.", repr(given["step"])[:60]
            raise LayoutError(explain(where, what, got=got, expected="≥ 0", do=do))
        theirs = {self.names.get(b, b): b for b in kept if b not in ("p", "g")} | {"master": "p"}
        for entry, value in given.items():
            if entry.startswith("param."):  # of use to the storage that it is of, which has the master beside it
                continue
            text = f"the state {entry!r} of {name}"
            if entry not in theirs and entry not in ("step", *self.entries):
                what, known = f"{text} fits nothing here.", ", ".join(["step", *self.entries, *theirs])
                raise LayoutError(explain(where, what, expected=known, do=do))
            if entry in theirs and value is not None:
                b = theirs[entry]
                exactly = self._settings.storage is None
                require_state(value, p, b, STORAGES[kept[b]], where, text, exactly=exactly)

    def __repr__(self) -> str:
        memory = "flat buffers" if self._settings.flatten else "a table of the tensors"
        way = way_of([p for group in self.param_groups for p in group["params"]])
        return f"{super().__repr__()}\nfastopt: {memory}, looked at {way}, storage={self._settings.storage!r}"


def _unlock_all() -> None:
    for optimizer in list(_ALIVE):
        optimizer._unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


_OWN: dict[str, Any] = {"flatten": False, "storage": None, "seed": 0}


def _is_count(value: Any) -> bool:
    """Whether this is a number of steps, or a tensor of one."""
    try:
        return 0 <= float(value) < float("inf")
    except (TypeError, ValueError, RuntimeError):
        return False


def _wrapped(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hide the saved tensors from torch's `load_state_dict`, which casts them to the parameters' type."""
    groups = [{**g, "capturable": False} if g.get("capturable") else g for g in state_dict["param_groups"]]
    state = {k: _Loaded(x) for k, x in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": groups}

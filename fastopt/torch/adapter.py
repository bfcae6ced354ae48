"""What all optimizers here share: torch's Optimizer around fastopt's steps.

One class, and over 300 lines because torch prescribes its methods: each hands on to the options, buckets and state of
other files.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch._C._autograd import _profiler_enabled  # pyright: ignore[reportMissingImports]
from torch._compile import _disable_dynamo  # pyright: ignore[reportMissingImports]
from torch.optim.optimizer import (  # pyright: ignore[reportMissingImports]
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from fastopt.arrays.torch import CPU, gradient_type, is_distributed, running
from fastopt.checks import DECAY_RATE, POSITIVE, choice, number, seed_number
from fastopt.errors import BackendError, FastoptError, LayoutError, SettingError, raised_by
from fastopt.kernels.compiler.plan import plan
from fastopt.kernels.compiler.specialization import exact_key
from fastopt.kernels.launch import run
from fastopt.kernels.rules import EMA, ClipByGlobalNorm, SkipNonfinite
from fastopt.kernels.rules.rule import Rule, averages_of, for_tensor
from fastopt.torch.bucket import Regroup
from fastopt.torch.buckets import Buckets, labels_of, names_of, require_loadable
from fastopt.torch.device_numbers import DeviceScale, not_prepared
from fastopt.torch.guards import Outcome, guard_kind
from fastopt.torch.observed import Changes, ObservedState, ParameterState
from fastopt.torch.options import GroupRules, numbers
from fastopt.torch.requirements import formats_for, is_steppable, may_wait, require_parameter, require_rows
from fastopt.torch.state import Settings, StateNames
from fastopt.turn import restored_by

_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()  # the optimizers of this process


class _Loaded:
    """A parameter's saved state on its way through torch's `load_state_dict`, which would cast its tensors."""

    def __init__(self, entries: Any):
        self.entries = entries


class Adapter(torch.optim.Optimizer):
    """torch's Optimizer whose `step` is one call of a compiled kernel per group, whatever the number of tensors."""

    names: ClassVar[StateNames] = StateNames()
    _optional: frozenset[str] = frozenset()  # options that only some of the groups have
    _observed_state: Any = None

    def __init__(
        self,
        params: Any,
        *args: Any,
        flatten: bool = False,
        storage: Any = None,
        seed: int = 0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        ema: float | None = None,
        **options: Any,
    ):
        with raised_by(type(self).__name__):
            own = dict(storage) if isinstance(storage, Mapping) else storage
            norm = None if max_norm is None else number("max_norm", max_norm, POSITIVE)
            self._settings = Settings(
                choice("flatten", flatten),
                own,
                seed_number(seed),
                max_norm=norm,
                skip_nonfinite=choice("skip_nonfinite", skip_nonfinite),
                ema=None if ema is None else number("ema", ema, DECAY_RATE),
            )
            self._averaged = False  # whether averages are in place of the parameters
            self._buckets: Buckets | None = None
            self._backward: Any = None  # what steps in the backward pass: see in_backward.py
            self._renew_lock()
            self._graphs: list[Any] = []  # the memory of captured steps
            theirs = inspect.signature(super().__init__).parameters
            # Of a class that torch does not have, or has without, it is an option all the same.
            self._adds_capturable = "capturable" not in theirs and choice(
                "capturable", options.pop("capturable", False)
            )
            super().__init__(params, *args, **options)
            self._observe(self.state)
            if self._settings.flatten:
                self._build()

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        theirs = next((base for base in cls.__mro__ if base.__module__.startswith("torch.optim")), None)
        own = theirs if theirs is not torch.optim.Optimizer else None
        if own is not None and "__init__" not in cls.__dict__:
            first = list(inspect.signature(own.__init__).parameters.values())[1:]
            named = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d) for n, d in _OWN.items()]
            cls.__signature__ = inspect.Signature([*first, *named])  # type: ignore[attr-defined]

    def _renew_lock(self) -> None:
        """Make the lock of the step, which a forked child makes anew: the thread that held it may not be there."""
        self._lock = threading.RLock()
        if self._observed_state is not None:
            self._observed_state.changes.lock = self._lock
        _ALIVE.add(self)

    def _observe(self, state: Mapping) -> None:
        """Make the state one that tells when others change it."""
        self.state: Any = ObservedState(Changes(self._lock), state)
        self._observed_state = self.state

    # Groups.

    @torch.no_grad()
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch does.

        Raises:
            LayoutError: a parameter is sparse, complex, of an unknown type or device, does not fill one run of memory,
                is there twice, or does not fit the storage.
            SettingError: an option is out of its range or not supported. Nothing is changed then.

        """
        with raised_by(type(self).__name__):
            self._require_own_values()
            if "_options" not in self.__dict__:
                self._options = tuple(self.defaults)  # torch's; what others add to `defaults` later is theirs
            if self.__dict__.get("_adds_capturable"):
                self.defaults["capturable"] = True
            for name in ("max_norm", "skip_nonfinite", "ema"):
                if name in param_group and name not in self._options:
                    what = f"{name} is for all groups, and no group has one of its own."
                    raise SettingError(what, do=f"pass it to {type(self).__name__}(…, {name}=…)")
            given = param_group["params"]
            if not isinstance(given, torch.Tensor | set):
                given = param_group["params"] = list(given)
                once = {id(p[1] if isinstance(p, tuple) else p) for p in given}
                if len(once) < len(given):
                    what, got = "a parameter is in the group twice.", f"{len(given)} entries, {len(once)} different"
                    raise LayoutError(what, got=got, do="tie weights by one nn.Parameter, listed once")
            super().add_param_group(param_group)
            try:
                self._require_group(len(self.param_groups) - 1)
                if self._buckets is not None:
                    self._build()
            except BaseException:
                self.param_groups.pop()
                raise

    def _require_group(self, k: int) -> None:
        group, settings = self.param_groups[k], self._settings
        rule, labels, takes_matrices = self._rule_of(group), labels_of(self.param_groups, k), {}
        for p, label, name in zip(group["params"], labels, names_of(group), strict=True):
            if may_wait(p) and not is_steppable(p):
                continue
            require_parameter(p, label)
            own = for_tensor(rule, name, tuple(p.shape))
            formats = formats_for(own, settings.storage, p.dtype, gradient_type(p))
            kind = p.dtype, gradient_type(p), None if own is rule else exact_key(own)
            if kind not in takes_matrices:
                takes_matrices[kind] = bool(plan(own, tuple(formats.items())).program.matrices)
            if takes_matrices[kind]:
                require_rows(p, label)
                if group.get("capturable"):
                    what = f"{type(self).__name__} computes with a library of matrices, which is not captured."
                    raise SettingError(what, do="leave capturable=False")
            if settings.flatten and is_distributed(p):
                what = f"{label} is distributed: its memory is not ours to move."
                raise LayoutError(what, got=type(p).__name__, do="leave flatten=False")

    # Options.

    def _rule(self, options: dict[str, Any]) -> Any:
        """Make the rule of these options."""
        raise NotImplementedError

    def _advance(self, rule: Rule, t: int, entries: dict[str, Any]) -> tuple[Rule, dict[str, Any]]:
        """Return the rule of step t, and torch's other scalars after it."""
        return rule, entries

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """Make the rule of a group's options."""
        return self._whole_rule(numbers({**self.defaults, **group}, self._options, type(self).__name__, self._optional))

    def _whole_rule(self, options: dict[str, Any]) -> Any:
        """Make the rule of these options, with what fastopt puts around it."""
        rule, settings = self._rule(options), self._settings
        if settings.ema is not None:
            rule = EMA(rule, settings.ema)
        if settings.max_norm is not None:
            rule = ClipByGlobalNorm(rule, settings.max_norm)
        return SkipNonfinite(rule) if settings.skip_nonfinite else rule

    def _current_rules(self, unscale: Any) -> list[Rule]:
        """Return the rule of each group as its options are now: the same object while they are the same."""
        rules, make = self._rules, self._whole_rule
        return [rules.current(k, group, unscale, make) for k, group in enumerate(self.param_groups)]

    @property
    def grad_norm(self) -> Any:
        """Norm of all gradients at the last step, before they were clipped: a tensor without dimensions.

        None before the first step, and without max_norm or a ClipByGlobalNorm as the rule of `Fused`. Under GradScaler
        it is that of unscaled gradients.
        """
        if self._buckets is None or self._buckets.squared_norm is None:
            return None
        total, precision = self._buckets.squared_norm
        if isinstance(total, torch.Tensor):  # on a device, for which nothing waits
            return total.to(getattr(torch, precision.name)).sqrt()[0]
        return torch.from_numpy(np.sqrt(total.astype(precision)))[0]

    @property
    def skipped(self) -> int:
        """Steps that were not taken because of their gradients, with skip_nonfinite; `state` does not count them.

        On a device reading it waits for the device.
        """
        return 0 if self._buckets is None else self._buckets.count_skipped()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages of the parameters in their place for the block, as for evaluation.

        They are those of `ema=`, or of a rule that keeps some, as ScheduleFreeAdamW. A parameter that has not been
        stepped stays as it is. No step can be taken meanwhile, nor state saved or loaded; after the block all is as it
        was, bit for bit. Takes the memory of the parameters once more.

        Raises:
            SettingError: there are no averages, or they are in place already.

        """
        with raised_by(f"{type(self).__name__}.averaged"), self._lock, torch.no_grad():
            kept = self._averages()
            if not kept:
                do = "build the optimizer with ema=0.999, for example, and take a step"
                raise SettingError("there are no averages of these parameters.", do=do)
        with restored_by(lambda: self._put_back(kept)):
            self._put_averages(kept)
            yield

    def _averages(self) -> list[tuple[Any, Any, Any]]:
        """Return parameters, copies of their values, and their averages."""
        self._require_own_values()
        kept = []
        for bucket in self._buckets or ():
            if (found := averages_of(bucket.plan.rule)) is None:
                continue
            averaged, buffers = found
            for p in bucket.params:
                state = self.state.get(p, {})
                if state and float(state.get("step", 0)):
                    precise = state["master"] if "master" in state else p.detach()
                    values = [precise if b == "p" else state[self.names.of_value(b)] for b in buffers]
                    own = {x.dtype for x in values if x.is_floating_point()}
                    computes = torch.float64 if torch.float64 in own else torch.float32
                    kept.append((p, p.detach().clone(), averaged(*(x.to(computes) for x in values))))
        return kept

    def _put_averages(self, kept: list[tuple[Any, Any, Any]]) -> None:
        """Put averages in place of the parameters."""
        with self._lock, torch.no_grad():
            self._averaged = True
            for p, _, average in kept:
                p.copy_(average)

    def _put_back(self, kept: list[tuple[Any, Any, Any]]) -> None:
        """Put parameters back in place of their averages."""
        with self._lock, torch.no_grad():
            for p, own, _ in kept:
                if p.shape == own.shape:  # also where it was converted meanwhile, as by model.to(torch.bfloat16)
                    p.copy_(own)
                else:
                    p.data = own
            self._averaged = False

    def _require_own_values(self) -> None:
        """Raise a SettingError while averages are in place of the parameters."""
        if self._averaged:
            raise SettingError("the averages of the parameters are in their place.", do=self._where_to_train())

    def _where_to_train(self) -> str:
        """Say how the parameters come back."""
        return "do it after the block"

    # Buckets.

    @torch.no_grad()
    def _build(self) -> None:
        """Sort the parameters of each group into buckets, with the state that they have."""
        self._rules = GroupRules(self._options, len(self.param_groups), type(self).__name__, self._optional)
        rules = self._current_rules(None)
        self._buckets = Buckets(self.param_groups, rules, self.names, self._settings, self._buckets)
        self._reread(self._buckets)

    @torch.no_grad()
    def _reread(self, buckets: Buckets) -> None:
        """Follow the state as it is now, also where others have changed it."""
        if self.state is not self._observed_state:
            self._observed_state.store_changed()
            self._observe(self.state)
        buckets.follow(self._current_rules(None))
        buckets.reread(self.state)
        self.state.changes.seen = False

    def _up_to_date(self) -> Buckets:
        """Return the buckets of the groups and the state as they are now."""
        buckets = self._buckets
        if buckets is None or not buckets.are_of(self.param_groups):
            self._build()
        elif self._observed_state.changes.seen or self.state is not self._observed_state:
            self._reread(buckets)
        if self._observed_state.changes.decoded:
            self._observed_state.store_changed()
        assert self._buckets is not None
        return self._buckets

    # Steps.

    def step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D417 — the arguments are in __signature__
        """Take one step: one compiled call per group, and one more for each number of steps taken so far.

        Parameters whose gradient is None are left alone and do not count it. Gradients are read, never written.

        Args:
            closure: evaluates the model again and returns the loss, which is returned.

        Raises:
            LayoutError: a gradient is sparse, complex, of another dtype than its storage or in another order than its
                parameter; or memory overlaps.
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
            return self._hooked(*args, **kwargs)  # hooks see how it was called
        loss = self._evaluate(*args, **kwargs)
        self._optimizer_step_code()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # or torch puts 10 µs around each step, for hooks and a profiler
    step.__signature__ = inspect.signature(torch.optim.Optimizer.step)  # type: ignore[attr-defined]

    def _evaluate(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step, unless GradScaler says not to, and return the loss of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._backward is not None:
            self._backward.finish()
            return loss
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if (found is not None or scale is not None) and all(g.get("capturable") for g in self.param_groups):
            self._locked_step(DeviceScale(scale, found))  # nothing waits for the device
            return loss
        if found is not None and float(found):
            return loss
        self._locked_step(None if scale is None else 1.0 / float(scale))
        return loss

    _hooked = torch.optim.Optimizer.profile_hook_step(_evaluate)

    @_disable_dynamo  # torch.compile has nothing to gain here, and fails within
    def _locked_step(self, unscale: Any, only: Any = None, *, same: bool = False, after: Sequence[tuple] = ()) -> None:
        """Step while no other thread does, which would write to the same tables; `after` are calls that belong to it.

        A parameter is stepped by itself if it is named by `only`.
        """
        with self._lock:
            try:
                if self._averaged:
                    self._require_own_values()
                self._step(unscale, only, same, after)
            except FastoptError as error:
                error.where = error.where or f"{type(self).__name__}.step"
                raise

    def _step(self, unscale: Any, only: Any, same: bool, after: Sequence[tuple]) -> None:
        captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if captured:
            self._require_prepared()
        buckets = self._buckets
        if buckets is None or not same:
            buckets = self._up_to_date()
            buckets.follow(self._current_rules(unscale))
        elif self._observed_state.changes.decoded:
            self._observed_state.store_changed()
        try:
            checks = buckets.check(only)  # which hold the gradients until the step is done
        except Regroup:
            if captured:
                raise not_prepared("a parameter has become another one since the last step.") from None
            self._build()
            buckets = self._up_to_date()
            checks = buckets.check(only)
        if captured and any(check.outcome is Outcome.CHANGED for _, check in checks):
            raise not_prepared(
                "other parameters have gradients than at the last step, or options or memory are others."
            )
        prepared = buckets.calls(checks, self.state, self._advance, self.param_groups, unscale, captured=captured)
        if captured:
            self._graphs.append([buckets.on_device, *(bucket.memory() for bucket in buckets)])
        if after:
            prepared.setdefault(next(reversed(prepared), CPU), []).extend(after)
        for device, calls in prepared.items():
            with running(device):
                run(calls)

    def _require_prepared(self) -> None:
        """Raise a BackendError unless all that a step prepares outside of a capture is there."""
        if not all(group.get("capturable") for group in self.param_groups):
            what = "the current stream is being captured into a CUDA graph, which would replay this step's t unchanged."
            raise BackendError(what, do="step outside of the capture, or pass capturable=True")
        observed = self._observed_state
        if self._buckets is None or not self._buckets.are_of(self.param_groups):
            raise not_prepared("the groups have changed since the last step, or there was none.")
        written = any(not entries.is_read_only(name) for entries, name in observed.changes.decoded)
        if observed.changes.seen or written or self.state is not observed:
            raise not_prepared("the state was written since the last step.")

    def step_apart(self, backward: Any) -> None:
        """Let the backward pass step each parameter by itself; `backward.finish()` is called by `step`."""
        if any(group.get("capturable") for group in self.param_groups):
            raise SettingError("capturable=True is not supported in the backward pass.", do="leave capturable=False")
        self._backward, self._settings, self._buckets = backward, self._settings._replace(apart=True), None

    def step_one(self, p: Any, *, same: bool) -> None:
        """Step one parameter, after `step_apart`; `same` says that groups and options are as at the last call."""
        with torch.no_grad():
            self._locked_step(None, p, same=same)

    def step_with(self, after: Sequence[tuple]) -> None:
        """Step all, without hooks, and make these calls of compiled functions; an interrupt finds all done, or none."""
        with torch.no_grad():
            self._locked_step(None, after=after)

    def apart_from_steps(self) -> Any:
        """Return a context in which no other thread steps."""
        return self._lock

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients: to None, or to zero, as torch does.

        With `flatten` zeros lie in a flat buffer, where the next backward pass adds to them: the step then reads one
        row. What backward makes after None lies where torch allocates it, and the step reads it there.
        """
        if set_to_none or not self._settings.flatten:
            super().zero_grad(set_to_none)
            return
        with torch.no_grad():
            if self._buckets is None or not self._buckets.are_of(self.param_groups):
                self._build()
            assert self._buckets is not None
            self._buckets.zero_gradients()

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` of this optimizer, or of torch's of the same name, takes.

        State that is stored in fewer bits comes as float32 values, and so do parameters whose storage has more than
        the model sees, as "master". Tensors that are stored as they are are not copied.
        """
        with raised_by(f"{type(self).__name__}.state_dict"), self._lock:
            self._require_own_values()
            hook = self.register_state_dict_post_hook(_plain_state, prepend=True)
            try:
                return super().state_dict()
            finally:
                hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of this optimizer, or of torch's of the same name, returned. Values are copied.

        A group that was saved with capturable=True, which says how its steps were taken, goes on without where its
        parameters are not on a CUDA device.

        Raises:
            LayoutError: state is of another shape or another optimizer, or would lose precision.
            SettingError: a saved option is not supported or out of its range.
            ValueError: the groups have other sizes. In each case nothing is changed.

        """
        hook = self.register_load_state_dict_pre_hook(_hide_tensors)
        try:
            with raised_by(f"{type(self).__name__}.load_state_dict"):
                self._require_own_values()
                super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        saved = ("defaults", "param_groups", "_settings", "_options")
        with raised_by(type(self).__name__), self._lock:
            self._require_own_values()
            return {"state": _snapshot(self.state), **{name: getattr(self, name) for name in saved}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_settings" not in state:
            self._load(state["state"], state["param_groups"])
            return
        self._buckets = self._backward = None  # unpickled, or a deep copy
        self._averaged = False
        self._graphs = []
        self._settings = state["_settings"]._replace(apart=False)
        self._options = tuple(state.get("_options", state["defaults"]))  # 0.1 had none
        self._renew_lock()
        super().__setstate__({**state, "state": defaultdict(dict, state["state"])})
        self._observe(self.state)
        if self._settings.flatten:
            self._build()

    @torch.no_grad()
    def _load(self, state: Mapping[Any, Any], groups: list[dict[str, Any]]) -> None:
        """Take groups and state from torch's `load_state_dict`, all or nothing."""
        given = {p: x.entries if isinstance(x, _Loaded) else x for p, x in state.items()}
        for group in groups:  # of torch's optimizer of the same name, which has no options of ours
            for name in self.defaults.keys() & set(self._options):
                group.setdefault(name, self.defaults[name])
        require_loadable(given, groups, self._rule_of, self.names, self._settings.storage)
        if self._buckets is None:
            self._build()
        assert self._buckets is not None
        former = self.param_groups, self.state, self._observed_state
        try:
            super().__setstate__({"state": defaultdict(dict), "param_groups": groups})
            self._observe({p: x for p, x in given.items() if not isinstance(p, torch.Tensor)})
            self._rules = GroupRules(self._options, len(groups), type(self).__name__, self._optional)
            self._buckets.follow(self._current_rules(None))
            self._buckets.load(given, self.state)
        except BaseException:
            self.param_groups, self.state, self._observed_state = former
            self._rules = GroupRules(self._options, len(self.param_groups), type(self).__name__, self._optional)
            raise

    def __repr__(self) -> str:
        memory = "flat buffers" if self._settings.flatten else "a table of the tensors"
        kind = guard_kind([p for group in self.param_groups for p in group["params"] if is_steppable(p)])
        return f"{super().__repr__()}\nfastopt: {memory}, guards: {kind}, storage={self._settings.storage!r}"


def _renew_locks() -> None:
    for optimizer in list(_ALIVE):
        optimizer._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


_OWN: dict[str, Any] = {
    "flatten": False,
    "storage": None,
    "seed": 0,
    "max_norm": None,
    "skip_nonfinite": False,
    "ema": None,
}


def _snapshot(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return plain dicts of values for what a state holds."""
    plain = {p: x.plain() if isinstance(x, ParameterState) else x for p, x in state.items()}
    return {p: dict(x) if isinstance(x, dict) else x for p, x in plain.items()}


def _plain_state(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Replace what torch's `state_dict` took from the state, before others' hooks see it."""
    state_dict["state"] = _snapshot(state_dict["state"])


def _hide_tensors(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Hide the saved tensors from torch's `load_state_dict`, which casts them to the parameters' type."""
    groups = []
    for k, group in enumerate(state_dict["param_groups"]):
        own = optimizer.param_groups[k] if k < len(optimizer.param_groups) else {"params": ()}
        capturable = group.get("capturable", own.get("capturable"))
        on_device = all(p.device.type == "cuda" for p in own["params"])
        groups.append(group if capturable is None else {**group, "capturable": bool(capturable) and on_device})
    state = {k: _Loaded(x) for k, x in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": groups}

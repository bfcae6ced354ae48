"""A bucket: the parameters of one group that are of one type, device and kind. Their step is one launch over rows.

Each parameter has a row: where it, its gradient and its state lie. Rows are arranged once and hold as long as a guard
finds that nothing has changed (`guards`). In flat buffers neighbours are one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.autograd.graph import increment_version  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import (
    TorchMatrices,
    element_type,
    first_element,
    gradient_type,
    is_distributed,
    local,
    placed_as,
    running,
)
from fastopt.errors import LayoutError, SettingError
from fastopt.kernels.backends import bind, choose
from fastopt.kernels.compiler.plan import Plan, host_scalars, make_plan, plan
from fastopt.kernels.compiler.specialization import specialization_key
from fastopt.kernels.formats import STORAGES, TILE
from fastopt.kernels.launch import Launch, NumbersOfRows, Rows
from fastopt.kernels.rules.ema import AVERAGE
from fastopt.kernels.rules.rule import Rule, for_tensor
from fastopt.store import Extents
from fastopt.torch.device_numbers import (
    Advance,
    DeviceNumbers,
    StepNumbers,
    device_inputs,
    keys_on_device,
    not_prepared,
)
from fastopt.torch.flat import ALIGNED, TIE, FlatBuffers, require_separate
from fastopt.torch.guards import Check, Outcome, PythonGuard, make_guard
from fastopt.torch.requirements import (
    formats_for,
    require_capturable,
    require_gradient,
    require_parameter,
    require_rows,
    require_unchanged,
)
from fastopt.torch.state import ParamState, Settings, StateNames


@dataclass
class Cohort:
    """Parameters that have taken equally many steps, and so share the scalars of the next.

    Where counts are on a device all parameters are of one, and have scalars of their own: no graph knows the counts.
    """

    members: Any  # which of the bucket's parameters: an array, or a slice of them all
    rows: np.ndarray  # the active parameter at which each row begins
    launch: Launch
    counted: dict[str, float]  # the steps taken, and torch's other scalars; where they are on a device, as arranged
    members_on_device: Any = None  # where they are on a device: the members, …
    order: Any = None  # … and which of them are the launch's rows, if not all


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Everything that is prepared for a step, as long as its guard finds nothing changed."""

    active: list[int]  # the parameters that have a gradient
    guard: PythonGuard
    gradients_at: np.ndarray  # the addresses that the rows have
    written: Extents
    gradient_bytes: np.ndarray
    put_at: np.ndarray  # in flat buffers: the addresses at which gradients were put
    cohorts: list[Cohort]
    versions: list[int]  # of the step counts
    versioned: list[Any]  # the active parameters whose version autograd counts


class Regroup(Exception):  # noqa: N818 — not an error
    """A parameter is of another kind than its bucket's now: the buckets must be made anew."""


def kind_of(p: Any) -> tuple:
    """Return what the parameters of a bucket have in common: type, device, the gradients' type, whether distributed."""
    return p.dtype, p.device, gradient_type(p), is_distributed(p)


class ParamBucket:
    """Parameters of one group and kind; `labels` are what errors call them, `first` is an offset for noise."""

    def __init__(
        self,
        params: Sequence[Any],
        labels: Sequence[str],
        first: int,
        names: StateNames,
        rule: Rule,
        settings: Settings,
        *,
        capturable: bool = False,
    ):
        self.params, self.labels, self.kind = list(params), list(labels), kind_of(params[0])
        self._given, rule = rule, self._own(rule)
        self._dtype, self.device, self._gradients, self._distributed = self.kind
        self._storage, self.capturable, self._apart, self.group = settings.storage, capturable, settings.apart, 0
        self._numbers: tuple[Rule, DeviceNumbers] | None = None
        storage = settings.storage
        tensors = [local(p) for p in params]
        self._templates = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors]
        self.offsets = first + np.cumsum([0, *(-(-p.numel() // TILE) * TILE for p in self.params)])
        # Noise goes by the element's place in the whole tensor, so that the number of processes does not decide it.
        starts = np.array([-(-first_element(p) // TILE) * TILE for p in self.params], np.int64)
        self._noise_offsets = self.offsets[:-1] + starts
        formats = formats_for(rule, storage, self._dtype, self._gradients)
        self._key, self.plan = specialization_key(rule), plan(rule, tuple(formats.items()))
        self._require_totals(self.plan)
        self._gradient_type = element_type(STORAGES[formats["g"]].planes[0])
        self.flat: FlatBuffers | None = None
        if settings.flatten:
            require_separate(self.params, self.labels)
            program = self.plan.program
            align = TILE if program.noise or program.tiled or storage is not None else ALIGNED
            self.flat = FlatBuffers(self.params, align, self._gradient_type)
        self.state = ParamState(params, labels, names, formats, self.flat, self.device if capturable else None)
        self._use(self.plan)
        self.arranged: Arrangement | None = None

    @property
    def end(self) -> int:
        """The offset after the last parameter."""
        return int(self.offsets[-1])

    # The rule.

    def follow(self, rule: Rule) -> None:
        """Take another rule, or the same again."""
        if rule is self._given:
            return
        self._given, rule = rule, self._own(rule)
        key = specialization_key(rule)
        if key == self._key:  # numbers alone have changed, as a scheduler changes them at each step
            self.plan = make_plan(self.plan.program, rule)
            return
        formats = formats_for(rule, self._storage, self._dtype, self._gradients)
        self.state.use_formats(formats)
        planned = plan(rule, tuple(formats.items()))
        self._require_totals(planned)
        if planned.program is not self.plan.program:
            self.arranged = None
        self._key, self.plan = key, planned
        self._use(planned)

    def _require_totals(self, planned: Plan) -> None:
        """Raise an error if the rule takes totals that nobody takes here."""
        program, where = planned.program, f"{planned.program.rule} takes totals, which"
        if program.writes_gradients:
            what = f"{program.rule} sets gradients to zero, which here are others' and only read."
            raise SettingError(what, do="call zero_grad()")
        if not (program.totals or program.matrices):
            return
        if program.matrices:
            for p, label in zip(self.params, self.labels, strict=True):
                require_rows(p, label)
            if self.capturable:
                what = f"{program.rule} computes with a library of matrices, which is not captured."
                raise SettingError(what, do="leave capturable=False")
        if program.condition is not None and self.device.type != "cpu" and not self.capturable:
            what = f"{program.rule} skips steps, and on a device only that knows which."
            raise SettingError(what, do="pass capturable=True")
        if self._distributed:
            raise LayoutError(f"{where} would be of this process's part alone.", do="clip in a pass of its own")
        if self._apart and program.over_all:
            what = f"{where} are over all parameters, but the backward pass steps each by itself."
            raise SettingError(what, do="step after the backward pass, or clip by value")

    def _use(self, planned: Plan) -> None:
        program = planned.program
        lacking = program.noise or program.condition is not None or AVERAGE in program.state  # without a count
        self.state.shows_step = self.state.names.counted or lacking
        self._gradient_column = next(k for k, b in enumerate(planned.program.buffers) if b.buffer == "g")

    def _own(self, rule: Rule) -> Rule:
        """Return what the group's rule is for these parameters."""
        return for_tensor(rule, self.labels[0].rpartition(" of group ")[0], tuple(self.params[0].shape))

    # What has changed since the last step.

    def check(self) -> Check:
        """Compare everything with the last arrangement, and raise a LayoutError where a step is impossible."""
        arranged, grads = self.arranged, None
        if self._distributed:  # all of them, here and once: other processes do so too, whatever each finds
            with torch.no_grad():
                grads = [placed_as(p.grad, p) for p in self.params]
        if arranged is not None and self.state.counts.versions == arranged.versions:
            own = None if grads is None else [grads[i] for i in arranged.active]
            check = arranged.guard.check(arranged.gradients_at, own)
            if check.outcome is Outcome.SAME:
                return check
            if check.outcome is Outcome.MOVED and self._may_move(arranged, check.addresses):
                moved = np.flatnonzero(check.addresses != arranged.gradients_at)
                self._require_apart(arranged, check.addresses, moved)
                return check
        self.arranged = None
        return self._check_all(grads or [p.grad for p in self.params])

    @torch.no_grad()
    def _check_all(self, grads: list[Any]) -> Check:
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            if g is not None:
                require_parameter(p, self.labels[i])
                self._require_unchanged(i)
                if gradient_type(p) != self._gradients:
                    raise Regroup
                require_gradient(g, p, self._gradient_type, self.labels[i])
                self.state.require_own_planes(i)
        return Check(Outcome.CHANGED, grads)

    def _require_unchanged(self, i: int) -> None:
        """Raise a LayoutError if a parameter has changed but for what it may while it has no state."""
        own = local(self.params[i])
        same = own.dtype == self._templates[i].dtype and own.device == self.device
        if same and own.shape == self._templates[i].shape and self.flat is None and not self.state.own_planes(i):
            self._templates[i] = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device="meta")
        require_unchanged(own, self._templates[i], self.device, self.labels[i])

    def _may_move(self, arranged: Arrangement, addresses: np.ndarray) -> bool:
        """Whether the rows stay what they are though gradients lie elsewhere: in flat buffers neighbours are one."""
        if self.flat is None:
            return True
        were, are = (at == arranged.put_at for at in (arranged.guard.g_at, addresses))
        return not ((were != are) & (arranged.gradient_bytes > 0)).any()

    def _require_apart(self, arranged: Arrangement, addresses: np.ndarray, which: np.ndarray) -> None:
        """Raise a LayoutError if one of these gradients lies in memory that the step writes."""
        touched = arranged.written.touched_by(addresses[which], arranged.gradient_bytes[which])
        if touched.any():
            label = self.labels[arranged.active[int(which[touched][0])]]
            what = f"the gradient of {label} lies in memory of a parameter or its state."
            raise LayoutError(what, do="give it memory of its own")

    # Rows.

    def prepare(self, check: Check, state: Any) -> Arrangement:
        """Arrange the step for what was checked, with the state that is missing shown in the optimizer's `state`.

        Where torch does not keep the number of steps, as torch.optim.SGD, the step that makes the state is the first.
        """
        arranged = self.arranged
        if arranged is None:
            active = [i for i, g in enumerate(check.gradients) if g is not None]
            self._make_state(active, state)
            arranged = self.arranged = self._arrange(active, [check.gradients[i] for i in active])
        elif check.outcome is Outcome.MOVED:
            for cohort in arranged.cohorts:
                cohort.launch.set_addresses(self._gradient_column, check.addresses[cohort.rows])
            arranged = self.arranged = replace(arranged, gradients_at=check.addresses)
        return arranged

    @torch.no_grad()
    def _make_state(self, active: list[int], state: Any) -> None:
        """Make the state that active parameters lack, and show it."""
        initial = self.plan.initial_state()
        for i in active:
            self.state.settle(i)
            made = [b for b in ("p", *self.plan.program.state) if self.state.make(i, b, initial.get(b, 0.0))]
            count = self.state.counts.vectors["step"]
            if not self.state.names.counted and set(made) - {"p", AVERAGE}:
                count[i] = 0
            if AVERAGE in made and count[i]:  # of a run that had none
                self.state.start_as_parameter(i, AVERAGE)
            self.state.expose(i, state)

    @torch.no_grad()
    def _arrange(self, active: list[int], grads: list[Any]) -> Arrangement:
        """Make rows of the active parameters and their gradients."""
        program, store, chosen, which = self.plan.program, self.state.store, set(active), np.array(active, np.intp)
        params, idle = [self.params[i] for i in active], [p for i, p in enumerate(self.params) if i not in chosen]
        forward = store.forward("p")
        stored = [b.name for b in program.buffers if b.name != forward and b.buffer != "g"]
        guard = make_guard(params, idle, [local(store.planes[i][name]) for i in active for name in stored], grads)
        state_at = guard.s_at.reshape(len(active), len(stored)).T
        known = {forward: guard.p_at, "g": guard.g_at, **dict(zip(stored, state_at, strict=True))}
        addresses = np.array([known[b.name] for b in program.buffers], np.int64).T
        sizes = np.array([store.sizes[i] for i in active], np.int64)
        written = self._written(addresses, sizes, active)
        placed = addresses if self.flat is None else self.flat.addresses(which, program.buffers)
        arrangement = Arrangement(
            active,
            guard,
            guard.g_at,
            written,
            gradient_bytes=np.array([g.numel() * g.element_size() for g in map(local, grads)], np.int64),
            put_at=placed[:, self._gradient_column],
            cohorts=self._cohorts(which, sizes, addresses, (addresses == placed).all(1)),
            versions=self.state.counts.versions,
            versioned=[p for p in params if not p.is_inference()],
        )
        self._require_apart(arrangement, guard.g_at, np.arange(len(active)))
        return arrangement

    def _written(self, addresses: np.ndarray, sizes: np.ndarray, active: list[int]) -> Extents:
        """Return the memory that the step writes, or raise a LayoutError if two tensors of it overlap."""
        written = [(k, b) for k, b in enumerate(self.plan.program.buffers) if b.buffer != "g"]
        starts = [x for k, _ in written for x in addresses[:, k].tolist()]
        bytes_of = [b.size(n) * b.dtype.itemsize for _, b in written for n in sizes.tolist()]
        extents = Extents(starts, bytes_of)
        if extents.overlap:
            first, second = (self.labels[active[k % len(active)]] for k in extents.overlap)
            raise LayoutError(f"the memory of {first} and {second}, or of their state, overlaps.", do=TIE)
        return extents

    def _cohorts(
        self, which: np.ndarray, sizes: np.ndarray, addresses: np.ndarray, in_place: np.ndarray
    ) -> list[Cohort]:
        """Divide the active parameters by the steps that they have taken, each part with a launch of its own."""
        vectors, program, equal = self.state.counts.vectors, self.plan.program, {}
        if self.capturable:
            return [self._cohort_on_device(which, sizes, addresses)]
        for k, counted in enumerate(zip(*(v.numpy()[which].tolist() for v in vectors.values()), strict=True)):
            equal.setdefault(counted, []).append(k)
        cohorts = []
        for counted, alike in equal.items():
            rows, lengths = np.array(alike), sizes[alike]
            if self.flat is not None and not (program.totals or program.matrices):  # which are of tensors
                rows = rows[lengths > 0]
                rows, lengths = self.flat.merged(rows, which, in_place, sizes, gaps=not program.tiled)
            row_set = Rows(lengths, self._noise_offsets[which[rows]], addresses[rows], None, self.device.index or 0)
            if program.matrices:
                shapes = [tuple(self.params[i].shape) for i in which[rows].tolist()]
                row_set = row_set._replace(shapes=shapes, library=TorchMatrices())
            members = slice(None) if len(alike) == len(self.params) else which[alike]
            with running(self.device):  # CuPy reuses memory that was freed on a stream on that stream
                launch = bind(self.backend, program, row_set)
            cohorts.append(Cohort(members, rows, launch, dict(zip(vectors, counted, strict=True))))
        return cohorts

    def _cohort_on_device(self, which: np.ndarray, sizes: np.ndarray, addresses: np.ndarray) -> Cohort:
        row_set = Rows(sizes, self._noise_offsets[which], addresses, None, self.device.index or 0, own_numbers=True)
        with running(self.device):
            launch: Any = bind(self.backend, self.plan.program, row_set)
        made = Cohort(which, np.arange(which.size), launch, {}, torch.from_numpy(which.copy()).to(self.device))
        if launch.order.size < which.size:  # some are empty
            made.order = torch.from_numpy(launch.order).to(self.device)
        return made

    # A step.

    @property
    def backend(self) -> str:
        """The backend that steps on the bucket's device."""
        return choose("auto", str(self.device))

    def calls(self, arranged: Arrangement, seed: int, advance: Advance, together: list[tuple]) -> list[tuple]:
        """Prepare the calls of a step, of counting it, and of telling autograd that parameters are written.

        What has totals over all parameters is put into `together` instead: the program, its launch, keys and scalars,
        and what is to be called after a step that was taken. Functions of matrices are computed here.
        """
        calls: list[tuple] = [(increment_version, arranged.versioned)]
        vectors, planned = self.state.counts.vectors, self.plan
        for cohort in arranged.cohorts:
            t = int(cohort.counted["step"]) + 1
            rule, entries = advance(planned.rule, t, cohort.counted)
            scalars = planned.scalars if rule is planned.rule else host_scalars(planned.program, rule)
            counted = {**entries, "step": t}
            ends: list[tuple] = [(vectors[name].numpy().__setitem__, cohort.members, x) for name, x in counted.items()]
            ends.append((setattr, cohort, "counted", counted))
            if planned.program.over_all:
                together.append((planned.program, cohort.launch, planned.keys(seed, t), scalars(t), ends))
            elif planned.program.matrices:
                with running(self.device):
                    calls += cohort.launch.calls(planned.keys(seed, t), scalars(t)) + ends
            else:
                calls += cohort.launch.calls(planned.keys(seed, t), scalars(t)) + ends
        return calls

    @torch.no_grad()
    def numbers(self, advance: Advance, group: dict[str, Any], unscale: Any, *, captured: bool) -> StepNumbers:
        """Prepare what a step with `calls_on_device` computes its numbers from, or raise an error.

        Raises:
            SettingError: such steps are not for these parameters, or the learning rate is out of its range.
            BackendError: the rule's numbers cannot be computed on a device; or what is not prepared is captured.

        """
        require_capturable(self.device, distributed=self._distributed, apart=self._apart)
        inputs, rule = device_inputs(group, unscale, self.device), self.plan.rule
        if self._numbers is None or self._numbers[0] is not rule:
            if captured:
                raise not_prepared("an option has changed since the last step.")
            made = DeviceNumbers(rule, self.plan.program, advance, self.state.names.entries, self.device)
            self._numbers = rule, made
        return StepNumbers(self._numbers[1], inputs, getattr(unscale, "found", None))

    @torch.no_grad()
    def calls_on_device(
        self, arranged: Arrangement, seed: int, numbers: StepNumbers, together: list[tuple], flags: Any
    ) -> list[tuple]:
        """Prepare the calls of a step that a CUDA graph can repeat: its numbers, and the counts, are on the device.

        What is computed here goes to new memory. Where the step is skipped nothing else is written. `together` is as
        for `calls`; `flags` are where a step that may be skipped says, before it is counted, whether it was.
        """
        vectors = {name: v.data for name, v in self.state.counts.vectors.items()}
        (cohort,) = arranged.cohorts
        launch, members = cohort.launch, cohort.members_on_device
        before = {name: v.index_select(0, members) for name, v in vectors.items()}
        entries = {name: x.double() for name, x in before.items()}
        skip = numbers.skip(self.device)
        scalars, after = numbers.made.at(before["step"], numbers.inputs | entries)
        keys = keys_on_device(seed, before["step"]) if self.plan.program.noise else skip
        if cohort.order is not None:
            scalars = scalars.index_select(0, cohort.order)
            keys = keys.index_select(0, cohort.order) if self.plan.program.noise else keys
        where, program = NumbersOfRows(scalars.data_ptr(), keys.data_ptr(), skip.data_ptr()), self.plan.program
        ends: list[tuple] = [(len, (scalars, keys, skip))]  # which live until then
        for name, x in {**after, "step": before["step"] + 1}.items():
            now = x.to(before[name].dtype)
            if program.condition is None:
                now = torch.where(skip.bool(), before[name], now)
            else:
                chosen = torch.empty_like(now)
                ends.append((partial(torch.where, out=chosen), flags.bools[1], before[name], now))
                now = chosen
            ends.append((vectors[name].index_copy_, 0, members, now))
        begin = [(increment_version, arranged.versioned)]
        if program.over_all:
            together.append((program, launch, (), where, ends))
            return begin
        with running(self.device):
            return [*begin, *launch.calls_with(where), *ends]  # type: ignore[attr-defined]

    def memory(self) -> tuple:
        """Return all that a captured step reads and writes, but gradients: it must live as long as the graph."""
        vectors = [v.data for v in self.state.counts.vectors.values()]
        return self.arranged, self._numbers, vectors, [dict(planes) for planes in self.state.store.planes], self.flat

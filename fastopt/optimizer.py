"""The stateful surface: a rule, its buffers and the number of steps taken.

One class, and over 300 lines because half of them are its documentation: packing is `parameters`, checkpoints are
`checkpoint`, CUDA graphs are `capture`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import starmap
from operator import call
from typing import Any

import numpy as np

from fastopt import checkpoint
from fastopt.arguments import by_name, common_precision, first_values, require_like, require_names
from fastopt.arrays import adopt, library_of, library_on
from fastopt.arrays.library import CPU, Array, Device
from fastopt.arrays.numpy import visible_dtype
from fastopt.capture import PreparedSteps
from fastopt.checks import integer, seed_number
from fastopt.errors import BackendError, FastoptError, LayoutError, SettingError, raised_by, suggest
from fastopt.groups import layouts, own_groups, sort
from fastopt.kernels.backends import BACKENDS, choose
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.plan import plan
from fastopt.kernels.formats import FULL, STORAGES
from fastopt.kernels.launch import only_if, run
from fastopt.kernels.rules.rule import Rule, averages_of, require_rule
from fastopt.kernels.rules.total import GRADIENTS
from fastopt.launches import bound, joined, tensor_by_tensor
from fastopt.parameters import NamedValues, Views, padded
from fastopt.store import Store
from fastopt.turn import Turn, is_taken, restored_by


class Optimizer:
    """Named parameters packed into flat buffers, updated by one fused pass per group.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        params: name → initial value, all float32 or all float64: NumPy arrays or any object that exposes memory of
            the CPU by DLPack or the buffer protocol; or, all on one CUDA device, CuPy arrays or any object that
            exposes memory of it. The values are copied; from then on `opt.params` are the parameters.
        groups: settings for some of the parameters: pattern of names → dict of settings, or another rule. Patterns are
            those of the shell (`"*.bias"`), or a whole name; every pattern that fits a name applies, in the order
            given. A setting may be one of a rule inside the rule. Parameters that end up with equal rules are one
            group and one pass.
        storage: how each buffer is stored. None follows the precision of `params`; otherwise the name of a preset
            ("f32", "bf16", "split", "8bit", …: `fastopt.PRESETS`), or a dict, name of a buffer → format
            (`fastopt.STORAGES`); what the dict leaves out is stored in the computing precision, which is float32
            unless p is "f64".
        backend: "auto", "cpu", "reference" or "cuda". Auto follows where the values live; "cuda" with values in the
            CPU's memory puts the parameters on CuPy's current device.
        seed: seed of gradient noise, used by rules that have some; any integer of 64 bits.

    Attributes:
        params: name → view into the flat parameter buffer, in the type that a forward pass reads. Assign into it,
            `opt.params["w"][...] = value`; where the format stores more than that, it is read-only: use `assign`.
        grads: name → view into the flat gradient buffer, zero at first. A step reads it and leaves it as it is.
        flat_params: the buffer of all parameters, in the groups' order, padded to whole tiles with zeros.
        flat_grads: the buffer of all gradients, in the same order.
        t: steps taken.
        grad_norm: with ClipByGlobalNorm, or SkipNonfinite with a bound, the norm of all gradients at the last step.
        skipped: steps that were not taken because of their gradients, as with SkipNonfinite; `t` does not count them.

    Raises:
        LayoutError: a parameter has the wrong type, or there is none.
        SettingError: a pattern of `groups` fits no parameter, or names a setting that its rule does not have.
        RuleError: the rule cannot be traced.
        BackendError: the backend does not exist or is not for where the values live; something of CUDA is missing.

    Memory: the parameter, its gradient and the rule's state; 16 bytes per parameter for float32 Adam, 6 with
    storage="bf16_8bit".

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Optimizer(fastopt.SGD(lr=0.1), {"w": np.ones((2, 2)), "b": np.zeros(2)})
    >>> opt.grads["w"][...] = [[1.0, 2.0], [3.0, 4.0]]
    >>> opt.step()
    >>> opt.params["w"]
    array([[0.9, 0.8],
           [0.7, 0.6]])
    >>> opt.t
    1

    """

    @raised_by("Optimizer")
    def __init__(
        self,
        rule: Rule,
        params: Mapping[str, Any],
        *,
        groups: Mapping[str, Any] | None = None,
        storage: str | Mapping[str, str] | None = None,
        backend: str = "auto",
        seed: int = 0,
    ):
        require_rule(rule)
        values = first_values(params)
        self._seed = seed_number(seed)
        self._turn, self._averaged = Turn(0), False
        self._prepared: PreparedSteps | None = None  # on a device, once `capturable` was called
        device = _device_for(backend, values)
        chosen, library = choose(backend, str(device)), library_on(device)
        groups = own_groups(groups)
        members = sort(rule, {name: value.shape for name, value in values.items()}, groups)
        rules = [own for own, _ in members]
        if storage is None:
            precision = common_precision(values)
            formats = [layout(own, precision) for own in rules]
        else:
            formats = layouts(rules, storage)
        computes = STORAGES[formats[0]["p"]].computes
        self._arguments = {
            "rule": rule,
            "groups": groups,
            "storage": dict(storage) if isinstance(storage, Mapping) else storage or FULL[computes],
            "backend": backend if device == CPU else chosen,
        }
        members, formats = tensor_by_tensor(members, formats)
        counts = [padded(sum(values[name].size for name in names)) for _, names in members]
        flat = {  # the planes of p and g of all groups
            name: library.allocate(sum(counts), plane, device)
            for b in ("p", "g")
            for name, plane in STORAGES[formats[0][b]].plane_names(b).items()
        }
        parts, offset = [], 0
        for (own, names), count, chosen_formats in zip(members, counts, formats, strict=True):
            planned = plan(own, tuple(chosen_formats.items()))
            store = Store(
                library,
                {b: form.name for b, form in planned.program.formats.items()},
                [count],
                lambda row, form, name, plane, count=count: library.allocate(plane.size(count), plane, device),
            )
            store.planes[0].update({name: array[offset : offset + count] for name, array in flat.items()})
            initial = planned.initial_state()
            for b in planned.program.state:
                store.make(0, b, initial.get(b, 0.0))
            shapes = {name: values[name].shape for name in names}
            parts.append((planned, shapes, offset, store))
            offset += count
        made = bound(chosen, parts, device)
        self._groups, self._on_device = made, device != CPU
        # Of which a part is computed while a step is prepared, so that gradients must be in place before.
        self._computes = chosen == "reference" or any(group.plan.program.matrices for group in made)
        self._apart = self._on_device or self._computes  # which have ways of their own to step
        launched = list({id(group.launch): group for group in made}.values())  # one group of each launch
        self._steps = [
            (g.plan.scalars, g.plan.keys if g.plan.program.noise else None, g.launch.calls) for g in launched
        ]
        self._together = joined(chosen, launched)
        # Where steps may be skipped: the flags of the last one, and how many were.
        self._flags: Any = getattr(made[-1].launch, "flags", None) if made[-1].plan.program.condition else None
        self._skipped, self._skipped_before = np.zeros(1, np.int64), 0
        if self._on_device and self._flags is not None:
            self._require_no_matrices("a device cannot skip steps", "leave out what skips steps, as SkipNonfinite")
        # As most have: one group, of which every step is taken.
        self._only = self._steps[0] if len(launched) == 1 and self._flags is None else None
        self._values = NamedValues(made, values, library, device)
        self.flat_params, self.flat_grads = (_forward(made[0].store, b, flat) for b in ("p", "g"))
        if len(made[0].store.formats["p"].planes) > 1 and not self._on_device:
            self.flat_params.flags.writeable = False
        self.params: Mapping[str, Any] = Views(self._values.divide(self.flat_params), "params")
        self._own_grads = self._values.divide(self.flat_grads)
        self.grads: Mapping[str, Any] = Views(self._own_grads, "grads")
        self._write({"p": {name: _converted(value, computes) for name, value in values.items()}})

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and (name not in _ATTRIBUTES or name in self.__dict__):
            do = "a setting that changes is a callable of t, as fastopt.Adam(lr=lambda t: …); parameters: opt.assign"
            if name not in _ATTRIBUTES:
                do += "; otherwise build another Optimizer, and load this one's state_dict()"
            raise SettingError(f"setting the attribute {name!r} would change nothing.", do=do, where="Optimizer")
        object.__setattr__(self, name, value)

    @raised_by("Optimizer.assign")
    def assign(self, params: Mapping[str, Any]) -> None:
        """Set parameters to values of the computing precision, rounded to nearest where they are stored in less.

        Those that are not named stay as they are. State and t do too.

        Raises:
            LayoutError: a name is unknown, or a value has another shape or type. Nothing is changed then.

        Values may be views of this optimizer's memory. An interrupt finds all of them set, or none.

        """
        self._write({"p": checkpoint.assigned(params, self._values)})

    @raised_by("Optimizer.assign_state")
    def assign_state(self, name: str, values: Mapping[str, Any]) -> None:
        """Set one state buffer, as `state` names it, of some parameters to values of the computing precision.

        For state that the caller refreshes, as the curvature of SophiaG. Values are rounded to nearest where they are
        stored in less; the state of parameters that are not named stays as it is.

        Raises:
            LayoutError: there is no such state, or a name is unknown, or a value has another shape or type. Nothing is
                changed then.

        """
        self._write({name: checkpoint.assigned(values, self._values, self._known_state(name))})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages that a rule keeps in place of the parameters for the block, as for evaluation.

        They are those of EMA, of the Schedule-Free rules and GPAAdamW, and of a rule of yours that has `averaged`;
        parameters whose rule keeps none stay as they are. After the block all is as it was, bit for bit. No step, load
        or assignment is possible meanwhile, and no other thread may be in the middle of one. Takes the memory of the
        parameters once more.

        Raises:
            SettingError: there are no averages, or none yet, or they are in place already.

        >>> import numpy as np, fastopt
        >>> opt = fastopt.Optimizer(fastopt.EMA(fastopt.SGD(lr=1.0), decay=0.5), {"w": np.zeros(1)})
        >>> opt.step({"w": np.ones(1)})
        >>> opt.step({"w": np.ones(1)})
        >>> with opt.averaged():
        ...     opt.params["w"].round(3)  # −(2 · 2 + 1) / 3
        array([-1.667])
        >>> opt.params["w"]
        array([-2.])

        """
        with raised_by("Optimizer.averaged"):
            self._require_own_values()
            if not any(averages_of(group.plan.rule) for group in self._groups):
                raise SettingError("no rule keeps averages.", do="put fastopt.EMA around the rule")
            if not self.t:
                raise SettingError("there are no averages yet.", do="take a step; a skipped one is none")
        library, device = self._values.library, self._values.device
        with library.running(device, None):
            planes = [g.store.planes[0][name] for g in self._groups for name in g.store.formats["p"].plane_names("p")]
            kept = [(plane, library.duplicate(plane)) for plane in planes]
        apart = self._apart

        def restore() -> None:
            self._apart, self._averaged = apart, False
            with library.running(device, None):
                self._turn.take(lambda t: [*(library.writing(*pair) for pair in kept), (self._turn.end, t)])

        with restored_by(restore):
            self._write({"p": self._averages()})
            self._apart = self._averaged = True
            yield

    def _averages(self) -> dict[str, Any]:
        """Compute the averages, of the parameters whose rule keeps them."""
        found: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for group in self._groups:
            if (own := averages_of(group.plan.rule)) is not None:
                averaged, buffers = own
                values |= {b: self._values.read(b) for b in buffers if b not in values}
                for name in group.shapes:
                    found[name] = averaged(*(values[b][name] for b in buffers))
        return found

    def _require_no_matrices(self, what: str, do: str) -> None:
        """Raise a SettingError if a library of matrices computes a part of the step, where kernels alone can."""
        names = [group.plan.program.rule for group in self._groups if group.plan.program.matrices]
        if names:
            raise SettingError(f"{what} where a rule has functions of matrices.", got=names[0], do=do)

    def _require_own_values(self) -> None:
        """Raise a SettingError while averages are in place of the parameters."""
        if self._averaged:
            raise SettingError("the averages are in place of the parameters.", do="do it after the block")

    def _write(self, values: Mapping[str, Mapping[str, Any]], t: int | None = None, seed: int | None = None) -> None:
        """Write values between two steps, buffer → parameter → array, and t and the seed where they are given."""
        self._require_own_values()
        with self._values.library.running(self._values.device, None):
            self._turn.take(
                lambda now: [
                    *self._values.writes(values),
                    (object.__setattr__, self, "_seed", self._seed if seed is None else seed),
                    (self._turn.end, now if t is None else t),
                ]
            )

    @property
    @raised_by("Optimizer.t")
    def t(self) -> int:
        """Steps taken. Where the device counts, after `capturable` or with SkipNonfinite, reading it waits for it."""
        return self._turn.now() if self._prepared is None else self._prepared.t()

    @property
    def grad_norm(self) -> Any:
        """Norm of all gradients at the last step, as they come to ClipByGlobalNorm; None before, and without it.

        A Python number; on a device an array of one element, for which nothing waits, and NaN before the first step.

        Raises:
            BackendError: the backend is the reference, which keeps no norm.

        """
        program, launch = self._groups[-1].plan.program, self._groups[-1].launch
        place = program.place_of(GRADIENTS)
        if place is None:
            return None
        if not hasattr(launch, "over_all"):
            what, do = "the reference backend keeps no norm.", 'choose backend="cpu"'
            raise BackendError(what, do=do, where="Optimizer.grad_norm")
        total: Any = launch.over_all(program.over_all[place][1])  # type: ignore[attr-defined]
        if self._on_device:
            return np.sqrt(total.astype(program.dtype))
        return None if total[0] < 0 else float(np.sqrt(total.astype(program.dtype))[0])

    @property
    def skipped(self) -> int:
        """Steps skipped since this optimizer was built. On a device, reading it waits for the device."""
        if self._prepared is not None:
            return self._skipped_before + self._prepared.skipped()
        with self._turn.held():
            return int(self._skipped[0])

    def step(self, grads: Mapping[str, Any] | None = None, *, stream: Any = None) -> None:
        """Take one step with the gradients in `self.grads`, or with these, which are copied there first.

        On a device it is launched on `stream` (of CuPy, torch or another library; None is CuPy's current one), one
        launch per group, and nothing waits for it.

        Raises:
            LayoutError: `grads` lacks a parameter, names an unknown one, or has the wrong shape or device, or another
                dtype than the storage of "g".
            SettingError: a schedule or a setting gives a number that is not finite or out of its range.
            BackendError: the stream is being captured into a CUDA graph and `capturable` was not called.
            In each case parameters, gradients, state and t are as they were.

        An interrupt (KeyboardInterrupt, or whatever a signal handler raises) finds the step taken whole, t included, or
        not at all.

        """
        try:
            if self._apart or stream is not None:
                self._step_apart(grads, stream)
            else:
                # `launch.run`, written out: a small step is short enough.
                list(starmap(call, self._calls(grads)))
        except FastoptError as error:
            error.where = error.where or "Optimizer.step"
            raise
        except ValueError as error:
            if not is_taken(error):
                raise
            self.step(grads, stream=stream)  # another thread has stepped

    def _calls(self, grads: Mapping[str, Any] | None) -> list[tuple]:
        """Check everything, and prepare the next step, between `Turn.begin` and `Turn.end`."""
        turn, only = self._turn, self._only
        taken = turn.now()
        t = taken + 1
        if only is not None:
            scalars, keys, prepare = only
            values = scalars(t)
            noise = keys(self._seed, t) if keys else ()
            if grads is None:
                return [(turn.begin, taken), *prepare(noise, values), (turn.end, t)]
            return [(turn.begin, taken), *self._gradient_copies(grads), *prepare(noise, values), (turn.end, t)]
        seed, steps = self._seed, self._steps
        # The numbers of all groups, and the copies, before any launch is prepared: what is wrong shows first.
        ready = [(prepare, keys(seed, t) if keys else (), scalars(t)) for scalars, keys, prepare in steps]
        calls = [(turn.begin, taken), *(() if grads is None else self._gradient_copies(grads))]
        if self._together is not None:
            calls += self._together([numbers for _, *numbers in ready])
        else:
            for prepare, noise, values in ready:
                calls += prepare(noise, values)
        return [*calls, (turn.end, t)] if self._flags is None else [*calls, *self._ends(taken)]

    def _ends(self, taken: int) -> list[tuple]:
        """Prepare the calls that end a step that may have been skipped."""
        end, flags, skipped = self._turn.end, self._flags, self._skipped
        count = (np.add, skipped, 1, skipped)
        return [*only_if(flags, 0, [(end, taken + 1)]), *only_if(flags, 1, [count, (end, taken)])]

    def _step_apart(self, grads: Mapping[str, Any] | None, stream: Any) -> None:
        """Step on a device, or with what computes while it prepares; not while `averaged`."""
        self._require_own_values()
        if self._on_device or stream is not None:
            self._step_on_device(grads, stream)
            return
        with _COMPUTING:
            if grads is not None:
                run(self._gradient_copies(grads))
            run(self._calls(None))

    def _step_on_device(self, grads: Mapping[str, Any] | None, stream: Any) -> None:
        library = self._values.library
        with library.running(self._values.device, stream):
            if self._prepared is None and self._flags is not None:  # what is skipped, and so t, the device alone knows
                library.require_not_capturing("which would replay this step's settings.", "call opt.capturable(steps)")
                self._prepare(AHEAD, ahead=True)
            if self._prepared is None:
                library.require_not_capturing(
                    "which would replay this step's t and learning rate unchanged.",
                    "call opt.capturable(steps) before the capture: then they advance on the device",
                )
                with _COMPUTING if self._computes else nullcontext():
                    if self._computes and grads is not None:
                        run(self._gradient_copies(grads))
                        grads = None
                    self._turn.take(lambda _: self._calls(grads)[1:])
                return
            copies = [] if grads is None else self._gradient_copies(grads)
            run([*copies, *self._prepared.calls(self._seed)])

    @raised_by("Optimizer.capturable")
    def capturable(self, steps: int) -> None:
        """Prepare the next `steps` steps on the device, so that `step()` can be captured into a CUDA graph.

        A graph repeats what was captured. From now on t, the scheduled settings and all that depends on t therefore
        live on the device, in a table of the next steps, and each step, captured or not, uses the next row. Bit for
        bit the same steps. A replay after the last row changes nothing, and `t` then raises; call `capturable` again
        before that, with the same number, and captured graphs go on. It waits for the device.

        A graph holds addresses, so this optimizer, and gradients that a captured `step(grads)` was given, must live as
        long as the graph is replayed.

        Args:
            steps: how many; a row of the table is some 40 bytes per group.

        Raises:
            BackendError: the parameters are in the CPU's memory, where nothing is captured; or the current stream is
                being captured already.
            SettingError: steps is not an integer of at least 1, or differs from that of an earlier call; or a schedule
                gives a number out of its range in one of these steps. Nothing is changed then.

        """
        if not self._on_device:
            what = "these parameters are in the CPU's memory, where no CUDA graph is captured."
            raise BackendError(what, do="build the optimizer with backend='cuda', or on CuPy arrays")
        steps = integer("steps", steps, 1, 2**31)
        if self._prepared is not None and not self._prepared.ahead:
            self._prepared.prepare_next(self._seed, steps)
            return
        self._prepare(steps)

    def _prepare(self, steps: int, *, ahead: bool = False) -> None:
        """Let the device count from now on."""
        self._require_no_matrices("steps are not prepared on a device", "leave out capturable")
        before, skipped = self.t, self.skipped
        prepared = PreparedSteps(self._groups, self._values.library, self._values.device, steps, ahead=ahead)
        prepared.prepare(self._seed, before)
        self._prepared, self._skipped_before = prepared, skipped

    def _gradient_copies(self, grads: Mapping[str, Any]) -> list[tuple]:
        """Check gradients, and prepare their copies to the flat buffer."""
        given = by_name(grads, "gradients")
        if given.keys() != self._own_grads.keys():
            require_names(given, self._own_grads, "the gradient of")
        copies = []
        for name, own in self._own_grads.items():
            array = adopt(given[name], name)
            if array.dtype != own.dtype or array.shape != own.shape or self._on_device or type(array) is not type(own):
                do = "; or choose by storage={'g': …} how gradients are stored"
                require_like(array, own, f"the gradient {name!r}", same_device=True, do=do)
            if array is not own and array.base is not None and self._is_within(array):
                array = library_of(array).duplicate(array)  # another parameter's, which may be overwritten before
            copies.append((own.__setitem__, ..., array))
        return copies

    def _is_within(self, array: Array) -> bool:
        """Whether an array lies, in part, in the flat gradients."""
        if not self._on_device:
            return np.may_share_memory(array, self.flat_grads)
        address = self._values.library.address
        start = address(self.flat_grads)
        return start <= address(array) < start + self.flat_grads.nbytes

    @raised_by("Optimizer.state")
    def state(self, name: str) -> dict[str, Any]:
        """Return one state buffer, by its name in the rule, as parameter → array (a copy in the computing precision).

        On a device the copy is made on CuPy's current stream: after a step on another one, wait for that first.

        Raises:
            LayoutError: no group's rule has a buffer of that name.

        """
        return self._copies(self._known_state(name))

    def _known_state(self, name: str) -> str:
        """Return the name of a state buffer, or raise a LayoutError if there is none."""
        known = sorted(self._values.buffers[1:])
        if name not in known:
            raise LayoutError(f"there is no state {name!r}.", do=suggest(str(name), known))
        return name

    def master(self) -> dict[str, Any]:
        """Return the parameters in the computing precision, by name (a copy)."""
        return self._copies("p")

    def _copies(self, buffer: str) -> dict[str, Any]:
        """Copy the values of a buffer between two steps."""
        with self._turn.held():
            return {name: self._values.library.duplicate(value) for name, value in self._values.read(buffer).items()}

    @raised_by("Optimizer.state_dict")
    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs to go on bit for bit: one flat dict of arrays, numbers, strings (copies).

        Keys: "t", "seed", "rules" (their names and choices, as a check), "p/<name>" and "<state>/<name>" for each
        parameter. It can be pickled, or stored by `fastopt.save(path, opt)` and read again by `fastopt.load(path)`.
        Rules and groups are code, not state: build the optimizer as before, then load. Gradients are not saved. With
        gradient noise, random rounding or 8-bit state, a later run goes on bit for bit only with the same parameters in
        the same order and the same groups. The arrays are NumPy's, also of a device, so a run can move between the CPU
        and a device.

        They hold values in the computing precision, in every storage, so a run can also move from one storage to
        another of the same precision; in the same one it goes on bit for bit.
        """
        self._require_own_values()
        self._values.library.wait(self._values.device)  # for steps on any stream
        with self._turn.held() as t:
            return checkpoint.save(self._values, t if self._prepared is None else self._prepared.t(), self._seed)

    def described(self) -> dict[str, Any]:
        """Return what a checkpoint on disk says besides `state_dict`: the storage, and each group's rule and order."""
        return {"storage": self._arguments["storage"], "layout": checkpoint.layout(self._values)}

    @raised_by("Optimizer.load_state_dict")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; grouping may differ, names, shapes, types and rules may not.

        A rule is another if its type or a choice differs, at any depth of rules in rules; its numbers may differ.

        Raises:
            LayoutError: an entry is missing, unknown, or of another shape, type or rule. Nothing is changed then.

        Values may be views of this optimizer's memory. An interrupt finds all of them loaded, or none.

        """
        self._values.library.wait(self._values.device)
        t, seed, found = checkpoint.check(state, self._values)  # before anything is written
        self._write(found, t, seed)
        if self._prepared is not None:
            self._prepared.prepare(self._seed, t)

    def __reduce__(self) -> tuple:
        """Pickle and deep-copy by building anew: a kernel holds the addresses of its own optimizer's memory.

        A copy is on the device of the same number. It is not `capturable`: graphs do not know its memory.
        """
        grads = {name: self._values.library.to_numpy(view) for name, view in self.grads.items()}
        device = self._values.device
        number = None if device == CPU else device.number  # as 0.1 wrote it
        return _restored, (type(self), self._arguments, self.state_dict(), grads, number)

    def __repr__(self) -> str:
        count = sum(view.size for view in self.params.values())
        rules = ", ".join(repr(group.plan.rule) for group in self._groups)
        prepared = self._prepared
        t = f"t={self._turn.now()}" if prepared is None else f"t from {prepared.first} on, counted on the device"
        return f"Optimizer({rules}; {len(self.params)} arrays, {count:,} parameters, {t})"


AHEAD = 1000
"""Steps that are prepared at once on a device that may skip them; after so many, preparing the next waits for it."""

_ATTRIBUTES = ("params", "grads", "flat_params", "flat_grads")

_COMPUTING = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_COMPUTING._at_fork_reinit)  # type: ignore[attr-defined]


def _restored(
    kind: type[Optimizer],
    arguments: dict[str, Any],
    state: dict[str, Any],
    grads: dict[str, np.ndarray],
    number: int | None,
) -> Optimizer:
    params = {name: state[f"p/{name}"] for name in grads}
    device = CPU if number is None else Device("cuda", number)
    with library_on(device).running(device, None):
        opt = kind(params=params, **arguments)
        opt.load_state_dict(state)
    for name, value in grads.items():
        library_on(device).copy(opt.grads[name], value)
    return opt


def _device_for(backend: Any, values: Mapping[str, Array]) -> Device:
    """Return the device of the parameters: the values', or where the backend steps if it is not in the CPU's memory."""
    first = next(iter(values.values()))
    device = library_of(first).device(first)
    kind = BACKENDS[backend].device if isinstance(backend, str) and backend in BACKENDS else device.kind
    return library_on(Device(kind)).current_device() if device == CPU and kind != CPU.kind else device


def _forward(store: Store, buffer: str, flat: Mapping[str, Array]) -> Array:
    """Return the flat array that a forward pass reads, in the type that users see."""
    form, name = store.formats[buffer], store.forward(buffer)
    return flat[name].view(visible_dtype(form.planes[form.forward]))


def _converted(value: Array, dtype: np.dtype) -> Array:
    """Return a parameter's first value in the computing precision."""
    return value if value.dtype == dtype else value.astype(dtype)

"""The stateful surface: a rule, its buffers and the number of steps taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from itertools import starmap
from operator import call
from types import MappingProxyType
from typing import Any

import numpy as np

from fastopt import devices, dispatch
from fastopt.buffers import Packed, allocate, numpy_type, padded, views
from fastopt.errors import BackendError, LayoutError, SettingError, explain, suggest
from fastopt.groups import initial_state, own_groups, precision, sort, take_values
from fastopt.kernels.cuda import counter
from fastopt.kernels.form import describe, require_rule
from fastopt.kernels.launch import run
from fastopt.kernels.noise import noise_keys
from fastopt.kernels.program import Program, formats, plan, planes
from fastopt.kernels.storage import NAMES, STORAGES, TILE


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a rule and are updated in one pass."""

    rule: Any
    program: Program
    shapes: dict[str, tuple[int, ...]]
    offset: int  # of its first element in the flat buffers
    packed: dict[str, Packed]  # the parameters, "p", and each state buffer
    scalars: Callable[[int], tuple[float, ...]]
    launch: Any  # a kernels.launch.Launch


class Optimizer:
    """Named parameters packed into flat buffers, updated by one fused pass for each group.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        params: name → initial value, all float32 or all float64: NumPy arrays or whatever on the CPU speaks DLPack or
            the buffer protocol; or, all on one CUDA device, CuPy arrays or whatever lends memory of it. The values are
            copied; from then on `opt.params` are the parameters.
        groups: settings for some of the parameters: pattern of names → dict of settings, or another rule. Patterns are
            those of the shell (`"*.bias"`), or a whole name; every pattern that fits a name applies, in the order
            given. A setting may be one of a rule inside the rule. Parameters that end up with equal rules are one
            group and one pass.
        storage: how each buffer is kept. None follows the precision of `params`; otherwise the name of a preset
            ("f32", "bf16", "split", "8bit", …: `fastopt.PRESETS`), or a dict, name of a buffer → format
            (`fastopt.STORAGES`); what the dict leaves out is kept in the computing precision, which is float32 unless
            p is "f64".
        backend: "auto", "cpu", "reference" or "cuda". Auto follows where the values live; "cuda" with values in the
            CPU's memory puts the parameters on CuPy's current device.
        seed: seed of gradient noise, used by rules that have some; any integer of 64 bits.

    Attributes:
        params: name → view into the flat parameter buffer, in the type that a forward pass reads. Assign into it,
            `opt.params["w"][...] = value`; where the format keeps more than that, it is read-only: use `assign`.
        grads: name → view into the flat gradient buffer, zero at first. A step reads it and leaves it as it is.
        flat_params, flat_grads: the buffers themselves, in the groups' order, padded to whole tiles with zeros.
        t: steps taken.

    Raises:
        LayoutError: a parameter has the wrong type, or there is none.
        SettingError: a pattern of `groups` fits no parameter, or names a setting that its rule does not have.
        RuleError: the rule cannot be traced.
        BackendError: the backend does not exist or is not for where the values live; something of CUDA is missing.

    Memory: the parameter, its gradient and the rule's state; 16 bytes a parameter for float32 Adam, 6 with
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

    def __init__(
        self,
        rule: Any,
        params: Mapping[str, Any],
        *,
        groups: Mapping[str, Any] | None = None,
        storage: str | Mapping[str, str] | None = None,
        backend: str = "auto",
        seed: int = 0,
    ):
        require_rule(rule, "Optimizer")
        values = take_values(params)
        self._seed = dispatch.seed_number(seed, "Optimizer")
        self._t = 0
        chosen, self._device = dispatch.settle(backend, values, "Optimizer")
        self._row: Any = None  # on a device, once `capturable` was called: which of its prepared steps is next
        groups = own_groups(groups)
        members = sort(rule, list(values), groups)
        rules = [own for own, _ in members]
        if storage is None:
            shared = precision(values)
            kept = [formats(own, shared) for own in rules]
        else:
            kept = dispatch.layout(rules, storage, "Optimizer")
        self._arguments = {
            "rule": rule,
            "groups": groups,
            "storage": dict(storage) if isinstance(storage, Mapping) else storage or NAMES[_computes(kept[0])],
            "backend": "cuda" if chosen == "cuda" else backend,
        }
        counts = [padded(sum(values[name].size for name in names)) for _, names in members]
        p, g = (
            {
                name: allocate(sum(counts), plane.dtype, 0.0, self._device)
                for name, plane in planes(b, STORAGES[kept[0][b]]).items()
            }
            for b in ("p", "g")
        )
        self._groups: list[Group] = []
        offset = 0
        for (group_rule, names), count, own_kept in zip(members, counts, kept, strict=True):
            program, scalars = plan(group_rule, tuple(own_kept.items()))
            shapes = {name: values[name].shape for name in names}
            n = sum(math.prod(shape) for shape in shapes.values())
            packed = {}
            for b, kept_as in program.storages.items():
                if b in ("p", "g"):
                    arrays = {name: a[offset : offset + count] for name, a in (p if b == "p" else g).items()}
                else:
                    arrays = {
                        name: allocate(count // TILE if plane.tiled else count, plane.dtype, 0.0, self._device)
                        for name, plane in planes(b, kept_as).items()
                    }
                packed[b] = Packed(b, kept_as, arrays)
            for b, value in initial_state(group_rule, program).items():
                packed[b].pack(np.full(count, value, program.dtype))
            flat = [packed[b.buffer].arrays[b.name][: b.size(n)] for b in program.buffers]
            launch = dispatch.bind(program, group_rule, flat, chosen)
            del packed["g"]
            self._groups.append(Group(group_rule, program, shapes, offset, packed, scalars, launch))
            offset += count
        storage_p, storage_g = self._groups[0].program.storages["p"], self._groups[0].program.storages["g"]
        self.flat_params = list(p.values())[storage_p.forward].view(numpy_type(storage_p.planes[storage_p.forward]))
        self.flat_grads = g["g"].view(numpy_type(storage_g.planes[0]))
        if len(p) > 1 and isinstance(self.flat_params, np.ndarray):
            self.flat_params.flags.writeable = False
        self.params: Mapping[str, Any] = MappingProxyType(self._named(self.flat_params, values))
        self._own_grads = self._named(self.flat_grads, values)
        self.grads: Mapping[str, Any] = MappingProxyType(self._own_grads)
        self._write("p", {name: _converted(value, self._dtype) for name, value in values.items()})

    @property
    def _dtype(self) -> np.dtype:
        """The precision in which steps are computed."""
        return self._groups[0].program.dtype

    def _named(self, flat: Any, order: Iterable[str]) -> dict[str, Any]:
        """Divide a flat array of all groups among the parameters."""
        found = {
            name: view for group in self._groups for name, view in views(flat[group.offset :], group.shapes).items()
        }
        return {name: found[name] for name in order}

    def _read(self, buffer: str) -> dict[str, Any]:
        """Give one buffer as parameter → values; views of the memory itself where it is kept in full precision."""
        found = {}
        for group in self._groups:
            if buffer in group.packed:
                found |= views(group.packed[buffer].unpack(), group.shapes)
        return {name: found[name] for name in self.params if name in found}

    def _write(self, buffer: str, values: Mapping[str, Any]) -> None:
        """Take over values of one buffer, of those parameters that are named and have it."""
        for group in self._groups:
            if buffer not in group.packed or not group.shapes.keys() & values.keys():
                continue
            packed = group.packed[buffer]
            whole = group.shapes.keys() <= values.keys()
            flat = packed.forward
            if not packed.storage.plain:
                flat = np.zeros(flat.size, self._dtype) if whole else devices.to_numpy(packed.unpack())
            for name, own in views(flat, group.shapes).items():
                if name in values:
                    devices.copy(own, values[name])
            if not packed.storage.plain:
                packed.pack(flat)

    def assign(self, params: Mapping[str, Any]) -> None:
        """Set parameters to values of the computing precision, rounded to nearest where they are kept in less.

        Those that are not named stay as they are. State and t do too.

        Raises:
            LayoutError: a name is unknown, or a value has another shape or type. Nothing is changed then.

        """
        where = "Optimizer.assign"
        given = dispatch.mapping(params, where, "parameters")
        templates = self._templates()
        own = {name: templates[f"p/{name}"] for name in self.params}
        _require_names({**own, **given}, own, where, "the parameter")
        arrays = {name: dispatch.lend(value, name, where) for name, value in given.items()}
        for name, array in arrays.items():
            _require_like(array, own[name], where, f"the parameter {name!r} does not match.")
        self._write("p", arrays)

    @property
    def t(self) -> int:
        """Steps taken. After `capturable`, which lets the device count, reading it waits for the device."""
        return self._t if self._row is None else self._t + self._replayed("Optimizer.t")

    def step(self, grads: Mapping[str, Any] | None = None, *, stream: Any = None) -> None:
        """Take one step with the gradients in `self.grads`, or with these, which are copied there first.

        On a device it is launched on `stream` (of CuPy, torch or another library; None is CuPy's current one), one
        launch a group, and nothing waits for it.

        Raises:
            LayoutError: `grads` lacks a parameter, names an unknown one, or has the wrong shape, type or place.
            SettingError: a schedule or a setting gives a number that is not finite or out of its range.
            BackendError: the stream is being captured into a CUDA graph and `capturable` was not called.
            In each case parameters, gradients, state and t are as they were.

        An interrupt (KeyboardInterrupt, or whatever a signal handler raises) finds the step taken whole, t included, or
        not at all.

        """
        if self._device is not None or stream is not None:
            self._step_on_device(grads, stream)
        else:
            any(starmap(call, self._calls(grads)))  # launch.run, written out: a small step is short enough to show it

    def _calls(self, grads: Mapping[str, Any] | None) -> list[tuple]:
        """Check everything, take the gradients over and prepare the step."""
        t = self._t + 1
        ready = []
        for group in self._groups:  # all of them, before anything is written
            ready.append((group, group.scalars(t)))  # noqa: PERF401 — a comprehension is a call until Python 3.12
        if grads is not None:
            self._take(grads)
        calls = []
        for group, scalars in ready:
            noise = (*noise_keys(self._seed, t), group.offset) if group.program.noise else ()
            calls += group.launch.calls(noise, scalars)
        calls.append((setattr, self, "_t", t))
        return calls

    def _step_on_device(self, grads: Mapping[str, Any] | None, stream: Any) -> None:
        where = "Optimizer.step"
        if self._device is None:
            devices.require_no_stream(stream, where)
        with devices.running(self._device, stream, where):
            if self._row is None:
                devices.require_not_frozen(where)
                run(self._calls(grads))
                return
            if grads is not None:
                self._take(grads)
            run([c for group in self._groups for c in group.launch.captured_calls(group.offset)] + self._advance)

    def capturable(self, steps: int) -> None:
        """Prepare the next `steps` steps on the device, so that `step()` can be captured into a CUDA graph.

        A graph repeats what was captured. From now on t, the scheduled settings and all that depends on t therefore
        live on the device, in a table of the next steps, and each step, captured or not, uses the next row. Bit for
        bit the same steps. A replay after the last row changes nothing, and `t` then raises; call `capturable` again
        before that, with the same number, and captured graphs go on. It waits for the device.

        A graph holds addresses, so this optimizer, and gradients that a captured `step(grads)` was given, must live as
        long as the graph is replayed.

        Args:
            steps: how many; a row of the table is some 40 bytes for each group.

        Raises:
            BackendError: the parameters are in the CPU's memory, where nothing is captured; or the current stream is
                being captured already.
            SettingError: steps is not an integer of at least 1, or differs from that of an earlier call; or a schedule
                gives a number out of its range in one of these steps. Nothing is changed then.

        """
        where = "Optimizer.capturable"
        if self._device is None:
            what = "these parameters are in the CPU's memory, where no CUDA graph is captured."
            raise BackendError(explain(where, what, do="build the optimizer with backend='cuda', or on CuPy arrays"))
        steps = dispatch.whole(steps, "steps", where, 1, 31)
        if self._row is None:
            self._prepare(self._t, steps)
            return
        if steps != self._steps:
            what = "the number of prepared steps is fixed: captured graphs know where the table lies."
            raise SettingError(explain(where, what, got=steps, expected=self._steps))
        self._prepare(self._t + min(self._count(), steps), steps)

    def _prepare(self, t: int, steps: int) -> None:
        rows = range(t + 1, t + 1 + steps)
        tables = [[group.scalars(k) for k in rows] for group in self._groups]  # all of them, before anything is written
        keys = [[noise_keys(self._seed, k) for k in rows] if group.program.noise else [] for group in self._groups]
        devices.wait_for(self._device, "Optimizer.capturable")  # for replays that still read the table
        row, advance = counter(self._device) if self._row is None else (self._row, self._advance)
        for group, table, noise in zip(self._groups, tables, keys, strict=True):
            group.launch.prepare(row, table, noise)
        devices.copy(row, np.zeros(1, np.int64))
        devices.wait_for(self._device, "Optimizer.capturable")  # for the copies, which another stream would not
        self._row, self._advance, self._t, self._steps = row, advance, t, steps

    def _count(self) -> int:
        """Wait for the device and read how many steps were launched since the last ones were prepared."""
        devices.wait_for(self._device, "Optimizer.t")
        return int(devices.to_numpy(self._row)[0])

    def _replayed(self, where: str) -> int:
        """Read how many of the prepared steps were taken, or raise a BackendError if there were not enough."""
        count = self._count()
        if count <= self._steps:
            return count
        raise BackendError(
            explain(
                where,
                f"{count - self._steps} steps were not taken: no more were prepared.",
                got=f"{count} replays of {self._steps} prepared steps; parameters and state are those after the last",
                do=f"call opt.capturable({self._steps}) again before they are used up",
            )
        )

    def _take(self, grads: Mapping[str, Any]) -> None:
        where = "Optimizer.step"
        given = dispatch.mapping(grads, where, "gradients")
        if given.keys() != self._own_grads.keys():
            _require_names(given, self._own_grads, where, "the gradient of")
        copies = []
        for name, own in self._own_grads.items():  # all are looked at before any is copied
            array = given[name]
            if type(array) is not np.ndarray:
                array = dispatch.lend(array, name, where)
            if array.dtype != own.dtype or array.shape != own.shape or (self._device or type(array) is not np.ndarray):
                _require_like(array, own, where, f"the gradient {name!r} does not match its parameter.", placed=True)
            if array is not own and array.base is not None and self._holds(array):
                array = array.copy()  # another parameter's gradient, which may be overwritten before it is read
            copies.append((own, array))
        for own, array in copies:
            own[...] = array

    def _holds(self, array: Any) -> bool:
        """Whether an array lies, in part, in the flat gradients."""
        if self._device is None:
            return np.may_share_memory(array, self.flat_grads)
        start = devices.address(self.flat_grads)
        return start <= devices.address(array) < start + self.flat_grads.nbytes

    def state(self, name: str) -> dict[str, np.ndarray]:
        """Give one state buffer, by its name in the rule, as parameter → array (a copy in the computing precision).

        On a device the copy is made on CuPy's current stream: after a step on another one, wait for that first.

        Raises:
            LayoutError: no group's rule has a buffer of that name.

        """
        known = sorted({s for group in self._groups for s in group.program.state})
        if name not in known:
            raise LayoutError(explain("Optimizer.state", f"there is no state {name!r}.", do=suggest(str(name), known)))
        return {p: devices.duplicate(value) for p, value in self._read(name).items()}

    def master(self) -> dict[str, np.ndarray]:
        """Give the parameters in the computing precision, by name (a copy)."""
        return {name: devices.duplicate(value) for name, value in self._read("p").items()}

    def state_dict(self) -> dict[str, Any]:
        """Give all that a later run needs to go on bit for bit: one flat dict of arrays, numbers and strings (copies).

        Keys: "t", "seed", "rules" (their names and choices, as a check), "p/<name>" and "<state>/<name>" for each
        parameter. It can be pickled, or kept with `np.savez(path, **opt.state_dict())` and taken back from
        `np.load(path)`. Rules and groups are code, not state: build the optimizer as before, then load. Gradients are
        not kept. With gradient noise, random rounding or 8-bit state, a later run goes on bit for bit only with the
        same parameters in the same order and the same groups. The arrays are NumPy's, also of a device, so a run can
        move between the CPU and a device.

        They hold values in the computing precision, whatever the storage, so a run can also move from one storage to
        another of the same precision; in the same one it goes on bit for bit.
        """
        if self._device is not None:
            devices.wait_for(self._device, "Optimizer.state_dict")  # for steps on any stream
        t = self.t
        arrays = {key: devices.to_numpy(value) for key, value in self._all().items()}
        return {"t": t, "seed": self._seed, "rules": self._rules(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; grouping may differ, names, shapes, types and rules may not.

        A rule is another if its type or a choice differs, at any depth of rules in rules; its numbers may differ.

        Raises:
            LayoutError: an entry is missing, unknown, or of another shape, type or rule. Nothing is changed then.

        """
        where = "Optimizer.load_state_dict"
        given = dispatch.mapping(state, where, "entries")
        own = self._templates()
        if self._device is not None:
            devices.wait_for(self._device, where)
        _require_names(given, {"t": 0, "seed": 0, "rules": 0, **own}, where, "the entry")
        if str(given["rules"]) != self._rules():
            raise LayoutError(
                explain(where, "the state belongs to other rules.", got=str(given["rules"]), expected=self._rules())
            )
        arrays = {key: dispatch.lend(given[key], key, where) for key in own}
        for key, array in arrays.items():
            _require_like(array, own[key], where, f"the entry {key!r} does not match.")
        t = dispatch.whole(given["t"], "the entry 't'", where, 0, 63, error=LayoutError)
        seed = dispatch.seed_number(given["seed"], where, "the entry 'seed'", LayoutError)
        for buffer in dict.fromkeys(key.split("/", 1)[0] for key in arrays):
            mine = {key.split("/", 1)[1]: array for key, array in arrays.items() if key.split("/", 1)[0] == buffer}
            self._write(buffer, mine)
        self._t, self._seed = t, seed
        if self._row is not None:
            self._prepare(t, self._steps)

    def __reduce__(self) -> tuple:
        """Pickle and deep-copy by building anew: a kernel holds the addresses of its own optimizer's memory.

        A copy is on the device of the same number. It is not `capturable`: graphs do not know its memory.
        """
        grads = {name: devices.to_numpy(view) for name, view in self.grads.items()}
        device = None if self._device is None else self._device.id
        return _restored, (type(self), self._arguments, self.state_dict(), grads, device)

    def _all(self) -> dict[str, Any]:
        """Give every kept value as "buffer/parameter" → array."""
        buffers = ["p", *dict.fromkeys(s for group in self._groups for s in group.program.state)]
        return {f"{b}/{name}": value for b in buffers for name, value in self._read(b).items()}

    def _templates(self) -> dict[str, np.ndarray]:
        """Give an array of the shape and type of every kept value, without its memory."""
        element = np.empty((), self._dtype)
        buffers = ["p", *dict.fromkeys(s for group in self._groups for s in group.program.state)]
        return {
            f"{b}/{name}": np.broadcast_to(element, shape)
            for b in buffers
            for group in self._groups
            for name, shape in group.shapes.items()
            if b in group.packed
        }

    def _rules(self) -> str:
        return ", ".join(sorted({describe(group.rule) for group in self._groups}))

    def __repr__(self) -> str:
        count = sum(view.size for view in self.params.values())
        rules = ", ".join(repr(group.rule) for group in self._groups)
        t = f"t={self._t}" if self._row is None else f"t from {self._t} on, counted on the device"
        return f"Optimizer({rules}; {len(self.params)} arrays, {count:,} parameters, {t})"


def _restored(
    kind: type[Optimizer],
    arguments: dict[str, Any],
    state: dict[str, Any],
    grads: dict[str, np.ndarray],
    device: int | None,
) -> Optimizer:
    params = {name: state[f"p/{name}"] for name in grads}
    with nullcontext() if device is None else devices.device("Optimizer", device):
        opt = kind(params=params, **arguments)
        opt.load_state_dict(state)
    for name, value in grads.items():
        devices.copy(opt.grads[name], value)
    return opt


def _computes(kept: Mapping[str, str]) -> np.dtype:
    return STORAGES[kept["p"]].computes


def _converted(value: Any, dtype: np.dtype) -> Any:
    """Give a parameter's first value in the computing precision."""
    return value if value.dtype == dtype else value.astype(dtype)


def _require_names(given: Mapping, own: Mapping, where: str, what: str) -> None:
    missing = [name for name in own if name not in given]
    unknown = [str(name) for name in given if name not in own]
    if unknown:
        raise LayoutError(
            explain(where, f"{what} {unknown[0]!r} fits nothing here.", do=suggest(unknown[0], missing or list(own)))
        )
    if missing:
        raise LayoutError(explain(where, f"{what} {missing[0]!r} is missing.", got=f"{len(given)} of {len(own)} names"))


def _require_like(array: Any, own: Any, where: str, what: str, *, placed: bool = False) -> None:
    if array.dtype != own.dtype or array.shape != own.shape:
        same_shape = array.shape == own.shape
        do = f"convert it yourself, with .astype({str(own.dtype)!r})" if same_shape else None
    elif placed and devices.place(array) != devices.place(own):
        do = "copy it there yourself"
    else:
        return
    raise LayoutError(explain(where, what, got=dispatch.describe(array), expected=dispatch.describe(own), do=do))

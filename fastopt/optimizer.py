"""The stateful surface: a rule, its buffers and the number of steps taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import numpy as np

from fastopt import dispatch
from fastopt.buffers import allocate, padded, views
from fastopt.errors import LayoutError, RuleError, SettingError, explain, suggest
from fastopt.kernels.program import Program
from fastopt.kernels.settings import is_rule, require_rule
from fastopt.kernels.storage import NAMES, STORAGES, noise_keys


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a rule and are updated in one pass."""

    rule: Any
    program: Program
    shapes: dict[str, tuple[int, ...]]
    offset: int  # of its first element in the flat buffers
    state: dict[str, np.ndarray]  # flat, one array for each state buffer
    views: dict[str, Mapping[str, np.ndarray]]  # the same memory by state buffer, then by parameter
    scalars: Callable[[int], tuple[float, ...]]
    launch: Callable[[tuple, tuple], None]


class Optimizer:
    """Named parameters packed into flat buffers, updated by one fused pass for each group.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        params: name → initial value, all float32 or all float64: NumPy arrays or whatever on the CPU speaks DLPack or
            the buffer protocol. The values are copied; from then on `opt.params` are the parameters.
        groups: settings for some of the parameters: pattern of names → dict of settings, or another rule. Patterns are
            those of the shell (`"*.bias"`); every pattern that fits a name applies, in the order given. Parameters that
            end up with equal rules are one group and one pass.
        storage: "f32" or "f64" to keep and compute in that precision whatever that of `params`; None follows it.
        backend: "auto", "cpu" or "reference".
        seed: seed of gradient noise, used by rules that have some.

    Attributes:
        params: name → view into the flat parameter buffer. Assign into it: `opt.params["w"][...] = value`.
        grads: name → view into the flat gradient buffer, zero at first. A step reads it and leaves it as it is.
        flat_params, flat_grads: the buffers themselves, in the groups' order, padded to whole tiles with zeros.
        t: steps taken.

    Raises:
        LayoutError: a parameter has the wrong type, or there is none.
        SettingError: a pattern of `groups` fits no parameter, or names a setting that its rule does not have.
        RuleError: the rule cannot be traced.

    Memory: the parameter, its gradient and the rule's state; 16 bytes a parameter for float32 Adam.

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
        storage: str | None = None,
        backend: str = "auto",
        seed: int = 0,
    ):
        require_rule(rule, "Optimizer")
        values = _values(params)
        dtype = _precision(values, storage)
        self._seed = dispatch.whole(seed, "seed", "Optimizer")
        self._t = 0
        self._arguments = {"rule": rule, "groups": groups, "storage": storage, "backend": backend}
        chosen = dispatch.choose(backend, "Optimizer")
        members = _members(rule, list(values), groups or {})
        counts = [padded(sum(values[name].size for name in names)) for names in members.values()]
        self.flat_params, self.flat_grads = allocate(sum(counts), dtype), allocate(sum(counts), dtype)
        all_params: dict[str, np.ndarray] = {}
        all_grads: dict[str, np.ndarray] = {}
        self._groups: list[Group] = []
        offset = 0
        for (group_rule, names), count in zip(members.items(), counts, strict=True):
            program, scalars = dispatch.plan(group_rule, dtype)
            shapes = {name: values[name].shape for name in names}
            n = sum(math.prod(shape) for shape in shapes.values())
            initial = _initial(group_rule, program)
            state = {s: allocate(count, dtype, initial.get(s, 0.0)) for s in program.state}
            all_params |= views(self.flat_params[offset:], shapes)
            all_grads |= views(self.flat_grads[offset:], shapes)
            flat = [self.flat_params[offset:], self.flat_grads[offset:], *state.values()]
            launch = dispatch.bind(program, group_rule, [a[:n] for a in flat], chosen)
            named = {s: views(a, shapes) for s, a in state.items()}
            self._groups.append(Group(group_rule, program, shapes, offset, state, named, scalars, launch))
            offset += count
        self.params: Mapping[str, np.ndarray] = MappingProxyType({name: all_params[name] for name in values})
        self._own_grads = {name: all_grads[name] for name in values}
        self.grads: Mapping[str, np.ndarray] = MappingProxyType(self._own_grads)
        for name, value in values.items():
            self.params[name][...] = value

    @property
    def t(self) -> int:
        """Steps taken."""
        return self._t

    def step(self, grads: Mapping[str, Any] | None = None) -> None:
        """Take one step with the gradients in `self.grads`, or with these, which are copied there first.

        Raises:
            LayoutError: `grads` lacks a parameter, names an unknown one, or has the wrong shape or type.
            SettingError: a schedule or a setting gives a number that is not finite or out of its range.
            In both cases parameters, state and t are as they were.

        """
        if grads is not None:
            self._take(grads)
        t = self._t + 1
        ready = [(group, group.scalars(t)) for group in self._groups]  # all of them, before anything is written
        for group, scalars in ready:
            group.launch((*noise_keys(self._seed, t), group.offset) if group.program.noise else (), scalars)
        self._t = t

    def _take(self, grads: Mapping[str, Any]) -> None:
        where = "Optimizer.step"
        given = _mapping(grads, where, "gradients")
        if given.keys() != self._own_grads.keys():
            _require_names(given, self._own_grads, where, "the gradient of")
        copies = []
        for name, own in self._own_grads.items():  # all are looked at before any is copied
            array = given[name]
            if type(array) is not np.ndarray:
                array = _lend(array, name, where)
            if array.dtype != own.dtype or array.shape != own.shape:
                _require_like(array, own, where, f"the gradient {name!r} does not match its parameter.")
            copies.append((own, array))
        for own, array in copies:
            own[...] = array

    def state(self, name: str) -> dict[str, np.ndarray]:
        """Give one state buffer, by its name in the rule, as parameter → array (a copy in the computing precision).

        Raises:
            LayoutError: no group's rule has a buffer of that name.

        """
        found = {p: view.copy() for group in self._groups for p, view in group.views.get(name, {}).items()}
        if not found:
            known = sorted({s for group in self._groups for s in group.state})
            raise LayoutError(explain("Optimizer.state", f"there is no state {name!r}.", do=suggest(str(name), known)))
        return {p: found[p] for p in self.params if p in found}

    def master(self) -> dict[str, np.ndarray]:
        """Give the parameters in the computing precision, by name (a copy)."""
        return {name: view.copy() for name, view in self.params.items()}

    def state_dict(self) -> dict[str, Any]:
        """Give all that a later run needs to go on bit for bit: one flat dict of arrays, numbers and strings (copies).

        Keys: "t", "seed", "rules" (their names, as a check), "p/<name>" and "<state>/<name>" for each parameter. It can
        be pickled, or kept with `np.savez(path, **opt.state_dict())` and taken back from `np.load(path)`. Rules and
        groups are code, not state: build the optimizer as before, then load. Gradients are not kept.
        """
        arrays = {f"{buffer}/{name}": view.copy() for buffer, name, view in self._all()}
        return {"t": self._t, "seed": self._seed, "rules": self._rules(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; grouping may differ, names, shapes, types and rules may not.

        Raises:
            LayoutError: an entry is missing, unknown, or of another shape, type or rule. Nothing is changed then.

        """
        where = "Optimizer.load_state_dict"
        given = _mapping(state, where, "entries")
        own = {f"{buffer}/{name}": view for buffer, name, view in self._all()}
        _require_names(given, {"t": 0, "seed": 0, "rules": 0, **own}, where, "the entry")
        if str(given["rules"]) != self._rules():
            raise LayoutError(
                explain(where, "the state belongs to other rules.", got=str(given["rules"]), expected=self._rules())
            )
        arrays = {key: _lend(given[key], key, where) for key in own}
        for key, array in arrays.items():
            _require_like(array, own[key], where, f"the entry {key!r} does not match.")
        t, seed = (_integer(given[key], key, where) for key in ("t", "seed"))
        if t < 0:
            raise LayoutError(explain(where, "the entry 't' is negative.", got=t))
        for key, array in arrays.items():
            own[key][...] = array
        self._t, self._seed = t, seed

    def __reduce__(self) -> tuple:
        """Pickle and deep-copy by building anew: a kernel holds the addresses of its own optimizer's memory."""
        return _restored, (self._arguments, self.state_dict(), {name: view.copy() for name, view in self.grads.items()})

    def _all(self) -> list[tuple[str, str, np.ndarray]]:
        """List every kept array as (buffer, parameter, view)."""
        entries = [("p", name, view) for name, view in self.params.items()]
        for group in self._groups:
            entries += [(s, name, view) for s, named in group.views.items() for name, view in named.items()]
        return entries

    def _rules(self) -> str:
        return ", ".join(sorted({group.program.rule for group in self._groups}))

    def __repr__(self) -> str:
        count = sum(view.size for view in self.params.values())
        rules = ", ".join(repr(group.rule) for group in self._groups)
        return f"Optimizer({rules}; {len(self.params)} arrays, {count:,} parameters, t={self._t})"


def _restored(arguments: dict[str, Any], state: dict[str, Any], grads: dict[str, np.ndarray]) -> Optimizer:
    params = {name: state[f"p/{name}"] for name in grads}
    opt = Optimizer(params=params, **arguments)
    opt.load_state_dict(state)
    for name, value in grads.items():
        opt.grads[name][...] = value
    return opt


def _mapping(value: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise LayoutError(
            explain(where, f"{what} go by name.", got=type(value).__name__, expected="a mapping of names")
        )
    return dict(value)


def _require_names(given: Mapping, own: Mapping, where: str, what: str) -> None:
    missing = [name for name in own if name not in given]
    unknown = [str(name) for name in given if name not in own]
    if unknown:
        raise LayoutError(
            explain(where, f"{what} {unknown[0]!r} fits nothing here.", do=suggest(unknown[0], missing or list(own)))
        )
    if missing:
        raise LayoutError(explain(where, f"{what} {missing[0]!r} is missing.", got=f"{len(given)} of {len(own)} names"))


def _lend(value: Any, name: str, where: str) -> np.ndarray:
    """View a value that is only read, in whatever order its memory is."""
    return (
        value
        if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
        else dispatch.adopt(value, name, where)
    )


def _require_like(array: np.ndarray, own: np.ndarray, where: str, what: str) -> None:
    if array.dtype != own.dtype or array.shape != own.shape:
        raise LayoutError(
            explain(
                where,
                what,
                got=f"{array.dtype}{list(array.shape)}",
                expected=f"{own.dtype}{list(own.shape)}",
                do=f"convert it yourself, with .astype({str(own.dtype)!r})" if array.shape == own.shape else None,
            )
        )


def _integer(value: Any, name: str, where: str) -> int:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "iu":
        raise LayoutError(explain(where, f"the entry {name!r} is not an integer.", got=repr(value)))
    return int(array)


def _values(params: Any) -> dict[str, np.ndarray]:
    values = {}
    for name, value in _mapping(params, "Optimizer", "parameters").items():
        if not isinstance(name, str):
            raise LayoutError(explain("Optimizer", "a parameter's name is a string.", got=repr(name)))
        values[name] = array = _lend(value, name, "Optimizer")
        if array.dtype not in NAMES:
            expected = " or ".join(str(d) for d in NAMES)
            raise LayoutError(
                explain(
                    "Optimizer", f"the parameter {name!r} has the wrong type.", got=str(array.dtype), expected=expected
                )
            )
    if not values:
        raise LayoutError(
            explain("Optimizer", "there are no parameters.", got="{}", expected='for example {"w": w, "b": b}')
        )
    return values


def _precision(values: dict[str, np.ndarray], storage: str | None) -> np.dtype:
    if storage is not None:
        if storage not in STORAGES:
            raise SettingError(
                explain(
                    "Optimizer",
                    "there is no such storage.",
                    got=repr(storage),
                    do=suggest(str(storage), list(STORAGES)),
                )
            )
        return STORAGES[storage]
    dtypes = {array.dtype for array in values.values()}
    if len(dtypes) > 1:
        first = {dtype: next(name for name, a in values.items() if a.dtype == dtype) for dtype in dtypes}
        raise LayoutError(
            explain(
                "Optimizer",
                "the parameters have different precisions.",
                got=", ".join(f"{name!r} {dtype}" for dtype, name in first.items()),
                do='convert them, or choose one for all with storage="f32" or "f64"',
            )
        )
    return dtypes.pop()


def _members(rule: Any, names: list[str], groups: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Sort the parameters by the rule they end up with."""
    if not isinstance(groups, Mapping) or not all(isinstance(pattern, str) for pattern in groups):
        expected = 'for example {"*.bias": {"weight_decay": 0.0}}'
        raise SettingError(
            explain("Optimizer", "groups go by patterns of names.", got=repr(groups)[:60], expected=expected)
        )
    for pattern in groups:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SettingError(
                explain("Optimizer", f"the group {pattern!r} fits no parameter.", do=suggest(str(pattern), names))
            )
    members: dict[Any, list[str]] = {}
    for name in names:
        own = rule
        for pattern, change in groups.items():
            if fnmatchcase(name, pattern):
                own = _changed(own, pattern, change)
        members.setdefault(own, []).append(name)
    return members


def _changed(rule: Any, pattern: str, change: Any) -> Any:
    if is_rule(change):
        require_rule(change, f"Optimizer, group {pattern!r}")
        return change
    where = f"Optimizer, group {pattern!r}"
    if not isinstance(change, Mapping):
        raise SettingError(explain(where, "a group is a dict of settings, or a rule.", got=repr(change)))
    known = [f.name for f in dataclasses.fields(rule) if f.init]
    for setting in change:
        if setting not in known:
            do = suggest(str(setting), known)
            raise SettingError(explain(where, f"{type(rule).__name__} has no setting {setting!r}.", do=do))
    return dataclasses.replace(rule, **change)


def _initial(rule: Any, program: Program) -> dict[str, float]:
    initial = rule.initial() if hasattr(rule, "initial") else {}
    for name in initial:
        if name not in program.state:
            raise RuleError(
                explain(
                    f"{type(rule).__name__}.initial",
                    f"there is no state {name!r}.",
                    do=suggest(name, list(program.state)),
                )
            )
    return initial

"""The numbers of a step computed on the device, so that a CUDA graph which repeats a step goes on to the next.

A rule's `scalars(t)` is Python code of the host, in float64. What does not depend on a number that only the device
knows (a learning rate, a gradient scale) is computed there for every t at which it still changes, and put into a table.
The rest is traced: lr is a `Symbol`, and what is computed with it becomes torch operations of float64, each rounded as
on the host. So the bits are those of a step outside of a graph.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.checks import NONNEGATIVE, to_float
from fastopt.errors import BackendError, SettingError
from fastopt.kernels.compiler.noise import MIXING, mix64
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.rules.rule import Rule, is_rule

ROUNDING = 1e-12
"""Learning rates a rounding below zero, at which torch's LinearLR(end_factor=0) ends (at -4e-20 from 1e-3), are zero:
a step with them, as torch takes it, changes no float32 that is not itself as small."""

LAST = 2**40
"""A step at which everything that settles has settled."""

MOST_ROWS = 1 << 20
"""Rows of a table: betas of 0.9999 need some 370,000 until their powers vanish beside 1."""


class Symbol:
    """A number that only the device knows. As a setting of a rule it is a callable, as a schedule is.

    `form` says how it is computed: the name of an input, or of an operation and the forms of its operands, of which a
    constant's is None. `constants` are these, from left to right.
    """

    def __init__(self, form: tuple, constants: tuple[float, ...] = ()):
        self.form, self.constants = form, constants

    def __call__(self, t: int) -> Symbol:
        """Return itself: it is the same at every step."""
        return self

    def __add__(self, other: Any) -> Symbol:
        return _operation("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _operation("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _operation("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _operation("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _operation("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _operation("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _operation("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _operation("div", other, self)

    def rounded(self, kind: Any) -> Symbol:
        """Round to another precision of NumPy, as a host that keeps the number in it."""
        return Symbol((f"to {np.dtype(kind).name}", self.form), self.constants)

    def at_least(self, least: float) -> Symbol:
        """Return the larger of this and a number."""
        return _operation("maximum", self, least)

    def __neg__(self) -> Symbol:
        return Symbol(("neg", self.form), self.constants)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Symbol:
        if ufunc in _UFUNCS and method == "__call__":
            return _operation(_UFUNCS[ufunc], *inputs)
        self._refuse()

    def __eq__(self, other: object) -> bool:
        if _TRACING.on:
            self._refuse()
        return self is other  # as options are compared

    def __hash__(self) -> int:
        return id(self)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise BackendError(
            "this rule does more with a number that is on the device than to add, subtract, multiply and divide it.",
            do="leave capturable=False",
        )

    __bool__ = __float__ = __int__ = __index__ = __abs__ = __pos__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __pow__ = __rpow__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _refuse
    __array__ = __round__ = __format__ = _refuse


_UFUNCS = {np.add: "add", np.subtract: "sub", np.multiply: "mul", np.true_divide: "div"}


class _Tracing(threading.local):
    on = False


_TRACING = _Tracing()


def _operation(name: str, a: Any, b: Any) -> Symbol:
    (left, own), (right, others) = _parts(a), _parts(b)
    return Symbol((name, left, right), own + others)


def _parts(x: Any) -> tuple[tuple | None, tuple[float, ...]]:
    return (x.form, x.constants) if isinstance(x, Symbol) else (None, (float(x),))


LR, FACTOR = Symbol(("lr",)), Symbol(("factor",))
"""A group's learning rate, and the factor on its gradients."""

Advance: TypeAlias = Callable[[Rule, int, dict[str, Any]], tuple[Rule, dict[str, Any]]]
"""Returns the rule of step t and torch's other scalars after it, from those before."""


class DeviceScale(NamedTuple):
    """What torch's GradScaler tells a step: gradients' factor, and whether one is not finite (`found` is not 0)."""

    scale: torch.Tensor | None
    found: torch.Tensor | None


class DeviceNumbers:
    """What `plan.scalars` returns at each step, as torch operations on a device.

    Args:
        rule: the rule, with `LR` and `FACTOR` among its settings.
        program: its program.
        advance: as `Adapter._advance`, with Symbols for torch's other scalars.
        entries: the names of these scalars.
        device: the device.

    Raises:
        BackendError: what the rule computes with them is more than the four operations, or never settles.

    """

    def __init__(self, rule: Rule, program: Program, advance: Advance, entries: Iterable[str], device: torch.device):
        entries = tuple(entries)
        self._names = (*program.scalars, *entries)
        self._dtype, self._count = getattr(torch, program.dtype.name), len(program.scalars)
        _require_traceable(rule)

        def traced(t: int) -> tuple[tuple, tuple[float, ...]]:
            """Return how the numbers of step t are computed, and the constants in that."""
            own, after = advance(rule, t, {name: Symbol((name,)) for name in entries})
            found = own.scalars(t)
            parts = [_parts(found[name]) for name in program.scalars] + [_parts(after[name]) for name in entries]
            return tuple([form for form, _ in parts]), tuple(chain.from_iterable([own for _, own in parts]))

        rows: dict[tuple, dict[int, tuple[float, ...]]] = {}  # how numbers are computed → row → constants
        _TRACING.on = True
        try:
            last = traced(LAST)
            steps = _settles(lambda t: traced(t) == last, type(rule).__name__)
            for row in range(steps):
                form, constants = traced(row + 1) if row + 1 < steps else last
                rows.setdefault(form, {})[row] = constants
        finally:
            _TRACING.on = False
        which = np.zeros(steps, np.int64)
        self._computed = []
        for k, (form, found) in enumerate(rows.items()):
            which[list(found)] = k
            self._computed.append(_Computed(form, found, steps, device))
        self._which = torch.from_numpy(which).to(device)

    def at(self, taken: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the scalars of the step after `taken` steps of each parameter, and torch's other scalars after it.

        `inputs` are the values of the Symbols, in float64, without dimensions or one for each parameter. The scalars of
        one parameter are a row.
        """
        row = taken.to(torch.int64).clamp(max=len(self._which) - 1)
        made = [computed.at(row, inputs) for computed in self._computed]
        found = made[0]
        for k, other in enumerate(made[1:], 1):
            found = torch.where((self._which.index_select(0, row) == k)[:, None], other, found)
        others = dict(zip(self._names[self._count :], found[:, self._count :].unbind(1), strict=True))
        return found[:, : self._count].to(self._dtype).contiguous(), others


class StepNumbers(NamedTuple):
    """From what a step computes its numbers."""

    made: DeviceNumbers
    inputs: dict[str, torch.Tensor]
    found: torch.Tensor | None  # of GradScaler: not zero where a gradient is not finite

    def skip(self, device: torch.device) -> torch.Tensor:
        """Return an int64 on the device: whether the step is to be skipped."""
        if self.found is None:
            return torch.zeros((), dtype=torch.int64, device=device)
        return (self.found != 0).reshape(()).to(device, torch.int64)


def not_prepared(why: str) -> BackendError:
    """Return the error of a step that is captured and is not like the last one."""
    what = f"this step cannot be captured into a CUDA graph: {why}"
    return BackendError(what, do="take steps as those to capture before the capture, on a side stream as torch advises")


def device_inputs(group: Mapping[str, Any], unscale: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the values of `LR` and `FACTOR` for a group, on a device. A tensor on it is read where it lies.

    Raises:
        SettingError: the learning rate is negative or not finite, as far as the host knows it, or no number.

    """
    lr, scale = group.get("lr", 0.0), unscale.scale if isinstance(unscale, DeviceScale) else None
    if isinstance(lr, torch.Tensor):
        if lr.numel() != 1 or lr.is_complex():
            raise SettingError("the setting lr is no number.", got=f"{lr.dtype}{list(lr.shape)}")
        lr = lr.item() if lr.device.type == "cpu" != device.type else lr  # as in torch, a graph does not read it again
    elif callable(lr):
        raise _is_schedule("lr")
    if not isinstance(lr, torch.Tensor):
        found = math.nan if isinstance(lr, bool) else to_float(lr)
        lr = 0.0 if -ROUNDING < found <= 0 else found
        if not 0 <= lr < np.inf:
            raise SettingError("the setting lr is out of its range.", got=f"lr={lr!r}", expected=str(NONNEGATIVE))
    factor: Any = 1.0 if scale is None else 1.0 / _number(scale, device)
    if isinstance(unscale, float):
        factor = unscale
    return {"lr": _number(lr, device), "factor": _number(-factor if group.get("maximize") else factor, device)}


def _number(value: Any, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, torch.float64).reshape(())
    return torch.full((), value, dtype=torch.float64, device=device)


def _is_schedule(name: str) -> BackendError:
    what = f"the setting {name!r} is a schedule, whose value of this step a CUDA graph would repeat."
    return BackendError(what, do="let torch's scheduler write to a tensor lr; or leave capturable=False")


def _require_traceable(rule: Any) -> None:
    """Raise a BackendError if a setting of a rule is a function of the host."""
    for name, value in vars(rule).items():
        if is_rule(value):
            _require_traceable(value)
        for x in value if isinstance(value, tuple) else (value,):
            if callable(x) and not isinstance(x, Symbol) and not is_rule(x):
                raise _is_schedule(name)


class _Computed:
    """How numbers are computed, and the constants for that: those that change in a table, a row for each step."""

    def __init__(self, form: tuple, found: Mapping[int, tuple[float, ...]], steps: int, device: torch.device):
        self._form = form
        constants = np.array(list(found.values()), np.float64)
        self._moving = (constants != constants[0]).any(axis=0).tolist()
        table = np.zeros((steps, sum(self._moving)))
        table[list(found)] = constants[:, self._moving]
        self._table = torch.from_numpy(table).to(device)
        self._fixed = torch.from_numpy(constants[0].copy()).to(device).unbind()

    def at(self, row: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the numbers of some rows, each a row."""
        moving = iter(self._table.index_select(0, row).unbind(1))
        constants = iter([next(moving) if moves else x for moves, x in zip(self._moving, self._fixed, strict=True)])

        def value(part: Any) -> torch.Tensor:
            if part is None:
                return next(constants)
            operation, *operands = part
            given = [value(x) for x in operands]
            if not given:
                return inputs[operation]
            if operation.startswith("to "):
                return given[0].to(getattr(torch, operation[3:])).to(torch.float64)
            return getattr(torch, operation)(*given)

        found = [value(part).expand(row.shape) for part in self._form]
        return torch.stack(found, dim=1) if found else self._table.new_empty((len(row), 0))


def _settles(is_last: Callable[[int], bool], kind: str) -> int:
    """Return the first step from which on nothing changes, or raise a BackendError."""
    low, high = 0, 1  # not yet at `low`, settled at `high`
    while not is_last(high):
        low, high = high, 2 * high
        if high > MOST_ROWS:
            raise BackendError(
                f"the numbers of {kind} still change after {MOST_ROWS:,} steps: too many for a table on the device.",
                do="use a shorter average, or fastopt.Optimizer, whose capturable(steps) prepares as many as are asked",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_last(middle) else (middle, high)
    for t in (*range(high, high + 64), *(high + 2**k for k in range(6, 40))):
        if not is_last(t):
            raise BackendError(f"the numbers of {kind} do not settle.", do="leave capturable=False")
    return high


def keys_on_device(seed: int, taken: torch.Tensor) -> torch.Tensor:
    """Return the keys of noise for the step after `taken` steps, as `noise.noise_keys`: the halves of an int64.

    int64 wraps as the host's masked integers do; its shifts copy the sign, which is masked away.
    """
    increment, *rounds, last = MIXING
    z = ((taken.to(torch.int64) + 1) ^ _signed(mix64(seed % 2**64))) + _signed(increment)
    for shift, factor in rounds:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, last)


def _shifted(z: torch.Tensor, count: int) -> torch.Tensor:
    return (z >> count) & ((1 << (64 - count)) - 1)


def _signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z

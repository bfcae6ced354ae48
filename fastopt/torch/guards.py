"""Guards: whether tensors are as they were when a step was arranged, so that its addresses still hold.

`CompiledGuard` asks torch's stable C functions in compiled code (see `c_abi`). `PythonGuard` asks torch's methods, at
three times the cost, for DTensors and wherever the functions are missing. Neither runs Python between two tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import has_memory, is_distributed, local
from fastopt.kernels import jit
from fastopt.torch import c_abi

_gradient, _device, _dtype, _shape = (attrgetter(name) for name in ("grad", "device", "dtype", "shape"))
_address, _is_neg = torch.Tensor.data_ptr, torch.Tensor.is_neg
# What besides its address says how a tensor lies; where all are contiguous the second, which takes half the time.
_LAYOUT = _dtype, _shape, torch.Tensor.stride
_CONTIGUOUS = _dtype, torch.Tensor.numel, torch.Tensor.is_contiguous


class Outcome(IntEnum):
    """What a check finds: all is as it was, gradients alone lie elsewhere, or anything else."""

    SAME, MOVED, CHANGED = range(3)


class Check(NamedTuple):
    """The outcome, and the gradients that were checked: a step holds them, so that no other thread can free them."""

    outcome: Outcome
    gradients: list[Any] = []  # noqa: RUF012 — never changed
    addresses: np.ndarray = np.empty(0, np.int64)  # of the gradients


def make_guard(
    active: Sequence[Any],
    idle: Sequence[Any],
    state: Sequence[torch.Tensor] = (),
    grads: Sequence[Any] | None = None,
) -> PythonGuard:
    """Note how parameters are, the active ones with their gradients, and where their state lies.

    `grads` are gradients to compare in place of the parameters' own.
    """
    own = list(map(_gradient, active)) if grads is None else list(grads)
    found, checked = c_abi.functions(), [*active, *own, *state]
    if found is not None and _is_plain([*active, *idle]) and c_abi.are_where_expected(checked, found):
        return CompiledGuard(active, idle, state, own, found)
    return PythonGuard(active, idle, state, own)


def guard_kind(params: Sequence[Any]) -> str:
    """Return the kind of guard that parameters get."""
    return CompiledGuard.kind if c_abi.functions() is not None and _is_plain(params) else PythonGuard.kind


def _is_plain(tensors: Sequence[Any]) -> bool:
    """Whether these are torch's own tensors, whose memory is theirs."""
    return not any(is_distributed(x) or x.is_inference() or type(x).grad is not torch.Tensor.grad for x in tensors)


class PythonGuard:
    """What was noted of the active parameters, their gradients and their state, and of the idle ones without gradient.

    `kind` names it in an optimizer's repr; `p_at`, `g_at`, `s_at` are the addresses of parameters, gradients and state.
    """

    kind = "Python"

    def __init__(self, active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor], grads: list[Any]):
        self._active, self._idle, self._state = list(active), list(idle), list(state)
        self._types, self._distributed = set(map(type, grads)), any(map(is_distributed, active))
        own_params, own_grads = self._local(self._active), self._local(grads)
        self.p_at, self.g_at, self.s_at = _addresses(own_params), _addresses(own_grads), _addresses(self._state)
        self._note(own_params, own_grads)

    def _note(self, params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
        self._described = _CONTIGUOUS if all(x.is_contiguous() for x in [*params, *grads]) else _LAYOUT
        self._layouts, self._devices = self._layouts_of(params, grads), list(map(_device, grads))

    def _local(self, tensors: list[Any]) -> list[torch.Tensor]:
        if not self._distributed:
            return tensors
        with torch.no_grad():
            return list(map(local, tensors))

    def _layouts_of(self, *lists: Sequence[torch.Tensor]) -> list[Any]:
        return [list(map(what, tensors)) for tensors in lists for what in self._described]

    def check(self, g_at: np.ndarray, grads: list[Any] | None = None) -> Check:
        """Compare everything with how it was, and the gradients' addresses with these."""
        grads = list(map(_gradient, self._active)) if grads is None else grads
        if set(map(type, grads)) != self._types or (self._idle and not _all_none(map(_gradient, self._idle))):
            return _CHANGED
        try:
            outcome, found_at = self._compare(grads, g_at)
        except RuntimeError:  # a sparse gradient has no strides
            return _CHANGED
        return _CHANGED if outcome is Outcome.CHANGED else Check(outcome, grads, found_at)

    def _compare(self, grads: list[Any], g_at: np.ndarray) -> tuple[Outcome, np.ndarray]:
        own_params, own_grads = self._local(self._active), self._local(grads)
        if self._layouts_of(own_params, own_grads) != self._layouts or any(map(_is_neg, own_grads)):
            return Outcome.CHANGED, g_at
        found_at, known = _addresses(own_grads), ((own_params, self.p_at), (self._state, self.s_at))
        if not all(np.array_equal(_addresses(tensors), at) for tensors, at in known):
            return Outcome.CHANGED, g_at
        if np.array_equal(found_at, g_at):
            return Outcome.SAME, found_at
        may_move = list(map(_device, own_grads)) == self._devices and all(map(has_memory, own_grads))
        return Outcome.MOVED if may_move else Outcome.CHANGED, found_at


class CompiledGuard(PythonGuard):
    """Compares by torch's C functions, all tensors in one compiled call."""

    kind = "compiled"

    def __init__(
        self,
        active: Sequence[Any],
        idle: Sequence[Any],
        state: Sequence[torch.Tensor],
        grads: list[Any],
        found: c_abi.Found,
    ):
        self._found, self._handles = found, (c_abi.handles(active, found), c_abi.handles(state, found))
        super().__init__(active, idle, state, grads)

    def _note(self, params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
        found, expected = self._found, []
        for p, g in zip(params, grads, strict=True):
            expected += [p.dim(), *p.shape, *p.stride(), *g.stride(), g.numel() * g.element_size()]
        common = [found.distance]
        if params:
            p, g, handle = params[0], grads[0], int(self._handles[0][0])
            device = [found.ask(name, handle) for name in ("device_type", "device_index")]
            common += [found.dtypes[p.dtype], found.dtypes[g.dtype], *device, g.element_size()]
        self._known = self.p_at, self.s_at, np.array(expected, np.int64), np.array(common, np.int64)
        self._check_tensors = _compiled_check()

    def _compare(self, grads: list[Any], g_at: np.ndarray) -> tuple[Outcome, np.ndarray]:
        (params, state), (p_at, s_at, expected, common) = self._handles, self._known
        found_at, tensors = np.empty(len(grads), np.int64), (params, c_abi.pointers(grads), state)
        outcome = self._check_tensors(self._found.addresses, common, *tensors, p_at, g_at, s_at, expected, found_at)
        return Outcome.CHANGED if any(map(_is_neg, grads)) else _OUTCOMES[outcome], found_at


_CHANGED = Check(Outcome.CHANGED)
_OUTCOMES = tuple(Outcome)


@cache
def _compiled_check() -> Any:
    return jit.entry_point(jit.load_module("fastopt.torch.check_tensors"))


def _all_none(values: Any) -> bool:
    return all(map(is_, values, repeat(None)))


def same_objects(given: Any, known: Sequence[Any]) -> bool:
    """Whether a list holds the very same objects as another; tensors must not be compared for equality."""
    return len(given) == len(known) and all(map(is_, given, known))


def _addresses(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return np.fromiter(map(_address, tensors), np.int64, len(tensors))

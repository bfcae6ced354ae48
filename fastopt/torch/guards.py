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
from typing import Any, NamedTuple, Protocol

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


class Guard(Protocol):
    """What was noted of the active parameters, their gradients and their state, and of the idle ones without gradient.

    `kind` names it in an optimizer's repr; `p_at` and `g_at` are the addresses of parameters and gradients then.
    """

    kind: str
    p_at: np.ndarray
    g_at: np.ndarray

    def check(self, g_at: np.ndarray) -> Check:
        """Compare everything with how it was, and the gradients' addresses with these."""
        ...


def make_guard(active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor] = ()) -> Guard:
    """Note how parameters are, the active ones with their gradients, and where their state lies."""
    found = c_abi.functions()
    if found is None or not _is_plain([*active, *idle]):
        return PythonGuard(active, idle, state)
    handles = c_abi.handles(active, found), c_abi.handles(state, found)
    if handles[0] is None or handles[1] is None:
        return PythonGuard(active, idle, state)
    return CompiledGuard(active, idle, state, found, handles[0], handles[1])


def guard_kind(params: Sequence[Any]) -> str:
    """Return the kind of guard that parameters get."""
    return CompiledGuard.kind if c_abi.functions() is not None and _is_plain(params) else PythonGuard.kind


def _is_plain(tensors: Sequence[Any]) -> bool:
    """Whether these are torch's own tensors, whose memory is theirs."""
    return not any(is_distributed(x) or x.is_inference() or type(x).grad is not torch.Tensor.grad for x in tensors)


class PythonGuard:
    """Compares by torch's methods."""

    kind = "Python"

    def __init__(self, active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor]):
        self._active, self._idle, self._state = list(active), list(idle), list(state)
        self._distributed = any(map(is_distributed, active))
        params, grads = self._local()
        self._types = set(map(type, grads))
        self.p_at, self.g_at, self._s_at = _addresses(params), _addresses(grads), _addresses(self._state)
        self._described = _CONTIGUOUS if all(x.is_contiguous() for x in [*params, *grads]) else _LAYOUT
        self._layouts = self._layouts_of(params), self._layouts_of(grads)
        self._devices = list(map(_device, grads))

    def _local(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        params, grads = self._active, list(map(_gradient, self._active))
        if not self._distributed:
            return params, grads
        with torch.no_grad():
            return list(map(local, params)), list(map(local, grads))

    def _layouts_of(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        return [list(map(what, tensors)) for what in self._described]

    def check(self, g_at: np.ndarray) -> Check:  # noqa: D102
        try:
            params, grads = self._local()
            if set(map(type, grads)) != self._types or any(map(_is_neg, grads)):
                return _CHANGED
            if (self._layouts_of(params), self._layouts_of(grads)) != self._layouts:
                return _CHANGED
            p_at, found_at, s_at = _addresses(params), _addresses(grads), _addresses(self._state)
            if not np.array_equal(p_at, self.p_at) or not np.array_equal(s_at, self._s_at):
                return _CHANGED
        except (AttributeError, RuntimeError, TypeError):  # a gradient is gone, or sparse
            return _CHANGED
        if not _all_none(map(_gradient, self._idle)):
            return _CHANGED
        if np.array_equal(found_at, g_at):
            return Check(Outcome.SAME, grads, found_at)
        moved = list(map(_device, grads)) == self._devices and all(map(has_memory, grads))
        return Check(Outcome.MOVED, grads, found_at) if moved else _CHANGED


class CompiledGuard:
    """Compares by torch's C functions, all tensors in one compiled call, and by one Python call for the whole list."""

    kind = "compiled"

    def __init__(
        self,
        active: Sequence[Any],
        idle: Sequence[Any],
        state: Sequence[torch.Tensor],
        found: c_abi.CFunctions,
        p_handles: np.ndarray,
        s_handles: np.ndarray,
    ):
        self._active, self._idle, self._state = list(active), list(idle), list(state)  # which the handles are of
        self._functions = found.addresses
        self._p_handles, self._s_handles = p_handles, s_handles
        grads = [p.grad for p in active]
        self._types = set(map(type, grads))
        self.p_at, self.g_at, self._s_at = _addresses(active), _addresses(grads), _addresses(state)
        expected: list[int] = []
        for p, g in zip(active, grads, strict=True):
            expected += [p.dim(), *p.shape, *p.stride(), *g.stride(), g.numel() * g.element_size()]
        self._expected = np.array(expected, np.int64)
        common = [found.distance, found.strided, 0, 0, 0, 0, 0]
        if active:
            (p, g), handle = (active[0], grads[0]), int(p_handles[0])
            device = [found.ask(name, handle) for name in ("device_type", "device_index")]
            types = [found.dtypes[p.dtype], found.dtypes[g.dtype]]
            common = [found.distance, found.strided, *types, *device, g.element_size()]
        self._common = np.array(common, np.int64)
        self._check_tensors = _compiled_check()

    def check(self, g_at: np.ndarray) -> Check:  # noqa: D102
        grads = list(map(_gradient, self._active))
        if set(map(type, grads)) != self._types or (self._idle and not _all_none(map(_gradient, self._idle))):
            return _CHANGED
        objects, found_at = c_abi.pointers(grads), np.empty(len(grads), np.int64)
        tensors, known = (self._p_handles, objects, self._s_handles), (self.p_at, g_at, self._s_at, self._expected)
        outcome = self._check_tensors(self._functions, self._common, *tensors, *known, found_at)
        if outcome == Outcome.CHANGED or any(map(_is_neg, grads)):
            return _CHANGED
        return Check(_OUTCOMES[outcome], grads, found_at)


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

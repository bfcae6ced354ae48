"""Where the tensors of a step were, and in which order and type: what the next step compares them with.

`Compiled` asks torch's own C functions in compiled code (`native`), `Mapped` torch's methods through Python: ten times
as long, for DTensors and wherever the others are not to be had. Neither runs a line of Python between two tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import filterfalse, repeat
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.torch import native, walks
from fastopt.torch.tensors import fits, is_wrapped, local
from fastopt.torch.walks import CHANGED, MOVED, SAME

_gradient, _device = attrgetter("grad"), attrgetter("device")
_address, _is_neg, _is_inference = torch.Tensor.data_ptr, torch.Tensor.is_neg, torch.Tensor.is_inference
# What beside its address says how a tensor lies; where all are contiguous the second, which takes half the time.
_LAYOUT = attrgetter("dtype"), attrgetter("shape"), torch.Tensor.stride
_CONTIGUOUS = attrgetter("dtype"), torch.Tensor.numel, torch.Tensor.is_contiguous


def before(active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor] = ()) -> Compiled | Mapped:
    """Note how parameters are, the active ones with their gradients, and where state lies."""
    return _kind([*active, *idle])(active, idle, state)


def way_of(params: Sequence[Any]) -> str:
    """Say in which way parameters can be compared, in words."""
    return _kind(params).way


def _kind(params: Sequence[Any]) -> type[Compiled] | type[Mapped]:
    return Compiled if native.suits(params) else Mapped


class Mapped:
    """How parameters were, by torch's methods."""

    way = "through Python"

    def __init__(self, active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor]):
        self.active, self.idle, self.state, self.held = list(active), list(idle), list(state), None
        self.wrapped = any(map(is_wrapped, active))
        params, grads = self._local()
        self.p_at, self.g_at, self.s_at = _addresses(params), _addresses(grads), _addresses(self.state)
        self.now = self.g_at
        self.described = _CONTIGUOUS if all(x.is_contiguous() for x in [*params, *grads]) else _LAYOUT
        self.layouts = self._layouts(params), self._layouts(grads)
        self.devices = list(map(_device, grads))

    def _local(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        params, grads = self.active, list(map(_gradient, self.active))
        return (list(map(local, params)), list(map(local, grads))) if self.wrapped else (params, grads)

    def _layouts(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        return [list(map(what, tensors)) for what in self.described]

    def compare(self, *, hold: bool = True) -> int:
        """Say whether all is as it was; where gradients alone have `MOVED`, `now` is where they are.

        With `hold` the gradients that were compared stay alive until `release`, whatever others do.
        """
        try:
            params, grads = self._local()
            self.held = grads if hold else None
            if (self._layouts(params), self._layouts(grads)) != self.layouts or any(map(_is_neg, grads)):
                return CHANGED
            self.now = _addresses(grads)
            if not np.array_equal(_addresses(params), self.p_at) or not np.array_equal(
                _addresses(self.state), self.s_at
            ):
                return CHANGED
        except (AttributeError, RuntimeError, TypeError):  # a gradient is gone, or sparse
            return CHANGED
        if not all(map(is_, map(_gradient, self.idle), repeat(None))):
            return CHANGED
        if np.array_equal(self.now, self.g_at):
            return SAME
        return MOVED if list(map(_device, grads)) == self.devices and all(map(fits, grads)) else CHANGED

    def settle(self) -> None:
        """Take where the gradients are now for where they were."""
        self.g_at = self.now

    def release(self) -> None:
        """Let go of the gradients."""
        self.held = None

    def raise_versions(self) -> None:
        """Tell autograd that the parameters are written to."""
        torch.autograd.graph.increment_version(list(filterfalse(_is_inference, self.active)))


class Compiled:
    """How parameters were, by torch's C functions."""

    way = "in compiled code"

    def __init__(self, active: Sequence[Any], idle: Sequence[Any], state: Sequence[torch.Tensor]):
        found = native.functions()
        assert found is not None
        self.kept = [*active, *idle, *state]  # what the handles are of
        self.functions, self.payload, self.params, self.held = found.at, found.payload, list(active), None
        self.active, self.idle, self.state = native.handles(active), native.handles(idle), native.handles(state)
        grads = [p.grad for p in active]
        self.p_at, self.g_at, self.s_at = _addresses(active), _addresses(grads), _addresses(state)
        self.now = np.zeros_like(self.g_at)
        expected: list[int] = []
        for p, g in zip(active, grads, strict=True):
            expected += [p.dim(), *p.shape, *p.stride(), *g.stride(), g.numel() * g.element_size()]
        self.expected = np.array(expected, np.int64)
        common = [found.undefined, found.strided]
        if active:
            (p, g), handle = (active[0], grads[0]), int(self.active[0])
            device = [found.say(name, handle) for name in ("device_type", "device_index")]
            common += [found.types[p.dtype], found.types[g.dtype], *device, g.element_size()]
        self.common = np.array([*common, *[0] * (7 - len(common))], np.int64)
        self.look, self.bump = walks.look(), walks.bump()

    def compare(self, *, hold: bool = True) -> int:
        """Say whether all is as it was, and hold gradients, as `Mapped` does."""
        held = self.held = list(map(_gradient, self.params)) if hold else None
        listed = id(held) + object.__basicsize__ if held else 0
        at = self.p_at, self.g_at, self.s_at
        known = self.active, self.idle, self.state, *at, self.expected, self.now
        return self.look(self.functions, self.common, *known, listed, self.payload)

    def settle(self) -> None:
        """Take where the gradients are now for where they were."""
        self.g_at, self.now = self.now, self.g_at

    def release(self) -> None:
        """Let go of the gradients."""
        self.held = None

    def raise_versions(self) -> None:
        """Tell autograd that the parameters are written to."""
        self.bump(self.functions, self.active)


def _addresses(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return np.fromiter(map(_address, tensors), np.int64, len(tensors))

"""Flat buffers: parameters, gradients and state one after the other, which the model's tensors view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import alone, element_type, local
from fastopt.errors import LayoutError
from fastopt.kernels.compiler.program import Buffer
from fastopt.kernels.formats import TILE, Format, Plane
from fastopt.store import Extents

ALIGNED = 16
"""Elements to a multiple of which a parameter begins in a flat buffer: 64 bytes of float32, a cache line."""

TIE = "share one nn.Parameter between modules to tie them"


class FlatBuffers:
    """Flat buffers of some parameters, which are moved here; state is made here, and gradients are if they stay.

    Each tensor has a storage of its own, which ends where the next begins.
    """

    def __init__(self, params: Sequence[torch.Tensor], align: int, gradient_type: torch.dtype):
        sizes = [-(-p.numel() // align) * align for p in params]
        self.starts = np.cumsum([0, *sizes])
        self._total = -(-int(self.starts[-1]) // TILE) * TILE
        self._gradient_type, self._device = gradient_type, params[0].device
        self._layouts = [(p.shape, p.stride(), int(start)) for p, start in zip(params, self.starts, strict=False)]
        self.params = self._zeros(params[0].dtype)
        self.gradients: torch.Tensor | None = None
        self._gradient_views: list[torch.Tensor] = []
        self.state: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for i, p in enumerate(params):
                own = self._view(self.params, i)
                own.copy_(p)
                p.data = own
            if any(p.grad is not None for p in params):
                self._gather_gradients(params)

    def _zeros(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._total, dtype=dtype, device=self._device)

    def _view(self, buffer: torch.Tensor, i: int) -> torch.Tensor:
        shape, stride, start = self._layouts[i]
        return alone(buffer[start : start + shape.numel()], shape, stride)

    def _make_gradients(self) -> list[torch.Tensor]:
        """Make a flat buffer of zeros for gradients; those that lay in another stay as they are, for who holds them."""
        self.gradients = self._zeros(self._gradient_type)
        self._gradient_views = [self._view(self.gradients, i) for i in range(len(self._layouts))]
        return self._gradient_views

    def _gather_gradients(self, params: Sequence[torch.Tensor]) -> None:
        """Move gradients to a flat buffer, but for those of another type."""
        for p, own in zip(params, self._make_gradients(), strict=True):
            if p.grad is not None and p.grad.layout == torch.strided and p.grad.dtype == own.dtype:
                p.grad = own.copy_(p.grad)

    def zero_gradients(self, params: Sequence[torch.Tensor]) -> bool:
        """Set the gradients to zero, in a flat buffer; None stays None. Return whether they have moved there."""
        pairs = list(zip(params, self._gradient_views or params, strict=True))
        if self.gradients is not None and all(p.grad is None or p.grad is own for p, own in pairs):
            self.gradients.zero_()
            return False
        for p, own in zip(params, self._make_gradients(), strict=True):
            if p.grad is not None:
                p.grad = own
        return True

    def addresses(self, which: np.ndarray, buffers: Sequence[Buffer]) -> np.ndarray:
        """Return the addresses that these parameters' rows have where nobody has moved anything out of flat buffers."""
        columns, starts = [], self.starts[which]
        for b in buffers:
            flat = self.gradients if b.buffer == "g" else self.state.get(b.name, self.params)
            first = 0 if flat is None else flat.data_ptr()
            columns.append(first + (starts // TILE if b.tiled else starts) * b.dtype.itemsize)
        return np.array(columns).T

    def forget_state(self) -> dict[str, torch.Tensor]:
        """Return the buffers of the state; the next that is allocated lies in others."""
        state, self.state = self.state, {}
        return state

    def allocate(self, i: int, name: str, plane: Plane, size: int) -> torch.Tensor:
        """Return a parameter's piece of one plane of the state, all zero bytes; it has `size` elements."""
        if name not in self.state:
            count = plane.size(self._total)
            self.state[name] = torch.zeros(count, dtype=element_type(plane), device=self._device)
        if plane.tiled:
            first, count = self._layouts[i][2] // TILE, plane.size(size)
            piece = alone(self.state[name][first : first + count], (count,), (1,))
        else:
            piece = self._view(self.state[name], i)
        return piece.zero_()  # a former state may have been there

    def has_state(self, i: int, name: str, plane: Plane, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter's piece of one plane of the state, wherever that lies now."""
        buffer, start = self.state.get(name), self._layouts[i][2] // TILE if plane.tiled else self._layouts[i][2]
        if buffer is None or not tensor.numel():
            return buffer is not None
        return tensor.data_ptr() == buffer.data_ptr() + start * buffer.element_size()

    def merged(
        self, members: np.ndarray, which: np.ndarray, in_place: np.ndarray, sizes: np.ndarray, *, gaps: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Merge neighbours to one row: return the member at which each row begins, and its length.

        Without `gaps` only where nothing lies between them: what does would count for the scale of its tile.
        """
        if not len(members):
            return members, sizes[members]
        begin, size = self.starts[which[members]], sizes[members]
        end = self.starts[which[members] + 1] if gaps else begin + size
        first = np.ones(len(members), bool)
        first[1:] = (begin[1:] != end[:-1]) | ~in_place[members][1:] | ~in_place[members][:-1]
        rows = np.flatnonzero(first)
        last = np.append(rows[1:], len(members)) - 1
        return members[rows], begin[last] + size[last] - begin[rows]


def allocator(params: Sequence[Any], buffers: FlatBuffers | None) -> Callable[[int, Format, str, Plane], torch.Tensor]:
    """Return what allocates the state of parameters for a `Store`: in flat buffers, or in tensors of its own.

    A tensor that torch's state shows is distributed as the parameter is.
    """

    def allocate(i: int, form: Format, name: str, plane: Plane) -> torch.Tensor:
        p, dtype = params[i], element_type(plane)
        tensor = local(p)
        if buffers is not None:
            return buffers.allocate(i, name, plane, tensor.numel())
        if plane.tiled:
            return torch.zeros(plane.size(tensor.numel()), dtype=dtype, device=tensor.device)
        return torch.zeros_like(p if form.has_values(plane) or plane.view else tensor, dtype=dtype, requires_grad=False)

    return allocate


def require_separate(params: Sequence[torch.Tensor], labels: Sequence[str]) -> None:
    """Raise a LayoutError if parameters share memory: in flat buffers each would silently get memory of its own."""
    sizes = [p.numel() * p.element_size() for p in params]
    if pair := Extents([p.data_ptr() for p in params], sizes).overlap:
        first, second = (labels[k] for k in pair)
        raise LayoutError(f"the memory of {first} and {second} overlaps.", do=TIE)
    for p, label in zip(params, labels, strict=True):
        if p.device.type == "cpu" and p.is_shared():
            what = f"{label} is shared with other processes, and flatten would move it to memory of this one."
            raise LayoutError(what, do="leave flatten=False")

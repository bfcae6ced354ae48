"""Flat buffers: parameters, gradients and state one after the other, which the model's tensors view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import element_type, local
from fastopt.errors import LayoutError
from fastopt.kernels.compiler.program import Buffer
from fastopt.kernels.formats import TILE, Format, Plane
from fastopt.store import Extents

ALIGNED = 16
"""Elements to a multiple of which a parameter begins in a flat buffer: 64 bytes of float32, a cache line."""

TIE = "share one nn.Parameter between modules to tie them"


class FlatBuffers:
    """Flat buffers of some parameters: they and their gradients are moved here, state is made here."""

    def __init__(self, params: Sequence[torch.Tensor], align: int, gradient_type: torch.dtype):
        sizes = [-(-p.numel() // align) * align for p in params]
        self.starts = np.cumsum([0, *sizes])
        self._total = -(-int(self.starts[-1]) // TILE) * TILE
        device = params[0].device
        self.params = torch.zeros(self._total, dtype=params[0].dtype, device=device)
        self.gradients = torch.zeros(self._total, dtype=gradient_type, device=device)
        self._planes: dict[str, torch.Tensor] = {}
        self._layouts = [(p.shape, p.stride(), int(start)) for p, start in zip(params, self.starts, strict=False)]
        self._gradient_views = [self.gradients.as_strided(*layout) for layout in self._layouts]
        with torch.no_grad():
            for i, (p, layout) in enumerate(zip(params, self._layouts, strict=True)):
                own = self.params.as_strided(*layout)
                own.copy_(p)
                p.data = own
                if p.grad is not None and p.grad.layout == torch.strided and p.grad.dtype == gradient_type:
                    self._gradient_views[i].copy_(p.grad)
                    p.grad = self._gradient_views[i]

    def addresses(self, which: np.ndarray, buffers: Sequence[Buffer]) -> np.ndarray:
        """Return the addresses that these parameters' rows have where nobody has moved anything out of flat buffers."""
        columns, starts = [], self.starts[which]
        for b in buffers:
            flat = self.gradients if b.buffer == "g" else self._planes.get(b.name, self.params)
            columns.append(flat.data_ptr() + (starts // TILE if b.tiled else starts) * b.dtype.itemsize)
        return np.array(columns).T

    def allocate(self, i: int, name: str, plane: Plane, size: int) -> torch.Tensor:
        """Return a parameter's piece of one plane of the state, all zero bytes; it has `size` elements."""
        if name not in self._planes:
            count = plane.size(self._total)
            self._planes[name] = torch.zeros(count, dtype=element_type(plane), device=self.params.device)
        shape, stride, start = self._layouts[i]
        if plane.tiled:
            piece = self._planes[name][start // TILE :][: plane.size(size)]
        else:
            piece = self._planes[name].as_strided(shape, stride, start)
        return piece.zero_()  # a former state may have been there

    def has_state(self, i: int, name: str, plane: Plane, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter's piece of one plane of the state, wherever that lies now."""
        buffer, start = self._planes.get(name), self._layouts[i][2] // TILE if plane.tiled else self._layouts[i][2]
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

    def clear_gradients(self, params: Sequence[torch.Tensor], *, set_to_none: bool) -> None:
        """Set all gradients to zero in the buffer, and put those that lie elsewhere back; None stays None."""
        self.gradients.zero_()
        for p, own in zip(params, self._gradient_views, strict=True):
            if (g := p.grad) is not None:
                if set_to_none and not p.requires_grad:  # frozen, as torch leaves it
                    p.grad = None
                elif g.layout != own.layout or _described(g) != _described(own):
                    p.grad = own


def _described(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.stride(), tensor.dtype


def allocator(params: Sequence[Any], buffers: FlatBuffers | None) -> Callable[[int, Format, str, Plane], torch.Tensor]:
    """Return what allocates the state of parameters for a `Store`: in flat buffers, or in tensors of its own.

    A tensor that is all of a buffer is distributed as the parameter is.
    """

    def allocate(i: int, form: Format, name: str, plane: Plane) -> torch.Tensor:
        p, dtype = params[i], element_type(plane)
        tensor = local(p)
        if buffers is not None:
            return buffers.allocate(i, name, plane, tensor.numel())
        if plane.tiled:
            return torch.zeros(plane.size(tensor.numel()), dtype=dtype, device=tensor.device)
        return torch.zeros_like(p if len(form.planes) == 1 else tensor, dtype=dtype, requires_grad=False)

    return allocate


def require_separate(params: Sequence[torch.Tensor], labels: Sequence[str]) -> None:
    """Raise a LayoutError if parameters overlap: in flat buffers each would silently get memory of its own."""
    sizes = [p.numel() * p.element_size() for p in params]
    if pair := Extents([p.data_ptr() for p in params], sizes).overlap:
        first, second = (labels[k] for k in pair)
        raise LayoutError(f"the memory of {first} and {second} overlaps.", do=TIE)

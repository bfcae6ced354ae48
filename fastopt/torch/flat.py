"""Flat buffers: the parameters, gradients and state of a part one after the other, which the model's tensors view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.kernels.storage import TILE
from fastopt.torch.tensors import plane_size, torch_type

ALIGNED = 16
"""Elements to a multiple of which a parameter begins in a flat buffer: 64 bytes of float32, a cache line."""


class Flat:
    """Flat buffers of a part: parameters and gradients moved here, and state as it is made."""

    def __init__(self, params: Sequence[torch.Tensor], align: int, gradient_type: torch.dtype):
        sizes = [-(-p.numel() // align) * align for p in params]
        self.starts = np.cumsum([0, *sizes])
        self.total = -(-int(self.starts[-1]) // TILE) * TILE
        device = params[0].device
        self.params = torch.zeros(self.total, dtype=params[0].dtype, device=device)
        self.gradients = torch.zeros(self.total, dtype=gradient_type, device=device)
        self.state: dict[str, torch.Tensor] = {}
        self.places = [(p.shape, p.stride(), int(start)) for p, start in zip(params, self.starts, strict=False)]
        self.views = [self.gradients.as_strided(*place) for place in self.places]
        with torch.no_grad():
            for i, (p, place) in enumerate(zip(params, self.places, strict=True)):
                own = self.params.as_strided(*place)
                own.copy_(p)
                p.data = own
                if p.grad is not None and p.grad.layout == torch.strided and p.grad.dtype == gradient_type:
                    self.views[i].copy_(p.grad)
                    p.grad = self.views[i]

    def gradients_at(self, found: np.ndarray) -> np.ndarray:
        """Give the addresses at which the gradients of the parameters numbered `found` were put."""
        return self.gradients.data_ptr() + self.starts[found] * self.gradients.element_size()

    def plane(self, name: str, plane: Any, i: int, p: torch.Tensor) -> torch.Tensor:
        """Give a parameter's piece of one plane of the state."""
        if name not in self.state:
            count = self.total // TILE if plane.tiled else self.total
            self.state[name] = torch.zeros(count, dtype=torch_type(plane), device=self.params.device)
        shape, stride, start = self.places[i]
        if plane.tiled:
            return self.state[name][start // TILE :][: plane_size(plane, p.numel())]
        return self.state[name].as_strided(shape, stride, start)

    def holds_state(self, name: str, i: int, plane: Any, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter's piece of one plane of the state, wherever that lies now."""
        start = self.places[i][2] // TILE if plane.tiled else self.places[i][2]
        at = self.state[name].data_ptr() + start * self.state[name].element_size()
        return not tensor.numel() or tensor.data_ptr() == at

    def among(self, found: Sequence[int], params: Sequence[torch.Tensor]) -> list[bool]:
        """Say which of the parameters numbered `found` are, with their gradients, where they were put."""
        at, size = self.params.data_ptr(), self.params.element_size()
        return [
            (p.data_ptr() == at + self.places[i][2] * size or not p.numel()) and self._holds(i, p.grad)
            for i, p in zip(found, params, strict=True)
        ]

    def _holds(self, i: int, g: Any) -> bool:
        """Whether a gradient is the piece of the gradients that it should be."""
        _, stride, start = self.places[i]
        at = self.gradients.data_ptr() + start * self.gradients.element_size()
        return not g.numel() or (g.data_ptr() == at and g.stride() == stride and g.dtype == self.gradients.dtype)

    def merged(
        self, member: np.ndarray, found: np.ndarray, own: np.ndarray, sizes: np.ndarray, *, gaps: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Join neighbours to one row: which of the members each row begins at, and its length.

        Without `gaps` only where nothing lies between them: what does would count for the scale of its tile.
        """
        if not len(member):
            return member, sizes[member]
        begin, size = self.starts[found[member]], sizes[member]
        end = self.starts[found[member] + 1] if gaps else begin + size
        first = np.ones(len(member), bool)
        first[1:] = (begin[1:] != end[:-1]) | ~own[member][1:] | ~own[member][:-1]
        rows = np.flatnonzero(first)
        last = np.append(rows[1:], len(member)) - 1
        return member[rows], begin[last] + size[last] - begin[rows]

    def clear(self, params: Sequence[torch.Tensor], *, set_to_none: bool) -> None:
        """Make all gradients zero, in the buffer: also those that came elsewhere. Who has none gets none."""
        self.gradients.zero_()
        for i, p in enumerate(params):
            if (g := p.grad) is not None:
                if set_to_none and not p.requires_grad:  # frozen, as torch leaves it
                    p.grad = None
                elif g.layout != torch.strided or not self._holds(i, g):
                    p.grad = self.views[i]

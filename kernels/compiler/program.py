"""A Program: one rule traced with one format for each buffer. What every backend runs and prints, nothing about how."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastopt.kernels.compiler.graph import Node
from fastopt.kernels.formats import TILE, Format
from fastopt.kernels.rules.rule import Rule


class Buffer(NamedTuple):
    """One array of the step: a plane of what the rule calls a buffer, "p" for example or "p.low"."""

    name: str
    buffer: str
    dtype: np.dtype
    read: bool
    written: bool
    tiled: bool  # one element per tile
    view: str  # the type that users see, where `dtype` is an unsigned integer in its stead

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of it that are read and written per parameter in one step."""
        moved = self.dtype.itemsize * (self.read + self.written)
        return moved / TILE if self.tiled else moved

    def size(self, n: int) -> int:
        """Return the number of elements it has for n parameters."""
        return -(-n // TILE) if self.tiled else n


class Plain(NamedTuple):
    """The same step of a tile that is plain: see `formats.Scaled`."""

    values: dict[str, Node]
    results: dict[str, Node]
    unusual: dict[str, Node]  # array of codes → which of the four in a word are not plain; the word is of kind "codes"
    limits: list[tuple[Node, int]]  # largest of the new values' words → what it is below in a plain tile
    stages: tuple[Node, ...]  # as of a Program
    roots: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One rule's specialization traced with one format for each of its buffers.

    `values` maps each buffer that the rule writes to the expression of its new value, `results` each array to that of
    its new element. The inputs are of kind "buffer" (one element), "tile" (the element of its tile), "scalar", and,
    when `noise` is set, "key" (two uint32, see `noise.noise_keys`), "tile_number" (the halves of the number of the
    element's tile) and "index" (of the element in its tile). "tile_max" is the largest of a tile's words, "sequence" a
    word that grows by the same from element to element. `stages` are values on the way to a rule's noise, and `roots`
    its square roots: a backend may begin another loop after each. `name` names the rule, the settings that
    shaped it, and the format of each buffer. `plain` is the same for nearly all tiles that have scales.
    """

    name: str
    specialization: Rule
    dtype: np.dtype  # the computing precision
    formats: dict[str, Format]
    buffers: tuple[Buffer, ...]
    scalars: tuple[str, ...]
    noise: bool
    stages: tuple[Node, ...]
    roots: tuple[Node, ...]
    values: dict[str, Node]
    results: dict[str, Node]
    plain: Plain | None  # where a tile has scales

    @property
    def rule(self) -> str:
        """Name of the rule's type."""
        return type(self.specialization).__name__

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state buffers, in the rule's order."""
        return tuple(self.formats)[2:]

    @cached_property
    def tiled(self) -> bool:
        """Whether some values share a scale with their tile."""
        return any(b.tiled for b in self.buffers)

    @cached_property
    def compressed(self) -> bool:
        """Whether any array has elements of fewer than 32 bits."""
        return any(b.dtype.itemsize < 4 for b in self.buffers)

    @cached_property
    def bytes_per_parameter(self) -> float:
        """Bytes read and written per parameter in one step."""
        return sum(b.bytes_per_parameter for b in self.buffers)

    @property
    def traffic(self) -> str:
        """What a step reads and writes, in words."""
        written = ", ".join(b.name for b in self.buffers if b.written) or "nothing"
        read = ", ".join(b.name for b in self.buffers if not b.written) or "nothing else"
        return f"Reads and writes {written}; reads {read}: {self.bytes_per_parameter:g} bytes per parameter"

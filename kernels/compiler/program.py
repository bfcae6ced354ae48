"""A Program: one rule traced with one format for each buffer. What every backend runs and prints, nothing about how."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastopt.kernels.compiler.graph import Node, text_of, walk
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
    of_row: bool = False  # one element, for all of a row

    @property
    def elementwise(self) -> bool:
        """Whether it has an element for each parameter."""
        return not (self.tiled or self.of_row)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of it that are read and written per parameter in one step."""
        moved = self.dtype.itemsize * (self.read + self.written)
        return 0.0 if self.of_row else moved / TILE if self.tiled else moved

    def size(self, n: int) -> int:
        """Return the number of elements it has for n parameters."""
        return 1 if self.of_row else -(-n // TILE) if self.tiled else n


def total_name(k: int) -> str:
    """Return the name of the buffer that holds total number k, one number for each row; no rule has a space in one."""
    return f"total {k}"


def matrix_name(k: int) -> str:
    """Return the name of the buffer that holds the argument of function of matrices number k, and then its value."""
    return f"matrix {k}"


def sum_name(k: int) -> str:
    """Return the name of the buffer that holds the sums of each tile."""
    return f"sum {k}"


SKIPPED = "skipped step"
"""Name of the buffer that holds, for all rows, whether a step is skipped: 1 or 0."""


class Plain(NamedTuple):
    """The same step of a tile that is plain: see `formats.Scaled`."""

    values: dict[str, Node]
    results: dict[str, Node]
    codes: dict[str, tuple[int, int, int]]  # array of codes → which are plain: see `formats.Scaled.plain_codes`
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
    totals: tuple[Node, ...] = ()  # in the order in which the rule takes them
    total_calls: tuple[int | None, ...] = ()  # each time it takes one: which, or None if nothing depends on it
    condition: Node | None = None  # without which the step is skipped; of a program with phases, of known totals
    matrices: tuple[Node, ...] = ()  # functions of matrices, in the order in which the rule calls them
    phases: tuple[Program, ...] = ()  # one for each pass over memory, where there are totals: see `phases.cut`

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
    def over_all(self) -> tuple[tuple[int, int], ...]:
        """Its totals over all parameters: after which phase each is known, and its number."""
        return tuple(
            (phase, k)
            for k, node in enumerate(self.totals)
            for phase in range(len(self.phases))
            if node.value[0] == "all" and sum_name(k) in self.phases[phase].results
        )

    def known_after(self, phase: int) -> list[int]:
        """Return the numbers of the totals that are known after a phase."""
        return [k for k in range(len(self.totals)) if sum_name(k) in self.phases[phase].results]

    def matrices_after(self, phase: int) -> list[int]:
        """Return the numbers of the functions of matrices whose arguments are known after a phase."""
        return [k for k in range(len(self.matrices)) if matrix_name(k) in self.phases[phase].results]

    @cached_property
    def kinds_over_all(self) -> list[tuple[int, str]]:
        """After which phase each of `over_all` is known, and what it is of."""
        nodes = [(phase, self.totals[k]) for phase, k in self.over_all]
        return [(phase, node.value[1] or text_of(node.args[0])) for phase, node in nodes]

    def place_of(self, what: str) -> int | None:
        """Return which of `over_all` is of this, if one is."""
        return next((place for place, (_, of) in enumerate(self.kinds_over_all) if of == what), None)

    def place_over_all(self, k: int) -> int | None:
        """Return which of `over_all` a total is, if it is one."""
        return next((place for place, (_, number) in enumerate(self.over_all) if number == k), None)

    @property
    def sums(self) -> bool:
        """Whether it writes the sums of tiles, and nothing else."""
        return any(node.op == "tile_sum" for node in self.results.values())

    @cached_property
    def bytes_per_parameter(self) -> float:
        """Bytes read and written per parameter in one step."""
        return sum(b.bytes_per_parameter for phase in self.phases or (self,) for b in phase.buffers)

    @cached_property
    def condition_inputs(self) -> tuple[list[int], list[int]]:
        """The numbers of the totals and of the scalars on which the condition depends."""
        read = {node.value for node in walk([self.condition] if self.condition else []) if not node.args}
        totals = [k for k in range(len(self.totals)) if total_name(k) in read]
        return totals, [k for k, name in enumerate(self.scalars) if name in read]

    @property
    def writes_gradients(self) -> bool:
        """Whether it sets the gradient to zero."""
        return any(b.buffer == "g" and b.written for b in self.buffers)

    @property
    def may_be_skipped(self) -> bool:
        """Whether it reads if it is to do nothing."""
        return any(b.name == SKIPPED for b in self.buffers)

    @property
    def traffic(self) -> str:
        """What a step reads and writes, in words."""
        written = ", ".join(b.name for b in self.buffers if b.written) or "nothing"
        read = ", ".join(b.name for b in self.buffers if not b.written) or "nothing else"
        return f"Reads and writes {written}; reads {read}: {self.bytes_per_parameter:g} bytes per parameter"

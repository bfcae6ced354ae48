"""Named parameters in flat buffers: the groups of an Optimizer, and their values by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from fastopt.arrays import NUMPY, library_of
from fastopt.arrays.library import CPU, Array, Device, Library
from fastopt.errors import LayoutError, suggest
from fastopt.kernels.compiler.plan import Plan
from fastopt.kernels.formats import TILE, Plane
from fastopt.kernels.launch import Launch
from fastopt.store import Extents, Store


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that share a rule and are updated in one pass: one row, in which they lie one after the other."""

    plan: Plan
    shapes: dict[str, tuple[int, ...]]
    offset: int  # of its first element in the flat buffers
    store: Store
    launch: Launch

    def values(self, buffer: str, library: Library, device: Device) -> Array:
        """Return the values of a buffer, flat: the memory itself where it is in full precision, else decoded."""
        if self.store.formats[buffer].plain:
            return self.store.planes[0][buffer]
        values = self.store.decode(0, buffer)
        if device == CPU:
            return values
        made = library.allocate(values.size, Plane("", values.dtype), device)
        library.copy(made, values)
        return made


class Views(Mapping):
    """Arrays by the name of their parameter, which are written into and not replaced; `word` says which they are."""

    def __init__(self, arrays: Mapping[str, Array], word: str):
        self._arrays, self._word = dict(arrays), word

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            do = suggest(str(name), list(self._arrays))
            raise KeyError(f"there is no parameter {name!r} in opt.{self._word}: {do}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __setitem__(self, name: str, value: Any) -> None:
        raise LayoutError(
            f"opt.{self._word} are views of memory that a step works on, and cannot be replaced.",
            got=f"opt.{self._word}[{name!r}] = …",
            do=f"write into it: opt.{self._word}[{name!r}][...] = value",
        )

    def __repr__(self) -> str:
        return repr(self._arrays)


class NamedValues:
    """The values of all groups by the name of their parameter, buffer by buffer ("p" and the state)."""

    def __init__(self, groups: Sequence[Group], names: Iterable[str], library: Library, device: Device):
        self.groups, self.names, self.library, self.device = groups, list(names), library, device

    @property
    def dtype(self) -> np.dtype:
        """The precision in which steps are computed."""
        return self.groups[0].plan.program.dtype

    @property
    def buffers(self) -> list[str]:
        """The buffers that have values: "p" and the state of all groups' rules."""
        return ["p", *dict.fromkeys(s for group in self.groups for s in group.plan.program.state)]

    def divide(self, flat: Array) -> dict[str, Array]:
        """Divide a flat array of all groups among the parameters."""
        found = {
            name: view for group in self.groups for name, view in views(flat[group.offset :], group.shapes).items()
        }
        return {name: found[name] for name in self.names}

    def read(self, buffer: str) -> dict[str, Array]:
        """Return one buffer as parameter → values; views of the memory itself where it is in full precision."""
        found = {}
        for group in self.groups:
            if buffer in group.plan.program.formats:
                found |= views(group.values(buffer, self.library, self.device), group.shapes)
        return {name: found[name] for name in self.names if name in found}

    def writes(self, values: Mapping[str, Mapping[str, Array]]) -> list[tuple]:
        """Prepare the calls that write values, buffer → parameter → array, of those that are named.

        Everything that may fail, or be interrupted, happens here. Values may be views of the memory that is written.
        """
        own = self._extents()
        return [call for buffer, named in values.items() for call in self._writes(buffer, named, own)]

    def _writes(self, buffer: str, values: Mapping[str, Array], extents: Extents) -> Iterator[tuple]:
        """Prepare the calls that write values of one buffer."""
        for group in self.groups:
            if buffer not in group.plan.program.formats or not group.shapes.keys() & values.keys():
                continue
            store, planes = group.store, group.store.planes[0]
            if store.formats[buffer].plain:
                for name, own in views(planes[buffer], group.shapes).items():
                    if name in values:
                        yield self.library.writing(own, self._apart(values[name], extents))
                continue
            # Decoded, changed and encoded in the CPU's memory.
            all_named = group.shapes.keys() <= values.keys()
            flat = np.zeros(store.sizes[0], self.dtype) if all_named else store.decode(0, buffer)
            for name, own in views(flat, group.shapes).items():
                if name in values:
                    NUMPY.copy(own, values[name])
            for plane, part, words in store.encoded(buffer, flat):
                yield self.library.writing(planes[plane][part], words.view(planes[plane].dtype))

    def _apart(self, value: Array, own: Extents) -> Array:
        """Return values, in other memory where they may lie in this optimizer's."""
        if value.base is None:
            return value  # memory of its own
        library = library_of(value)
        start, end = library.extent(value)
        if library is not self.library or not own.touched_by(np.array([start]), np.array([end - start])).any():
            return value
        return library.duplicate(value)

    def _extents(self) -> Extents:
        """Return the memory of all groups."""
        planes = [array for group in self.groups for array in group.store.planes[0].values()]
        return Extents([self.library.address(array) for array in planes], [array.nbytes for array in planes])

    def templates(self) -> dict[str, dict[str, np.ndarray]]:
        """Return an array of the shape and type of every value, by buffer and parameter, without memory."""
        element = np.empty((), self.dtype)
        found: dict[str, dict[str, np.ndarray]] = {b: {} for b in self.buffers}
        for group in self.groups:
            for b in group.plan.program.formats.keys() - {"g"}:
                found[b] |= {name: np.broadcast_to(element, shape) for name, shape in group.shapes.items()}
        return found


def views(array: Array, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Array]:
    """Divide a flat array among named shapes, one after the other without gaps; the mapping cannot be assigned to."""
    result, start = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        result[name] = array[start : start + count].reshape(shape)
        start += count
    return MappingProxyType(result)


def padded(count: int) -> int:
    """Round a number of elements up to whole tiles."""
    return -(-count // TILE) * TILE

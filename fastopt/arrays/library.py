"""What fastopt asks of an array library, and how it names devices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fastopt.kernels.formats import Plane

Array: TypeAlias = Any
"""An array of one of the libraries: NumPy's, CuPy's or, in `fastopt.torch`, a tensor."""


class Device(NamedTuple):
    """Where memory is: kind "cpu" or "cuda", and the number of a CUDA device."""

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"


CPU = Device("cpu")


class Memory(Protocol):
    """What a store needs of its arrays; `part` is a slice of an array's elements in the order of its memory."""

    def address(self, array: Array) -> int:
        """Return the address of an array's first element."""
        ...

    def read(self, array: Array, part: slice, dtype: np.dtype) -> np.ndarray:
        """Return a part of an array in the CPU's memory, its bits read as `dtype`; it may be the array's own memory."""
        ...

    def write(self, array: Array, part: slice, values: np.ndarray) -> None:
        """Write the bits of an array of the CPU's memory to a part of an array."""
        ...


class Library(Memory, Protocol):
    """An array library whose arrays may be parameters.

    Of an array the surface uses `dtype` (a NumPy type), `shape`, `ndim`, `size`, `nbytes`, `reshape`, `view`, `astype`
    and slices. `device_kind` is the kind of the devices on which its arrays are.
    """

    device_kind: str

    def owns(self, value: Any) -> bool:
        """Whether a value is an array of this library, without importing it."""
        ...

    def adopt(self, value: Any, name: str, *, written: bool) -> Array:
        """View a value's memory as an array that keeps the value alive; any error becomes a LayoutError with `name`."""
        ...

    def device(self, array: Array) -> Device:
        """Return where an array is, or a value that `adopt` takes."""
        ...

    def current_device(self) -> Device:
        """Return where the library allocates now, or raise a BackendError where there is no such device."""
        ...

    def allocate(self, count: int, plane: Plane, device: Device) -> Array:
        """Allocate a flat array of so many elements of a plane, all zero bytes."""
        ...

    def copy(self, target: Array, source: Array) -> None:
        """Copy NumPy's array or one of this library's into one of the same shape and type."""
        ...

    def writing(self, target: Array, source: Array) -> tuple:
        """Prepare the call of a compiled function that does what `copy` does, while the target's device is current."""
        ...

    def extent(self, array: Array) -> tuple[int, int]:
        """Return the addresses between which an array's elements lie, gaps included."""
        ...

    def duplicate(self, array: Array) -> Array:
        """Copy an array to new memory of its device."""
        ...

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array to new memory of the CPU."""
        ...

    def require_in_place(self, array: Array, name: str, *, written: bool) -> None:
        """Raise a LayoutError unless a step can read an array's memory as one run, and write it if it is `written`."""
        ...

    def running(self, device: Device, stream: Any) -> AbstractContextManager[None]:
        """Make a device and a stream the current ones for the duration of a step."""
        ...

    def require_not_capturing(self, what: str, do: str | None = None) -> None:
        """Raise a BackendError if the current stream is being captured into a graph."""
        ...

    def wait(self, device: Device) -> None:
        """Wait for all work on a device."""
        ...

"""Arrays in the CPU's memory: NumPy's, and what others expose there."""

from __future__ import annotations

import itertools
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastopt.arrays.library import CPU, Device
from fastopt.errors import BackendError, LayoutError
from fastopt.kernels.formats import Plane

CPU_MEMORY = (1, 3)  # DLPack's numbers; the second is pinned by CUDA, and the CPU's all the same

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
PAGE = 4096

_PLACES = itertools.cycle(range(0, PAGE, 9 * ALIGNMENT))
"""Where in a page arrays begin, one after the other. What a step reads and writes at once would else compete for the
same places of the first cache: see docs/decisions/0019."""


class NumPy:
    """NumPy arrays; see `Library` for what the methods mean."""

    device_kind = "cpu"

    def owns(self, value: Any) -> bool:  # noqa: D102
        return isinstance(value, np.ndarray)

    def adopt(self, value: Any, name: str, *, written: bool) -> np.ndarray:  # noqa: D102
        if isinstance(value, np.ma.MaskedArray):  # subclasses such as memmap are plain memory; this is only half
            raise LayoutError(f"the buffer {name!r} is a masked array.", do="pass its .data")
        if isinstance(value, np.ndarray):
            return value.view(np.ndarray)
        if not written and np.generic in type(value).__mro__:
            return np.asarray(value)
        if not hasattr(value, "__dlpack_device__"):
            return np.asarray(memoryview(value))
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy's DLPack does not know
            if value.requires_grad:
                raise BufferError("it requires a gradient: use tensor.detach()")
            return np.from_dlpack(value.view(sys.modules["torch"].int16), copy=False).view(bfloat16())
        return np.from_dlpack(value, copy=False)

    def device(self, array: np.ndarray) -> Device:  # noqa: D102
        return CPU

    def current_device(self) -> Device:  # noqa: D102
        return CPU

    def address(self, array: np.ndarray) -> int:  # noqa: D102
        return array.__array_interface__["data"][0]

    def allocate(self, count: int, plane: Plane, device: Device) -> np.ndarray:
        """Allocate zeros that begin at a cache line, each time another one; each page is touched now, not in a step."""
        raw = np.empty(count * plane.dtype.itemsize + PAGE, np.uint8)
        start = -self.address(raw) % ALIGNMENT + next(_PLACES)
        array = raw[start : start + count * plane.dtype.itemsize].view(plane.dtype)
        array.fill(0)
        return array

    def read(self, array: np.ndarray, part: slice, dtype: np.dtype) -> np.ndarray:  # noqa: D102
        return array[part].view(dtype)

    def write(self, array: np.ndarray, part: slice, values: np.ndarray) -> None:  # noqa: D102
        array[part].view(values.dtype)[...] = values

    def copy(self, target: np.ndarray, source: Any) -> None:  # noqa: D102
        function, *arguments = self.writing(target, source)
        function(*arguments)

    def writing(self, target: np.ndarray, source: Any) -> tuple:  # noqa: D102
        return target.__setitem__, ..., source if isinstance(source, np.ndarray) else source.get()

    def extent(self, array: np.ndarray) -> tuple[int, int]:  # noqa: D102
        return byte_bounds(array)

    def duplicate(self, array: np.ndarray) -> np.ndarray:  # noqa: D102
        return array.copy()

    to_numpy = duplicate

    def require_in_place(self, array: np.ndarray, name: str, *, written: bool) -> None:  # noqa: D102
        flags = array.flags
        require_contiguous(array, name, contiguous=flags.c_contiguous, aligned=flags.aligned)
        if written and not flags.writeable:
            raise LayoutError(f"the buffer {name!r} is read-only.", do="pass the array that owns the memory")

    def running(self, device: Device, stream: Any) -> AbstractContextManager[None]:  # noqa: D102
        if stream is not None:
            what = "a stream was given for arrays in the CPU's memory, which have none."
            raise BackendError(what, got=repr(stream)[:60], do="leave stream out")
        return nullcontext()

    def require_not_capturing(self, what: str, do: str | None = None) -> None:  # noqa: D102
        pass

    def wait(self, device: Device) -> None:  # noqa: D102
        pass


def require_contiguous(array: Any, name: str, *, contiguous: bool, aligned: bool) -> None:
    """Raise a LayoutError unless an array is contiguous, aligned and of the machine's byte order."""
    if not array.dtype.isnative:
        what, got = f"the buffer {name!r} has the other byte order.", f"{array.dtype.str}{list(array.shape)}"
        raise LayoutError(what, got=got, do="convert it to the machine's own")
    if not contiguous or not aligned:
        raise LayoutError(
            f"the buffer {name!r} is not one contiguous run of memory in C order.",
            got=f"shape {array.shape} with strides {array.strides} bytes{'' if aligned else ', misaligned'}",
            do="update the array that this is a view of, or keep the parameter in C order",
        )


def bfloat16() -> np.dtype:
    """Return the type by which NumPy and CuPy know bfloat16, or raise a BackendError where it is not installed."""
    try:
        import ml_dtypes
    except ImportError as error:
        what, do = "NumPy knows bfloat16 through the package ml_dtypes.", "pip install 'fastopt[bf16]', or ml_dtypes"
        raise BackendError(what, got=str(error), do=do) from error
    return np.dtype(ml_dtypes.bfloat16)


def visible_dtype(plane: Plane) -> np.dtype:
    """Return the type in which users see a plane."""
    return bfloat16() if plane.view == "bfloat16" else np.dtype(plane.view or plane.dtype)

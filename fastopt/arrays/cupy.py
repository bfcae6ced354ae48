"""Arrays on a CUDA device: CuPy's, what others expose there, and the streams on which steps run.

CuPy is imported only when such an array arrives or is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastopt.arrays.library import Device
from fastopt.arrays.numpy import require_contiguous
from fastopt.errors import BackendError, LayoutError, SettingError
from fastopt.kernels.devices import load_cupy, require_device
from fastopt.kernels.formats import Plane

CUDA_MEMORY = (2, 13)  # DLPack's numbers; the second is managed memory


class CuPy:
    """CuPy arrays; see `Library` for what the methods mean."""

    device_kind = "cuda"

    def owns(self, value: Any) -> bool:  # noqa: D102
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(value, cupy.ndarray)

    def adopt(self, value: Any, name: str, *, written: bool) -> Any:
        """View what exposes memory of a CUDA device.

        DLPack orders the other library's stream before CuPy's current one; `__cuda_array_interface__`, for objects
        without DLPack, may make the CPU wait for it.
        """
        if self.owns(value):
            return value
        cupy = require_device()
        exposed = getattr(value, "__cuda_array_interface__", None)
        fixed = type(value).__module__.partition(".")[0] in ("jax", "jaxlib") or (
            exposed is not None and exposed["data"][1]
        )
        if written and fixed:
            do = "keep the parameter in an Optimizer, or in an array of a library whose arrays can be written"
            raise LayoutError(f"the buffer {name!r} is read-only.", got=type(value).__name__, do=do)
        return cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else cupy.asarray(value)

    def device(self, array: Any) -> Device:  # noqa: D102
        return Device("cuda", int(array.device.id))

    def current_device(self, number: int | None = None) -> Device:
        """Return the device of a number, or CuPy's current one, or raise a BackendError where there is none."""
        return Device("cuda", require_device().cuda.Device(number).id)

    def address(self, array: Any) -> int:  # noqa: D102
        return array.data.ptr

    def allocate(self, count: int, plane: Plane, device: Device) -> Any:
        """Allocate zeros; CuPy aligns to 512 bytes."""
        with _cuda_device(device):
            return load_cupy().zeros(count, plane.dtype)

    def read(self, array: Any, part: slice, dtype: np.dtype) -> np.ndarray:  # noqa: D102
        return self.to_numpy(array[part]).view(dtype)

    def write(self, array: Any, part: slice, values: np.ndarray) -> None:  # noqa: D102
        self.copy(array[part], values.view(array.dtype))

    def copy(self, target: Any, source: Any) -> None:  # noqa: D102
        with target.device:
            function, *arguments = self.writing(target, source)
            function(*arguments)

    def writing(self, target: Any, source: Any) -> tuple:  # noqa: D102
        if isinstance(source, np.ndarray):
            return target.set, np.ascontiguousarray(source).reshape(target.shape)
        return target.__setitem__, ..., source

    def extent(self, array: Any) -> tuple[int, int]:  # noqa: D102
        steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True) if array.size]
        start = array.data.ptr + sum(s for s in steps if s < 0)
        return start, start + sum(map(abs, steps)) + (array.itemsize if array.size else 0)

    def duplicate(self, array: Any) -> Any:  # noqa: D102
        with array.device:
            return array.copy()

    def to_numpy(self, array: Any) -> np.ndarray:  # noqa: D102
        with array.device:
            return array.get()

    def require_in_place(self, array: Any, name: str, *, written: bool) -> None:  # noqa: D102
        aligned = self.address(array) % array.itemsize == 0
        require_contiguous(array, name, contiguous=array.flags.c_contiguous, aligned=aligned)

    @contextmanager
    def running(self, device: Device, stream: Any) -> Iterator[None]:
        """Make a device and a stream current; no stream means CuPy's current one.

        A stream is CuPy's, any object with `__cuda_stream__`, a torch stream, or an address.
        """
        with _cuda_device(device):
            if stream is None:
                yield
                return
            # CuPy's own `with stream` goes back to the stream of the `with` around it, and so forgets one that the
            # caller has made current by `use()`.
            current = load_cupy().cuda.get_current_stream()
            self.stream(stream, device).use()
            try:
                yield
            finally:
                current.use()

    def stream(self, stream: Any, device: Device) -> Any:
        """Return CuPy's stream for a caller's: see `running`."""
        cuda = load_cupy().cuda
        if isinstance(stream, cuda.Stream):
            if stream.device_id not in (-1, device.number):
                got, expected = f"one of device {stream.device_id}", f"one of device {device.number}, as the arrays"
                raise SettingError("the stream is another device's.", got=got, expected=expected)
            return stream
        number = getattr(stream, "cuda_stream", stream)  # a torch stream, or an address
        if isinstance(number, int) and not isinstance(number, bool):
            stream = SimpleNamespace(__cuda_stream__=lambda: (0, number))
        try:
            return cuda.Stream.from_external(stream)
        except (AttributeError, TypeError, ValueError) as error:
            expected = "a CuPy or torch stream, an object with __cuda_stream__, or a stream's address"
            raise SettingError(
                f"this is not a CUDA stream: {error}", got=repr(stream)[:60], expected=expected
            ) from error

    def require_not_capturing(self, what: str, do: str | None = None) -> None:  # noqa: D102
        if load_cupy().cuda.get_current_stream().is_capturing():
            raise BackendError(f"the current stream is being captured into a CUDA graph, {what}", do=do)

    def wait(self, device: Device) -> None:
        """Wait for all work on a device, which a capture forbids."""
        with _cuda_device(device) as current:
            self.require_not_capturing("and this waits for the device.", "do it before or after the capture")
            current.synchronize()


def _cuda_device(device: Device) -> Any:
    return load_cupy().cuda.Device(device.number)

"""Arrays on a CUDA device: other libraries' memory seen as CuPy arrays, and the device and stream of a step.

CuPy is imported only when such an array arrives or is asked for. Elsewhere an array is either NumPy's or CuPy's, and
`place` says which: "cpu", or "cuda:0" and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastopt.errors import BackendError, FastoptError, LayoutError, SettingError, explain
from fastopt.kernels.nvrtc import load_cupy, require_device

CPU = "cpu"

CUDA = (2, 13)  # DLPack's numbers for memory of a CUDA device, the second for managed memory


def is_cupy(value: Any) -> bool:
    """Whether `value` is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def bfloat16() -> np.dtype:
    """Give the type by which NumPy and CuPy know bfloat16, or raise a BackendError where it is not installed."""
    try:
        import ml_dtypes
    except ImportError as error:
        what, do = "NumPy knows of bfloat16 through the package ml_dtypes.", "pip install 'fastopt[bf16]', or ml_dtypes"
        raise BackendError(explain("bfloat16", what, got=str(error), do=do)) from error
    return np.dtype(ml_dtypes.bfloat16)


def place(array: Any) -> str:
    """Say where an array lives."""
    return CPU if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def address(array: Any) -> int:
    """Give the address of an array's first element."""
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr


def device_of(value: Any, where: str) -> Any:
    """Give the CUDA device on which a value lends its memory, or None if it does not say that it is on one."""
    if isinstance(value, np.ndarray):
        return None
    if is_cupy(value):
        return value.device
    try:
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            return device(where, int(number)) if kind in CUDA else None
        if hasattr(value, "__cuda_array_interface__"):
            return require_device(where).asarray(value).device
    except FastoptError:
        raise
    except Exception:  # `dispatch.adopt` says what is wrong with it
        return None
    return None


def view(value: Any, name: str, where: str, *, written: bool) -> Any:
    """View what lends memory of a CUDA device as a CuPy array on the same memory.

    DLPack orders the lender's stream before CuPy's current one; `__cuda_array_interface__`, for who speaks that alone,
    may make the CPU wait for it.

    Raises:
        LayoutError: it must be written and is read-only, or belongs to a library whose arrays never change.
        BackendError: CuPy or a device is missing.

    """
    cupy = require_device(where)
    lent = getattr(value, "__cuda_array_interface__", None)
    fixed = type(value).__module__.partition(".")[0] in ("jax", "jaxlib") or (lent is not None and lent["data"][1])
    if written and fixed:
        do = "keep the parameter in an Optimizer, or in an array of a library whose arrays can be written"
        raise LayoutError(explain(where, f"the buffer {name!r} is read-only.", got=type(value).__name__, do=do))
    return cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else cupy.asarray(value)


def device(where: str, number: int | None = None) -> Any:
    """Give the device of a number, or CuPy's current one, or raise a BackendError where there is none."""
    return require_device(where).cuda.Device(number)


def allocate(count: int, dtype: np.dtype, value: float, device: Any) -> Any:
    """Allocate `count` elements on a device, filled with `value`; CuPy aligns to 512 bytes."""
    with device:
        cupy = load_cupy("allocate")
        array = cupy.zeros(count, dtype)
        if value:
            array.set(np.full(count, value, dtype))  # to fill would have CuPy compile a kernel of its own
        return array


def copy(target: Any, source: Any) -> None:
    """Copy an array of the same shape and type into another, from the CPU's memory to a device too."""
    if isinstance(target, np.ndarray):
        target[...] = source if isinstance(source, np.ndarray) else source.get()
    else:
        with target.device:
            if isinstance(source, np.ndarray):
                target.set(np.ascontiguousarray(source).reshape(target.shape))
            else:
                target[...] = source


def to_device(array: np.ndarray, device: Any) -> Any:
    """Copy an array to new memory on a device."""
    with device:
        made = load_cupy("to_device").empty(array.shape, array.dtype)
        made.set(array)
    return made


def duplicate(array: Any) -> Any:
    """Copy an array to new memory in the same place."""
    if isinstance(array, np.ndarray):
        return array.copy()
    with array.device:
        return array.copy()


def to_numpy(array: Any) -> np.ndarray:
    """Copy an array to the CPU's memory."""
    if isinstance(array, np.ndarray):
        return array.copy()
    with array.device:
        return array.get()


@contextmanager
def running(device: Any, stream: Any, where: str) -> Iterator[None]:
    """Make a device and a stream the current ones for the duration of a step; no stream means CuPy's current one.

    A stream is CuPy's, any object that speaks `__cuda_stream__`, a torch stream, or an address.
    """
    with device:
        if stream is None:
            yield
        else:
            with using(stream_of(stream, device, where), where):
                yield


@contextmanager
def using(stream: Any, where: str) -> Iterator[None]:
    """Make a stream of CuPy's the current one for a while.

    CuPy's own `with stream` goes back to the stream of the `with` around it, and so forgets one that the caller has
    made current by `use()`.
    """
    before = load_cupy(where).cuda.get_current_stream()
    stream.use()
    try:
        yield
    finally:
        before.use()


def stream_of(stream: Any, device: Any, where: str) -> Any:
    """Give CuPy's stream for a caller's: see `running`."""
    cuda = load_cupy(where).cuda
    if isinstance(stream, cuda.Stream):
        if stream.device_id not in (-1, device.id):
            got, expected = f"one of device {stream.device_id}", f"one of device {device.id}, where the arrays live"
            raise SettingError(explain(where, "the stream is another device's.", got=got, expected=expected))
        return stream
    number = getattr(stream, "cuda_stream", stream)  # a torch stream, or an address
    if isinstance(number, int) and not isinstance(number, bool):
        stream = SimpleNamespace(__cuda_stream__=lambda: (0, number))
    try:
        return cuda.Stream.from_external(stream)
    except (AttributeError, TypeError, ValueError) as error:
        expected = "a CuPy or torch stream, an object with __cuda_stream__, or a stream's address"
        what = f"this is not a CUDA stream: {error}"
        raise SettingError(explain(where, what, got=repr(stream)[:60], expected=expected)) from error


def require_no_stream(stream: Any, where: str) -> None:
    """Raise a BackendError if a stream is given for arrays in the CPU's memory."""
    if stream is not None:
        what = "a stream was given for arrays in the CPU's memory, which have none."
        raise BackendError(explain(where, what, got=repr(stream)[:60], do="leave stream out"))


def require_not_capturing(what: str, where: str, do: str | None = None) -> None:
    """Raise a BackendError if the current stream is being captured into a CUDA graph."""
    if load_cupy(where).cuda.get_current_stream().is_capturing():
        raise BackendError(explain(where, f"the current stream is being captured into a CUDA graph, {what}", do=do))


def require_not_frozen(where: str) -> None:
    """Raise a BackendError if a step would be captured whose scalars do not advance on the device."""
    what = "which would replay this step's t and learning rate unchanged."
    require_not_capturing(what, where, "call opt.capturable(steps) before the capture: then they advance on the device")


def wait_for(device: Any, where: str) -> None:
    """Wait for all work on a device, which a capture forbids."""
    with device:
        require_not_capturing("and this waits for the device.", where, "do it before or after the capture")
        device.synchronize()

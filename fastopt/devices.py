"""Arrays on a CUDA device: other libraries' memory seen as CuPy arrays, and the device and stream of a step.

CuPy is imported only when such an array arrives or is asked for. Elsewhere an array is either NumPy's or CuPy's, and
`place` says which: "cpu", or "cuda:0" and so on.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np

from fastopt.errors import BackendError, LayoutError, SettingError, explain
from fastopt.kernels.cuda import load_cupy, require_device

CPU = "cpu"


def is_cupy(value: Any) -> bool:
    """Whether `value` is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def place(array: Any) -> str:
    """Say where an array lives."""
    return CPU if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def address(array: Any) -> int:
    """Give the address of an array's first element."""
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr


def view(value: Any, name: str, where: str, *, written: bool) -> Any:
    """View what lends memory of a CUDA device as a CuPy array on the same memory.

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
    return cupy.from_dlpack(value) if lent is None else cupy.asarray(value)


def current_device(where: str) -> Any:
    """Give CuPy's current device, or raise a BackendError where there is none."""
    return require_device(where).cuda.Device()


def allocate(count: int, dtype: np.dtype, value: float, device: Any) -> Any:
    """Allocate `count` elements on a device, filled with `value`; CuPy aligns to 512 bytes."""
    with device:
        array = load_cupy("allocate").empty(count, dtype)
        array.fill(value)
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


def running(device: Any, stream: Any, where: str) -> AbstractContextManager:
    """Make a device and a stream the current ones for the duration of a step; no stream means CuPy's current one.

    A stream is CuPy's, any object that speaks `__cuda_stream__`, a torch stream, or an address.
    """
    stack = ExitStack()
    stack.enter_context(device)
    if stream is not None:
        stack.enter_context(_stream(stream, device, where))
    return stack


def _stream(stream: Any, device: Any, where: str) -> Any:
    cuda = load_cupy(where).cuda
    if hasattr(stream, "__cuda_stream__"):
        return cuda.Stream.from_external(stream)
    number = getattr(stream, "cuda_stream", stream)  # a torch stream, or an address
    if isinstance(number, int) and not isinstance(number, bool):
        return cuda.ExternalStream(number, device.id)
    expected = "a CuPy or torch stream, an object with __cuda_stream__, or a stream's address"
    raise SettingError(explain(where, "this is not a CUDA stream.", got=repr(stream)[:60], expected=expected))


def require_no_stream(stream: Any, where: str) -> None:
    """Raise a BackendError if a stream is given for arrays in the CPU's memory."""
    if stream is not None:
        what = "a stream was given for arrays in the CPU's memory, which have none."
        raise BackendError(explain(where, what, got=repr(stream)[:60], do="leave stream out"))


def require_not_capturing(where: str) -> None:
    """Raise a BackendError while the current stream is captured: a replay would repeat this step's scalars for ever."""
    if load_cupy(where).cuda.get_current_stream().is_capturing:
        raise BackendError(
            explain(
                where,
                "this step is being captured into a CUDA graph, which would replay its t and learning rate unchanged.",
                do="call opt.capturable(steps) before the capture: then they advance on the device",
            )
        )

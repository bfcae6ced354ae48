"""Array libraries: one small class each says how fastopt finds and moves its arrays' memory; no other module does.

`Library` is what a class has to have, `LIBRARIES` the table of them. An array that arrives at the surface is of one of
these, or exposes its memory by DLPack, by `__cuda_array_interface__` or by the buffer protocol and is then viewed as
NumPy's or CuPy's. `fastopt.arrays.torch` is for `fastopt.torch` alone. Only libraries that are installed and needed are
imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.arrays.cupy import CUDA_MEMORY, CuPy
from fastopt.arrays.library import CPU, Array, Device, Library
from fastopt.arrays.numpy import CPU_MEMORY, NumPy
from fastopt.errors import FastoptError, LayoutError

NUMPY, CUPY = NumPy(), CuPy()

LIBRARIES: list[Library] = [NUMPY, CUPY]
"""An array is of the first that owns it. What fastopt allocates is of the first whose arrays are on the device."""

_OTHER_MEMORY = {4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}  # DLPack's numbers


def library_on(device: Device) -> Library:
    """Return the library whose arrays fastopt uses on a device."""
    return next(library for library in LIBRARIES if library.device_kind == device.kind)


def library_of(array: Array) -> Library:
    """Return the library of an adopted array."""
    if isinstance(array, np.ndarray):  # at once: it is asked for each array of a step
        return NUMPY
    return next(library for library in LIBRARIES if library.owns(array))


def device_of(value: Any) -> Device:
    """Return the device on which a value exposes its memory; the CPU if it does not say."""
    if isinstance(value, np.ndarray):
        return CPU
    for library in LIBRARIES:
        if library.owns(value):
            return library.device(value)
    try:
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            return CUPY.current_device(int(number)) if kind in CUDA_MEMORY else CPU
        if hasattr(value, "__cuda_array_interface__"):
            return CUPY.device(CUPY.adopt(value, "", written=False))
    except FastoptError:
        raise
    except Exception:  # `adopt` says what is wrong with it
        return CPU
    return CPU


def adopt(value: Any, name: str, *, written: bool = False) -> Array:
    """View an object's memory as a NumPy or CuPy array, in whatever order and type it is.

    Raises:
        LayoutError: it does not expose its memory, or not for writing.
        BackendError: it is on a CUDA device and CuPy or the device is missing.

    """
    if type(value) is np.ndarray:  # at once, as most are
        return value
    try:
        for library in LIBRARIES:
            if library.owns(value):
                return library.adopt(value, name, written=written)
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            if kind not in (*CPU_MEMORY, *CUDA_MEMORY):
                got = f"{_OTHER_MEMORY.get(int(kind), f'device type {int(kind)}')} device {number}"
                raise LayoutError(f"the buffer {name!r} is neither in the CPU's memory nor on a CUDA device.", got=got)
            return (NUMPY if kind in CPU_MEMORY else CUPY).adopt(value, name, written=written)
        exposes = CUPY if hasattr(value, "__cuda_array_interface__") else NUMPY
        return exposes.adopt(value, name, written=written)
    except FastoptError:
        raise
    except Exception as error:  # whatever a foreign object raises while it exports its memory
        raise LayoutError(
            f"the buffer {name!r} does not expose its memory: {error}",
            got=type(value).__name__,
            expected=f"an array of {', '.join(type(x).__name__ for x in LIBRARIES)}, or DLPack or the buffer protocol",
        ) from error


def describe(array: Array) -> str:
    """Name an array's type, shape and, off the CPU, its device."""
    device = library_of(array).device(array)
    return f"{array.dtype}{list(array.shape)}" + (f" on {device}" if device != CPU else "")

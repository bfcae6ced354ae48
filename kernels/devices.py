"""CuPy, imported when it is first needed: by the CUDA backend, and for arrays on a CUDA device."""

from __future__ import annotations

from typing import Any

from fastopt.errors import BackendError

INSTALL = "pip install 'cupy-cuda13x[ctk]' (NVIDIA driver 580 or newer) or 'cupy-cuda12x[ctk]' (525 or newer)"


def load_cupy() -> Any:
    """Import CuPy, or raise the BackendError that says what to install."""
    try:
        import cupy
    except ImportError as error:
        raise BackendError("the CUDA backend needs CuPy.", got=str(error), do=INSTALL) from error
    return cupy


def require_device() -> Any:
    """Return CuPy where it finds a device, or raise the BackendError that says what is missing."""
    cupy = load_cupy()
    try:
        if cupy.cuda.runtime.getDeviceCount():
            return cupy
        found = "no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        found = str(error)
    raise BackendError(
        "CUDA finds no GPU that it can use.",
        got=found,
        expected="an NVIDIA GPU of compute capability 7.5 or newer, and its driver",
        do="install the driver (nvidia-smi shows it), or use backend='cpu'",
    )

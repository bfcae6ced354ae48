"""Compiling CUDA C++ with NVRTC, which needs no GPU, and loading the result; CuPy calls both.

CuPy's RawModule would compile too, but it adds `-ftz=true` after all other options, and denormals are part of the
arithmetic. So NVRTC is called directly, its machine code stored on disk, and loaded from memory once it is verified.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fastopt.errors import BackendError
from fastopt.kernels import cache
from fastopt.kernels.devices import INSTALL, load_cupy

OPTIONS = ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""NVRTC's options: every operation rounded on its own and correctly, denormals preserved. Part of the arithmetic."""

OLDEST = 75
"""The oldest architecture that is compiled for, compute capability 7.5."""


class Compiled(NamedTuple):
    """What NVRTC makes of a source: machine code (none for a virtual architecture), PTX, and its messages."""

    cubin: bytes
    ptx: bytes
    log: str


def compile_source(source: str, architecture: str, *more: str) -> Compiled:
    """Compile a source for an architecture, for example "sm_90" or "compute_90", with options in addition to OPTIONS.

    Raises:
        RuntimeError: NVRTC refuses the source, with its log; or whatever CuPy raises where NVRTC is missing.

    """
    nvrtc = load_cupy().cuda.nvrtc
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *OPTIONS, *more))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        real = architecture.startswith("sm_")
        return Compiled(nvrtc.getCUBIN(program) if real else b"", nvrtc.getPTX(program), nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def cache_folder() -> Path | None:
    """Return the folder in which compiled CUDA kernels are stored, if there is one."""
    return cache.folder("nvrtc{}.{}".format(*load_cupy().cuda.nvrtc.getVersion()))


def machine_code(source: str, capability: int) -> bytes:
    """Return a source's code for a compute capability such as 90, compiled now or by an earlier process.

    For a device that is newer than the compiler it is PTX, which the driver translates.
    """
    known = [a for a in load_cupy().cuda.nvrtc.getSupportedArchs() if OLDEST <= a <= capability]
    if not known:
        raise RuntimeError(f"compute capability {capability / 10:.1f} is below {OLDEST / 10:.1f}")
    real = capability in known
    architecture = f"{'sm' if real else 'compute'}_{max(known)}"
    digest = hashlib.sha256("\0".join((source, architecture, *OPTIONS)).encode()).hexdigest()[:24]
    with cache.lock:
        folder = cache_folder()
        path = folder and folder / f"{digest}.{'cubin' if real else 'ptx'}"
        found = None if path is None else cache.read(path)
        if found is None:
            made = compile_source(source, architecture)
            found = made.cubin if real else made.ptx
            if path is not None:
                cache.write(path, found)
    return found


@lru_cache(maxsize=1024)
def function(source: str, name: str, device: int) -> Any:
    """Return one of a source's kernels, loaded on the current device, whose number is `device`.

    Raises:
        BackendError: the compiler is missing or refuses the source, the device is too old, or does not load the code.

    """
    cupy = load_cupy()
    try:
        module = cupy.cuda.Module()
        module.load(machine_code(source, int(cupy.cuda.Device(device).compute_capability)))
        return module.get_function(name)
    except Exception as error:  # whatever NVRTC, the driver or the disk says
        raise BackendError(
            "this CUDA kernel cannot be compiled and loaded.",
            got=f"{type(error).__name__}: {error}"[:2000],
            do=f"see that NVRTC and the driver are installed and fit: {INSTALL}",
            where=name,
        ) from error

"""The lines of `fastopt info`: versions, backends, processor, threads, kernel cache, and the memory ceiling."""

from __future__ import annotations

import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from llvmlite import binding

import fastopt
from fastopt.bench import ceiling
from fastopt.errors import BackendError
from fastopt.kernels import jit
from fastopt.kernels.backends import BACKENDS, bind
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.devices import require_device
from fastopt.kernels.launch import Rows
from fastopt.kernels.threads import available

_VECTORS = {"avx512f": 512, "avx2": 256, "avx": 256, "sse2": 128, "neon": 128}


def lines(device: str, memory: str) -> list[tuple[str, str]]:
    """Return labels and texts; `device` and `memory` are the results of `cuda` and `memory_ceiling`, which are slow."""
    return [
        ("fastopt", fastopt.__version__),
        ("versions", versions()),
        ("backends", backends()),
        ("cuda", device),
        ("processor", processor()),
        ("vectors", vectors()),
        ("threads", threads()),
        ("kernel cache", kernel_cache()),
        ("memory ceiling", memory),
    ]


def versions() -> str:
    """Return the versions of Python and of the packages that compile kernels."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "llvmlite"))
    return f"python {platform.python_version()}, {packages}"


def backends() -> str:
    """Return the names of the backends."""
    return ", ".join(BACKENDS)


def cuda() -> str:
    """Describe the device and the time to compile or load a kernel, or say what is missing."""
    try:
        cupy = require_device()
        number = cupy.cuda.Device().id
        device = cupy.cuda.runtime.getDeviceProperties(number)
        cupy.zeros(1)  # starts the driver
        start = perf_counter()
        program, n = trace(fastopt.Adam(), np.float32), 1
        arrays = [cupy.zeros(n, np.float32) for _ in program.buffers]
        bind("cuda", program, Rows([n], [0], [[a.data.ptr for a in arrays]], arrays, number))
        took = perf_counter() - start
    except BackendError as error:
        found = {"got": error.got, "expected": error.expected, "do": error.do}
        return "; ".join([error.what.rstrip("."), *(f"{label} {text}" for label, text in found.items() if text)])
    name = f"{device['name'].decode()}, sm_{device['major']}{device['minor']}, {device['totalGlobalMem'] >> 30} GiB"
    return f"{name}; CuPy {cupy.__version__}; float32 Adam compiled, or loaded from disk, in {took:.2f} s"


def processor() -> str:
    """Return the processor's name, and LLVM's name for it."""
    name = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}; in LLVM: {binding.get_host_cpu_name()}"


def vectors() -> str:
    """Return the width of the widest vectors that LLVM may use on this processor."""
    features = binding.get_host_cpu_features()
    return next((f"{bits} bits ({name})" for name, bits in _VECTORS.items() if features.get(name)), "unknown")


def threads() -> str:
    """Return the number of threads for large steps."""
    cores, usable = os.cpu_count() or 1, available()
    why = "" if usable == cores else f" (of {cores} cores this process may use {usable}, by affinity or cgroup)"
    return f"{fastopt.get_threads()} of fastopt's own worker threads{why}; Numba's threading layers are not used"


def kernel_cache() -> str:
    """Return the folder of compiled kernels, whether it is writable, and its size."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        folder = jit.cache_folder()
    if folder is None:
        return f"none: {getattr(found[0].message, 'got', '')}" if found else "none"
    sizes = [file.stat().st_size for file in folder.glob("*.code")]
    access = "writable" if os.access(folder, os.W_OK) else "not writable"
    return f"{folder} ({access}): {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB"


def memory_ceiling() -> str:
    """Measure the memory ceiling of a step of Adam: three arrays updated in place and one read."""
    measured = ceiling.measure(reads=1, writes=3, elements=16 << 20, seconds=0.5)
    return (
        f"{measured.median:.1f} GB/s, median of {measured.runs} passes, best {measured.best:.1f}"
        " (three arrays updated and one read, like Adam)"
    )

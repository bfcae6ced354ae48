"""What `fastopt info` says: versions, backends, processor, threads, cache, and the memory ceiling as measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from llvmlite import binding

import fastopt
from fastopt.bench import ceiling
from fastopt.errors import BackendError
from fastopt.kernels import cache, jit
from fastopt.kernels.backends import BACKENDS, bind
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.devices import require_device
from fastopt.kernels.launch import Rows

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
    """Give the versions that decide what a kernel compiles to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "llvmlite"))
    return f"python {platform.python_version()}, {packages}"


def backends() -> str:
    """Name the backends that a step can run on."""
    return ", ".join(BACKENDS)


def cuda() -> str:
    """Say which device there is and how long compiling or loading a kernel takes, or what is missing."""
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
    """Give the processor's name for people and for LLVM."""
    name = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}; to LLVM: {binding.get_host_cpu_name()}"


def vectors() -> str:
    """Give the widest vectors that LLVM may use here."""
    features = binding.get_host_cpu_features()
    return next((f"{bits} bits ({name})" for name, bits in _VECTORS.items() if features.get(name)), "unknown")


def threads() -> str:
    """Say who shares a large step."""
    return f"{fastopt.get_threads()}: fastopt's own workers; Numba's threading layers are not used"


def kernel_cache() -> str:
    """Say where compiled kernels are kept, whether they can be, and what is there."""
    folder = jit.cache_folder()
    if not folder.is_relative_to(cache.preferred_folder()):
        return f"{cache.preferred_folder()} is not writable: kernels are compiled anew by every process"
    count = len(list(folder.glob("*.py")))
    size = sum(file.stat().st_size for file in folder.rglob("*")) / 1e6
    access = "writable" if os.access(folder, os.W_OK) else "not writable"
    return f"{folder} ({access}): {count} kernels, {size:.1f} MB"


def memory_ceiling() -> str:
    """Measure the traffic of a step of Adam's shape: three arrays updated in place and one read."""
    measured = ceiling.measure(reads=1, writes=3, elements=16 << 20, seconds=0.5)
    return (
        f"{measured.median:.1f} GB/s, median of {measured.runs} passes, best {measured.best:.1f}"
        " (three arrays updated, one read, as Adam does)"
    )

"""The lines of `fastopt info`: versions, backends, processor, threads, kernel cache, and the memory ceiling."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from llvmlite import binding

import fastopt
from fastopt.bench import ceiling, clock, problem, record
from fastopt.bench.cases import Case
from fastopt.bench.report import bound_by
from fastopt.errors import BackendError
from fastopt.kernels import jit
from fastopt.kernels.backends import BACKENDS, bind
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.devices import require_device
from fastopt.kernels.formats import PRESETS
from fastopt.kernels.launch import Rows
from fastopt.kernels.threads import available


def lines(device: str, memory: str) -> list[tuple[str, str]]:
    """Return labels and texts; `device` and `memory` are the results of `cuda` and `memory_ceiling`, which are slow."""
    return [
        ("fastopt", fastopt.__version__),
        ("versions", versions()),
        ("backends", backends()),
        ("cuda", device),
        ("processor", processor()),
        ("vectors", record.vectors()),
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


def storages(on_progress: Callable[[str], object] = lambda _: None) -> list[tuple[str, ...]]:
    """Measure AdamW in each preset: bytes per parameter, time, share of the memory ceiling, and what bounds it.

    Tensors of 8 Mi parameters, all threads; a step and a loop that only moves as many bytes, in turns.
    """
    rows = []
    for storage in PRESETS:
        on_progress(storage)
        case = Case(storage=storage, size="8Mi", threads=fastopt.get_threads())
        made = problem.optimizer(case)
        own = problem.of_optimizer(made)
        contestants = {"step": clock.timed(made.step), "ceiling": clock.timed(problem.ceiling_pass(case, own))}
        times = clock.race(contestants, 7)
        share, step = clock.speed(times["step"], times["ceiling"])[1], clock.percentiles(times["step"])[1]
        bytes_moved = f"{case.program.bytes_per_parameter:.4g}"
        rows.append((storage, bytes_moved, f"{step * 1e9 / case.elements:.2f}", f"{share:.0%}", bound_by(share)))
    return rows


def memory_ceiling() -> str:
    """Measure the memory ceiling of a step of Adam: three arrays updated in place and one read."""
    measured = ceiling.measure(reads=1, writes=3, elements=16 << 20, seconds=0.5)
    return (
        f"{measured.median:.1f} GB/s, median of {measured.runs} passes, best {measured.best:.1f}"
        " (three arrays updated and one read, like Adam)"
    )

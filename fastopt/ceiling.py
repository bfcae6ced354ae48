"""The memory ceiling of this machine: the fastest known traffic of a step's shape, whatever the step computes.

Some arrays are updated in place and others only read, as a step does with p, m, v and g, but with one addition for each
written array and no more. The loop claims the same chunks on the same threads, walks the same strips and prefetches as
the printed kernels do (which makes it 4 to 5 % faster than a plain loop on a 2-core Xeon), so a kernel at 100 % of it
is bound by memory alone. It is written here by hand, not printed from a rule: what measures must not be made by what
it measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastopt.buffers import allocate
from fastopt.kernels import cpu, launch, threads

_FEWEST_RUNS = 5


class Ceiling(NamedTuple):
    """Measured traffic in GB/s (10⁹ bytes, read and written), over so many runs: their median and the fastest."""

    median: float
    best: float
    runs: int


@cache
def traffic(reads: int, writes: int, dtype: Any = np.float32) -> Callable[..., None]:
    """Compile `kernel(job, n, chunk, far, *addresses)`: `writes` arrays updated in place, then `reads` only read.

    `run` calls it; a job of 0 makes one thread do all n elements.
    """
    kind, strip = np.dtype(dtype).name, cpu.strip(np.dtype(dtype).itemsize)
    name = f"traffic_r{reads}_w{writes}_{kind}"
    arrays = [f"w{k}" for k in range(writes)] + [f"r{k}" for k in range(reads)]
    added = " + ".join(f"r{k}[i]" for k in range(reads)) or f"{kind}(1)"
    text = "\n".join(
        [
            f'"""Traffic of {writes} arrays updated in place and {reads} read, in {kind}."""',
            "",
            f"from numba import {kind}, intp, njit, types",
            "",
            "from fastopt.kernels.intrinsics import buffer, claim, prefetch",
            "",
            "",
            f"SIGNATURE = types.void({', '.join(['intp'] * (4 + len(arrays)))})",
            "",
            "",
            "@njit(nogil=True, cache=True)",
            f"def {name}(job, n, chunk, far, {', '.join(f'{a}_at' for a in arrays)}):",
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        length = {strip} if far else chunk",
            "        for strip in range(first, last, length):",
            *(f"            {a} = buffer({a}_at, strip, {kind}, {k}, {len(arrays)})" for k, a in enumerate(arrays)),
            "            if far:",
            *(f"                prefetch({a}, {strip})" for a in arrays),
            "            for i in range(min(length, last - strip)):",
            f"                added = {added}",
            *(f"                w{k}[i] = w{k}[i] + added" for k in range(writes)),
            "        first = claim(job, first, chunk)",
            "",
        ]
    )
    return cpu.load(name, text)


def run(kernel: Callable[..., None], arrays: Sequence[np.ndarray]) -> None:
    """Pass once over these arrays, the written ones first, on all of fastopt's threads."""
    n = arrays[0].size
    arguments = (int(cpu.is_far(n)), *[a.__array_interface__["data"][0] for a in arrays])
    launch.run(threads.share(kernel, cpu.waiting(), n, cpu.chunk(n), arguments, arrays))


def measure(
    reads: int, writes: int, *, dtype: Any = np.float32, elements: int = 64 << 20, seconds: float = 1.0
) -> Ceiling:
    """Measure the ceiling for a step of this shape: elements · itemsize · (reads + 2 · writes) bytes a pass.

    Choose `elements` so that the arrays are well beyond the processor's caches; 64 Mi is. Runs for about `seconds`, and
    at least five passes, after one that does not count.

    >>> from fastopt import ceiling
    >>> adam = ceiling.measure(reads=1, writes=3, elements=1 << 20, seconds=0.01)
    >>> 0 < adam.median <= adam.best
    True

    """
    dtype = np.dtype(dtype)
    arrays = [allocate(elements, dtype, 1.0) for _ in range(writes)] + [allocate(elements, dtype) for _ in range(reads)]
    kernel = traffic(reads, writes, dtype)
    run(kernel, arrays)
    times: list[float] = []
    while len(times) < _FEWEST_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        run(kernel, arrays)
        times.append(time.perf_counter() - start)
    gigabytes = elements * dtype.itemsize * (reads + 2 * writes) / 1e9
    return Ceiling(gigabytes / statistics.median(times), gigabytes / min(times), len(times))

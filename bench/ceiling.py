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

from fastopt.arrays import NUMPY
from fastopt.arrays.library import CPU
from fastopt.kernels import jit
from fastopt.kernels.cpu import tuning
from fastopt.kernels.cpu.launch import compiled_wait, shared_calls
from fastopt.kernels.formats import Plane
from fastopt.kernels.launch import run
from fastopt.kernels.threads import WORKERS

_FEWEST_RUNS = 5


class Ceiling(NamedTuple):
    """Measured traffic in GB/s (10⁹ bytes, read and written), over so many runs: their median and the fastest."""

    median: float
    best: float
    runs: int


@cache
def traffic(reads: int, writes: int, dtype: Any = np.float32) -> Callable[..., None]:
    """Compile `kernel(job, n, chunk, prefetching, *addresses)`: `writes` arrays updated in place, `reads` only read.

    `bind` prepares a call of it; a job of 0 makes one thread do all n elements.
    """
    kind, strip = np.dtype(dtype).name, tuning.strip(np.dtype(dtype).itemsize)
    name = f"traffic_r{reads}_w{writes}_{kind}"
    arrays = [f"w{k}" for k in range(writes)] + [f"r{k}" for k in range(reads)]
    added = " + ".join(f"r{k}[i]" for k in range(reads)) or f"{kind}(1)"
    text = "\n".join(
        [
            f'"""Traffic of {writes} arrays updated in place and {reads} read, in {kind}."""',
            "",
            f"from numba import {kind}, intp, njit, types",
            "",
            "from fastopt.kernels.cpu.intrinsics import buffer, claim, prefetch",
            "",
            "",
            f"SIGNATURE = types.void({', '.join(['intp'] * (4 + len(arrays)))})",
            "",
            "",
            "@njit(nogil=True, cache=True)",
            f"def {name}(job, n, chunk, prefetching, {', '.join(f'{a}_at' for a in arrays)}):",
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        length = {strip} if prefetching else chunk",
            "        for strip in range(first, last, length):",
            *(f"            {a} = buffer({a}_at, strip, {kind}, {k}, {len(arrays)})" for k, a in enumerate(arrays)),
            "            if prefetching:",
            *(f"                prefetch({a}, {strip})" for a in arrays),
            "            for i in range(min(length, last - strip)):",
            f"                added = {added}",
            *(f"                w{k}[i] = w{k}[i] + added" for k in range(writes)),
            "        first = claim(job, first, chunk)",
            "",
        ]
    )
    return jit.load(name, text)


def bind(written: Sequence[np.ndarray], read: Sequence[np.ndarray]) -> Callable[[], object]:
    """Prepare one pass over arrays of one length and type, shared among fastopt's threads as a step would be.

    The arrays must not be moved while it is in use.
    """
    arrays, n = (*written, *read), written[0].size
    kernel, addresses = traffic(len(read), len(written), written[0].dtype), [NUMPY.address(a) for a in arrays]
    arguments = (int(tuning.prefetches(n)), *addresses)
    per_element = sum(a.itemsize for a in (*arrays, *written))
    if not tuning.is_shared(n, per_element):
        calls = [(kernel, 0, n, n, *arguments)]
        return lambda arrays=arrays: run(calls)  # it owns the memory
    compiled_wait()

    def shared() -> None:
        chunk = tuning.chunk(n)
        helpers = WORKERS.helpers(-(-n // chunk))
        run(
            shared_calls(kernel, n, chunk, arguments, arrays, helpers)
            if helpers > 0
            else [(kernel, 0, n, n, *arguments)]
        )

    return shared


def filled(count: int, dtype: Any, value: float = 0.0) -> np.ndarray:
    """Allocate an array as steps have theirs, filled with a value."""
    array = NUMPY.allocate(count, Plane("", np.dtype(dtype)), CPU)
    if value:
        array.fill(value)
    return array


def measure(
    reads: int, writes: int, *, dtype: Any = np.float32, elements: int = 64 << 20, seconds: float = 1.0
) -> Ceiling:
    """Measure the ceiling for a step of this shape: elements · itemsize · (reads + 2 · writes) bytes a pass.

    Choose `elements` so that the arrays are well beyond the processor's caches; 64 Mi is. Runs for about `seconds`, and
    at least five passes, after one that does not count.

    >>> from fastopt.bench import ceiling
    >>> adam = ceiling.measure(reads=1, writes=3, elements=1 << 20, seconds=0.01)
    >>> 0 < adam.median <= adam.best
    True

    """
    dtype = np.dtype(dtype)
    written = [filled(elements, dtype, 1.0) for _ in range(writes)]
    run = bind(written, [filled(elements, dtype) for _ in range(reads)])
    run()
    times: list[float] = []
    while len(times) < _FEWEST_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    gigabytes = elements * dtype.itemsize * (reads + 2 * writes) / 1e9
    return Ceiling(gigabytes / statistics.median(times), gigabytes / min(times), len(times))

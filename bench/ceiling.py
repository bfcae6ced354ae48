"""The memory ceiling of this machine: the memory throughput of a loop that accesses memory as a step does.

The loop updates some arrays in place and only reads others, as a step does with p, m, v and g, but computes only one
addition per written element. It divides the arrays into the same chunks, threads and strips as the generated kernels
and prefetches as they do (4 to 5 % faster than a plain loop on a 2-core Xeon), so a kernel at 100 % of the ceiling is
bound by memory alone. The loop is written by hand and not generated from a rule, so that the compiler under test does
not generate its own baseline.
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

_MIN_RUNS = 5


class Ceiling(NamedTuple):
    """Measured throughput in GB/s (10⁹ bytes, read and written): the median and the fastest of `runs` passes."""

    median: float
    best: float
    runs: int


@cache
def traffic(reads: int, writes: int, dtype: Any = np.float32) -> Callable[..., None]:
    """Compile `kernel(job, n, chunk, prefetching, *addresses)`: `writes` arrays updated in place, `reads` only read.

    `bind` prepares a call of it. With job = 0 one thread processes all n elements. A loop that only reads combines the
    words that it reads, and returns them, so that it is not left out.
    """
    kind, strip = np.dtype(dtype).name, 256 // min(np.dtype(dtype).itemsize, 4)
    name = f"traffic_r{reads}_w{writes}_{kind}"
    arrays = [f"w{k}" for k in range(writes)] + [f"r{k}" for k in range(reads)]
    seen = " | ".join(f"r{k}[i]" for k in range(reads))
    added = " + ".join(f"r{k}[i]" for k in range(reads)) or f"{kind}(1)"
    text = "\n".join(
        [
            f'"""Traffic of {writes} arrays updated in place and {reads} read, in {kind}."""',
            "",
            f"from numba import {', '.join(sorted({kind, 'float64', 'intp', 'njit', 'types'}))}",
            "",
            "from fastopt.kernels.cpu.jobs import claim",
            "from fastopt.kernels.cpu.memory import buffer, prefetch",
            *([] if writes else ["from fastopt.kernels.cpu.values import to_float, word"]),
            "",
            "",
            f"SIGNATURE = types.{'void' if writes else 'float64'}({', '.join(['intp'] * (4 + len(arrays)))})",
            "",
            "",
            "@njit(nogil=True)",
            f"def {name}(job, n, chunk, prefetching, {', '.join(f'{a}_at' for a in arrays)}):",
            *([] if writes else ["    seen = word(0)"]),
            "    first = claim(job, -chunk, chunk)",
            "    while first < n:",
            "        last = min(first + chunk, n)",
            f"        length = {strip} if prefetching else chunk",
            "        for strip in range(first, last, length):",
            *(f"            {a} = buffer({a}_at, strip, {kind}, {k}, {len(arrays)})" for k, a in enumerate(arrays)),
            "            if prefetching:",
            *(f"                prefetch({a}, {strip})" for a in arrays),
            "            for i in range(min(length, last - strip)):",
            f"                {f'added = {added}' if writes else f'seen = seen | {seen}'}",
            *(f"                w{k}[i] = w{k}[i] + added" for k in range(writes)),
            "        first = claim(job, first, chunk)",
            *([] if writes else ["    return to_float(seen, float64)"]),
            "",
        ]
    )
    return jit.load(name, text)


def bind(written: Sequence[np.ndarray], read: Sequence[np.ndarray]) -> Callable[[], object]:
    """Return a function that makes one pass over arrays of equal length and dtype, on as many threads as a step.

    The function uses the addresses of the arrays, which must stay valid.
    """
    arrays = (*written, *read)
    n, dtype = arrays[0].size, arrays[0].dtype if written else np.dtype(np.uint32)  # which holds bits of any kind
    kernel, addresses = traffic(len(read), len(written), dtype), [NUMPY.address(a) for a in arrays]
    arguments = (int(tuning.prefetches(n)), *addresses)
    per_element = sum(a.itemsize for a in (*arrays, *written))
    if not tuning.is_shared(n, per_element):
        calls = [(kernel, 0, n, n, *arguments)]
        return lambda arrays=arrays: run(calls)  # the default keeps the arrays alive
    compiled_wait()

    def shared(arrays: object = arrays) -> None:  # which it keeps alive
        chunk = tuning.chunk(n)
        helpers = WORKERS.helpers(-(-n // chunk))
        run(shared_calls(kernel, n, chunk, arguments, helpers) if helpers > 0 else [(kernel, 0, n, n, *arguments)])

    return shared


def filled(count: int, dtype: Any, value: float = 0.0) -> np.ndarray:
    """Allocate an array the way an Optimizer does, filled with a value."""
    array = NUMPY.allocate(count, Plane("", np.dtype(dtype)), CPU)
    if value:
        array.fill(value)
    return array


def measure(
    reads: int, writes: int, *, dtype: Any = np.float32, elements: int = 64 << 20, seconds: float = 1.0
) -> Ceiling:
    """Measure the ceiling of a step of elements · itemsize · (reads + 2 · writes) bytes.

    Choose `elements` so that the arrays are much larger than the processor's caches; 64 Mi is enough. Makes passes for
    about `seconds` seconds, at least five, after one warm-up pass.

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
    while len(times) < _MIN_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    gigabytes = elements * dtype.itemsize * (reads + 2 * writes) / 1e9
    return Ceiling(gigabytes / statistics.median(times), gigabytes / min(times), len(times))

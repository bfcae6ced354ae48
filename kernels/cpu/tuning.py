"""How large steps are divided on a CPU: chunks that threads claim, prefetched strips. All numbers are measured."""

from __future__ import annotations

from functools import cache

import llvmlite.binding

from fastopt.kernels.formats import TILE
from fastopt.kernels.threads import WORKERS

CHUNK = 32_768
"""The fewest elements that a thread claims at a time, a multiple of the tile: so many that a claim costs nothing."""

CLAIMS = 32
"""Chunks per thread of a large step: the fewer, the longer each thread goes on through memory without a jump, and the
longer the last one to finish may be waited for. Measured in docs/decisions/0002."""

PARALLEL_FROM = 8 << 20
"""Bytes of traffic from which a step is shared among threads: measured in docs/decisions/0002."""

STRIPS_FROM = 131_072
"""Elements beyond which a step comes from memory: measured in docs/decisions/0003."""

STRIP = 64
"""Elements that a large step works on, and prefetches, at a time: four cache lines of each buffer of float32. Four
times as many are more than a core can have under way (see docs/decisions/0003)."""

STRETCH = 16 * TILE
"""Elements of 16 bits or more that are stepped by vectors at a time; what is left in the end is by another loop."""

HALF = TILE // 2
"""Elements of a prefetched strip with gradient noise: a whole tile of each buffer is too much to prefetch, and shorter
loops are slower (see docs/decisions/0004)."""


@cache
def processor_prefetches() -> bool:
    """Whether large steps in one loop prefetch on this processor: AMD's Zen is faster without (docs/decisions/0003)."""
    return not llvmlite.binding.get_host_cpu_name().startswith("znver")


@cache
def ends_after_root() -> bool:
    """Whether loops over 16-bit elements end after a root: where vectors are short (docs/decisions/0019)."""
    from fastopt.kernels.cpu.values import LANES

    return LANES < 16


@cache
def codes_apart() -> bool:
    """Whether plain tiles write several buffers' codes in a loop of their own (docs/decisions/0019).

    With AVX2 there are 16 registers; what does not fit waits in memory.
    """
    from fastopt.kernels.cpu.values import LANES

    return LANES < 16


@cache
def halves_at_once() -> int:
    """Vectors in an iteration that narrows them to 16 bits: more with AVX-512 (docs/decisions/0019)."""
    from fastopt.kernels.cpu.values import LANES

    return 4 if LANES == 16 else 2


def prefetches(n: int, *, compressed: bool = False) -> bool:
    """Whether a step of n elements prefetches; what is compressed does on Zen too (docs/decisions/0019)."""
    return n > STRIPS_FROM and (compressed or processor_prefetches())


def chunk(n: int) -> int:
    """Return the elements that a thread claims at a time where n are shared, a multiple of the tile."""
    return max(CHUNK, -(-n // (CLAIMS * WORKERS.threads * TILE)) * TILE)


def is_shared(n: int, bytes_per_parameter: float) -> bool:
    """Whether a step of n elements is shared among threads."""
    return n > CHUNK and n * bytes_per_parameter >= PARALLEL_FROM

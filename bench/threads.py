"""One thread against several, over sizes and chunks: what PARALLEL_FROM, CHUNK and CLAIMS in kernels/cpu.py rest on.

`serial` is one thread; `chunk 32768` shares the step among all of fastopt's threads, each claiming that many elements
at a time. Where a size is no larger than the chunk there is nothing to share, and the row is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np

from bench import peers
from bench.clock import Case, Comparison
from fastopt.buffers import allocate
from fastopt.kernels import cpu
from fastopt.kernels.program import host_scalars, trace
from tests.cases import CASES

DTYPE = np.dtype(np.float32)
RULES = ("sgd", "adam")
SIZES = [1 << k for k in range(10, 27)]
CHUNKS = [1 << k for k in range(13, 22, 2)]


def cases(elements: int) -> list[Case]:
    """List the cases, up to `elements` parameters."""
    return [_case(name, size) for name in RULES for size in SIZES if size <= elements]


def _case(name: str, size: int) -> Case:
    comparisons = tuple(Comparison(f"chunk {chunk}", "serial") for chunk in CHUNKS if chunk < size)
    traffic = size * trace(CASES[name], DTYPE).bytes_per_parameter
    return Case(f"{name}, {size}", lambda: _contestants(name, size), comparisons, traffic)


def _contestants(name: str, size: int) -> Mapping[str, Callable[[], object]]:
    peers.check_rule(name)
    rule, program = CASES[name], trace(CASES[name], DTYPE)
    arrays = [allocate(size, DTYPE, 1.0) for _ in program.buffers]
    launch, scalars = cpu.bind(program, arrays), host_scalars(program, rule)(10)

    def contestant(parallel_from: int, chunk: int) -> Callable[[], None]:
        def call() -> None:
            before = cpu.PARALLEL_FROM, cpu.chunk
            cpu.PARALLEL_FROM, cpu.chunk = parallel_from, lambda n: chunk
            try:
                launch((), scalars)
            finally:
                cpu.PARALLEL_FROM, cpu.chunk = before

        return call

    shared = {f"chunk {chunk}": contestant(0, chunk) for chunk in CHUNKS if chunk < size}
    return {"serial": contestant(sys.maxsize, cpu.CHUNK), **shared}

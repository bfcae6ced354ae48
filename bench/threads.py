"""One thread compared with several, for different sizes and chunks: the measurements behind kernels/cpu/tuning.py.

`python -m fastopt.bench.threads` prints, for SGD and Adam, the time of a step on one thread, and the speed of a step on
all of fastopt's threads relative to it (20th, 50th and 80th percentile). A thread claims one chunk of elements at a
time; chunks that are not smaller than the tensor are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from fastopt.arrays import NUMPY
from fastopt.bench import check, clock
from fastopt.bench.cases import Case
from fastopt.bench.ceiling import filled
from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning
from fastopt.kernels.launch import Launch, Rows, run
from fastopt.kernels.rules.cases import CASES

DTYPE = np.dtype(np.float32)
RULES = ("sgd", "adam")
SIZES = [1 << k for k in range(10, 27)]
CHUNKS = [1 << k for k in range(11, 22, 2)]


def contestants(name: str, size: int) -> dict[str, Callable[[], None]]:
    """Return the steps of one rule and size: on one thread, and on all threads with each chunk."""
    check.check_ours(Case(rule=name))
    rule, program = CASES[name], trace(CASES[name], DTYPE)
    arrays = [filled(size, DTYPE, 1.0) for _ in program.buffers]
    rows, scalars = Rows([size], [0], [[NUMPY.address(a) for a in arrays]], arrays), host_scalars(program, rule)(10)

    def contestant(shared: bool, chunk: int) -> Callable[[], None]:
        def tuned() -> Launch:
            before = tuning.PARALLEL_FROM, tuning.CHUNK
            tuning.PARALLEL_FROM, tuning.CHUNK = 0 if shared else sys.maxsize, min(chunk, size - 1)
            try:
                return bind("cpu", program, rows)
            finally:
                tuning.PARALLEL_FROM, tuning.CHUNK = before

        launch = tuned()

        def call() -> None:
            before, tuning.chunk = tuning.chunk, lambda n: chunk
            try:
                run(launch.calls((), scalars))
            finally:
                tuning.chunk = before

        return call

    shared = {f"chunk {chunk}": contestant(True, chunk) for chunk in CHUNKS if chunk < size}
    return {"serial": contestant(False, tuning.CHUNK), **shared}


def measure(name: str, size: int, repeats: int) -> dict[str, list[float]]:
    """Return percentiles: the seconds on one thread, and for each chunk the speed relative to that."""
    made = contestants(name, size)
    samples = clock.race({label: clock.timed(call) for label, call in made.items()}, repeats)
    found = {label: clock.speed(seconds, samples["serial"]) for label, seconds in samples.items() if label != "serial"}
    return {"serial": clock.percentiles(samples["serial"]), **found}


def main(sizes: list[int] = SIZES, repeats: int = 10) -> None:
    """Print the table."""
    for name in RULES:
        for size in sizes:
            found = measure(name, size, repeats)
            serial, *_ = found.pop("serial")[1:2]
            shared = "   ".join(f"{label}: {low:.2f} {mid:.2f} {high:.2f}" for label, (low, mid, high) in found.items())
            print(f"{name:5} {size:>10,}  {serial * 1e6:>10,.1f} µs   {shared}", flush=True)


if __name__ == "__main__":
    main()

"""Many tensors in one call on the CPU: a table with a row for each, walked in compiled code.

A row is the number of elements, the number of its first element for noise, and the address of each buffer. Rows longer
than the shortest chunk come first, each shared among threads like a step of its own; the others are claimed in blocks
that together are about a chunk. A row is worked on by the program's own kernel, so the bits are those of a step on it
alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastopt.kernels import cpu, threads
from fastopt.kernels.cache import short
from fastopt.kernels.launch import Launch
from fastopt.kernels.program import Program

FIRST = 2
"""Column of a row's first address; before it are its number of elements and its offset."""

_JOB = 16  # int64 words of a job's two counters, each on a cache line: see `intrinsics.claim`


def print_walker(program: Program, name: str, module: str) -> str:
    """Print the Python module of one function, `name`, that calls the kernel of `program` for the rows of a table.

    `module` is the name under which the kernel's own module is imported.
    """
    kernel = cpu.printed_name(program)
    noise = ["key0", "key1"] if program.noise else []
    scalars = [f"s{k}" for k in range(len(program.scalars))]
    addresses = [f"table[row, {FIRST + k}]" for k in range(len(program.buffers))]
    given = [*addresses, *noise, *(["table[row, 1]"] if noise else []), *scalars]
    types = ["intp", "intp", "TABLE", "STARTS", "intp", "intp", *["intp"] * len(noise), *["float64"] * len(scalars)]
    arguments = ["jobs", "large", "table", "starts", "chunk", "far", *noise, *scalars]
    return "\n".join(
        [
            f'"""{program.name} for the rows of a table. Printed by fastopt; do not edit."""',
            "",
            "from numba import float64, int64, intp, njit, types",
            "",
            "from fastopt.kernels.intrinsics import claim",
            f"from {module} import {kernel}",
            "",
            'TABLE, STARTS = types.Array(int64, 2, "C"), types.Array(int64, 1, "C")',
            f"SIGNATURE = types.void({', '.join(types)})",
            "",
            "",
            '@njit(nogil=True, cache=True, error_model="numpy")',
            f"def {name}({', '.join(arguments)}):",
            "    for row in range(large):",
            f"        job = jobs + {8 * _JOB} * (row + 1) if jobs else 0",
            "        length = chunk if jobs else table[row, 0]",
            f"        {kernel}(job, table[row, 0], length, far, {', '.join(given)})",
            "    block = claim(jobs, -1, 1)",
            "    while block < starts.size - 1:",
            "        for row in range(starts[block], starts[block + 1]):",
            f"            {kernel}(0, table[row, 0], table[row, 0], far, {', '.join(given)})",
            "        block = claim(jobs, block, 1)",
            "",
        ]
    )


@lru_cache(maxsize=512)
def compiled(program: Program) -> Any:
    """Compile the walker of `program`, or load what an earlier process compiled."""
    kernel = cpu.compiled(program)
    name = short(f"{cpu.printed_name(program)}_table")
    return cpu.load(name, print_walker(program, name, kernel.py_func.__module__))


class TableLaunch(Launch):
    """A step over the tensors of a table: one call, shared among threads where they are many or large.

    `order` says which of the given rows each row of `table` is.
    """

    __slots__ = ("order", "table")

    def __init__(self, program: Program, sizes: np.ndarray, offsets: np.ndarray, addresses: np.ndarray):
        order = np.flatnonzero(sizes)
        long = sizes[order] > cpu.CHUNK
        self.order = order = np.concatenate([order[long], order[~long]])
        large, rows = int(long.sum()), order.size
        self.table = table = np.empty((rows, FIRST + len(program.buffers)), np.int64)
        table[:, 0], table[:, 1], table[:, FIRST:] = sizes[order], offsets[order], addresses[order]
        if not rows:
            super().__init__(lambda noise, scalars: [])
            return
        starts = _blocks(table[:, 0], large)
        kernel, wait = cpu.entry(compiled(program)), cpu.waiting()
        blocks, total = starts.size - 1, int(table[:, 0].sum())
        length, far = cpu.chunk(total), int(cpu.is_far(total))
        chunks = [-(-n // length) for n in table[:large, 0].tolist()]
        parallel = total > cpu.CHUNK and total * program.bytes_per_parameter >= cpu.PARALLEL_FROM

        def calls(noise: tuple, scalars: tuple) -> list[tuple]:
            given = (table, starts, length, far, *noise, *scalars)
            helpers = threads.helpers(blocks + sum(chunks)) if parallel else 0
            if helpers < 1:
                return [(kernel, 0, large, *given)]
            jobs = np.zeros(_JOB * (large + 1), np.int64)
            at = jobs.__array_interface__["data"][0]
            own = [(wait, at + 8 * _JOB * (row + 1), count) for row, count in enumerate(chunks)]
            return [*threads.hand_out(kernel, (at, large, *given), jobs, helpers), *own, (wait, at, blocks)]

        super().__init__(calls)

    def set_column(self, k: int, addresses: np.ndarray) -> None:
        """Say where the rows' buffer number `k` of the program lies now, in the order in which rows were given."""
        self.table[:, FIRST + k] = addresses[self.order]


def _blocks(sizes: np.ndarray, first: int) -> np.ndarray:
    """Divide the rows from `first` on into blocks: the row at which each begins, and the end of the last."""
    block = np.cumsum(sizes[first:]) // cpu.CHUNK
    return first + np.concatenate([np.flatnonzero(np.diff(block, prepend=-1)), [block.size]]).astype(np.int64)


def bind(program: Program, sizes: ArrayLike, offsets: ArrayLike, addresses: ArrayLike) -> TableLaunch:
    """Prepare a step over tensors that lie at these addresses, one for each of `program.buffers`.

    Nobody checks them: they must be memory of so many elements that nothing else writes to and that does not overlap,
    and stay so while the launch is in use. Its `calls` take the keys of the noise without an offset.
    """
    n = np.array(sizes, np.int64)
    at = np.array(addresses, np.int64).reshape(n.size, len(program.buffers))
    return TableLaunch(program, n, np.array(offsets, np.int64), at)

"""Steps on the CPU: one compiled call over the rows, shared among threads where there is enough to do.

A single row is a direct call of the program's kernel. Several are a table, over which compiled code loops: rows longer
than the shortest chunk come first, each shared among threads like a step of its own; the others are claimed in blocks
that together are about a chunk. A row is always worked on by the program's own kernel, so its bits are those of a step
on it alone.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastopt.kernels.cache import short
from fastopt.kernels.compiler.program import SKIPPED, Program, matrix_name, sum_name, total_name
from fastopt.kernels.cpu import tuning
from fastopt.kernels.cpu.condition import print_condition
from fastopt.kernels.cpu.modules import condition_name, function_name
from fastopt.kernels.cpu.printer import FIRST_ADDRESS, JOB_WORDS, print_source, print_table
from fastopt.kernels.formats import TILE
from fastopt.kernels.jit import entry_point, load, load_module
from fastopt.kernels.launch import Launch, Numbers, PhasedLaunch, Rows, only_if
from fastopt.kernels.matrices import Matrices
from fastopt.kernels.threads import WORKERS

MATRICES = 1 << 19
"""Most elements of a batch of matrices, so that what a function makes of several small ones stays in the cache."""


@lru_cache(maxsize=512)
def compiled(program: Program) -> Any:
    """Compile the kernel of `program`, or load what an earlier process compiled."""
    return load(function_name(program), print_source(program))


@lru_cache(maxsize=512)
def compiled_table(program: Program) -> Any:
    """Compile the function that calls the kernel of `program` for each row of a table."""
    kernel = compiled(program)
    name = short(f"{function_name(program)}_table")
    return load(name, print_table(program, name, kernel.py_func.__module__))


@cache
def compiled_wait() -> Any:
    """Compile `wait(job, chunks)`, which returns when all chunks of a shared step are finished."""
    return load_module("fastopt.kernels.cpu.wait")


@cache
def compiled_totals() -> Any:
    """Compile `totals(sums, starts, rows, totals)`: see there."""
    return entry_point(load_module("fastopt.kernels.cpu.totals"))


@lru_cache(maxsize=512)
def compiled_condition(program: Program) -> Any:
    """Compile the function that says whether a step of `program` is taken."""
    return load(condition_name(program), print_condition(program))


def bind(program: Program, rows: Rows) -> Launch:
    """Prepare steps over rows in the CPU's memory."""
    if program.phases:
        return TotalsLaunch(program, rows)
    if len(rows.sizes) == 1 and rows.sizes[0]:
        return RowLaunch(program, rows, 0)
    sizes = np.asarray(rows.sizes, np.int64)
    if np.count_nonzero(sizes) == 1:
        return RowLaunch(program, rows, int(np.flatnonzero(sizes)[0]))
    return TableLaunch(program, rows, sizes)


def shared_calls(kernel: Any, n: int, chunk: int, arguments: tuple, helpers: int) -> list[tuple]:
    """Prepare the calls that run `kernel(job, n, chunk, *arguments)` here and on helpers until n elements are done.

    Each claims chunks with an atomic add inside the compiled code. The job lives until the last worker has read it; one
    that wakes up late finds nothing to claim, and touches nothing else.
    """
    job = np.zeros(JOB_WORDS, np.int64)
    address = job.__array_interface__["data"][0]
    calls = WORKERS.dispatch(kernel, (address, n, chunk, *arguments), job, helpers)
    return [*calls, (compiled_wait(), address, -(-n // chunk))]


class RowLaunch:
    """A step over the one row that has elements, by the program's kernel itself."""

    __slots__ = ("_call", "_row", "calls")

    def __init__(self, program: Program, rows: Rows, row: int):
        n = int(rows.sizes[row])
        kernel, memory = entry_point(compiled(program)), rows.memory
        where = (int(rows.offsets[row]),) if program.noise else ()
        call = [
            kernel,
            0,
            n,
            n,
            int(tuning.prefetches(n, compressed=program.compressed)),
            *map(int, rows.addresses[row]),
        ]
        self._row, self._call = row, call  # which `calls` reads, not `self`: memory is freed without the collector

        def calls(keys: tuple, scalars: tuple, memory: object = memory) -> list[tuple]:
            return [(*call, *keys, *where, *scalars)]

        def shared(keys: tuple, scalars: tuple) -> list[tuple]:
            chunk = tuning.chunk(n)
            helpers = WORKERS.helpers(-(-n // chunk))
            if helpers < 1:
                return calls(keys, scalars)
            arguments = (*call[4:], *keys, *where, *scalars)
            return shared_calls(kernel, n, chunk, arguments, helpers)

        self.calls = calls
        if tuning.is_shared(n, program.bytes_per_parameter):
            compiled_wait()
            self.calls = shared

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of the rows."""
        self._call[5 + buffer] = int(addresses[self._row])


class TotalsLaunch(PhasedLaunch):
    """A step in phases in the CPU's memory."""

    def __init__(self, program: Program, rows: Rows):
        sizes = np.asarray(rows.sizes, np.int64)
        count, numbers = sizes.size, range(len(program.totals))
        self._starts = starts = np.concatenate([[0], np.cumsum(-(-sizes // TILE))]).astype(np.int64)
        self._sums = np.empty((len(numbers), starts[-1]), np.float64)
        # Of every row, and then that over all rows. No sum of squares is negative: none has been made yet.
        self._totals = np.full((len(numbers), count + 1), -1.0)
        self.flags = np.array([1.0, 0.0])
        own = {SKIPPED: np.full(count, _address(self.flags) + 8)}
        own |= {sum_name(k): _address(self._sums) + 8 * (k * starts[-1] + starts[:-1]) for k in numbers}
        for k, node in enumerate(program.totals):
            read = np.full(count, count) if node.value[0] == "all" else np.arange(count)
            own[total_name(k)] = _address(self._totals) + 8 * (k * (count + 1) + read)
        given = np.asarray(rows.addresses, np.int64).reshape(count, -1)
        own |= {b.name: given[:, k] for k, b in enumerate(program.buffers)}
        if program.matrices:
            self.matrices = Matrices(program, rows, lambda n: np.empty(n, program.dtype), MATRICES)
            for k, memory in enumerate(self.matrices.memory):
                own[matrix_name(k)] = _address(memory) + program.dtype.itemsize * self.matrices.starts
        self._memory = rows.memory, self._sums, self._totals, self.flags, self.matrices
        self._launches = [
            bind(
                phase,
                rows._replace(addresses=np.stack([own[b.name] for b in phase.buffers], 1), memory=self._memory),
            )
            for phase in program.phases
        ]
        self.program = program
        self._gradients = self.gradients(rows)
        self._decide = None if program.condition is None else entry_point(compiled_condition(program))
        compiled_totals()

    def fold(self, k: int, before: np.ndarray | None) -> list[tuple]:
        """Prepare the call that makes total number k of each row, and that over all, which begins with another one."""
        at = 0 if before is None else _address(before)
        return [(compiled_totals(), _address(self._sums[k]), self._starts, _address(self._totals[k]), at)]

    def take(self, k: int, total: np.ndarray) -> tuple:
        """Prepare the call that takes another launch's total over all for total number k."""
        return self.over_all(k).__setitem__, ..., total  # np.copyto is written in Python in part

    def over_all(self, k: int) -> np.ndarray:
        """Return the memory of total number k over all rows."""
        return self._totals[k, -1:]

    def decide(self, scalars: Numbers, before: np.ndarray | None) -> list[tuple]:
        """Prepare the call that sets the flags."""
        assert type(scalars) is tuple, "numbers lie elsewhere on devices only"
        totals, used = self.program.condition_inputs
        at = 0 if before is None else _address(before)
        read = [_address(self.over_all(k)) for k in totals]
        return [(self._decide, _address(self.flags), at, *read, *[scalars[k] for k in used])]

    def zero_skipped(self) -> list[tuple]:
        """Prepare the calls that zero gradients, if the step was skipped."""
        return only_if(self.flags, 1, [(ctypes.memset, at, 0, count) for at, count in self._gradients])

    def take_flags(self, flags: np.ndarray) -> tuple:
        """Prepare the call that takes another launch's flags."""
        return self.flags.__setitem__, ..., flags


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class TableLaunch:
    """A step over the rows of a table; `order` says which of the given rows each of `table` is."""

    __slots__ = ("calls", "order", "table")

    def __init__(self, program: Program, rows: Rows, sizes: np.ndarray):
        order = np.flatnonzero(sizes)
        long = sizes[order] > tuning.CHUNK
        self.order = order = np.concatenate([order[long], order[~long]])
        jobs_of_rows, count = int(long.sum()), order.size
        self.table = table = np.empty((count, FIRST_ADDRESS + len(program.buffers)), np.int64)
        if not count:
            self.calls = lambda keys, scalars: []
            return
        table[:, 0], table[:, 1] = sizes[order], np.asarray(rows.offsets, np.int64)[order]
        table[:, FIRST_ADDRESS:] = np.asarray(rows.addresses, np.int64)[order]
        starts = _blocks(table[:, 0], jobs_of_rows)
        kernel, wait, memory = entry_point(compiled_table(program)), compiled_wait(), rows.memory
        blocks, total = starts.size - 1, int(table[:, 0].sum())
        chunk, prefetching = tuning.chunk(total), int(tuning.prefetches(total, compressed=program.compressed))
        chunks = [-(-n // chunk) for n in table[:jobs_of_rows, 0].tolist()]
        parallel = tuning.is_shared(total, program.bytes_per_parameter)

        def calls(keys: tuple, scalars: tuple, memory: object = memory) -> list[tuple]:  # which it keeps alive
            arguments = (table, starts, chunk, prefetching, *keys, *scalars)
            helpers = WORKERS.helpers(blocks + sum(chunks)) if parallel else 0
            if helpers < 1:
                return [(kernel, 0, jobs_of_rows, *arguments)]
            jobs = np.zeros(JOB_WORDS * (jobs_of_rows + 1), np.int64)
            at = jobs.__array_interface__["data"][0]
            waits = [(wait, at + 8 * JOB_WORDS * (row + 1), count) for row, count in enumerate(chunks)]
            shared = WORKERS.dispatch(kernel, (at, jobs_of_rows, *arguments), jobs, helpers)
            return [*shared, *waits, (wait, at, blocks)]

        self.calls = calls

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of the rows."""
        self.table[:, FIRST_ADDRESS + buffer] = addresses[self.order]


def _blocks(sizes: np.ndarray, first: int) -> np.ndarray:
    """Divide the rows from `first` on into blocks: the row at which each begins, and the end of the last."""
    block = np.cumsum(sizes[first:]) // tuning.CHUNK
    return first + np.concatenate([np.flatnonzero(np.diff(block, prepend=-1)), [block.size]]).astype(np.int64)

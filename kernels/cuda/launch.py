"""Steps on a CUDA device: one launch over the rows, on the device and the stream that are current then; nothing waits.

A single row is a launch with its addresses as arguments. Several are a table on the device: a warp for each tile of any
of them, which looks up its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.compiler.program import SKIPPED, Program, matrix_name, sum_name, total_name
from fastopt.kernels.cuda.nvrtc import function
from fastopt.kernels.cuda.printer import (
    FIRST_ADDRESS,
    captured,
    condition_entry,
    entry,
    print_condition_source,
    print_source,
    print_table_source,
    table_entry,
    tile_header,
)
from fastopt.kernels.devices import load_cupy
from fastopt.kernels.formats import TILE
from fastopt.kernels.launch import Launch, Numbers, NumbersOfRows, PhasedLaunch, Rows, steps
from fastopt.kernels.matrices import Matrices

THREADS = 128
"""Threads of a block, 4 warps; as in tile.cuh. Twice as many are slower, most so where there is much arithmetic."""

MOST_BLOCKS = 2**31 - 1
"""Blocks that a grid can have. Below this a warp works on one tile, and the device is never short of blocks."""

MATRICES = 1 << 25
"""Most elements of a batch of matrices: what a function makes of them takes several times their memory."""

PIECE = 1 << 16
"""Bytes that CUDA copies from pageable memory without waiting for the stream."""

WORDS = 240
"""Words of a table that a launch of `write_words` takes as arguments, of which CUDA allows 4 KiB."""

_WORD_NAMES = [f"w{k}" for k in range(WORDS)]

WRITE = f"""extern "C" __global__ void write_words(
    long long* at, long long count, long long {", long long ".join(_WORD_NAMES)}
) {{
    const long long words[] = {{{", ".join(_WORD_NAMES)}}};
    for (int k = 0; k < count; ++k) at[k] = words[k];
}}
"""

FOLD = """extern "C" __global__ void __launch_bounds__(THREADS) fold_sums(
    const double* sums, const Index* starts, const Index* blocks, Index rows, double* folded
) {
    // Each warp folds 256 sums of a row, or takes its only one; row k has those from starts[k] on, and blocks[k] …
    for (Index number = first_tile(); number < blocks[rows]; number += warps_in_grid()) {
        Index row = 0, end = rows;  // blocks[row] <= number < blocks[end]
        while (end - row > 1) {
            const Index middle = (row + end) / 2;
            if (blocks[middle] <= number) {
                row = middle;
            } else {
                end = middle;
            }
        }
        const Index first = starts[row] + (number - blocks[row]) * TILE, count = starts[row + 1] - first;
        double held[HELD];
        load<2>(held, sums + first, count);
        const double only = held[0], sum = tile_total<2>(held);
        if (lane() == 0) folded[number] = starts[row + 1] - starts[row] > 1 ? sum : only;
    }
}

extern "C" __global__ void add_rows(
    const double* folded, const Index* starts, Index rows, double* totals, const double* before
) {
    double whole = before ? *before : 0.0;
    for (Index row = 0; row < rows; ++row) {
        totals[row] = starts[row + 1] > starts[row] ? folded[starts[row]] : 0.0;
        whole = whole + totals[row];
    }
    totals[rows] = whole;
}

extern "C" __global__ void take(double* to, const double* from, Index count) {
    for (Index k = 0; k < count; ++k) to[k] = from[k];
}

extern "C" __global__ void skip_too(double* flags, const Index* skip) {
    if (*skip == 0) return;
    flags[0] = 0.0;
    flags[1] = 1.0;
}

extern "C" __global__ void __launch_bounds__(THREADS) zero_if_skipped(
    unsigned char* at, Index bytes, const double* flags
) {
    if (flags[1] == 0.0) return;
    for (Index k = Index(blockIdx.x) * THREADS + threadIdx.x; k < bytes; k += Index(gridDim.x) * THREADS) at[k] = 0;
}
"""

ADVANCE = """extern "C" __global__ void advance_row(long long* row, long long* skipped, const double* flags) {
    ++*(flags && flags[1] != 0.0 ? skipped : row);
}
"""


def bind(program: Program, rows: Rows) -> Launch:
    """Prepare steps over rows in the memory of a device."""
    if program.phases:
        return TotalsLaunch(program, rows)
    sizes = np.asarray(rows.sizes, np.int64)
    if sizes.size == 1 and not rows.own_numbers:
        return RowLaunch(program, rows)
    return TableLaunch(program, rows, sizes)


def blocks(n: int) -> int:
    """Return the number of blocks that step n elements."""
    return min(-(-n // (TILE * (THREADS // 32))), MOST_BLOCKS)


def numbers(program: Program, keys: tuple, offset: int, scalars: tuple) -> list[Any]:
    """Return what a kernel takes after n and its buffers, each as the NumPy scalar whose bytes are passed."""
    noise = [*map(np.uint32, keys), np.int64(offset)] if program.noise else []
    return [*noise, *map(program.dtype.type, map(float, scalars))]


class RowLaunch:
    """A step over one row. It can be captured into a CUDA graph once its steps are prepared on the device."""

    def __init__(self, program: Program, rows: Rows):
        (n,), (offset,), (addresses,) = rows.sizes, rows.offsets, rows.addresses
        self._program, self._n, self._offset, self._memory = program, int(n), int(offset), rows.memory
        self._addresses = [np.uint64(a) for a in addresses]
        self._device, self._shape = rows.device, ((blocks(self._n),), (THREADS,))
        self._kernel: Any = self._load(entry(program)) if self._n else None
        self.prepared: _PreparedSteps | None = None

    def _load(self, name: str) -> Any:
        with load_cupy().cuda.Device(self._device):
            return function(print_source(self._program), name, self._device)

    def calls(self, keys: tuple, scalars: tuple) -> list[tuple]:
        """Prepare a step."""
        if not self._n:
            return []
        rest = numbers(self._program, keys, self._offset, scalars)
        return [(self._kernel, *self._shape, (np.int64(self._n), *self._addresses, *rest))]

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of the row."""
        self._addresses[buffer] = np.uint64(addresses[0])

    def counter(self) -> StepCounter:
        """Make a counter of prepared steps on the row's device."""
        return StepCounter(self._device)

    def prepare(self, counter: StepCounter, scalars: Sequence[tuple], keys: Sequence[tuple]) -> None:
        """Put the scalars of the next steps on the device, and the keys of their noise, for `captured_calls`.

        `counter` says which of them is next. Called again with the same one, and as many, it writes to the same memory,
        where captured graphs find them.
        """
        table = np.array(scalars, np.float64).astype(self._program.dtype).reshape(len(scalars), -1)
        key_table = np.array(keys, np.uint32).reshape(-1, 2)
        with load_cupy().cuda.Device(self._device):
            if self.prepared is None or self.prepared.counter is not counter:
                kernel = self._load(captured(entry(self._program)))
                self.prepared = _PreparedSteps(kernel, counter, table, key_table)
            self.prepared.scalars.set(table)
            self.prepared.keys.set(key_table)

    def captured_calls(self) -> list[tuple]:
        """Prepare the step whose scalars are in the next row; without a row left it does nothing."""
        if not self._n:
            return []
        assert self.prepared is not None
        steps = self.prepared
        noise = [steps.keys, np.int64(self._offset)] if self._program.noise else []
        arguments = (np.int64(self._n), *self._addresses, *noise, steps.scalars, steps.counter.row, steps.rows)
        return [(steps.kernel, *self._shape, arguments)]


class TotalsLaunch(PhasedLaunch):
    """A step in phases in the memory of a device. It can be captured like a `RowLaunch`, of which it has several."""

    def __init__(self, program: Program, rows: Rows):
        self._device = rows.device
        self.program, sizes, cupy = program, np.asarray(rows.sizes, np.int64), load_cupy()
        count, numbers = sizes.size, range(len(program.totals))
        self.order = np.flatnonzero(sizes)
        starts = [np.concatenate([[0], np.cumsum(-(-sizes // TILE))])]  # of the sums, and of what they are folded to
        while np.diff(starts[-1]).max(initial=0) > 1:
            starts.append(np.concatenate([[0], np.cumsum(-(-np.diff(starts[-1]) // TILE))]))
        with cupy.cuda.Device(rows.device):
            self._sums = [cupy.empty((max(1, int(starts[0][-1])),), np.float64) for _ in numbers]
            self._totals = [cupy.empty((count + 1,), np.float64) for _ in numbers]
            for totals in self._totals:
                totals.fill(-1.0)  # which no sum of squares is: none has been made yet
            self.flags = cupy.empty((2,), np.float64)
            self.flags.set(np.array([1.0, 0.0]))
            self._levels = [cupy.empty((max(1, int(at[-1])),), np.float64) for at in starts[1:]]
            self._starts = []
            for at in starts:
                on_device = cupy.empty((count + 1,), np.int64)
                on_device.set(at.astype(np.int64))
                self._starts.append(on_device)
            self._first_row = cupy.zeros(1, np.int64)
            self._fold, self._add, self._take, self._skip_too, self._zero = (
                function(tile_header() + FOLD, name, rows.device)
                for name in ("fold_sums", "add_rows", "take", "skip_too", "zero_if_skipped")
            )
            if program.condition is not None:  # loaded here: no kernel can be while a stream is captured
                self._condition, self._captured_condition = (
                    function(print_condition_source(program), name, rows.device)
                    for name in (condition_entry(program), captured(condition_entry(program)))
                )
        own = {SKIPPED: np.full(count, self.flags.data.ptr + 8)}
        own |= {sum_name(k): self._sums[k].data.ptr + 8 * starts[0][:-1] for k in numbers}
        for k, node in enumerate(program.totals):
            read = np.full(count, count) if node.value[0] == "all" else np.arange(count)
            own[total_name(k)] = self._totals[k].data.ptr + 8 * read
        given = np.asarray(rows.addresses, np.int64).reshape(count, -1)
        own |= {b.name: given[:, k] for k, b in enumerate(program.buffers)}
        if program.matrices:
            with cupy.cuda.Device(rows.device):
                self.matrices = Matrices(program, rows, lambda n: cupy.empty((n,), program.dtype), MATRICES)
            for k, memory in enumerate(self.matrices.memory):
                own[matrix_name(k)] = memory.data.ptr + program.dtype.itemsize * self.matrices.starts
        self._gradients = self.gradients(rows)
        self._counts, self._rows = [int(at[-1]) for at in starts], np.int64(count)
        self._launches = [
            bind(phase, rows._replace(addresses=np.stack([own[b.name] for b in phase.buffers], 1)))
            for phase in program.phases
        ]

    def fold(self, k: int, before: Any) -> list[tuple]:
        """Prepare the launches that make total number k of each row, and that over all, which begins with another."""
        calls, found = [], self._sums[k]
        for level, folded in enumerate(self._levels, 1):
            arguments = (found, self._starts[level - 1], self._starts[level], self._rows, folded)
            calls.append((self._fold, (blocks(self._counts[level] * TILE),), (THREADS,), arguments))
            found = folded
        first = np.uint64(0) if before is None else before
        return [*calls, (self._add, (1,), (1,), (found, self._starts[-1], self._rows, self._totals[k], first))]

    def over_all(self, k: int) -> Any:
        """Return the memory of total number k over all rows."""
        return self._totals[k][int(self._rows) :]

    def take(self, k: int, total: Any) -> tuple:
        """Prepare the launch that takes another launch's total over all for total number k."""
        return self._take, (1,), (1,), (self.over_all(k), total, np.int64(1))

    def calls_with(self, numbers: NumbersOfRows) -> list[tuple]:
        """Prepare a step of rows that have numbers of their own, as `TableLaunch.calls_with` does."""
        return steps([(self, (), numbers)])

    def decide(self, scalars: Numbers, before: Any) -> list[tuple]:
        """Prepare the launch that sets the flags. Where rows have numbers of their own, those of the first decide."""
        totals, used = self.program.condition_inputs
        known = (self.flags, np.uint64(0) if before is None else before, *map(self.over_all, totals))
        if isinstance(scalars, NumbersOfRows):
            table = np.uint64(scalars.scalars), self._first_row, np.int64(min(1, self.order.size))
            skip = self._skip_too, (1,), (1,), (self.flags, np.uint64(scalars.skip))
            return [(self._captured_condition, (1,), (1,), (*known, *table)), skip]
        if scalars is not None:
            numbers = [self.program.dtype.type(float(scalars[k])) for k in used]
            return [(self._condition, (1,), (1,), (*known, *numbers))]
        return [(self._captured_condition, (1,), (1,), (*known, *self._table))]

    def report(self, of: Any, address: int) -> tuple:
        """Prepare the launch that copies the flags, or a total over all, to other memory of the device."""
        return self._take, (1,), (1,), (np.uint64(address), of, np.int64(of.size))

    def zero_skipped(self) -> list[tuple]:
        """Prepare the launches that zero gradients, if the step was skipped."""
        return [
            (self._zero, (blocks(count),), (THREADS,), (np.uint64(at), np.int64(count), self.flags))
            for at, count in self._gradients
        ]

    def take_flags(self, flags: Any) -> tuple:
        """Prepare the launch that takes another launch's flags."""
        return self._take, (1,), (1,), (self.flags, flags, np.int64(2))

    def counter(self) -> StepCounter:
        """Make a counter of prepared steps, which does not count a step that is skipped."""
        return StepCounter(self._device, self.flags if self.program.condition is not None else None)

    def prepare(self, counter: StepCounter, scalars: Sequence[tuple], keys: Sequence[tuple]) -> None:
        """Put the scalars and keys of the next steps on the device, as `RowLaunch.prepare` does."""
        for launch, phase in zip(self._launches, self.program.phases, strict=True):
            launch.prepare(counter, scalars, keys if phase.noise else [()] * len(keys))
        prepared = self._launches[-1].prepared
        self._table = prepared.scalars, counter.row, prepared.rows

    def captured_calls(self) -> list[tuple]:
        """Prepare the step whose scalars are in the next row; without a row left it does nothing."""
        return steps([(self, (), None)])


class StepCounter:
    """An int64 on a device that says which row of prepared steps is next; `calls` advance it after a step.

    Or, where `flags` say that the step was skipped, they advance another one.
    """

    def __init__(self, device: int, flags: Any = None):
        cupy = load_cupy()
        with cupy.cuda.Device(device):
            self.row, self.skipped = cupy.zeros(1, np.int64), cupy.zeros(1, np.int64)
            kernel = function(ADVANCE, "advance_row", device)
        arguments = (self.row, self.skipped, np.uint64(0) if flags is None else flags)
        self.calls = [(kernel, (1,), (1,), arguments)]


class _PreparedSteps:
    """The memory of prepared steps: a row of scalars and keys for each."""

    def __init__(self, kernel: Any, counter: StepCounter, scalars: np.ndarray, keys: np.ndarray):
        cupy = load_cupy()
        self.kernel, self.counter, self.rows = kernel, counter, np.int64(len(scalars))
        self.scalars, self.keys = cupy.empty(scalars.shape, scalars.dtype), cupy.empty(keys.shape, keys.dtype)


class TableLaunch:
    """A step over the rows of a table on a device.

    The table goes there in the order of the current stream, before the launch that is the first to need it, so nothing
    waits: an earlier step still finds what it was launched with. A CUDA graph would copy, at each replay, whatever lies
    in the CPU's memory then; so in a capture the table is written by launches that have it as arguments. `order` says
    which of the given rows each is.
    """

    def __init__(self, program: Program, rows: Rows, sizes: np.ndarray):
        self._memory = rows.memory
        self.order = order = np.flatnonzero(sizes)
        count, width = order.size, FIRST_ADDRESS + len(program.buffers)
        table = np.empty((count, width), np.int64)
        if count:
            table[:, 0], table[:, 1] = sizes[order], np.asarray(rows.offsets, np.int64)[order]
            table[:, FIRST_ADDRESS:] = np.asarray(rows.addresses, np.int64)[order]
        tiles = np.concatenate([[0], np.cumsum(-(-table[:, 0] // TILE))])
        self._host = host = np.concatenate([table.ravel(), tiles]).astype(np.int64)
        self._rows = host[: table.size].reshape(table.shape)
        self._uploaded = False  # whether the device has the table as it is now
        self._upload: list[tuple] | None = None
        self._scalar = program.dtype.type
        if not count:
            return
        cupy = load_cupy()
        self._program = program
        with cupy.cuda.Device(rows.device):
            on_device = cupy.empty(host.shape, np.int64)
            name = captured(table_entry(program)) if rows.own_numbers else table_entry(program)
            self._kernel = function(print_table_source(program, own_numbers=rows.own_numbers), name, rows.device)
            self._write = function(WRITE, "write_words", rows.device) if rows.own_numbers else None
        self._upload = _copies(on_device, host)
        self._shape = (blocks(int(tiles[-1]) * TILE),), (THREADS,)
        self._fixed = np.int64(count), on_device, on_device[table.size :]
        self._in_graph = False  # whether a graph may write to the table on the device

    def calls(self, keys: tuple, scalars: tuple) -> list[tuple]:
        """Prepare a step."""
        if self._upload is None:
            return []
        arguments = (*self._fixed, *map(np.uint32, keys), *map(self._scalar, map(float, scalars)))
        return [*self._uploads(), (self._kernel, *self._shape, arguments)]

    def calls_with(self, numbers: NumbersOfRows) -> list[tuple]:
        """Prepare a step of rows that have numbers of their own; call it while their stream is the current one."""
        if self._upload is None:
            return []
        scalars, keys, skip = map(np.uint64, numbers)
        arguments = (*self._fixed, *([keys] if self._program.noise else []), scalars, skip)
        launch = (self._kernel, *self._shape, arguments)
        if not load_cupy().cuda.get_current_stream().is_capturing():
            return [*self._uploads(), launch]
        self._in_graph = True
        table, words, writes = self._fixed[1], self._host.tolist(), []
        for k in range(0, len(words), WORDS):
            part = words[k : k + WORDS]
            padded = [*part, *[0] * (WORDS - len(part))]
            arguments = (np.uint64(table.data.ptr + 8 * k), np.int64(len(part)), *map(np.int64, padded))
            writes.append((self._write, (1,), (1,), arguments))
        return [*writes, launch]

    def _uploads(self) -> list[tuple]:
        """Prepare the copy of the table to the device, unless it is there."""
        assert self._upload is not None
        if self._in_graph:
            return self._upload
        return [] if self._uploaded else [*self._upload, (setattr, self, "_uploaded", True)]

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of the rows."""
        self._rows[:, FIRST_ADDRESS + buffer] = addresses[self.order]
        self._uploaded = False


def _copies(array: Any, host: np.ndarray) -> list[tuple]:
    """Prepare the calls that copy an array of the CPU's memory to a device on the current stream, without a wait.

    CUDA has taken what it copies from pageable memory when the call returns. It waits for the stream first if that is
    more than fits between the commands it sends, so the copy is made in pieces of no more.
    """
    at = host.__array_interface__["data"][0]
    pieces = range(0, host.nbytes, PIECE)
    return [((array.data + k).copy_from_host_async, at + k, min(PIECE, host.nbytes - k)) for k in pieces]

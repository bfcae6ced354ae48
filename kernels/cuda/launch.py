"""Steps on a CUDA device: one launch over the rows, on the device and the stream that are current then; nothing waits.

A single row is a launch with its addresses as arguments. Several are a table on the device: a warp for each tile of any
of them, which looks up its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cuda.nvrtc import function
from fastopt.kernels.cuda.printer import (
    FIRST_ADDRESS,
    captured,
    entry,
    print_source,
    print_table_source,
    require_no_totals,
    table_entry,
)
from fastopt.kernels.devices import load_cupy
from fastopt.kernels.formats import TILE
from fastopt.kernels.launch import Launch, NumbersOfRows, Rows

THREADS = 128
"""Threads of a block, 4 warps; as in tile.cuh. Twice as many are slower, most so where there is much arithmetic."""

MOST_BLOCKS = 2**31 - 1
"""Blocks that a grid can have. Below this a warp works on one tile, and the device is never short of blocks."""

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

ADVANCE = 'extern "C" __global__ void advance_row(long long* row) { ++*row; }\n'


def bind(program: Program, rows: Rows) -> Launch:
    """Prepare steps over rows in the memory of a device.

    Raises:
        BackendError: the rule takes totals, of which there are no kernels here yet.

    """
    require_no_totals(program)
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
        self._prepared: _PreparedSteps | None = None

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

        `counter` says which of them is next. Called again, with as many, it writes to the same memory, where captured
        graphs find them.
        """
        table = np.array(scalars, np.float64).astype(self._program.dtype).reshape(len(scalars), -1)
        key_table = np.array(keys, np.uint32).reshape(-1, 2)
        with load_cupy().cuda.Device(self._device):
            if self._prepared is None:
                kernel = self._load(captured(entry(self._program)))
                self._prepared = _PreparedSteps(kernel, counter, table, key_table)
            self._prepared.scalars.set(table)
            self._prepared.keys.set(key_table)

    def captured_calls(self) -> list[tuple]:
        """Prepare the step whose scalars are in the next row; without a row left it does nothing."""
        if not self._n:
            return []
        assert self._prepared is not None
        steps = self._prepared
        noise = [steps.keys, np.int64(self._offset)] if self._program.noise else []
        arguments = (np.int64(self._n), *self._addresses, *noise, steps.scalars, steps.counter.row, steps.rows)
        return [(steps.kernel, *self._shape, arguments)]


class StepCounter:
    """An int64 on a device that says which row of prepared steps is next; `calls` advance it after a step."""

    def __init__(self, device: int):
        cupy = load_cupy()
        with cupy.cuda.Device(device):
            self.row = cupy.zeros(1, np.int64)
            kernel = function(ADVANCE, "advance_row", device)
        self.calls = [(kernel, (1,), (1,), (self.row,))]


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

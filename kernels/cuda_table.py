"""Many tensors in one launch on a CUDA device: a table with a row for each, a warp for each tile of any of them.

A row is the number of elements, the number of its first element for noise, and the address of each buffer, as in
`cpu_table`; beside it lies the number of the first tile of each row, in which a warp looks up whose its tile is. What
is done to a tile is the text of the program's own kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastopt.kernels import cuda
from fastopt.kernels.launch import Launch
from fastopt.kernels.nvrtc import function, load_cupy
from fastopt.kernels.program import Program
from fastopt.kernels.storage import TILE

FIRST = 2
"""Column of a row's first address."""

PIECE = 1 << 16
"""Bytes that CUDA copies from pageable memory without waiting for the stream."""


def entry(program: Program) -> str:
    """Give the name of the entry point that walks a table."""
    return f"{cuda.entry(program)}_table"


def print_kernel(program: Program) -> str:
    """Print the entry point and the step of one tile, to stand behind tile.cuh."""
    names = cuda.buffer_names(program)
    arrays, walked = cuda.arrays(program, names), [b for b in program.buffers if not b.tiled]
    number = {"float32": "float", "float64": "double"}[program.dtype.name]
    keys = ["Word key0", "Word key1"] if program.noise else []
    scalars = [f"{number} {names[s]}" for s in program.scalars]
    step = ["Index n", "Index first", *arrays, *keys, *(["Index offset"] if keys else []), *scalars]
    packed = [f"packed<PACK>({names[b.name]})" for b in walked]
    pack = 16 // max(b.dtype.itemsize for b in walked)
    pointers = [f"reinterpret_cast<{a.split('*')[0]}*>(line[{FIRST + k}])" for k, a in enumerate(arrays)]
    given = ["line[0]", "(number - tiles[row]) * TILE", *pointers, *(x.split(" ")[1] for x in keys)]
    given += [*(["line[1]"] if keys else []), *(x.split(" ", 1)[1] for x in scalars)]
    own = ["Index rows", "const Index* rows_at", "const Index* tiles", *keys, *scalars]
    return cuda.spelled_out(
        "\n".join(
            [
                f"// {program.name} for the rows of a table. Printed by fastopt; do not edit.",
                "",
                *cuda.listed("__device__ __forceinline__ void step_tile(", step, ") {"),
                f"    constexpr int PACK = {pack};",
                *cuda.listed("    const bool whole = ", packed, ";", " && "),
                *(f"    {line}" if not line.startswith("#") else line for line in cuda.tile_lines(program, names)),
                "}",
                "",
                *cuda.listed(
                    f'extern "C" __global__ void __launch_bounds__(THREADS) {program.name}_table(', own, ") {"
                ),
                "    for (Index number = first_tile(); number < tiles[rows]; number += warps_in_grid()) {",
                "        Index row = 0, end = rows;  // tiles[row] <= number < tiles[end]",
                "        while (end - row > 1) {",
                "            const Index middle = (row + end) / 2;",
                "            if (tiles[middle] <= number) {",
                "                row = middle;",
                "            } else {",
                "                end = middle;",
                "            }",
                "        }",
                f"        const Index* line = rows_at + row * {FIRST + len(program.buffers)};",
                *cuda.listed("        step_tile(", given, ");"),
                "    }",
                "}",
                "",
            ]
        )
    )


@lru_cache(maxsize=512)
def print_source(program: Program) -> str:
    """Print one complete CUDA C++ source, which nvcc or NVRTC compiles as it stands."""
    return f"{cuda.tile_header()}\n{print_kernel(program)}"


class TableLaunch(Launch):
    """A step over the tensors of a table on a device: one launch, on the stream that is current then.

    The table goes there in the order of that stream, before the launch that is the first to need it, so nothing waits:
    a step of before still finds what it was launched with.
    """

    __slots__ = ("_host", "_known", "_rows", "order")

    def __init__(self, program: Program, sizes: np.ndarray, offsets: np.ndarray, addresses: np.ndarray, device: int):
        self.order = order = np.flatnonzero(sizes)
        rows = np.column_stack([sizes, offsets, addresses])[order]
        tiles = np.concatenate([[0], np.cumsum(-(-rows[:, 0] // TILE))])
        self._host = host = np.concatenate([rows.ravel(), tiles]).astype(np.int64)
        self._rows = host[: rows.size].reshape(rows.shape)
        self._known = False  # whether the device has the table as it is now
        if not order.size:
            super().__init__(lambda noise, scalars: [])
            return
        cupy = load_cupy(program.name)
        with cupy.cuda.Device(device):
            table = cupy.empty(host.shape, np.int64)
            kernel = function(print_source(program), entry(program), device)
        upload = [*_copies(table, host), (setattr, self, "_known", True)]
        shape = ((cuda.blocks(int(tiles[-1]) * TILE),), (cuda.THREADS,))
        fixed = (np.int64(order.size), table, table[rows.size :])

        def calls(noise: tuple, scalars: tuple) -> list[tuple]:
            keys = [np.uint32(x) for x in noise]
            launch = (kernel, *shape, (*fixed, *keys, *map(program.dtype.type, scalars)))
            return [launch] if self._known else [*upload, launch]

        super().__init__(calls)

    def set_column(self, k: int, addresses: np.ndarray) -> None:
        """Say where the rows' buffer number `k` of the program lies now, in the order in which rows were given."""
        self._rows[:, FIRST + k] = addresses[self.order]
        self._known = False


def _copies(array: Any, host: np.ndarray) -> list[tuple]:
    """Make the calls that copy an array of the CPU's memory to a device on the current stream, without waiting for it.

    CUDA has taken what it copies from pageable memory when the call returns. It waits for the stream first if that is
    more than fits between the commands it sends, so the copy is made in pieces of no more.
    """
    at = host.__array_interface__["data"][0]
    pieces = range(0, host.nbytes, PIECE)
    return [((array.data + k).copy_from_host_async, at + k, min(PIECE, host.nbytes - k)) for k in pieces]


def bind(
    program: Program,
    sizes: ArrayLike,
    offsets: ArrayLike,
    addresses: ArrayLike,
    device: int,
) -> TableLaunch:
    """Prepare a step over tensors that lie at these addresses of a device, as `cpu_table.bind` does in memory."""
    n = np.array(sizes, np.int64)
    at = np.array(addresses, np.int64).reshape(n.size, len(program.buffers))
    return TableLaunch(program, n, np.array(offsets, np.int64), at, device)

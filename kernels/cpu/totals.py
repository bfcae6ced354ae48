"""The totals of rows from the sums of their tiles, compiled: folded 256 at a time, and then added in their order."""

# pyright: reportCallIssue=false, reportIndexIssue=false
from numba import float64, int64, intp, njit, types

from fastopt.kernels.cpu.memory import buffer, scratch, tile_total

SIGNATURE = types.void(intp, types.Array(int64, 1, "C"), intp, intp)


@njit(nogil=True, error_model="numpy")
def totals(sums_at, starts, totals_at, before_at):
    """Fold the sums of each row, which are overwritten, to its total; after the rows' totals comes that of all.

    The sums of row k are those from starts[k] to starts[k + 1]. The total of all begins with the number at `before_at`,
    that of the rows before, or with zero if there is none.
    """
    found, rows = buffer(totals_at, 0, float64, 0, 3), starts.size - 1
    tile = scratch(float64, 1, 3)
    whole = buffer(before_at, 0, float64, 0, 0)[0] if before_at else 0.0
    for row in range(rows):
        count = starts[row + 1] - starts[row]
        sums = buffer(sums_at, starts[row], float64, 2, 3)
        total = 0.0
        while count > 1:
            blocks = (count + 255) // 256
            for block in range(blocks):
                size = min(256, count - 256 * block)
                if size == 256:
                    sums[block] = tile_total(buffer(sums_at, starts[row] + 256 * block, float64, 2, 3), size)
                else:  # beyond the last there are those of the next row
                    for i in range(size):
                        tile[i] = sums[256 * block + i]
                    sums[block] = tile_total(tile, size)
            count = blocks
        if count:
            total = sums[0]
        found[row] = total
        whole += total
    found[rows] = whole

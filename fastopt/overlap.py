"""Whether ranges of memory overlap: a step writes nothing that it or another tensor reads as something else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


class Extents:
    """Ranges of memory in the order of their addresses; `overlap` is a pair of them that overlap, or None.

    >>> Extents([100, 0, 50], [10, 50, 60]).overlap
    (2, 0)
    """

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int]):
        order = sorted((k for k, size in enumerate(sizes) if size), key=addresses.__getitem__)
        self.overlap = next(((a, b) for a, b in pairwise(order) if addresses[a] + sizes[a] > addresses[b]), None)
        self._order, self._addresses, self._sizes = order, addresses, sizes
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None

    def touched_by(self, addresses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return which of these ranges lie, in part, in one of the extents."""
        if self._bounds is None:
            beyond = np.iinfo(np.int64).max  # so that there is always one before and one after
            starts = np.array([0, *(self._addresses[k] for k in self._order), beyond], np.int64)
            ends = np.array([0, *(self._addresses[k] + self._sizes[k] for k in self._order), beyond], np.int64)
            self._bounds = starts, ends
        starts, ends = self._bounds
        after = np.searchsorted(starts, addresses, "right")
        return ((ends[after - 1] > addresses) | (starts[after] < addresses + sizes)) & (sizes > 0)

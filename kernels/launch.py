"""A step as a list of calls that run in one go, so that an interrupt finds it not begun or done, never in between.

Python runs signal handlers, and so raises KeyboardInterrupt, between the instructions of its own code, never inside a C
function. So a backend prepares a step in Python, as tuples (function, *arguments) of compiled functions, and `run`
passes them to one C loop: no instruction of Python comes between the first byte written and the last. Several steps,
and the count of steps itself, run as one when their lists are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import starmap
from operator import call
from typing import NamedTuple, Protocol

import numpy as np


class Rows(NamedTuple):
    """The tensors of a step, one row each: what every backend binds a program to.

    Nobody checks the addresses: each must be memory of so many elements that nothing else writes to and that does not
    overlap, and stay so while the launch is in use.
    """

    sizes: Sequence[int] | np.ndarray  # elements of each
    offsets: Sequence[int] | np.ndarray  # number of its first element, for noise: a multiple of the tile
    addresses: Sequence[Sequence[int]] | np.ndarray  # of each of `program.buffers`
    memory: object = None  # kept alive as long as the launch
    device: int = 0  # number of the device that the addresses are of, where there are several
    own_numbers: bool = False  # whether each has scalars and keys of its own, on the device: see `NumbersOfRows`


class NumbersOfRows(NamedTuple):
    """Where a launch of `Rows` with `own_numbers` finds them on its device: addresses."""

    scalars: int  # in the computing precision, those of one row after those of another
    keys: int  # two uint32 keys of its noise for each row; not read where there is none
    skip: int  # an int64: not zero where nothing is to be written


class Launch(Protocol):
    """A program bound to rows."""

    def calls(self, keys: tuple[int, ...], scalars: tuple[float, ...]) -> list[tuple]:
        """Prepare a step: `keys` and `scalars` are those of its plan."""
        ...

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move buffer number `buffer` of every row, in the order of `Rows`, to other addresses."""
        ...


def run(calls: Iterable[tuple]) -> None:
    """Make these calls, one after the other, whatever they return."""
    list(starmap(call, calls))

"""A step as a list of calls that run in one go, so that an interrupt finds it not begun or done, never in between.

Python runs signal handlers, and so raises KeyboardInterrupt, between the instructions of its own code, never inside a C
function. So a backend prepares a step in Python, as tuples (function, *arguments) of compiled functions, and `run`
passes them to one C loop: no instruction of Python comes between the first byte written and the last. Several steps,
and the count of steps itself, run as one when their lists are joined.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import compress, repeat, starmap
from operator import call
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fastopt.errors import SettingError


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
    shapes: Sequence[Sequence[int]] | None = None  # of each tensor, where the program has functions of matrices
    library: MatrixLibrary | None = None  # of the tensors, where it is not that of the backend's own arrays


class MatrixLibrary(Protocol):
    """The library that computes functions of matrices."""

    def view(self, array: Any) -> Any:
        """Return its own array in the memory of a backend's, which is of NumPy or CuPy."""
        ...

    def assign(self, batch: Any, found: Any) -> None:
        """Put values, which may lie in the same memory, in the place of others."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context in which its operations do as they are told, whatever its user has set."""
        ...


class NumbersOfRows(NamedTuple):
    """Where a launch of `Rows` with `own_numbers` finds them on its device: addresses."""

    scalars: int  # in the computing precision, those of one row after those of another
    keys: int  # two uint32 keys of its noise for each row; not read where there is none
    skip: int  # an int64: not zero where nothing is to be written


Numbers: TypeAlias = tuple[float, ...] | NumbersOfRows | None
"""The scalars of a step, or where they are."""


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


def only_if(flags: np.ndarray, which: int, calls: Sequence[tuple]) -> list[tuple]:
    """Prepare calls that are made only if a flag, element `which`, is not zero when they are reached."""
    return [(list, starmap(call, compress(calls, map(flags.item, repeat(which)))))]


class PhasedLaunch(ABC):
    """A step in phases: before the last each writes the sums of tiles, of which the totals are made, row by row.

    Or it writes the arguments of a function of matrices.

    `flags` are two numbers in the backend's memory, 1.0 or 0.0: whether the last step was taken, and whether it was
    skipped. On a device keys and scalars may lie there already: then scalars are `NumbersOfRows`, or None for those of
    the next prepared step.
    """

    program: Any
    flags: Any
    matrices: Any = None  # `Matrices`, where it has functions of matrices
    _launches: list[Any]

    def phase(self, number: int, keys: tuple, scalars: Numbers) -> list[tuple]:
        """Prepare one phase."""
        if self.matrices is not None and not isinstance(scalars, tuple):
            what = "a function of matrices is not captured into a CUDA graph."
            raise SettingError(what, do="leave out capturable, or capture another rule")
        if scalars is None:
            return self._launches[number].captured_calls()
        if isinstance(scalars, NumbersOfRows):
            return self._launches[number].calls_with(scalars)
        noise = keys if self.program.phases[number].noise else ()
        return self._launches[number].calls(noise, scalars)

    @abstractmethod
    def fold(self, k: int, before: Any) -> list[tuple]:
        """Prepare what makes total number k of each row, and that over all, which begins with another one, if any."""

    @abstractmethod
    def over_all(self, k: int) -> Any:
        """Return the memory of total number k over all rows."""

    @abstractmethod
    def take(self, k: int, total: Any) -> tuple:
        """Prepare the call that takes another launch's total over all for total number k."""

    @abstractmethod
    def decide(self, scalars: Numbers, before: Any) -> list[tuple]:
        """Prepare what sets the flags by the program's condition, and by another launch's flags, if there are any."""

    @abstractmethod
    def zero_skipped(self) -> list[tuple]:
        """Prepare what sets the gradients to zero of a step that was skipped, which the last phase then did not."""

    def gradients(self, rows: Rows) -> list[tuple[int, int]]:
        """Return where gradients begin, and how many bytes they are, of each row and plane that the step zeroes."""
        buffers = enumerate(self.program.buffers)
        columns = [(k, b.dtype.itemsize) for k, b in buffers if b.buffer == "g" and b.written]
        return [
            (int(addresses[k]), int(n) * size)
            for n, addresses in zip(rows.sizes, rows.addresses, strict=True)
            for k, size in columns
            if n
        ]

    @abstractmethod
    def take_flags(self, flags: Any) -> tuple:
        """Prepare the call that takes another launch's flags."""

    def calls(self, keys: tuple, scalars: tuple) -> list[tuple]:
        """Prepare a step."""
        return steps([(self, keys, scalars)])

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of the rows."""
        name = self.program.buffers[buffer].name
        for launch, phase in zip(self._launches, self.program.phases, strict=True):
            for k, b in enumerate(phase.buffers):
                if b.name == name:
                    launch.set_addresses(k, addresses)


def steps(taken: Sequence[tuple[Any, tuple, Numbers]]) -> list[tuple]:
    """Prepare the step of several launches in phases at once, each with its keys and scalars.

    Their programs have the same `over_all`: each of these totals goes on from one launch to the next, and the last has
    it for all. All of them may be skipped, or none: where the condition of one does not hold, all are. Functions of
    matrices, and the phases before them, are over when this returns; gradients must be in place by then.
    """
    calls: list[tuple] = []
    last = max(len(launch.program.phases) for launch, _, _ in taken) - 1
    for number in range(last):
        reached = [x for x in taken if number < len(x[0].program.phases) - 1]
        for launch, keys, scalars in reached:
            calls += launch.phase(number, keys, scalars)
        functions = [c for x, *_ in reached for k in x.program.matrices_after(number) for c in x.matrices.calls(k)]
        if (
            functions
        ):  # Python, which may be interrupted or fail: called now, when nothing is written but scratch memory
            run([*calls, *functions])
            calls = []
        for at, (launch, _, _) in enumerate(reached):
            for k in launch.program.known_after(number):
                place = launch.program.place_over_all(k)
                before = None
                if at and place is not None:
                    previous = reached[at - 1][0]
                    before = previous.over_all(previous.program.over_all[place][1])
                calls += launch.fold(k, before)
        for place, (phase, _) in enumerate(taken[0][0].program.over_all):
            if phase == number:
                own = [(launch, launch.program.over_all[place][1]) for launch, _, _ in taken]
                whole = own[-1][0].over_all(own[-1][1])
                calls += [launch.take(k, whole) for launch, k in own[:-1]]
    if taken[0][0].program.condition is not None:
        before = None
        for launch, _, scalars in taken:
            calls += launch.decide(scalars, before)
            before = launch.flags
        calls += [launch.take_flags(before) for launch, _, _ in taken[:-1]]
    for launch, keys, scalars in taken:
        calls += launch.phase(len(launch.program.phases) - 1, keys, scalars)
        if launch.program.condition is not None and launch.program.writes_gradients:
            calls += launch.zero_skipped()
        calls.append((id, launch))  # whose sums and totals live as long as these calls
    return calls

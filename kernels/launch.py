"""A step as a list of calls that run in one go, so that an interrupt finds it not begun or done, never in between.

Python runs signal handlers, and so raises KeyboardInterrupt, between the instructions of its own code, never inside a C
function. So a backend prepares a step in Python, as tuples (function, *arguments) of compiled functions that return
None, and `run` hands them to one C loop: no instruction of Python comes between the first byte written and the last.
Several steps, and the count of steps itself, can be run as one by joining their lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import starmap
from operator import call


def run(calls: Iterable[tuple]) -> None:
    """Make these calls, one after the other."""
    any(starmap(call, calls))


class Launch:
    """A step bound to its arrays: `launch(noise, scalars)` takes it, `launch.calls(noise, scalars)` only prepares it.

    `noise` is () or (key0, key1, index of the first element), `scalars` is what `program.host_scalars` gives.
    """

    __slots__ = ("calls",)

    def __init__(self, calls: Callable[[tuple, tuple], list[tuple]]):
        self.calls = calls

    def __call__(self, noise: tuple, scalars: tuple) -> None:  # noqa: D102
        run(self.calls(noise, scalars))

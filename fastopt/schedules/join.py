# ruff: noqa: D102   (each class's docstring is the formula that its `at` evaluates)
"""One schedule after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastopt.schedules.schedule import Schedule, check, schedule_or_number
from fastopt.schedules.table import entry_at, table


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another, each in its own time, from a table {steps taken before it: schedule}.

    Of the entries (s, schedule) the last one with s < t gives η(t) = schedule(t − s): in {0: a, 500: b}, a gives steps
    1 to 500 as its own steps 1 to 500, and b gives steps 501, 502, … as its own steps 1, 2, …. At t = 0, a(0). So an
    `a` that ends at step 500 reaches its end, and the join is continuous where a(500) = b(0).

    The table is a dict or an iterable of pairs, in any order; its steps are different integers ≥ 0, the smallest of
    them 0. A number stands for a constant schedule. It is stored as a tuple of pairs in the order of steps.

    >>> from fastopt.schedules import Join, Polynomial, Warmup
    >>> schedule = Join({0: Warmup(2), 2: Polynomial(1.0, steps=4)})
    >>> [schedule(t) for t in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    table: Mapping[int, Schedule | float] | Iterable[tuple[int, Schedule | float]]

    def __post_init__(self):
        check(self, table=table(0, schedule_or_number))

    def at(self, t: int) -> float:
        start, schedule = entry_at(self.table, t - 1)
        return schedule.at(t - start)

"""Tables of steps: a setting that is a dict or pairs {step: entry}, stored as a tuple of pairs, ordered by step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from fastopt.errors import SettingError
from fastopt.schedules.schedule import COUNT, Check


def table(first: int, entry: Check) -> Check:
    """Return the check of a table whose smallest step is at most `first`; `entry` checks its entries."""

    def check(name: str, value: Any) -> tuple[tuple[int, Any], ...]:
        try:
            pairs = [(step, x) for step, x in (value.items() if isinstance(value, Mapping) else value)]
        except (TypeError, ValueError):
            pairs = []
        pairs = [(COUNT("a step", step), entry(f"{name}[{step!r}]", x)) for step, x in pairs]
        pairs.sort(key=itemgetter(0))
        if pairs and pairs[0][0] <= first and len({step for step, _ in pairs}) == len(pairs):
            return tuple(pairs)
        expected = f"a dict or pairs {{step: entry}}, the steps different integers ≥ 0, the smallest at most {first}"
        what = f"{name} is not a table that covers every step once."
        raise SettingError(what, got=f"{name}={value!r}", expected=expected)

    return check


def entry_at(pairs: Any, t: int) -> tuple[int, Any]:
    """Return the last entry whose step is at most t, or the first of all."""
    return pairs[max(bisect_right(pairs, t, key=itemgetter(0)) - 1, 0)]

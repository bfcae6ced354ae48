"""Two runs beside each other: what changed beyond noise.

On one machine times are compared, and the share of the ceiling as well, which takes a slower or faster hour of the
machine out; on two machines only the share. A change counts where the spreads (20th to 80th percentile) do not overlap
and the medians are more than 5 % apart: the same code in another process differs by some per cent, because other memory
can be faster or slower for as long as a process lives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastopt.bench.record import Kept
from fastopt.bench.report import beyond_cache, case_of

APART = 0.05


class Change(NamedTuple):
    """How fastopt's speed in one case changed: 1.1 is 10 % faster. `verdict` is faster, slower or same."""

    name: str
    by: str
    old: list[float]
    new: list[float]
    speed: float
    verdict: str


class Comparison(NamedTuple):
    """What two runs say of each other: the changes, the worst first, and what one has and the other lacks."""

    changes: list[Change]
    same_machine: bool
    only_old: list[str]
    only_new: list[str]

    @property
    def regressions(self) -> list[Change]:
        """The changes for the worse."""
        return [change for change in self.changes if change.verdict == "slower"]


def compare(old: Kept, new: Kept) -> Comparison:
    """Compare what both runs measured."""
    same = old.machine == new.machine
    before, after = _timed(old), _timed(new)
    changes = [_change(name, before[name], after[name], same) for name in before if name in after]
    found = sorted([change for change in changes if change], key=lambda change: change.speed)
    missing = [[name for name in one if name not in other] for one, other in ((before, after), (after, before))]
    return Comparison(found, same, missing[0], missing[1])


def _timed(kept: Kept) -> dict[str, dict[str, Any]]:
    """Give the records of timed cases by their names; of a case that stands in two parts, the first."""
    timed = [r for r in kept.records if "versus" in r and r["seconds"].get("fastopt")]
    return {case_of(r).name: r for r in reversed(timed)}


def _change(name: str, old: dict[str, Any], new: dict[str, Any], same: bool) -> Change | None:
    """Judge one case: by its share of the ceiling where it has one beyond the cache, elsewhere by its time."""
    if old["share"] and new["share"] and beyond_cache(new):
        a, b = old["share"], new["share"]
        verdict = _verdict(a, b)
        if same and verdict == "slower" and _verdict(*map(_rates, (old, new))) != "slower":
            verdict = "same"  # the ceiling was measured faster, and fastopt is not slower
        return Change(name, "share of the ceiling", a, b, b[1] / a[1], verdict)
    if not same:
        return None
    a, b = _rates(old), _rates(new)
    return Change(name, "time", old["seconds"]["fastopt"], new["seconds"]["fastopt"], b[1] / a[1], _verdict(a, b))


def _rates(record: dict[str, Any]) -> list[float]:
    """Give steps a second, the lowest first."""
    return [1 / s for s in reversed(record["seconds"]["fastopt"])]


def _verdict(old: list[float], new: list[float]) -> str:
    """Judge two spreads of something that is better when it is more."""
    if new[2] < old[0] and new[1] < old[1] * (1 - APART):
        return "slower"
    if new[0] > old[2] and new[1] > old[1] * (1 + APART):
        return "faster"
    return "same"

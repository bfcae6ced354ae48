"""Compare two runs: what changed by more than the noise.

Cases larger than the cache are compared by their share of the memory ceiling, which depends less on other load than the
time does; on the same machine, a case counts as slower only if its time is slower too. Smaller cases are compared by
time, and only on the same machine. A change counts if the spreads (20th to 80th percentile) do not overlap and the
medians are more than 5 % apart: the same code in another process can differ by some per cent, because the speed of its
memory depends on where that was allocated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastopt.bench.record import Results
from fastopt.bench.report import beyond_cache, case_of

MIN_CHANGE = 0.05


class Change(NamedTuple):
    """How fastopt's speed changed in one case: 1.1 is 10 % faster. `verdict` is "faster", "slower" or "same"."""

    name: str
    by: str
    old: list[float]
    new: list[float]
    speed: float
    verdict: str


class Comparison(NamedTuple):
    """The changes between two runs, the worst first, and the cases that only one of them has."""

    changes: list[Change]
    same_machine: bool
    only_old: list[str]
    only_new: list[str]

    @property
    def regressions(self) -> list[Change]:
        """The cases that became slower."""
        return [change for change in self.changes if change.verdict == "slower"]


def compare(old: Results, new: Results) -> Comparison:
    """Compare the cases that both runs measured."""
    same = old.machine == new.machine
    before, after = _timed(old), _timed(new)
    changes = [_change(name, before[name], after[name], same) for name in before if name in after]
    found = sorted([change for change in changes if change], key=lambda change: change.speed)
    missing = [[name for name in one if name not in other] for one, other in ((before, after), (after, before))]
    return Comparison(found, same, missing[0], missing[1])


def _timed(results: Results) -> dict[str, dict[str, Any]]:
    """Return the records of timed cases by name; of a case that two parts have, the first."""
    timed = [r for r in results.records if "versus" in r and r["seconds"].get("fastopt")]
    return {case_of(r).name: r for r in reversed(timed)}


def _change(name: str, old: dict[str, Any], new: dict[str, Any], same: bool) -> Change | None:
    """Compare one case: by its share of the ceiling if it is larger than the cache, otherwise by its time."""
    if old["share"] and new["share"] and beyond_cache(new):
        a, b = old["share"], new["share"]
        verdict = _verdict(a, b)
        if same and verdict == "slower" and _verdict(*map(_rates, (old, new))) != "slower":
            verdict = "same"  # the ceiling became faster, and fastopt is not slower
        return Change(name, "share of the ceiling", a, b, b[1] / a[1], verdict)
    if not same:
        return None
    a, b = _rates(old), _rates(new)
    return Change(name, "time", old["seconds"]["fastopt"], new["seconds"]["fastopt"], b[1] / a[1], _verdict(a, b))


def _rates(record: dict[str, Any]) -> list[float]:
    """Return the percentiles of steps per second, the lowest first."""
    return [1 / s for s in reversed(record["seconds"]["fastopt"])]


def _verdict(old: list[float], new: list[float]) -> str:
    """Compare the percentiles of a quantity of which more is better."""
    if new[2] < old[0] and new[1] < old[1] * (1 - MIN_CHANGE):
        return "slower"
    if new[0] > old[2] and new[1] > old[1] * (1 + MIN_CHANGE):
        return "faster"
    return "same"

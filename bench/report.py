"""From records to what people read: tables with the losses first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastopt.bench import first
from fastopt.bench.cases import PARTS, Case
from fastopt.bench.peers import APIS, DROP_INS, PEERS

Record = dict[str, Any]

BEYOND_CACHE = 128 << 20
"""Bytes of traffic from which the share of the ceiling is a matter of memory rather than of caches."""

OURS = frozenset([*APIS, "captured", "elementwise"])
"""Fastopt's own forms of a step, which stand beside peers and are none."""

A_CALL = 512 << 10
"""Bytes of traffic up to which a step's time is the call's, so that a share of the ceiling would say nothing."""

LOSS = "▼"
NOTHING = "–"


class Table(NamedTuple):
    """A table: its title, its headings, its rows, how many of its columns are text, and what is said below it."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int
    notes: list[str]


def duration(seconds: float) -> str:
    """Word a time with three digits or more."""
    unit, scale = next(
        u for u in (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)) if seconds * u[1] >= 1 or u[1] == 1e9
    )
    return f"{digits(seconds * scale)} {unit}"


def digits(x: float) -> str:
    """Word a number with three digits, or all of those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def spread(seconds: Sequence[float]) -> str:
    """Word the 20th and 80th percentile in the unit of the median."""
    low, median, high = seconds
    scale = next(s for s in (1.0, 1e3, 1e6, 1e9) if median * s >= 1 or s == 1e9)
    return f"{digits(low * scale)}–{digits(high * scale)}"


def case_of(record: Record) -> Case:
    """Give the case of a record."""
    return Case(**record["case"])


def beyond_cache(record: Record) -> bool:
    """Whether a case is so large that memory bounds it."""
    return record.get("traffic", 0) >= BEYOND_CACHE


def lost_to(record: Record) -> dict[str, float]:
    """Give the peers that are faster than fastopt beyond the spread, and fastopt's speed relative to them.

    Kept results also have ways of fastopt's own, among them some that are no more.
    """
    ahead = {name: times[1] for name, times in record.get("versus", {}).items() if times[2] < 1}
    return {name: x for name, x in ahead.items() if name not in OURS and not name.startswith("fastopt.torch ")}


def short(record: Record) -> bool:
    """Whether a case beyond the cache stays more than 5 % below the ceiling."""
    return bool(beyond_cache(record) and record["share"] and record["share"][1] < 0.95)


def losses_first(records: list[Record]) -> list[Record]:
    """Order records: those that lose to a peer, by how much, those that fall short of the ceiling, the others."""

    def rank(record: Record) -> tuple[int, float]:
        lost = lost_to(record)
        if lost:
            return 0, min(lost.values())
        return (1, record["share"][1]) if short(record) else (2, 0.0)

    return sorted(records, key=rank)


def tables(records: list[Record]) -> list[Table]:
    """Give a table for each part that was measured, in the order of the parts."""
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        parts[record["part"]].append(record)
    made = []
    for part in [*PARTS, "chosen"]:
        if part not in parts:
            continue
        if part == "first":
            made.append(_first(parts[part]))
        elif part == "memory":
            made.append(_memory(parts[part]))
        elif part == "torch":
            made.append(_drop_in(parts[part]))
        else:
            made.append(timings(part, parts[part]))
    return made


def timings(part: str, records: list[Record]) -> Table:
    """Give the table of a part that is timed: fastopt's time, its share of the ceiling, and × each peer.

    What all cases share stands in the title, what tells them apart in columns.
    """
    known = [*PEERS, *APIS, *DROP_INS, "captured", "elementwise"]
    named = {name for record in records for name in record["versus"]}
    peers = sorted(named, key=lambda name: known.index(name) if name in known else len(known))
    ceiling = any(record["share"] and record["traffic"] >= A_CALL for record in records)
    fields = {name: {record["case"][name] for record in records} for name in records[0]["case"]}
    apart = [name for name, values in fields.items() if len(values) > 1] or ["rule"]
    rows = []
    for record in losses_first(records):
        ours = record["seconds"].get("fastopt")
        mark = LOSS if lost_to(record) or short(record) else ""
        cells = [mark, *(str(record["case"][name]) for name in apart)]
        if ours is None:
            cells += [NOTHING] * (4 if ceiling else 3)
        else:
            cells += [duration(ours[1]), spread(ours), digits(record["traffic"] / ours[1] / 1e9)]
            share = f"{record['share'][1]:.0%}" if record["share"] and record["traffic"] >= A_CALL else NOTHING
            cells += [f"{LOSS if short(record) else ''}{share}"] if ceiling else []
        rows.append((*cells, *(_times(record, name) for name in peers)))
    headings = ["", *apart, "median", "p20–p80", "GB/s", *(["% of\nceiling"] if ceiling else [])]
    headings += [_times_heading(name) for name in peers]
    what = PARTS.get(part, "the chosen cases")
    title = f"{part}: {what}{_shared(records[0], apart)}"
    return Table(title, tuple(headings), rows, 1 + len(apart), missing(records))


def _shared(record: Record, apart: Sequence[str]) -> str:
    """Word what the cases of a table have in common, where it goes without saying not at all."""
    case = case_of(record)
    words = [getattr(case, name) for name in ("rule", "storage", "size") if name not in apart]
    words += [case.runs_on] * ("threads" not in apart) + [f"{case.groups} groups"] * (
        "groups" not in apart and case.groups > 1
    )
    words += [case.backend] * ("backend" not in apart and case.backend == "reference")
    return f" ({', '.join(words)})" if words else ""


def _times_heading(name: str) -> str:
    first, _, second = name.partition(" ")
    return f"× {first}\n{second}" if second else f"×\n{name}"


def _times(record: Record, name: str) -> str:
    if name not in record["versus"]:
        return NOTHING
    times = record["versus"][name]
    return f"{LOSS if name in lost_to(record) else ''}{digits(times[1])}"


def missing(records: list[Record]) -> list[str]:
    """Say of each peer that is not in a table's cell why it is not, and in how many cases."""
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        for name, why in (record.get("cannot") or {}).items():
            reasons[name][why] += 1
    said = []
    for name, whys in reasons.items():
        asked = sum(name in record.get("versus", {}) or name in (record.get("cannot") or {}) for record in records)
        parts = [why + (f" ({count} of {asked} cases)" if count < asked else "") for why, count in whys.items()]
        said.append(f"{name}: {'; '.join(parts)}")
    return said


def _first(records: list[Record]) -> Table:
    rows = []
    for record in records:
        total = first.total(record)
        seconds = record["seconds"]
        after = seconds["second step"][1] if total is not None else None
        phases = [f"{p} {duration(s[1])}" for p, s in seconds.items() if p not in ("second step", "process")]
        failed = [claim for claim, holds in record.get("claims", {}).items() if not holds]
        mark = LOSS if failed else ""
        shown = record["cannot"] or "; ".join([*phases, *(f"NOT so: {claim}" for claim in failed)])
        cells = (NOTHING, NOTHING) if total is None or after is None else (duration(total), duration(after))
        rows.append((mark, record["name"], record["kind"], shown, *cells))
    headings = ("", "library", "cache", "of which", "until the first\nstep is done", "second step")
    return Table(f"first: {PARTS['first']}", headings, rows, 4, [])


def _memory(records: list[Record]) -> Table:
    rows = []
    for record in records:
        for name, found in record["bytes"].items():
            loaded = f"{found['loaded'] / 1e6:,.0f} MB"
            rows.append(("", name, f"{found['resident']:.1f}", f"{found['peak']:.1f}", loaded))
    headings = ("", "library", "resident,\nbytes a parameter", "at the peak\nof a step", "after a step\nof few")
    return Table(f"memory: {PARTS['memory']}", headings, rows, 2, missing(records))


def relative(record: Record, name: str, peer: str) -> float | None:
    """Give how many times as fast as a peer one of fastopt's own ways is: both raced with fastopt in one heat."""
    versus = record["versus"]
    return versus[peer][1] / versus[name][1] if name in versus and peer in versus else None


def _drop_in(records: list[Record]) -> Table:
    peers = [name for name in PEERS if any(name in record["versus"] for record in records)]
    rows = []
    for record in records:
        case = case_of(record)
        for name in DROP_INS:
            if name not in record["seconds"]:
                continue
            taken, times = record["seconds"][name], [relative(record, name, peer) for peer in peers]
            mark = LOSS if any(x is not None and x < 0.95 for x in times) else ""
            cells = (mark, case.rule, case.size, name, duration(taken[1]), spread(taken))
            rows.append((*cells, *(NOTHING if x is None else digits(x) for x in times)))
    headings = ("", "rule", "size", "", "median", "p20–p80", *(_times_heading(name) for name in peers))
    return Table(f"torch: {PARTS['torch']} (f32, {case_of(records[0]).runs_on})", headings, rows, 4, missing(records))

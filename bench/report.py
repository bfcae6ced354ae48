"""Tables of the records of a run, with the cases that fastopt loses first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastopt.bench import first
from fastopt.bench.cases import PARTS, Case
from fastopt.bench.peers import APIS, DROP_INS, PASSES, PEERS

Record = dict[str, Any]

BEYOND_CACHE = 128 << 20
"""Bytes of traffic from which on a case counts as larger than the cache, so that memory bounds its time."""

VARIANTS = frozenset([*APIS, "captured", "elementwise", "norm alone", "reading alone"])
"""Other ways to run a step that are timed like peers but are none."""

MIN_SHARE = 512 << 10
"""Bytes of traffic below which the overhead of a call dominates, so that the share of the ceiling is not shown."""

AT_MEMORY_SPEED = 0.9
"""Share of the memory ceiling from which on a step counts as bound by memory, not by its instructions."""

LOSS = "▼"
NOTHING = "–"


class Table(NamedTuple):
    """A table: title, headings, rows, the number of columns at the left that are text, and notes below it."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int
    notes: list[str]


def duration(seconds: float) -> str:
    """Format a time with at least three digits."""
    unit, scale = next(
        u for u in (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)) if seconds * u[1] >= 1 or u[1] == 1e9
    )
    return f"{digits(seconds * scale)} {unit}"


def digits(x: float) -> str:
    """Format a number with three digits, or with all digits before the decimal point if there are more."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def spread(seconds: Sequence[float]) -> str:
    """Format the 20th and 80th percentiles in the unit of the median."""
    low, median, high = seconds
    scale = next(s for s in (1.0, 1e3, 1e6, 1e9) if median * s >= 1 or s == 1e9)
    return f"{digits(low * scale)}–{digits(high * scale)}"


def case_of(record: Record) -> Case:
    """Return the case of a record."""
    return Case(**record["case"])


def beyond_cache(record: Record) -> bool:
    """Say whether a case is larger than the cache."""
    return record.get("traffic", 0) >= BEYOND_CACHE


def faster_peers(record: Record) -> dict[str, float]:
    """Return the peers that are faster than fastopt by more than the noise, with fastopt's speed relative to theirs.

    That is, they are faster in the 80th percentile too. Variants of fastopt's own step do not count, nor do earlier
    modes of fastopt.torch, which old results files contain.
    """
    ahead = {name: times[1] for name, times in record.get("versus", {}).items() if times[2] < 1}
    return {name: x for name, x in ahead.items() if name not in VARIANTS and not name.startswith("fastopt.torch ")}


def bound_by(share: float) -> str:
    """Say what bounds a step larger than the cache that reaches this share of the memory ceiling."""
    return "memory" if share >= AT_MEMORY_SPEED else "instructions"


def below_ceiling(record: Record) -> bool:
    """Say whether a case that is larger than the cache is more than 5 % below the ceiling."""
    return bool(beyond_cache(record) and record["share"] and record["share"][1] < 0.95)


def losses_first(records: list[Record]) -> list[Record]:
    """Order records: first those with a faster peer, by how much, then those below the ceiling, then the others."""

    def rank(record: Record) -> tuple[int, float]:
        faster = faster_peers(record)
        if faster:
            return 0, min(faster.values())
        return (1, record["share"][1]) if below_ceiling(record) else (2, 0.0)

    return sorted(records, key=rank)


def tables(records: list[Record]) -> list[Table]:
    """Return a table for each part that was measured, in the order of PARTS."""
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
    """Return the table of a timed part: fastopt's time, its share of the ceiling, and its speed relative to each peer.

    Fields of the case that differ are columns; the others are in the title.
    """
    known = [*PEERS, *APIS, *DROP_INS, *PASSES, "captured", "elementwise"]
    named = {name for record in records for name in record["versus"]}
    peers = sorted(named, key=lambda name: known.index(name) if name in known else len(known))
    ceiling = any(record["share"] and record["traffic"] >= MIN_SHARE for record in records)
    fields = {name: {record["case"][name] for record in records} for name in records[0]["case"]}
    differing = [name for name, values in fields.items() if len(values) > 1] or ["rule"]
    rows = []
    for record in losses_first(records):
        ours = record["seconds"].get("fastopt")
        mark = LOSS if faster_peers(record) or below_ceiling(record) else ""
        cells = [mark, *(str(record["case"][name]) for name in differing)]
        if ours is None:
            cells += [NOTHING] * (4 if ceiling else 3)
        else:
            cells += [duration(ours[1]), spread(ours), digits(record["traffic"] / ours[1] / 1e9)]
            share = f"{record['share'][1]:.0%}" if record["share"] and record["traffic"] >= MIN_SHARE else NOTHING
            cells += [f"{LOSS if below_ceiling(record) else ''}{share}"] if ceiling else []
        rows.append((*cells, *(_times(record, name) for name in peers)))
    headings = ["", *differing, "median", "p20–p80", "GB/s", *(["% of\nceiling"] if ceiling else [])]
    headings += [_times_heading(name) for name in peers]
    what = PARTS.get(part, "the chosen cases")
    title = f"{part}: {what}{_common_fields(records[0], differing)}"
    return Table(title, tuple(headings), rows, 1 + len(differing), missing(records))


def _common_fields(record: Record, differing: Sequence[str]) -> str:
    """Describe the fields of the case that are not columns, without defaults."""
    case = case_of(record)
    words = [getattr(case, name) for name in ("rule", "storage", "size") if name not in differing]
    words += [case.runs_on] * ("threads" not in differing) + [f"{case.groups} groups"] * (
        "groups" not in differing and case.groups > 1
    )
    words += [case.backend] * ("backend" not in differing and case.backend == "reference")
    return f" ({', '.join(words)})" if words else ""


def _times_heading(name: str) -> str:
    first, _, second = name.partition(" ")
    return f"× {first}\n{second}" if second else f"×\n{name}"


def _times(record: Record, name: str) -> str:
    if name not in record["versus"]:
        return NOTHING
    times = record["versus"][name]
    return f"{LOSS if name in faster_peers(record) else ''}{digits(times[1])}"


def missing(records: list[Record]) -> list[str]:
    """Return, for each peer with an empty cell, the reasons, and in how many cases each applies."""
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        for name, why in (record.get("cannot") or {}).items():
            reasons[name][why] += 1
    notes = []
    for name, whys in reasons.items():
        asked = sum(name in record.get("versus", {}) or name in (record.get("cannot") or {}) for record in records)
        counted = [why + (f" ({count} of {asked} cases)" if count < asked else "") for why, count in whys.items()]
        notes.append(f"{name}: {'; '.join(counted)}")
    return notes


def _first(records: list[Record]) -> Table:
    rows = []
    for record in records:
        total = first.total(record)
        seconds = record["seconds"]
        after = seconds["second step"][1] if total is not None else None
        phases = [f"{p} {duration(s[1])}" for p, s in seconds.items() if p not in ("second step", "process")]
        failed = [claim for claim, true in record.get("claims", {}).items() if not true]
        mark = LOSS if failed else ""
        shown = record["cannot"] or "; ".join([*phases, *(f"NOT TRUE: {claim}" for claim in failed)])
        cells = (NOTHING, NOTHING) if total is None or after is None else (duration(total), duration(after))
        rows.append((mark, record["name"], record["kind"], shown, *cells))
    headings = ("", "library", "cache", "phases", "time to the end\nof the first step", "second step")
    return Table(f"first: {PARTS['first']}", headings, rows, 4, [])


def _memory(records: list[Record]) -> Table:
    rows = []
    for record in records:
        for name, found in record["bytes"].items():
            loaded = f"{found['loaded'] / 1e6:,.0f} MB"
            rows.append(("", name, f"{found['resident']:.1f}", f"{found['peak']:.1f}", loaded))
    headings = ("", "library", "resident bytes\nper parameter", "peak bytes\nper parameter", "process\nbaseline")
    return Table(f"memory: {PARTS['memory']}", headings, rows, 2, missing(records))


def relative_speed(record: Record, name: str, peer: str) -> float | None:
    """Return how many times as fast as a peer another contestant is; both were timed in turns with fastopt."""
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
            seconds, times = record["seconds"][name], [relative_speed(record, name, peer) for peer in peers]
            mark = LOSS if any(x is not None and x < 0.95 for x in times) else ""
            cells = (mark, case.rule, case.size, name, duration(seconds[1]), spread(seconds))
            rows.append((*cells, *(NOTHING if x is None else digits(x) for x in times)))
    headings = ("", "rule", "size", "", "median", "p20–p80", *(_times_heading(name) for name in peers))
    return Table(f"torch: {PARTS['torch']} (f32, {case_of(records[0]).runs_on})", headings, rows, 4, missing(records))

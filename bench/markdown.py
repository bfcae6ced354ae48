"""README's tables in Markdown: rules, small steps, storages, fastopt.torch, scaling, first steps and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastopt.bench import first, goals, record
from fastopt.bench.cases import MAIN, SMALL
from fastopt.bench.peers import DROP_INS, PEERS
from fastopt.bench.record import Kept
from fastopt.bench.report import (
    Record,
    beyond_cache,
    case_of,
    digits,
    duration,
    losses_first,
    lost_to,
    relative,
    spread,
)


def timed(kept: Kept) -> list[Record]:
    return [r for r in kept.records if "versus" in r and r["seconds"].get("fastopt")]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown; the first column is text."""
    lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _peers(records: list[Record]) -> list[str]:
    """Name the peers of these records, in the order of PEERS."""
    return [name for name in PEERS if any(name in r["versus"] for r in records)]


def _times(record: Record, peers: list[str]) -> list[str]:
    return [_bold(record, name) if name in record["versus"] else "–" for name in peers]


def _bold(record: Record, name: str) -> str:
    """Word how many times as fast fastopt is, in bold where it is the slower."""
    times = digits(record["versus"][name][1])
    return f"**{times}**" if name in lost_to(record) else times


def _share(record: Record) -> str:
    low, median, high = record["share"]
    return f"{median:.0%} ({low:.0%}–{high:.0%})"


def rules(kept: Kept) -> str:
    records = [r for r in kept.part("rules") if r["seconds"].get("fastopt")]
    main = [r for r in records if r["case"]["rule"] in MAIN]
    if not main:
        return ""
    peers, one = _peers(main), case_of(main[0])
    rows = [
        [f"`{case_of(r).rule}`", duration(r["seconds"]["fastopt"][1]), _share(r), *_times(r, peers)]
        for r in losses_first(main)
    ]
    others = sorted((r["share"][1], case_of(r).rule) for r in records if r not in main)
    more = ""
    if others:
        lowest = ", ".join(f"`{rule}` {share:.0%}" for share, rule in others if share < 0.95)
        more = f"\n\nThe {len(others)} other forms: {others[0][0]:.0%} to {others[-1][0]:.0%} of the ceiling"
        more += f"; below 95 %: {lowest}." if lowest else "."
    title = f"float32, {one.size} parameters, {one.runs_on}"
    return _table([title, "a step", "of the memory ceiling", *(f"× {name}" for name in peers)], rows) + more


def small(kept: Kept) -> str:
    wanted = {("sizes", "1000"): "one tensor of 1,000", ("tensors", SMALL): "100 tensors of 10 to 1,000"}
    records = [r for r in timed(kept) if (r["part"], r["case"]["size"]) in wanted]
    if not records:
        return ""
    peers = _peers(records)
    rows = []
    for r in records:
        ours = r["seconds"]["fastopt"]
        name = wanted[r["part"], r["case"]["size"]]
        rows.append([name, f"{duration(ours[1])} ({spread(ours)})", *_times(r, peers)])
    said = "" if kept.device else "Peers use one thread or all, whichever is faster.\n\n"
    return said + _table(["AdamW, float32, small", "a step", *(f"× {name}" for name in peers)], rows)


def storages(kept: Kept) -> str:
    records = [r for r in timed(kept) if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
    large, small = ([r for r in records if beyond_cache(r) is which] for which in (True, False))
    if not large:
        return ""
    cached = {r["case"]["storage"]: r for r in small}
    base = next((r["seconds"]["fastopt"][1] for r in large if r["case"]["storage"] == "f32"), None)
    peers, one = _peers(large), case_of(large[0])
    rows = []
    for r in sorted(large, key=lambda r: r["seconds"]["fastopt"][1]):
        storage, ours = r["case"]["storage"], r["seconds"]["fastopt"][1]
        cells = [f"`{storage}`", f"{case_of(r).program.bytes_per_parameter:.4g}", duration(ours), _share(r)]
        cells.append(f"{base / ours:.2f}" if base else "–")
        inside = cached.get(storage)
        if cached:
            cells.append(f"{inside['seconds']['fastopt'][1] * 1e9 / case_of(inside).elements:.2f}" if inside else "–")
        rows.append([*cells, *_times(r, peers)])
    title = f"AdamW, {one.size} parameters, {one.runs_on}, by storage"
    headings = [title, "bytes", "a step", "of the memory ceiling", "× float32"]
    headings += ["ns a parameter in cache, one thread"] * bool(cached)
    return _table([*headings, *(f"× {name}" for name in peers)], rows)


def drop_in(kept: Kept, folder: Path) -> str:
    """Give the table of fastopt.torch: of this run, or of the newest on the same machine that has the part."""
    own = folder if kept.part("torch") else record.newest("torch", device=bool(kept.device))
    if own is None or (given := record.read(own)).machine != kept.machine:
        return ""
    records = [r for r in given.part("torch") if r["seconds"].get("fastopt")]
    peers, rows = _peers(records), []
    for r in records:
        case = case_of(r)
        for name in DROP_INS:
            if name in r["seconds"]:
                times = [relative(r, name, peer) for peer in peers]
                words = ["–" if x is None else f"**{digits(x)}**" if x < 0.95 else digits(x) for x in times]
                rows.append(
                    [
                        f"{case.rule}, {case.size}, {name.removeprefix('fastopt.torch ')}",
                        duration(r["seconds"][name][1]),
                        *words,
                    ]
                )
    where = os.path.relpath(own, record.ROOT)
    said = "" if own == folder else f"Of commit {given.runs[0]['commit']}, in [{where}]({where}/{record.FILE})."
    missed = [g for g in goals.evaluate(records) if not g.met]
    said += " Short of what is asked: " * bool(missed) + "; ".join(f"{g.words}: {g.found}" for g in missed)
    return (
        said.strip()
        + "\n\n" * bool(said)
        + _table(["fastopt.torch, float32", "a step", *(f"× {name}" for name in peers)], rows)
    )


def scaling(kept: Kept) -> str:
    found = []
    for part, what in (("groups", lambda c: f"{c.groups}"), ("threads", lambda c: f"{c.rule}, {c.threads}")):
        rows = [
            f"{what(case_of(r))}: {duration(r['seconds']['fastopt'][1])}" for r in kept.part(part) if r in timed(kept)
        ]
        title = {"groups": "64 tensors of 1,000 by number of groups", "threads": "a large step by rule and threads"}[
            part
        ]
        found += [f"{title}: {'; '.join(rows)}."] if rows else []
    return "How cost grows. " + " ".join(x[0].upper() + x[1:] for x in found) if found else ""


def first_steps(kept: Kept) -> str:
    records = kept.part("first")
    names = list(dict.fromkeys(r["name"] for r in records if first.total(r)))
    if not names:
        return ""
    by = {(r["name"], r["kind"]): r for r in records}
    rows = []
    for name in names:
        totals = [first.total(by[name, kind]) if (name, kind) in by else None for kind in ("cold", "warm")]
        rows.append([name, *("–" if t is None else duration(t) for t in totals)])
    return _table(["until the first step is done, imports included", "nothing cached", "the next process"], rows)


def memory(kept: Kept) -> str:
    records = kept.part("memory")
    if not records:
        return ""
    rows = [
        [name, digits(found["resident"]), digits(found["peak"])]
        for r in records
        for name, found in sorted(r["bytes"].items(), key=lambda x: x[1]["peak"])
    ]
    title = f"memory of AdamW, {case_of(records[0]).size} parameters, with gradients, bytes a parameter"
    return _table([title, "resident", "at the peak of a step"], rows)

"""The tables of docs/benchmark.md and README in Markdown, one function for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastopt.bench import first, goals, record
from fastopt.bench.cases import LARGE, MAIN, SMALL
from fastopt.bench.peers import DROP_INS, PEERS
from fastopt.bench.record import Results
from fastopt.bench.report import (
    NOTHING,
    Record,
    beyond_cache,
    bound_by,
    case_of,
    digits,
    duration,
    faster_peers,
    losses_first,
    relative_speed,
    spread,
)


def timed(results: Results) -> list[Record]:
    """Return the records with a time of fastopt's step."""
    return [r for r in results.records if "versus" in r and r["seconds"].get("fastopt")]


def link(folder: Path) -> str:
    """Return a link from docs/ to the results in a folder."""
    file, home = folder / record.FILE, record.ROOT
    return f"[{os.path.relpath(file, home)}]({os.path.relpath(file, home / 'docs')})"


def summary(runs: Sequence[Results]) -> str:
    """Return README's table: AdamW, large and small, on each of the machines."""
    rows = []
    for results in runs:
        machine = (results.device or results.machine)["name" if results.device else "cpu"]
        on = machine if results.device else f"{machine}, {results.runs[0]['threads']} threads"
        default = "torch foreach" if results.device else "torch for-loop"
        for part, size, storage, what in (
            ("sizes", LARGE, "f32", f"{LARGE} parameters, float32"),
            ("storages", LARGE, "bf16", f"{LARGE}, bfloat16"),
            ("storages", LARGE, "8bit", f"{LARGE}, float32 with 8-bit state"),
            ("tensors", SMALL, "f32", "100 tensors of 10 to 1,000, float32"),
            ("sizes", "1000", "f32", "one tensor of 1,000, float32"),
        ):
            wanted = {"size": size, "storage": storage, "rule": "adam-decoupled"}
            for r in (r for r in timed(results) if r["part"] == part and wanted.items() <= r["case"].items()):
                peers = {name: times[1] for name, times in r["versus"].items() if name in PEERS}
                fastest = min(peers, key=lambda name: peers[name], default=None)
                cells = [digits(peers[name]) if name in peers else NOTHING for name in (default, "torch fused")]
                cells.append(f"{digits(peers[fastest])} ({fastest})" if fastest else NOTHING)
                share = f"{r['share'][1]:.0%}" if beyond_cache(r) else NOTHING
                rows.append([f"{on}: {what}", duration(r["seconds"]["fastopt"][1]), share, *cells])
    headings = ["AdamW", "time per step", "share of the memory's speed"]
    return _table([*headings, "× torch's default", "× torch fused", "× the fastest of all peers"], rows)


def rules(results: Results) -> str:
    """Return the table of the main rules in float32, and a line about the others."""
    records = [r for r in results.of_part("rules") if r["seconds"].get("fastopt")]
    main = [r for r in records if r["case"]["rule"] in MAIN]
    if not main:
        return ""
    peers, one = _peers(main), case_of(main[0])
    rows = [
        [f"`{case_of(r).rule}`", duration(r["seconds"]["fastopt"][1]), _share(r), *_speeds(r, peers)]
        for r in losses_first(main)
    ]
    others = sorted((r["share"][1], case_of(r).rule) for r in records if r not in main)
    more = ""
    if others:
        lowest = ", ".join(f"`{rule}` {share:.0%}" for share, rule in others if share < 0.95)
        more = (
            f"\n\nThe other {len(others)} rules and settings: {others[0][0]:.0%} to {others[-1][0]:.0%} of the ceiling"
        )
        more += f"; below 95 %: {lowest}." if lowest else "."
    title = f"float32, {one.size} parameters, {one.runs_on}"
    return _table([title, "time per step", "share of the memory ceiling", *_headings(peers)], rows) + more


def small(results: Results) -> str:
    """Return the table of small steps."""
    wanted = {("sizes", "1000"): "one tensor of 1,000", ("tensors", SMALL): "100 tensors of 10 to 1,000"}
    records = [r for r in timed(results) if (r["part"], r["case"]["size"]) in wanted]
    if not records:
        return ""
    peers = _peers(records)
    rows = []
    for r in records:
        ours = r["seconds"]["fastopt"]
        name = wanted[r["part"], r["case"]["size"]]
        rows.append([name, f"{duration(ours[1])} ({spread(ours)})", *_speeds(r, peers)])
    note = "" if results.device else "Peers use one thread or all, whichever is faster.\n\n"
    return note + _table(["AdamW, float32, small", "time per step", *_headings(peers)], rows)


def storages(results: Results) -> str:
    """Return the table of AdamW's storages."""
    records = [r for r in timed(results) if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
    large, in_cache = ([r for r in records if beyond_cache(r) is which] for which in (True, False))
    if not large:
        return ""
    cached = {r["case"]["storage"]: r for r in in_cache}
    base = next((r["seconds"]["fastopt"][1] for r in large if r["case"]["storage"] == "f32"), None)
    peers, one = _peers(large), case_of(large[0])
    rows = []
    for r in sorted(large, key=lambda r: r["seconds"]["fastopt"][1]):
        storage, ours = r["case"]["storage"], r["seconds"]["fastopt"][1]
        cells = [f"`{storage}`", f"{case_of(r).program.bytes_per_parameter:.4g}", duration(ours), _share(r)]
        if not results.device:
            cells.append(bound_by(r["share"][1]) if r["share"] else NOTHING)
        cells.append(f"{base / ours:.2f}" if base else NOTHING)
        inside = cached.get(storage)
        if cached:
            ns = inside["seconds"]["fastopt"][1] * 1e9 / case_of(inside).elements if inside else None
            cells.append(NOTHING if ns is None else f"{ns:.2f}")
        rows.append([*cells, *_speeds(r, peers)])
    title = f"AdamW, {one.size} parameters, {one.runs_on}, by storage"
    headings = [title, "bytes moved per parameter", "time per step", "share of the memory ceiling"]
    headings += ["× float32"] if results.device else ["bound by", "× float32"]
    headings += ["in cache, one thread: ns per parameter"] * bool(cached)
    return _table([*headings, *_headings(peers)], rows)


def by_vectors(runs: Mapping[str, tuple[Path, Results]]) -> str:
    """Return the table of AdamW's storages on processors, or with features, of different vectors, side by side."""
    if len(runs) < 2:
        return ""
    columns, notes = [], []
    for vectors, (folder, results) in runs.items():
        adams = [r for r in timed(results) if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
        large = {r["case"]["storage"]: r for r in adams if beyond_cache(r)}
        cached = {r["case"]["storage"]: r for r in adams if not beyond_cache(r)}
        columns.append((vectors, large, cached))
        notes.append(f"{vectors}: {_where(results, folder)}")
    one = case_of(next(iter(columns[0][1].values())))
    known = [s for s in columns[0][1] if all(s in large for _, large, _ in columns)]
    rows = []
    for storage in known:
        cells = [f"`{storage}`"]
        for _, large, cached in columns:
            seconds, base = (large[s]["seconds"]["fastopt"][1] for s in (storage, "f32"))
            share = large[storage]["share"]
            inside = cached.get(storage)
            ns = inside["seconds"]["fastopt"][1] * 1e9 / case_of(inside).elements if inside else None
            bound = bound_by(share[1]) if share else NOTHING
            cells += [f"{seconds / base:.2f}", bound, NOTHING if ns is None else f"{ns:.2f}"]
        rows.append(cells)
    headings = [f"AdamW, {one.size} parameters, {one.runs_on}"]
    for vectors, _, _ in columns:
        width = vectors.partition(" (")[0]
        headings += [f"{width}: time, float32's = 1", "bound by", "in cache, ns per parameter"]
    return "; ".join(notes) + ".\n\n" + _table(headings, rows)


def drop_in(results: Results, folder: Path) -> str:
    """Return the table of fastopt.torch: of this run, or of the newest that has the part, and where it was measured."""
    source = folder if results.of_part("torch") else record.newest("torch", device=bool(results.device))
    if source is None:
        return ""
    found = record.read(source)
    records = [r for r in found.of_part("torch") if r["seconds"].get("fastopt")]
    peers, rows = _peers(records), []
    for r in records:
        case = case_of(r)
        for name in DROP_INS:
            if name in r["seconds"]:
                speeds = [relative_speed(r, name, peer) for peer in peers]
                words = [NOTHING if x is None else f"**{digits(x)}**" if x < 0.95 else digits(x) for x in speeds]
                title = f"{case.rule}, {case.size}, flatten={name.endswith('flat')}"
                rows.append([title, duration(r["seconds"][name][1]), *words])
    note = "" if source == folder else f"fastopt.torch beside torch.optim. {_where(found, source)}."
    missed = [g for g in goals.evaluate(records) if not g.met]
    note += " Missed goals: " * bool(missed) + "; ".join(f"{g.words}: {g.found}" for g in missed)
    headings = ["fastopt.torch, float32", "time per step", *_headings(peers)]
    return note.strip() + "\n\n" * bool(note) + _table(headings, rows)


def around(found: tuple[Path, Results] | None) -> str:
    """Return the table of steps with what surrounds them, and where it was measured."""
    if found is None:
        return ""
    folder, results = found
    rows = []
    for r in results.of_part("around"):
        case, seconds = case_of(r), r["seconds"]
        peer = "torch operations" if case.rule == "lamb" else "torch passes"
        speeds = r["versus"].get(peer, [None, None])[1], relative_speed(r, "fastopt.torch", peer)
        words = [NOTHING if x is None else digits(x) for x in speeds]
        rows.append([f"{case.rule}, {case.size}", duration(seconds["fastopt"][1]), _share(r), *words])
    shares = [x for r in results.of_part("around") if (x := relative_speed(r, "norm alone", "reading alone"))]
    run = results.runs[0]
    note = (
        "What surrounds a step, in the step: AdamW with clipping; with unscaling, a look for what is not finite,"
        " clipping, an average and zeroing, beside torch's passes (`GradScaler`, `clip_grad_norm_`, fused AdamW,"
        " `AveragedModel`, `zero_grad`); and LAMB, beside torch's operations."
        f" {_where(results, folder)}."
    )
    if shares:
        note += f" The norm alone is {shares[0]:.0%} as fast as a loop that only reads the gradients."
    headings = ["float32, 2 threads" if run["threads"] == 2 else "float32", "time per step"]
    headings += ["share of the memory ceiling", "× torch", "fastopt.torch: × torch"]
    return f"{note}\n\n" + _table(headings, rows)


def scaling(results: Results) -> str:
    """Return sentences about the time of a step by number of groups and by number of threads."""
    sentences = []
    for part, title, name in (
        ("groups", "on 64 tensors of 1,000 parameters, by number of groups", lambda c: f"{c.groups}"),
        (
            "threads",
            "on a tensor larger than the cache, by rule and number of threads",
            lambda c: f"{c.rule}, {c.threads}",
        ),
    ):
        records = [r for r in results.of_part(part) if r in timed(results)]
        times = [f"{name(case_of(r))}: {duration(r['seconds']['fastopt'][1])}" for r in records]
        sentences += [f"Time per step {title}: {'; '.join(times)}."] if times else []
    return " ".join(sentences)


def first_steps(results: Results) -> str:
    """Return the table of the times to the first step."""
    records = results.of_part("first")
    names = list(dict.fromkeys(r["name"] for r in records if first.total(r)))
    if not names:
        return ""
    by = {(r["name"], r["kind"]): r for r in records}
    rows = []
    for name in names:
        totals = [first.total(by[name, kind]) if (name, kind) in by else None for kind in ("cold", "warm")]
        rows.append([name, *(NOTHING if t is None else duration(t) for t in totals)])
    return _table(["time to the end of the first step, with imports", "empty cache", "warm cache"], rows)


def memory(results: Results) -> str:
    """Return the table of the memory that a process needs."""
    records = results.of_part("memory")
    if not records:
        return ""
    rows = [
        [name, digits(found["resident"]), digits(found["peak"])]
        for r in records
        for name, found in sorted(r["bytes"].items(), key=lambda x: x[1]["peak"])
    ]
    title = f"memory of AdamW with gradients, {case_of(records[0]).size} parameters, bytes per parameter"
    return _table([title, "resident", "peak during a step"], rows)


def _where(results: Results, folder: Path) -> str:
    """Name the processor, the date, the commit and the file of a run."""
    run = results.runs[0]
    return f"{results.machine['cpu']}, {run['date'][:10]}, commit {run['commit']}, {link(folder)}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose other columns are numbers."""
    lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _peers(records: list[Record]) -> list[str]:
    """Return the names of the peers in these records, in the order of PEERS."""
    return [name for name in PEERS if any(name in r["versus"] for r in records)]


def _headings(peers: list[str]) -> list[str]:
    return [f"× {name}" for name in peers]


def _speeds(r: Record, peers: list[str]) -> list[str]:
    """Return fastopt's speed relative to each peer, in bold if the peer is faster."""
    speeds = {name: digits(r["versus"][name][1]) for name in peers if name in r["versus"]}
    speeds |= {name: f"**{speeds[name]}**" for name in faster_peers(r) if name in speeds}
    return [speeds.get(name, NOTHING) for name in peers]


def _share(r: Record) -> str:
    low, median, high = r["share"]
    return f"{median:.0%} ({low:.0%}–{high:.0%})"

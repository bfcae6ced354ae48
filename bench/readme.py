"""README's numbers: `python -m fastopt.bench.readme` writes them, and draws the pictures, from the newest kept run.

The newest is the folder of bench/results/ whose results.jsonl was begun last: one of a processor, and one of a CUDA
device. `python -m fastopt.bench.readme FOLDER` takes another one of a processor. What stands between the two marks in
README is this module's, and a test holds it to that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastopt.bench import first, pictures, record, report
from fastopt.bench.cases import MAIN, SMALL
from fastopt.bench.peers import DROP_INS, PEERS
from fastopt.bench.record import Kept
from fastopt.bench.report import Record, beyond_cache, case_of, digits, duration, spread

BEGIN = "<!-- bench: written by `python -m fastopt.bench.readme`, do not edit -->\n"
END = "<!-- end of bench -->\n"
README = record.ROOT / "README.md"
NO_RUN = "No run of `fastopt bench` is kept in bench/results/ yet.\n"

_PICTURES = {
    "bytes": "Time of a step against the bytes that it moves, with the memory ceiling as a line",
    "sizes": "Time of a step from one parameter to 256 Mi, beside other libraries",
    "tensors": "Time of a step on many small tensors, beside other libraries",
    "shares": "Share of the memory ceiling by rule and storage",
}


def newest(part: str = "rules", *, device: bool = False) -> Path | None:
    """Give the folder of the run that was begun last, of those that have this part; None where none is kept."""
    folders = {file.parent: record.read(file) for file in record.FOLDER.glob(f"*/{record.FILE}")}
    having = [folder for folder, kept in folders.items() if kept.part(part) and bool(kept.device) is device]
    return max(having, key=lambda folder: folders[folder].runs[0]["date"], default=None)


def text(folder: Path | None, device: Path | None = None) -> str:
    """Give what stands in README between the marks: of a run on a processor, and of one on a CUDA device."""
    if folder is None:
        return NO_RUN
    return _of_run(folder) + (f"\n### On a GPU\n\n{_of_run(device)}" if device else "")


def _of_run(folder: Path) -> str:
    kept = record.read(folder)
    where = os.path.relpath(folder, record.ROOT)
    parts = [
        _machine(kept, where),
        _short(kept),
        _pictures(folder, where, "bytes", "shares"),
        _rules(kept),
        _small(kept),
        _pictures(folder, where, "tensors", "sizes"),
        _storages(kept),
        _drop_in(kept, folder),
        _growth(kept),
        _first(kept),
        _memory(kept),
        _absent(kept),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(kept: Kept, where: str) -> str:
    run, machine = kept.runs[0], kept.machine
    installed = {name: version for name, version in run["versions"].items() if version and name != "fastopt"}
    said = ", ".join(f"{name} {version}" for name, version in installed.items())
    where_on = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"
    if device := kept.device:
        where_on = f"{device['name']} ({device['memory_gib']:g} GiB, driver for CUDA {device['driver'] / 1000:g})"
    loads = [one["load"] for one in kept.runs if one.get("load") is not None]
    command = f"fastopt bench{' --backend cuda' * bool(device)}"
    return (
        f"`{command}` on {run['date'][:10]}: {where_on}; commit {run['commit'] or 'unknown'}; {said}."
        f" Medians of {run['repeats']} rounds, in which contestants take turns; load average {max(loads, default=0):g}"
        f" before. Every number is in [{where}/{record.FILE}]({where}/{record.FILE}), and"
        " [docs/benchmark.md](docs/benchmark.md) says how it is measured and what is not claimed. × is how many times"
        " as fast as that fastopt is."
    )


def _short(kept: Kept) -> str:
    """List what falls short of a goal, and every case in which a peer is ahead."""
    lines = [f"- {goal.words}: {goal.found}" for goal in report.goals(kept.records) if not goal.met]
    timed = _timed(kept)
    lost = [(case_of(r).name, report.lost_to(r)) for r in report.losses_first(timed) if report.lost_to(r)]
    ahead = [f"{name}: {', '.join(f'{peer} {times:.2f} ×' for peer, times in peers.items())}" for name, peers in lost]
    lines += (
        [f"- a peer is ahead beyond noise in {len(lost)} of {len(timed)} cases: {'; '.join(ahead)}"] if lost else []
    )
    below: dict[str, list[float]] = {}
    for r in timed:
        if report.short(r) and r["case"]["storage"] != "f32":
            below.setdefault(r["case"]["storage"], []).append(r["share"][1])
    if below:
        said = [f"`{storage}` {_range(shares)}" for storage, shares in below.items()]
        lines.append(f"- beyond the cache, storages below 95 % of the ceiling for their bytes: {'; '.join(said)}")
    if not lines:
        return (
            "Every goal of docs/benchmark.md that was measured is met, and no peer is ahead beyond noise in any case."
        )
    return "**Where fastopt falls short**, first:\n\n" + "\n".join(lines)


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def _timed(kept: Kept) -> list[Record]:
    return [r for r in kept.records if "versus" in r and r["seconds"].get("fastopt")]


def _pictures(folder: Path, where: str, *names: str) -> str:
    return "\n\n".join(f"![{_PICTURES[n]}]({where}/{n}.png)" for n in names if (folder / f"{n}.png").is_file())


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
    return f"**{times}**" if name in report.lost_to(record) else times


def _share(record: Record) -> str:
    low, median, high = record["share"]
    return f"{median:.0%} ({low:.0%}–{high:.0%})"


def _rules(kept: Kept) -> str:
    records = [r for r in kept.part("rules") if r["seconds"].get("fastopt")]
    main = [r for r in records if r["case"]["rule"] in MAIN]
    if not main:
        return ""
    peers, one = _peers(main), case_of(main[0])
    rows = [
        [f"`{case_of(r).rule}`", duration(r["seconds"]["fastopt"][1]), _share(r), *_times(r, peers)]
        for r in report.losses_first(main)
    ]
    others = sorted((r["share"][1], case_of(r).rule) for r in records if r not in main)
    more = ""
    if others:
        lowest = ", ".join(f"`{rule}` {share:.0%}" for share, rule in others if share < 0.95)
        more = f"\n\nThe {len(others)} other forms: {others[0][0]:.0%} to {others[-1][0]:.0%} of the ceiling"
        more += f"; below 95 %: {lowest}." if lowest else "."
    title = f"float32, {one.size} parameters, {one.workers}"
    return _table([title, "a step", "of the memory ceiling", *(f"× {name}" for name in peers)], rows) + more


def _small(kept: Kept) -> str:
    wanted = {("sizes", "1000"): "one tensor of 1,000", ("tensors", SMALL): "100 tensors of 10 to 1,000"}
    records = [r for r in _timed(kept) if (r["part"], r["case"]["size"]) in wanted]
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


def _storages(kept: Kept) -> str:
    records = [r for r in _timed(kept) if r["part"] == "storages" and r["case"]["rule"] == "adam-decoupled"]
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
    title = f"AdamW, {one.size} parameters, {one.workers}, by storage"
    headings = [title, "bytes", "a step", "of the memory ceiling", "× float32"]
    headings += ["ns a parameter in cache, one thread"] * bool(cached)
    return _table([*headings, *(f"× {name}" for name in peers)], rows)


def _drop_in(kept: Kept, folder: Path) -> str:
    """Give the table of fastopt.torch: of this run, or of the newest on the same machine that has the part."""
    own = folder if kept.part("torch") else newest("torch", device=bool(kept.device))
    if own is None or (given := record.read(own)).machine != kept.machine:
        return ""
    records = [r for r in given.part("torch") if r["seconds"].get("fastopt")]
    peers, rows = _peers(records), []
    for r in records:
        case = case_of(r)
        for name in DROP_INS:
            if name in r["seconds"]:
                times = [report.relative(r, name, peer) for peer in peers]
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
    missed = [g for g in report.goals(records) if not g.met]
    said += " Short of what is asked: " * bool(missed) + "; ".join(f"{g.words}: {g.found}" for g in missed)
    return (
        said.strip()
        + "\n\n" * bool(said)
        + _table(["fastopt.torch, float32", "a step", *(f"× {name}" for name in peers)], rows)
    )


def _growth(kept: Kept) -> str:
    found = []
    for part, what in (("groups", lambda c: f"{c.groups}"), ("threads", lambda c: f"{c.rule}, {c.threads}")):
        rows = [
            f"{what(case_of(r))}: {duration(r['seconds']['fastopt'][1])}" for r in kept.part(part) if r in _timed(kept)
        ]
        title = {"groups": "64 tensors of 1,000 by number of groups", "threads": "a large step by rule and threads"}[
            part
        ]
        found += [f"{title}: {'; '.join(rows)}."] if rows else []
    return "How cost grows. " + " ".join(x[0].upper() + x[1:] for x in found) if found else ""


def _first(kept: Kept) -> str:
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


def _memory(kept: Kept) -> str:
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


def _absent(kept: Kept) -> str:
    """Name the libraries that no number stands for, and why."""
    timed = _timed(kept)
    lacking: dict[str, Any] = {}
    for r in timed:
        for name, why in r["cannot"].items():
            lacking.setdefault(name, why)
    never = [f"{name}: {why}" for name, why in lacking.items() if not any(name in r["versus"] for r in timed)]
    return f"Not there: {'; '.join(never)}." if never else ""


def written(readme: str, folder: Path | None) -> str:
    """Give README with the part between the marks written anew."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"README has no part between {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{text(folder, newest(device=True))}\n{END}{after}"


def main() -> None:
    """Draw the pictures and write README."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else newest()
    for one in (folder, newest(device=True)):
        if one is not None:
            pictures.draw(record.read(one), one)
    README.write_text(written(README.read_text(encoding="utf-8"), folder), encoding="utf-8")
    print(f"README has the numbers of {folder or 'no run'}")


if __name__ == "__main__":
    main()

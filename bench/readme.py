"""README's numbers: `python -m fastopt.bench.readme` writes them, and draws the pictures, from the newest kept run.

The newest is the folder of bench/results/ whose results.jsonl was begun last: one of a processor, and one of a CUDA
device. `python -m fastopt.bench.readme FOLDER` takes another one of a processor. What stands between the two marks in
README is this module's, and a test holds it to that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fastopt.bench import goals, markdown, pictures, record, report
from fastopt.bench.record import Kept, newest
from fastopt.bench.report import case_of

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
        markdown.rules(kept),
        markdown.small(kept),
        _pictures(folder, where, "tensors", "sizes"),
        markdown.storages(kept),
        markdown.drop_in(kept, folder),
        markdown.scaling(kept),
        markdown.first_steps(kept),
        markdown.memory(kept),
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
    lines = [f"- {goal.words}: {goal.found}" for goal in goals.evaluate(kept.records) if not goal.met]
    timed = markdown.timed(kept)
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


def _pictures(folder: Path, where: str, *names: str) -> str:
    return "\n\n".join(f"![{_PICTURES[n]}]({where}/{n}.png)" for n in names if (folder / f"{n}.png").is_file())


def _absent(kept: Kept) -> str:
    """Name the libraries that no number stands for, and why."""
    timed = markdown.timed(kept)
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

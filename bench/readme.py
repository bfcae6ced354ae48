"""README's benchmark results: `python -m fastopt.bench.readme` writes them and draws the pictures.

It uses the newest results in bench/results/ (results.jsonl with the latest date of its first run), one folder measured
on a CPU and one on a CUDA device. `python -m fastopt.bench.readme FOLDER` uses another folder for the CPU. The text
between the two marks in README is generated; a test checks that it is up to date.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fastopt.bench import goals, markdown, pictures, record, report
from fastopt.bench.record import Results, newest
from fastopt.bench.report import case_of

BEGIN = "<!-- bench: written by `python -m fastopt.bench.readme`, do not edit -->\n"
END = "<!-- end of bench -->\n"
README = record.ROOT / "README.md"
NO_RUN = "There are no results of `fastopt bench` in bench/results/ yet.\n"

_PICTURES = {
    "bytes": "Time per step by the bytes that it reads and writes, with the memory ceiling as a line",
    "sizes": "Time per step from one parameter to 256 Mi, compared with other libraries",
    "tensors": "Time per step on many small tensors, compared with other libraries",
    "shares": "Share of the memory ceiling by rule and storage",
}


def text(folder: Path | None, device: Path | None = None) -> str:
    """Return README's text between the marks: results of a run on a CPU, and of one on a CUDA device."""
    if folder is None:
        return NO_RUN
    return _of_run(folder) + (f"\n### On a GPU\n\n{_of_run(device)}" if device else "")


def _of_run(folder: Path) -> str:
    results = record.read(folder)
    where = os.path.relpath(folder, record.ROOT)
    blocks = [
        _conditions(results, where),
        _shortfalls(results),
        _pictures(folder, where, "bytes", "shares"),
        markdown.rules(results),
        markdown.small(results),
        _pictures(folder, where, "tensors", "sizes"),
        markdown.storages(results),
        "" if results.device else markdown.by_vectors(record.newest_by_vectors("storages")),
        markdown.drop_in(results, folder),
        "" if results.device else markdown.around(_newest_around()),
        markdown.scaling(results),
        markdown.first_steps(results),
        markdown.memory(results),
        _not_measured(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _newest_around() -> tuple[Path, Results] | None:
    folder = newest("around")
    return None if folder is None else (folder, record.read(folder))


def _conditions(results: Results, where: str) -> str:
    run, machine = results.runs[0], results.machine
    installed = {name: version for name, version in run["versions"].items() if version and name != "fastopt"}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB"
    if device := results.device:
        hardware = f"{device['name']} ({device['memory_gib']:g} GiB, driver for CUDA {device['driver'] / 1000:g})"
    loads = [one["load"] for one in results.runs if one.get("load") is not None]
    command = f"fastopt bench{' --backend cuda' * bool(device)}"
    return (
        f"`{command}` on {run['date'][:10]}: {hardware}; commit {run['commit'] or 'unknown'}; {versions}."
        f" Medians of {run['repeats']} rounds, in which contestants are timed in turns; load average before the run"
        f" {max(loads, default=0):g}. All results are in [{where}/{record.FILE}]({where}/{record.FILE});"
        " [docs/benchmark.md](docs/benchmark.md) describes the method and its limits. Columns marked × give the speed"
        " relative to a library or to float32: 2 means half the time."
    )


def _shortfalls(results: Results) -> str:
    """List the goals that are missed, and every case in which a peer is faster."""
    lines = [f"- {goal.words}: {goal.found}" for goal in goals.evaluate(results.records) if not goal.met]
    timed = markdown.timed(results)
    lost = [(case_of(r).name, report.faster_peers(r)) for r in report.losses_first(timed) if report.faster_peers(r)]
    cases = [f"{name}: {', '.join(f'{peer} {speed:.2f} ×' for peer, speed in peers.items())}" for name, peers in lost]
    if lost:
        lines.append(
            f"- a peer is faster by more than the noise in {len(lost)} of {len(timed)} cases: {'; '.join(cases)}"
        )
    below: dict[str, list[float]] = {}
    for r in timed:
        if report.below_ceiling(r) and r["case"]["storage"] != "f32":
            below.setdefault(r["case"]["storage"], []).append(r["share"][1])
    if below:
        shares = [f"`{storage}` {_range(found)}" for storage, found in below.items()]
        lines.append(f"- larger than the cache, storages below 95 % of the memory ceiling: {'; '.join(shares)}")
    if not lines:
        return "Every goal of docs/benchmark.md that was measured is met, and no peer is faster by more than the noise."
    return "**Where fastopt falls short:**\n\n" + "\n".join(lines)


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def _pictures(folder: Path, where: str, *names: str) -> str:
    return "\n\n".join(f"![{_PICTURES[n]}]({where}/{n}.png)" for n in names if (folder / f"{n}.png").is_file())


def _not_measured(results: Results) -> str:
    """List the libraries that were not timed in any case, with the reason."""
    timed = markdown.timed(results)
    reasons: dict[str, str] = {}
    for r in timed:
        for name, why in r["cannot"].items():
            reasons.setdefault(name, why)
    never = [f"{name} ({why})" for name, why in reasons.items() if not any(name in r["versus"] for r in timed)]
    return f"Not measured: {', '.join(never)}." if never else ""


def written(readme: str, folder: Path | None) -> str:
    """Return README with new text between the marks."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"README does not contain the marks {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{text(folder, newest(device=True))}\n{END}{after}"


def main() -> None:
    """Draw the pictures and write README."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else newest()
    for one in (folder, newest(device=True)):
        if one is not None:
            pictures.draw(record.read(one), one)
    README.write_text(written(README.read_text(encoding="utf-8"), folder), encoding="utf-8")
    print(f"README has the results in {folder}" if folder else "there are no results for README")


if __name__ == "__main__":
    main()

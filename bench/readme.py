"""The benchmark's results in docs/benchmark.md, and one table and one picture of them in README.

`python -m fastopt.bench.readme` writes both and draws the pictures. It uses the newest results in bench/results/
(results.jsonl with the latest date of its first run), one folder measured on a CPU and one on a CUDA device.
`python -m fastopt.bench.readme FOLDER` uses another folder for the CPU. The text between the two marks is generated in
either document; a test checks that it is up to date.
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
PAGE = record.ROOT / "docs" / "benchmark.md"
NO_RUN = "There are no results of `fastopt bench` in bench/results/ yet.\n"

_PICTURES = {
    "bytes": "Time per step by the bytes that it reads and writes, with the memory ceiling as a line",
    "sizes": "Time per step from one parameter to 256 Mi, compared with other libraries",
    "tensors": "Time per step on many small tensors, compared with other libraries",
    "shares": "Share of the memory ceiling by rule and storage",
}


def text(folder: Path | None, device: Path | None = None) -> str:
    """Return the page's text between the marks: results of a run on a CPU, and of one on a CUDA device."""
    if folder is None:
        return NO_RUN
    return f"### On a CPU\n\n{_of_run(folder)}" + (f"\n### On a GPU\n\n{_of_run(device)}" if device else "")


def summary(folder: Path | None, device: Path | None = None) -> str:
    """Return README's text between the marks: one table of both runs, one picture, and where fastopt falls short."""
    if folder is None:
        return NO_RUN
    runs = [record.read(one) for one in (folder, device) if one]
    missed = sum(not goal.met for results in runs for goal in goals.evaluate(results.records))
    timed = [r for results in runs for r in markdown.timed(results)]
    lost = sum(bool(report.faster_peers(r)) for r in timed)
    dates = " and ".join(f"{results.runs[0]['date'][:10]} (commit {results.runs[0]['commit']})" for results in runs)
    blocks = [
        markdown.summary(runs),
        _pictures(folder, README, "sizes"),
        f"× is the speed relative to a library: 2 means half the time. Measured on {dates}. {missed} goals are missed,"
        f" and in {lost} of {len(timed)} cases a peer is faster by more than the noise:"
        " [docs/benchmark.md](docs/benchmark.md#results) begins with these, and has all tables, the method and its"
        " limits.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _of_run(folder: Path) -> str:
    results = record.read(folder)
    blocks = [
        _conditions(results, folder),
        _shortfalls(results),
        _pictures(folder, PAGE, "bytes", "shares"),
        markdown.rules(results),
        markdown.small(results),
        _pictures(folder, PAGE, "tensors", "sizes"),
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


def _conditions(results: Results, folder: Path) -> str:
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
        f" {max(loads, default=0):g}. All results are in {markdown.link(folder)}. Columns marked × give the speed"
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
        return "Every [goal](#goals) that was measured is met, and no peer is faster by more than the noise."
    return "**Where fastopt falls short:**\n\n" + "\n".join(lines)


def _range(shares: list[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def _pictures(folder: Path, document: Path, *names: str) -> str:
    where = os.path.relpath(folder, document.parent)
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


def written(document: str, generated: str) -> str:
    """Return a document with new text between the marks."""
    before, _, rest = document.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"the document does not contain the marks {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def main() -> None:
    """Draw the pictures, and write both documents."""
    folder, device = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else newest(), newest(device=True)
    for one in (folder, device):
        if one is not None:
            pictures.draw(record.read(one), one)
    for document, generated in ((PAGE, text(folder, device)), (README, summary(folder, device))):
        document.write_text(written(document.read_text(encoding="utf-8"), generated), encoding="utf-8")
    print(f"docs/benchmark.md and README have the results in {folder}" if folder else "there are no results")


if __name__ == "__main__":
    main()

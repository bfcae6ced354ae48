"""The command `fastopt bench`: what was asked for, the run with its progress, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastopt
from fastopt.bench import first, goals, memory, record, report
from fastopt.bench.cases import LARGE, PARTS, TIMED_STORAGES, Case, Entry, chosen, plan
from fastopt.bench.compare import compare as compare_runs
from fastopt.bench.peers import PEERS
from fastopt.bench.run import measure
from fastopt.demo.console import open_console, print_table
from fastopt.errors import BackendError, SettingError, suggest
from fastopt.kernels.rules.cases import CASES

BACKENDS = ("cpu", "reference", "cuda")
FEW = 5  # names that are listed
MEMORY = {True: "4Mi", False: "16Mi"}  # parameters of the part memory: quick, and not


class Asked(NamedTuple):
    """The options as they were given; None is not given."""

    parts: list[str] | None
    rules: list[str] | None
    storages: list[str] | None
    sizes: list[str] | None
    threads: list[int] | None
    peers: list[str] | None
    backend: str
    repeats: int | None
    quick: bool
    out: Path | None


class Task(NamedTuple):
    """One thing to measure: its key, what it is called, and the call that gives its records; it is told what to say."""

    keys: list[str]
    name: str
    call: Callable[[Callable[[str], object]], list[dict[str, Any]]]


def run(asked: Asked) -> None:
    """Measure what was asked for; show it, and keep it where that was asked, also when it is interrupted."""
    tasks = list(_tasks(asked))
    if asked.out:
        import_module("fastopt.bench.pictures")  # what it lacks is said now, not when all is measured
    repeats = _repeats(asked)
    conditions = record.conditions() | {"repeats": repeats, "quick": asked.quick, "threads": fastopt.get_threads()}
    writer = record.Writer(asked.out, conditions) if asked.out else None
    measured: list[dict[str, Any]] = list(writer.records) if writer else []
    done = {r["key"] for r in measured}
    left = [task for task in tasks if not done.issuperset(task.keys)]
    console = open_console()
    if len(left) < len(tasks):
        console.print(f"{len(tasks) - len(left)} of {len(tasks)} measurements are in {asked.out} already.")
    try:
        with _bars() as progress:
            bar = progress.add_task("", total=len(left), what="")
            for task in left:
                records = task.call(lambda what, task=task: progress.update(bar, what=f"{task.name}: {what}"))
                for key, one in zip(task.keys, records, strict=True):
                    one = {"key": key, **one}
                    measured.append(one)
                    if writer:
                        writer.add(one)
                progress.advance(bar)
    finally:
        wanted = {key for task in tasks for key in task.keys}
        show(console, [one for one in measured if one["key"] in wanted])
    before, after = conditions["load"], record.load()
    console.print(f"Load average {before} before, {after} after.")
    if asked.out:
        from fastopt.bench import pictures

        drawn = pictures.draw(record.read(asked.out), asked.out)
        console.print(
            f"Results are kept in {asked.out / record.FILE}; drawn: {', '.join(p.name for p in drawn) or 'none'}."
        )


def _bars() -> Progress:
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _repeats(asked: Asked) -> int:
    return asked.repeats or (5 if asked.quick else 10)


def _tasks(asked: Asked) -> Iterator[Task]:
    """Turn what was asked into measurements, or raise a SettingError."""
    peers = _peers(asked.peers)
    threads = fastopt.get_threads()
    axes = (asked.rules, asked.storages, asked.sizes, asked.threads)
    if asked.backend not in BACKENDS:
        what = f"there is no backend {asked.backend!r} to time."
        raise BackendError(what, do=suggest(asked.backend, list(BACKENDS)))
    for part in asked.parts or ():
        if part not in PARTS:
            raise SettingError(f"there is no part {part!r}.", do=suggest(part, list(PARTS)))
    if asked.parts and any(axes):
        what = "a part has its own rules, storages, sizes and threads."
        raise SettingError(what, do="name parts, or choose by --rule, --storage, --size and --threads")
    if asked.backend == "cuda":
        yield from _device_tasks(asked, peers)
        return
    if any(axes) or asked.backend != "cpu":
        if asked.parts:
            what = f"parts are timed on the backend cpu, not on {asked.backend}."
            raise SettingError(what, do="choose by --rule, --storage and --size")
        rules = _rules(asked.rules or ["adam-decoupled"])
        sizes = asked.sizes or ["16Mi" if asked.quick else LARGE]
        yield from _timed(
            chosen(rules, asked.storages or ["f32"], sizes, asked.threads or [threads], asked.backend), asked, peers
        )
        return
    for part in dict.fromkeys(asked.parts or PARTS):
        if part == "first":
            for name in first.names(peers, asked.quick):
                keys = [f"first: {name}, {kind}" for kind in ("cold", "warm")]
                repeats = 1 if asked.quick else 3
                yield Task(keys, f"first step of {name}", lambda say, n=name, k=repeats: first.run(n, k, threads))
        elif part == "memory":
            case = Case(size=MEMORY[asked.quick], threads=threads)
            names = [name for name in peers if not asked.quick or PEERS[name].light]
            stored = ["f32", "8bit"] if asked.quick else [*TIMED_STORAGES]
            yield Task(
                [f"memory: {case.name}"],
                "memory",
                lambda say, c=case, n=names, s=stored: [memory.measure(c, n, s, say)],
            )
        else:
            yield from _timed(plan(part, threads, asked.quick), asked, peers)


def _timed(entries: list[Entry], asked: Asked, peers: list[str]) -> Iterator[Task]:
    repeats = _repeats(asked)
    for entry in entries:
        yield Task([entry.key], entry.case.name, lambda say, e=entry: [measure(e, repeats, peers, say)])


def _device_tasks(asked: Asked, peers: list[str]) -> Iterator[Task]:
    from fastopt.bench import device

    if asked.threads:
        what = "on a device there are no threads to choose."
        raise SettingError(what, do="name parts, or choose by --rule, --storage and --size")
    repeats = _repeats(asked)
    rules = _rules(asked.rules) if asked.rules else None
    for entry in device.entries(asked.parts, rules, asked.storages, asked.sizes, asked.quick):
        yield Task([entry.key], entry.case.name, lambda say, e=entry: [device.measure(e, repeats, peers, say)])


def _rules(patterns: list[str]) -> list[str]:
    """Give the rules that patterns fit; a word that is no pattern is kept, so that `chosen` can say what is wrong."""
    found = []
    for pattern in patterns:
        fits = [name for name in CASES if fnmatchcase(name, pattern)]
        if not fits and set(pattern) & set("*?["):
            raise SettingError(f"no rule fits {pattern!r}.", expected=", ".join(CASES))
        found += fits or [pattern]
    return list(dict.fromkeys(found))


def _peers(patterns: list[str] | None) -> list[str]:
    """Give the peers that patterns fit, all of them where none was asked for, or raise a SettingError."""
    if patterns is None:
        return list(PEERS)
    if patterns == ["none"]:
        return []
    found = []
    for pattern in patterns:
        fits = [name for name in PEERS if fnmatchcase(name.lower(), pattern.lower())]
        if not fits:
            do = suggest(pattern, [*PEERS, "none"])
            raise SettingError(f"there is no peer {pattern!r}.", do=do)
        found += fits
    return [name for name in PEERS if name in found]


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """Print the tables of records, and which goals they meet."""
    for table in report.tables(records):
        console.print(f"\n[bold]{table.title}[/bold]", soft_wrap=True)
        for headings, rows in narrowed(table, console.width):
            print_table(console, headings, rows, table.left)
        for note in table.notes:
            console.print(f"  {note}", markup=False, soft_wrap=True)
    found = sorted(goals.evaluate(records), key=lambda goal: bool(goal.met))
    if found:
        console.print(f"\n[bold]{sum(bool(g.met) for g in found)} of {len(found)} goals are met[/bold]")
        rows = [("" if g.met else report.LOSS, g.words, g.found) for g in found]
        print_table(console, ("", "goal", "found"), rows, left=3)


def narrowed(table: report.Table, width: int) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Divide a table by its columns into as many as a terminal's width asks for; the columns of text stand in each."""
    columns = list(zip(table.headings, *table.rows, strict=True))
    wide = [3 + max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    fixed, k = list(range(table.left)), table.left
    while k < len(columns):
        chosen = [*fixed, k]
        while (k := k + 1) < len(columns) and sum(wide[i] for i in chosen) + wide[k] <= width:
            chosen.append(k)
        yield tuple(table.headings[i] for i in chosen), [tuple(row[i] for i in chosen) for row in table.rows]


def compare(old: Path, new: Path, asked: Asked) -> int:
    """Say what changed between two folders of results; gives 1 if something became slower, otherwise 0."""
    if any(asked[:6]) or asked.quick or asked.out or asked.repeats:
        what = "--compare measures nothing, so nothing else can be chosen with it."
        raise SettingError(what, do="fastopt bench --compare OLD NEW")
    found = compare_runs(record.read(old), record.read(new))
    console = open_console()
    if not found.same_machine:
        console.print("The machines differ: only shares of the ceiling are compared, of cases beyond the cache.")
    if not found.changes:
        raise SettingError("the two runs have nothing in common that can be compared.")
    changed = [change for change in found.changes if change.verdict != "same"]
    rows = [
        (
            report.LOSS if c.verdict == "slower" else "",
            c.name,
            c.by,
            _spread(c, c.old),
            _spread(c, c.new),
            f"{c.speed:.2f} ×",
        )
        for c in changed
    ]
    if rows:
        print_table(console, ("", "case", "by", "old", "new", "speed"), rows, left=3)
    same = len(found.changes) - len(changed)
    slower = len(found.regressions)
    console.print(f"{slower} slower, {len(changed) - slower} faster, {same} the same within noise.")
    for title, names in (("only in the old run", found.only_old), ("only in the new run", found.only_new)):
        if names:
            more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
            console.print(f"{len(names)} {title}: {'; '.join(names[:FEW])}{more}", markup=False, soft_wrap=True)
    return 1 if found.regressions else 0


def _spread(change: Any, values: list[float]) -> str:
    """Word a median and its spread, of a share or of a time."""
    if change.by == "time":
        return f"{report.duration(values[1])} ({report.spread(values)})"
    return f"{values[1]:.0%} ({values[0]:.0%}–{values[2]:.0%})"

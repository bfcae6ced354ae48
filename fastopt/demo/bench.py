"""The command `fastopt bench`: from options to measurements, with progress, tables and saved results."""

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
MAX_NAMES = 5  # how many names of cases are printed
MEMORY = {True: "4Mi", False: "16Mi"}  # parameters in the part "memory", if quick or not


class Options(NamedTuple):
    """The options of the command; None if not given."""

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
    """One measurement: the keys of its records, its name, and a function that returns the records.

    The function is passed `on_progress`, which it calls with the name of what is being measured.
    """

    keys: list[str]
    name: str
    measure: Callable[[Callable[[str], object]], list[dict[str, Any]]]


def run(options: Options) -> None:
    """Measure what the options choose, print tables, and save results if --out is given; also when interrupted."""
    tasks = list(_tasks(options))
    if options.out:
        import_module("fastopt.bench.pictures")  # a missing package is an error before anything is measured
    repeats = _repeats(options)
    conditions = record.conditions() | {"repeats": repeats, "quick": options.quick, "threads": fastopt.get_threads()}
    writer = record.Writer(options.out, conditions) if options.out else None
    measured: list[dict[str, Any]] = list(writer.records) if writer else []
    done = {r["key"] for r in measured}
    remaining = [task for task in tasks if not done.issuperset(task.keys)]
    console = open_console()
    if len(remaining) < len(tasks):
        console.print(f"{len(tasks) - len(remaining)} of {len(tasks)} measurements are in {options.out} already.")
    try:
        with _bars() as progress:
            bar = progress.add_task("", total=len(remaining), what="")
            for task in remaining:
                records = task.measure(lambda what, task=task: progress.update(bar, what=f"{task.name}: {what}"))
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
    console.print(f"Load average {before} before the run, {after} after it.")
    if options.out:
        from fastopt.bench import pictures

        drawn = ", ".join(path.name for path in pictures.draw(record.read(options.out), options.out))
        console.print(f"Results are saved in {options.out / record.FILE}; pictures: {drawn or 'none'}.")


def _bars() -> Progress:
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _repeats(options: Options) -> int:
    return options.repeats or (5 if options.quick else 10)


def _tasks(options: Options) -> Iterator[Task]:
    """Return the measurements that the options choose, or raise a SettingError."""
    peers = _peers(options.peers)
    threads = fastopt.get_threads()
    axes = (options.rules, options.storages, options.sizes, options.threads)
    if options.backend not in BACKENDS:
        what = f"there is no backend {options.backend!r} to time."
        raise BackendError(what, do=suggest(options.backend, list(BACKENDS)))
    for part in options.parts or ():
        if part not in PARTS:
            raise SettingError(f"there is no part {part!r}.", do=suggest(part, list(PARTS)))
    if options.parts and any(axes):
        what = "a part has fixed rules, storages, sizes and threads."
        raise SettingError(what, do="name parts, or choose cases by --rule, --storage, --size and --threads")
    if options.backend == "cuda":
        yield from _device_tasks(options, peers)
        return
    if any(axes) or options.backend != "cpu":
        if options.parts:
            what = f"parts are timed on the backend cpu only, not on {options.backend}."
            raise SettingError(what, do="choose cases by --rule, --storage and --size")
        rules = _rules(options.rules or ["adam-decoupled"])
        sizes = options.sizes or ["16Mi" if options.quick else LARGE]
        yield from _timed(
            chosen(rules, options.storages or ["f32"], sizes, options.threads or [threads], options.backend),
            options,
            peers,
        )
        return
    for part in dict.fromkeys(options.parts or PARTS):
        if part == "first":
            for name in first.names(peers, options.quick):
                keys = [f"first: {name}, {kind}" for kind in ("cold", "warm")]
                repeats = 1 if options.quick else 3
                yield Task(keys, f"first step of {name}", lambda _, n=name, k=repeats: first.run(n, k, threads))
        elif part == "memory":
            case = Case(size=MEMORY[options.quick], threads=threads)
            names = [name for name in peers if not options.quick or PEERS[name].light]
            storages = ["f32", "8bit"] if options.quick else [*TIMED_STORAGES]
            yield Task(
                [f"memory: {case.name}"],
                "memory",
                lambda on_progress, c=case, n=names, s=storages: [memory.measure(c, n, s, on_progress)],
            )
        else:
            yield from _timed(plan(part, threads, options.quick), options, peers)


def _timed(entries: list[Entry], options: Options, peers: list[str]) -> Iterator[Task]:
    repeats = _repeats(options)
    for entry in entries:
        yield Task([entry.key], entry.case.name, lambda on_progress, e=entry: [measure(e, repeats, peers, on_progress)])


def _device_tasks(options: Options, peers: list[str]) -> Iterator[Task]:
    from fastopt.bench import device

    if options.threads:
        what = "--threads does not apply to the backend cuda."
        raise SettingError(what, do="name parts, or choose cases by --rule, --storage and --size")
    repeats = _repeats(options)
    rules = _rules(options.rules) if options.rules else None
    for entry in device.entries(options.parts, rules, options.storages, options.sizes, options.quick):
        yield Task(
            [entry.key], entry.case.name, lambda on_progress, e=entry: [device.measure(e, repeats, peers, on_progress)]
        )


def _rules(patterns: list[str]) -> list[str]:
    """Return the rules that match patterns; unknown names without wildcards are left for `chosen` to report."""
    found = []
    for pattern in patterns:
        matches = [name for name in CASES if fnmatchcase(name, pattern)]
        if not matches and set(pattern) & set("*?["):
            raise SettingError(f"no rule matches {pattern!r}.", expected=", ".join(CASES))
        found += matches or [pattern]
    return list(dict.fromkeys(found))


def _peers(patterns: list[str] | None) -> list[str]:
    """Return the peers that match patterns, all if None; raise a SettingError for a pattern without a match."""
    if patterns is None:
        return list(PEERS)
    if patterns == ["none"]:
        return []
    found = []
    for pattern in patterns:
        matches = [name for name in PEERS if fnmatchcase(name.lower(), pattern.lower())]
        if not matches:
            do = suggest(pattern, [*PEERS, "none"])
            raise SettingError(f"there is no peer {pattern!r}.", do=do)
        found += matches
    return [name for name in PEERS if name in found]


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """Print the tables of records and the goals that they meet."""
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
        print_table(console, ("", "goal", "measured"), rows, left=3)


def narrowed(table: report.Table, width: int) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Divide a table into narrower ones that fit a width, each with the text columns at the left."""
    columns = list(zip(table.headings, *table.rows, strict=True))
    wide = [3 + max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    fixed, k = list(range(table.left)), table.left
    while k < len(columns):
        columns_of_one = [*fixed, k]
        while (k := k + 1) < len(columns) and sum(wide[i] for i in columns_of_one) + wide[k] <= width:
            columns_of_one.append(k)
        yield (
            tuple(table.headings[i] for i in columns_of_one),
            [tuple(row[i] for i in columns_of_one) for row in table.rows],
        )


def compare(old: Path, new: Path, options: Options) -> int:
    """Print what changed between two folders of results; return 1 if a case became slower, otherwise 0."""
    if any(options[:6]) or options.quick or options.out or options.repeats:
        what = "--compare measures nothing and takes no other options."
        raise SettingError(what, do="fastopt bench --compare OLD NEW")
    found = compare_runs(record.read(old), record.read(new))
    console = open_console()
    if not found.same_machine:
        console.print(
            "The machines differ: only cases larger than the cache are compared, by their share of the memory ceiling."
        )
    if not found.changes:
        raise SettingError("the two runs have no comparable cases in common.")
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
        print_table(console, ("", "case", "compared by", "old", "new", "speed"), rows, left=3)
    same = len(found.changes) - len(changed)
    slower = len(found.regressions)
    console.print(f"{slower} slower, {len(changed) - slower} faster, {same} the same within the noise.")
    for title, names in (("only in the old run", found.only_old), ("only in the new run", found.only_new)):
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            console.print(f"{len(names)} {title}: {'; '.join(names[:MAX_NAMES])}{more}", markup=False, soft_wrap=True)
    return 1 if found.regressions else 0


def _spread(change: Any, values: list[float]) -> str:
    """Format the median and spread of a share or time."""
    if change.by == "time":
        return f"{report.duration(values[1])} ({report.spread(values)})"
    return f"{values[1]:.0%} ({values[0]:.0%}–{values[2]:.0%})"

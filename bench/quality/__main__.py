"""The effect of storages on quality: errors of the moments, also in bitsandbytes and torchao, training, and rounding.

`python -m fastopt.bench.quality` takes about 25 minutes on one thread, with `--quick` one minute. `--show` measures
nothing and updates the tables and pictures of docs/storage.md from a results file.

  moments   errors of m, v and Adam's direction m̂ / (√v̂ + ε) relative to float32 on the same gradients, whose scales
            within a tile of 256 elements are log-normal(σ): fastopt's kernels, and the encodings of the peers
  digits    training of a perceptron on handwritten digits with every preset and the same seeds; also in float32 with
            initial values changed by a millionth, which shows the size of random differences
  text      the same for a small transformer on characters
  rules     the non-negative state of other rules after gradients with a standard deviation of 1
  rounding  a parameter with steps far below the spacing of its format, and a v that grows and then decays
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.bench import record
from fastopt.bench.quality.moments import STREAMS, moments
from fastopt.bench.quality.pictures import draw
from fastopt.bench.quality.rounding import DECAYED, PUSHED, UNSIGNED, rounding, rules
from fastopt.bench.quality.storages import SHOWN, Tick, sizes
from fastopt.bench.quality.tables import PEERS, claims, tables, write_document
from fastopt.bench.quality.training import text_trainer, train_digits, training

DOCS = record.FOLDER.parent.parent / "docs"
PACKAGES = (*PEERS, "scikit-learn", "ml_dtypes")


def work(quick: bool) -> dict[str, tuple[int, Callable[[Tick], Any]]]:
    """Return the parts of a run: the number of progress ticks of each, and the function that measures it."""
    runs = len(SHOWN) + 1
    steps, seeds, many = (
        (300, 2, 2) if quick else (3000, 5, 16)
    )  # training on digits is chaotic: five seeds are too few to tell
    epochs, text_steps, pushes = (5, 60, 300) if quick else (200, 3000, 3000)
    return {
        "moments": (len(STREAMS) * steps, lambda tick: moments(steps, tick)),
        "digits": (many * runs, lambda tick: training(many, lambda *a: train_digits(epochs, *a), tick)),
        "text": (seeds * runs, lambda tick: training(seeds, text_trainer(text_steps), tick)),
        "rules": (len(UNSIGNED) * text_steps, lambda tick: rules(text_steps, tick)),
        "rounding": (len(PUSHED) * pushes + len(DECAYED) * 3 * pushes, lambda tick: rounding(pushes, tick)),
    }


@contextmanager
def bars(parts: Mapping[str, int]) -> Iterator[Callable[[str], Tick]]:
    """Show a progress bar for each part, if rich is installed and stderr is a terminal; yield what starts a bar."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda part: lambda: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        tasks = {part: shown.add_task(part, total=total, start=False) for part, total in parts.items()}

        def begin(part: str) -> Tick:
            shown.start_task(tasks[part])
            return lambda: shown.advance(tasks[part])

        yield begin


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def measure(quick: bool = False, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Measure the parts on one thread; yield the record after each part."""
    from threadpoolctl import threadpool_limits

    threads, start = fastopt.get_threads(), time.perf_counter()
    run = {"suite": "quality", "quick": quick, "threads": 1} | record.conditions()
    run["versions"] |= {package: _version(package) for package in PACKAGES}
    run["results"] = {"bytes": sizes()}
    parts = {name: part for name, part in work(quick).items() if not only or name in only}
    fastopt.set_threads(1)
    try:
        with threadpool_limits(1), bars({name: total for name, (total, _) in parts.items()}) as begin:
            for name, (_, call) in parts.items():
                with np.errstate(all="ignore"):
                    run["results"][name] = call(begin(name))
                run["seconds"] = round(time.perf_counter() - start, 1)
                yield run
    finally:
        fastopt.set_threads(threads)


def results(path: Path) -> dict[str, Any]:
    """Read a results file: the last full measurement of each part, with the conditions of the first run."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    runs = [run for run in runs if run["suite"] == "quality" and not run["quick"]]
    merged = {part: found for run in runs for part, found in run["results"].items()}
    return runs[0] | {"results": merged, "seconds": sum(run["seconds"] for run in runs)}


def main(quick: bool = False, out: Path | None = None, only: Sequence[str] = (), show: Path | None = None) -> None:
    """Measure and save the results; or, with `show`, update docs/storage.md and its pictures from saved ones."""
    if show:
        run = results(show)
        write_document(run, DOCS / "storage.md")
        draw(run, DOCS / "pictures")
        return
    path, run = out or record.FOLDER / f"quality-{datetime.date.today().isoformat()}.jsonl", None
    try:
        for run in measure(quick, only):  # noqa: B007 — after an interrupt the last record is saved
            pass
    finally:
        if run:
            record.append(path, run)
            print("\n\n".join(f"{name}\n{made}" for name, made in tables(run).items()))
            print("\n".join(f"{claim}: {'yes' if true else 'NO'}" for claim, true in claims(run).items()))
            print(f"{run['seconds']:.0f} s; results added to {path}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m fastopt.bench.quality", description=__doc__, formatter_class=formatter)
    made.add_argument("--quick", action="store_true", help="take one minute; too short for meaningful results")
    made.add_argument("--out", type=Path, metavar="FILE", help="add the results to this file")
    made.add_argument("--only", nargs="+", default=(), choices=list(work(True)), help="measure only these parts")
    made.add_argument(
        "--show", type=Path, metavar="FILE", help="update docs/storage.md and its pictures from this file"
    )
    return made


if __name__ == "__main__":
    main(**vars(parser().parse_args()))

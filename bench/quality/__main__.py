"""What a storage costs in quality: its moments beside bitsandbytes' and torchao's, training, and rounding by itself.

`python -m fastopt.bench.quality` takes some 25 minutes on one thread, `--quick` one; `--show` measures nothing and
writes the tables of docs/storage.md and its pictures anew from a file of results.

  moments   m, v and Adam's direction m̂ / (√v̂ + ε) against float32's on the same stream of gradients, whose scales
            within a tile of 256 are log-normal(σ): fastopt's own kernels, and the peers' codes
  training  a perceptron on handwritten digits and a small transformer on characters, under every preset with the same
            seeds; also float32 from a start disturbed by a millionth, which shows what differences mean nothing
  rules     what other rules keep that is never negative, after gradients of 1
  rounding  a parameter that receives steps far below its format's spacing, and a v that has to grow and to decay
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
    """Return the parts: how often each ticks, and the call that measures it."""
    runs = len(SHOWN) + 1
    steps, seeds, many = (300, 2, 2) if quick else (3000, 5, 16)  # digits are chaotic: five seeds leave all open
    epochs, letters, pushes = (5, 60, 300) if quick else (200, 3000, 3000)
    return {
        "moments": (len(STREAMS) * steps, lambda tick: moments(steps, tick)),
        "digits": (many * runs, lambda tick: training(many, lambda *a: train_digits(epochs, *a), tick)),
        "text": (seeds * runs, lambda tick: training(seeds, text_trainer(letters), tick)),
        "rules": (len(UNSIGNED) * letters, lambda tick: rules(letters, tick)),
        "rounding": (len(PUSHED) * pushes + len(DECAYED) * 3 * pushes, lambda tick: rounding(pushes, tick)),
    }


@contextmanager
def bars(parts: Mapping[str, int]) -> Iterator[Callable[[str], Tick]]:
    """Show a bar for each part, if rich is installed and somebody is looking; give each part's tick."""
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
    """Measure part after part on one thread; give the record as it stands after each."""
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
    """Read what a file holds: the last full measurement of each part, and when the first of them was made."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    runs = [run for run in runs if run["suite"] == "quality" and not run["quick"]]
    merged = {part: found for run in runs for part, found in run["results"].items()}
    return runs[0] | {"results": merged, "seconds": sum(run["seconds"] for run in runs)}


def main(quick: bool = False, out: Path | None = None, only: Sequence[str] = (), show: Path | None = None) -> None:
    """Measure and keep the results; or, with `show`, write the document's tables and pictures from kept ones."""
    if show:
        run = results(show)
        write_document(run, DOCS / "storage.md")
        draw(run, DOCS / "pictures")
        return
    path, run = out or record.FOLDER / f"quality-{datetime.date.today().isoformat()}.jsonl", None
    try:
        for run in measure(quick, only):  # noqa: B007 — an interrupt does not cost what was measured before it
            pass
    finally:
        if run:
            record.append(path, run)
            print("\n\n".join(f"{name}\n{made}" for name, made in tables(run).items()))
            print("\n".join(f"{claim}: {'yes' if holds else 'NO'}" for claim, holds in claims(run).items()))
            print(f"{run['seconds']:.0f} s; results added to {path}")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m fastopt.bench.quality", description=__doc__, formatter_class=form)
    made.add_argument("--quick", action="store_true", help="a minute, far too short to judge by")
    made.add_argument("--out", type=Path, metavar="FILE", help="add the results to this file")
    made.add_argument("--only", nargs="+", default=(), choices=list(work(True)), help="some of the parts")
    made.add_argument("--show", type=Path, metavar="FILE", help="write the document's tables and pictures from a file")
    return made


if __name__ == "__main__":
    main(**vars(parser().parse_args()))

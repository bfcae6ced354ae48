"""`python -m bench`: run one suite of benchmarks, show its table and keep its results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fastopt
from bench import clock, device, first, large, record, small, storage, threads, torch_optim

DESCRIPTION = """\
Time fastopt on this machine. Every rule is checked against its reference, and every peer against fastopt, before it
is timed. Contestants take turns in one process; medians, 20th and 80th percentiles are shown and kept.

  large    every kernel at 64 Mi float32 parameters, as a share of the memory ceiling; some beside torch   ~10 minutes
  small    one tensor of 1,000 and a hundred of 10 to 1,000: what a call costs, beside torch's fused AdamW ~10 seconds
  storage  Adam with every storage beside float32's, from memory and in cache; peers' bf16 and 8 bits       ~4 minutes
  first    importing, compiling, and a second process that finds everything compiled                       ~20 seconds
  threads  one thread against several over sizes: from which size a step is shared, and in what chunks     ~5 minutes
  torch    fastopt.torch beside torch.optim: 1,000 tensors by table and flattened, and one of 64 Mi         ~3 minutes
  device   on a CUDA device: momentum, RMSprop and Adam from 1 Ki parameters up, beside torch and a copy   ~5 minutes
"""

EXAMPLES = """\
examples:
  python -m bench small
  python -m bench large --only 'adam*'                 some cases by name
  python -m bench large --elements 1000000 --repeats 3 a quick look
  taskset -c 0 python -m bench small                   on one core

Results are added to bench/results/<date>-<processor>.jsonl, one line of JSON a run, with machine, versions, commit and
load. Let nothing else run: the load before and after is shown and kept. "0.97 × the speed of ceiling" is the median
over rounds of ceiling's time ÷ fastopt's time in the same round.
"""

# How many rounds, and the largest number of parameters, unless asked otherwise.
DEFAULTS = {
    "large": (10, 64 << 20),
    "small": (50, 1000),
    "first": (3, 1000),
    "storage": (10, 64 << 20),
    "threads": (10, 64 << 20),
    "torch": (20, 64 << 20),
    "device": (20, 1 << 30),
}


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(
        "python -m bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("suite", choices=list(DEFAULTS))
    made.add_argument("--out", type=Path, metavar="FILE", help="add the results to this file")
    made.add_argument("--elements", type=int, metavar="N", help="the largest number of parameters")
    made.add_argument("--repeats", type=int, metavar="K", help="rounds in which every contestant is timed once")
    made.add_argument(
        "--only", default="*", metavar="PATTERN", help="the cases whose names fit, for example 'rmsprop*'"
    )
    return made


def work(suite: str, elements: int) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """List a suite's cases by name; each is given the number of rounds and gives its records."""
    if suite == "first":
        return {name: lambda repeats, name=name: first.run(name, repeats) for name in first.RULES}
    suites = {
        "large": large,
        "small": small,
        "storage": storage,
        "threads": threads,
        "torch": torch_optim,
        "device": device,
    }
    cases = suites[suite].cases(elements)
    return {case.name: lambda repeats, case=case: [clock.run(case, repeats)] for case in cases}


def shown(names: Sequence[str], suite: str) -> Iterable[str]:
    """Go through names with a progress bar, if rich is installed and somebody is looking."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return names
    console = Console(stderr=True)
    return track(names, description=suite, console=console, disable=not console.is_terminal)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    line = parser()
    given = line.parse_args(argv)
    asked = (given.repeats, given.elements)
    repeats, elements = (b if a is None else a for a, b in zip(asked, DEFAULTS[given.suite], strict=True))
    if repeats < 1 or elements < 1:
        line.error(f"--repeats and --elements count from 1: got {repeats} and {elements}")
    try:
        known = work(given.suite, elements)
    except fastopt.FastoptError as error:
        line.exit(2, f"{error}\n")
    cases = {name: call for name, call in known.items() if fnmatchcase(name, given.only)}
    if not cases:
        line.error(f"--only {given.only!r} fits no case of {given.suite}: {', '.join(known)}")
    run = {"suite": given.suite, "repeats": repeats, "elements": elements, "threads": fastopt.get_threads()}
    run |= record.conditions() | ({"device": device.describe()} if given.suite == "device" else {})
    before = record.load()
    path, results = given.out or record.default_path(), []
    try:
        for name in shown(list(cases), given.suite):
            results += cases[name](repeats)
    finally:  # an interrupt or a lack of memory does not cost what was measured before it
        run |= {"load": [before, record.load()], "results": results}
        if results:
            record.append(path, run)
    print(record.table(results))
    print(f"load average {run['load'][0]} before, {run['load'][1]} after; results added to {path}")


if __name__ == "__main__":
    sys.exit(main())

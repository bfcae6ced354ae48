"""A peer in a process of its own: `python -m fastopt.bench.worker PEER THREADS`, asked by lines of JSON on its input.

    {"do": "prepare", "case": {…}}   check it, and make it ready at the size of the case       → {"note": …}
    {"do": "sample", "calls": 7}     time so many calls in a row                              → {"seconds": …}
    {"do": "memory", "case": {…}}    make it and step, without the check                      → {"loaded": …, …}
    {"do": "first", "case": {…}}     import it, make it and step twice                        → {"first step": …, …}
    {"do": "drop"}                   give the memory back                                     → {}

Every answer is one line of JSON; {"error": …} says what went wrong. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastopt.bench import check, clock
from fastopt.bench.cases import Case
from fastopt.bench.peers import PEERS
from fastopt.bench.peers.surface import OURS
from fastopt.bench.peers.tensors import WARM


class Worker:
    """One peer, and what it was asked to be ready for."""

    def __init__(self, name: str, threads: int):
        self.peer = {**PEERS, "fastopt": OURS}[name]
        start = time.perf_counter()
        self.peer.load(threads)
        self.took = time.perf_counter() - start
        self.contestant: Any = None

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Check the peer and make it ready for a case."""
        self.drop()
        asked = Case(**case)
        check.check_peer(asked, self.peer)
        self.contestant = self._ready(asked)
        return {"note": self.contestant.note}

    def _ready(self, case: Case) -> Any:
        contestant = self.peer.tune(case, self.peer.make(case, self.peer.problem(case)))
        for _ in range(WARM):
            contestant.step()
        return contestant

    def sample(self, calls: int) -> dict[str, Any]:
        """Time so many calls in a row."""
        return {"seconds": clock.timed(self.contestant.step, self.contestant.ready)(calls)}

    def memory(self, case: dict[str, Any]) -> dict[str, Any]:
        """Step, and give the bytes that the process held after a small step, holds now, and held at most in a step."""
        asked = Case(**case)
        self._ready(check.small(asked)).step()
        gc.collect()
        loaded = resident()
        self.contestant = self._ready(asked)
        gc.collect()
        forget_peak()
        for _ in range(WARM):
            self.contestant.step()
        return {"loaded": loaded, "resident": resident(), "peak": peak()}

    def first(self, case: dict[str, Any]) -> dict[str, Any]:
        """Give the seconds of importing, making and stepping for the first time, and once more."""
        asked, times, start = Case(**case), {"import": self.took}, time.perf_counter()
        made = self.peer.make(asked, self.peer.problem(asked))
        for phase, act in (("make", None), ("first step", made.step), ("second step", made.step)):
            if act:
                act()
            now = time.perf_counter()
            times[phase], start = now - start, now
        return times

    def drop(self) -> dict[str, Any]:
        """Give the memory back."""
        self.contestant = None
        gc.collect()
        return {}


def resident() -> int:
    """Give the bytes of this process that are in memory."""
    return _status("VmRSS")


def peak() -> int:
    """Give the most bytes that were ever in memory. (`ru_maxrss` counts the parent's too, from before the exec.)"""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak count from now on, where Linux lets a process ask for it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """Read /proc/self/status; 0 where there is none."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(sys.argv[1], int(sys.argv[2]))
            answer = getattr(worker, request.pop("do"))(**request)
        except BaseException as error:  # whatever a library raises is an answer; an interrupt is too, and then the end
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0][:300]}", "wrong": isinstance(error, AssertionError)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

"""A peer in its own process: `python -m fastopt.bench.worker PEER THREADS` reads requests, lines of JSON, from stdin.

    {"do": "prepare", "case": {…}}   check the peer and prepare it for the case               → {"note": …}
    {"do": "sample", "calls": 7}     time so many calls in a row                              → {"seconds": …}
    {"do": "memory", "case": {…}}    take some steps and measure memory, without the check    → {"loaded": …, …}
    {"do": "first", "case": {…}}     import the library, make the optimizer, take two steps   → {"first step": …, …}
    {"do": "drop"}                   free the memory                                          → {}

Each answer is one line of JSON; {"error": …} describes a failure. The output of libraries goes to stderr.
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
from fastopt.bench.peers.apis import FASTOPT
from fastopt.bench.peers.tensors import WARM


class Worker:
    """A peer, and the contestant that was prepared last."""

    def __init__(self, name: str, threads: int):
        self.peer = {**PEERS, "fastopt": FASTOPT}[name]
        start = time.perf_counter()
        self.peer.load(threads)
        self.import_seconds = time.perf_counter() - start
        self.contestant: Any = None

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        """Check the peer and prepare it for a case."""
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
        return {"seconds": clock.timed(self.contestant.step, self.contestant.setup)(calls)}

    def memory(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the resident bytes after a small step and after steps of the case, and the peak during the latter."""
        asked = Case(**case)
        self._ready(check.small(asked)).step()
        gc.collect()
        loaded = resident()
        self.contestant = self._ready(asked)
        gc.collect()
        reset_peak()
        for _ in range(WARM):
            self.contestant.step()
        return {"loaded": loaded, "resident": resident(), "peak": peak()}

    def first(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the seconds of the import, of making the optimizer, and of the first and second step."""
        asked, times, start = Case(**case), {"import": self.import_seconds}, time.perf_counter()
        made = self.peer.make(asked, self.peer.problem(asked))
        for phase, act in (("make", None), ("first step", made.step), ("second step", made.step)):
            if act:
                act()
            now = time.perf_counter()
            times[phase], start = now - start, now
        return times

    def drop(self) -> dict[str, Any]:
        """Free the memory of the contestant."""
        self.contestant = None
        gc.collect()
        return {}


def resident() -> int:
    """Return the resident bytes of this process."""
    return _status("VmRSS")


def peak() -> int:
    """Return the peak of the resident bytes. (`ru_maxrss` would include the parent's, from before the exec.)"""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset the peak to the current value; does nothing where the system does not support it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 if there is no such file or field."""
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
        except BaseException as error:  # a library may raise anything; the answer reports it
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0][:300]}", "wrong": isinstance(error, AssertionError)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

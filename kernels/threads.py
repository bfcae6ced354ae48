"""Worker threads for the CPU kernels: plain Python threads that run compiled code without the interpreter lock.

None of Numba's threading layers is involved: `workqueue` aborts the process when two Python threads step at once, `omp`
kills a forked child that steps, `tbb` is rarely found. Here the caller always takes part itself and a worker that wakes
up late finds nothing left to claim, so a step never waits for a thread to start. See docs/decisions/0002.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import SupportsIndex

from fastopt.checks import integer
from fastopt.errors import raised_by


def available(root: Path = Path("/")) -> int:
    """Return how many threads can run at once: the process's cores, or what its control group (cgroup) may use of them.

    A container has all cores of its machine and often the time of a few: more threads would wait for one another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(_quotas(root), default=cores))))


def _quotas(root: Path) -> Iterator[float]:
    """List the cores' worth of time that the control groups of this process may use, in both versions of cgroups."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = mount / name.strip("/")
        for group in (own, *own.parents):  # a container may see its own group as the root
            if not group.is_relative_to(mount):
                break
            with suppress(OSError, ValueError):
                if controllers:
                    quota, period = (int((group / f"cpu.cfs_{x}_us").read_text()) for x in ("quota", "period"))
                else:
                    quota, period = map(int, (group / "cpu.max").read_text().split())  # "max" is a ValueError
                if quota > 0 and period > 0:
                    yield quota / period


class Workers:
    """The worker threads of a process, started when a step first needs them."""

    def __init__(self, threads: int):
        self.threads = threads  # that share a large step, the calling one included
        self.reset()

    def reset(self) -> None:
        """Start afresh, as a forked child must: threads do not survive a fork, and gone ones may hold the lock."""
        self._started = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue = queue.SimpleQueue()

    def helpers(self, pieces: int) -> int:
        """Return how many workers take part, besides the caller, in work that divides into so many pieces."""
        count = min(self.threads, pieces) - 1
        if self._started < count:
            self._start(count)
        return min(self._started, count)

    def _start(self, count: int) -> None:
        with self._lock:
            while self._started < count:
                name = f"fastopt-{self._started}"
                try:
                    threading.Thread(target=_serve, args=(self._work,), name=name, daemon=True).start()
                except RuntimeError:  # no more threads may start, at exit for example: those there are do the work
                    return
                self._started += 1

    def dispatch(self, kernel: Callable, arguments: tuple, memory: object, count: int) -> list[tuple]:
        """Prepare calls that run `kernel(*arguments)` on so many workers and here; `memory` lives until all have."""
        return [*[(self._work.put, (kernel, arguments, (arguments, memory)))] * count, (kernel, *arguments)]


def _serve(work: queue.SimpleQueue) -> None:
    while True:
        kernel, arguments, memory = work.get()
        kernel(*arguments)
        del kernel, arguments, memory


WORKERS = Workers(available())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKERS.reset)


def get_threads() -> int:
    """Return the number of threads that share a large step, the calling one included; at first all that can run."""
    return WORKERS.threads


@raised_by("set_threads")
def set_threads(count: SupportsIndex) -> None:
    """Set the number of threads that share a large step, the calling one included. The results do not depend on it.

    Raises:
        SettingError: count is not an integer of at least 1.

    """
    WORKERS.threads = integer("count", count, 1)

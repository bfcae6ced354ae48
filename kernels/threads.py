"""Worker threads for the CPU kernels: plain Python threads that run compiled code without the interpreter lock.

None of Numba's threading layers is involved: `workqueue` aborts the process when two Python threads step at once, `omp`
kills a forked child that steps, `tbb` is rarely found. Here the caller always takes part itself and a worker that wakes
up late finds nothing left to claim, so a step never waits for a thread to start. See docs/decisions/0002.
"""

from __future__ import annotations

import operator
import os
import queue
import threading
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np

from fastopt.errors import SettingError, explain


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_threads = _available()
_workers = 0
_lock = threading.Lock()
_work: queue.SimpleQueue = queue.SimpleQueue()


def get_threads() -> int:
    """Give the number of threads that share a large step, the calling one included; at first all available cores."""
    return _threads


def set_threads(count: SupportsIndex) -> None:
    """Set the number of threads that share a large step, the calling one included. The results do not depend on it.

    Raises:
        SettingError: count is not an integer of at least 1.

    """
    global _threads
    try:
        number = 0 if isinstance(count, bool | np.bool_) else operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise SettingError(explain("set_threads", "count is not a number of threads.", got=repr(count), expected="≥ 1"))
    _threads = number


def _forget() -> None:
    """Start afresh in a forked child: threads do not survive a fork, and locks may be held by ones that are gone."""
    global _workers, _lock, _work
    _workers, _lock, _work = 0, threading.Lock(), queue.SimpleQueue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _serve(work: queue.SimpleQueue) -> None:
    while True:
        kernel, arguments, keep = work.get()
        kernel(*arguments)
        del kernel, arguments, keep


def _hire(count: int) -> None:
    global _workers
    with _lock:
        while _workers < count:
            try:
                threading.Thread(target=_serve, args=(_work,), name=f"fastopt-{_workers}", daemon=True).start()
            except RuntimeError:  # no more threads may start, at exit for example: those there are do the work
                return
            _workers += 1


def share(kernel: Callable, wait: Callable, n: int, chunk: int, arguments: tuple, keep: object) -> list[tuple]:
    """Prepare the calls that run `kernel(job, n, chunk, *arguments)` here and on workers until all n elements are done.

    Each claims chunks with an atomic add inside the compiled code. `keep` holds the arrays whose addresses are among
    the arguments, until the last worker has looked at the job.
    """
    count = helpers(-(-n // chunk))
    if count < 1:
        return [(kernel, 0, n, n, *arguments)]
    job = np.zeros(16, np.int64)
    address = job.__array_interface__["data"][0]
    calls = hand_out(kernel, (address, n, chunk, *arguments), (job, keep), count)
    return [*calls, (wait, address, -(-n // chunk))]


def helpers(pieces: int) -> int:
    """Give the number of workers that take part, besides the caller, in work that divides into so many pieces."""
    count = min(_threads, pieces) - 1
    if _workers < count:
        _hire(count)
    return min(_workers, count)


def hand_out(kernel: Callable, arguments: tuple, keep: object, count: int) -> list[tuple]:
    """Prepare the calls that run `kernel(*arguments)` on so many workers and here; `keep` lives until all have."""
    return [*[(_work.put, (kernel, arguments, (arguments, keep)))] * count, (kernel, *arguments)]

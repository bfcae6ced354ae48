"""The other end of worker.py's pipe: a peer's process, started when it is first needed, its answers waited for."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastopt.bench.cases import Case

LONGEST = 600.0  # seconds for an answer: DeepSpeed and torch.compile build C++ before the first


class PeerError(RuntimeError):
    """A peer's process did not do what it was asked; the message says why."""


class Process:
    """A peer with so many threads in a process of its own. Use it in a `with`, which ends the process."""

    def __init__(self, peer: str, threads: int, **variables: str):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — it lasts as long as the process
        command = [sys.executable, "-P", "-m", "fastopt.bench.worker", peer, str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**environment(threads), **variables},
            cwd=tempfile.gettempdir(),  # libraries import what lies in the working folder
            start_new_session=True,  # an interrupt is for the parent, which ends it
            preexec_fn=None if threads >= _cores() else _pin(threads),
        )

    def ask(self, do: str, seconds: float = LONGEST, **what: Any) -> dict[str, Any]:
        """Ask, wait for the answer, and raise a PeerError if it is an error, or none comes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._epitaph()) from None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(seconds):
                self.close()
                raise PeerError(f"no answer in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._epitaph())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def prepare(self, case: Case) -> str:
        """Check the peer and make it ready for a case; gives a note."""
        return self.ask("prepare", case=case.as_dict())["note"]

    def seconds(self, calls: int) -> float:
        """Time so many calls in a row."""
        return self.ask("sample", calls=calls)["seconds"]

    def close(self) -> None:
        """End the process, and those that its library started: torch.compile has a pool of them."""
        if self._process.returncode is None and hasattr(os, "killpg"):  # not waited for: the number is still its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream and not stream.closed:
                with suppress(OSError):  # what it did not read any more
                    stream.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with code {code}" + (f": {last[0][:200]}" if last else "")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pin(threads: int) -> Any:
    """Give what lets a process use so many cores: XLA takes no number of threads, it counts the cores it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def environment(threads: int) -> dict[str, str]:
    """Give the variables of a peer's process: threads, huge pages for torch's memory as NumPy has, its compilers."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "THP_MEM_ALLOC_ENABLE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # where ninja is
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

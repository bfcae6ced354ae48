"""Start a peer in its own process (worker.py), send it requests through a pipe and wait for its answers."""

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

TIMEOUT = 600.0  # seconds to wait for an answer: DeepSpeed and torch.compile build C++ before the first


class PeerError(RuntimeError):
    """A request to a peer's process failed; the message says why."""


class Process:
    """A peer with a number of threads in its own process. Use it in a `with` block, which ends the process."""

    def __init__(self, peer: str, threads: int, **variables: str):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — open as long as the process runs
        command = [sys.executable, "-P", "-m", "fastopt.bench.worker", peer, str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**environment(threads), **variables},
            cwd=tempfile.gettempdir(),  # some libraries import modules from the working folder
            start_new_session=True,  # Ctrl-C interrupts the parent only, which then ends it
            preexec_fn=None if threads >= _cores() else _pin(threads),
        )

    def ask(self, do: str, seconds: float = TIMEOUT, **what: Any) -> dict[str, Any]:
        """Send a request and return the answer; raise a PeerError if that is an error or does not come in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._exit_message()) from None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(seconds):
                self.close()
                raise PeerError(f"no answer in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._exit_message())
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def prepare(self, case: Case) -> str:
        """Check the peer and prepare it for a case; return its note."""
        return self.ask("prepare", case=case.as_dict())["note"]

    def seconds(self, calls: int) -> float:
        """Time so many calls in a row."""
        return self.ask("sample", calls=calls)["seconds"]

    def close(self) -> None:
        """End the process and those that its library started: torch.compile has a pool of them."""
        if self._process.returncode is None and hasattr(
            os, "killpg"
        ):  # no wait yet: the process id cannot have been reused
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream and not stream.closed:
                with suppress(OSError):  # input that it did not read
                    stream.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def _exit_message(self) -> str:
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
    """Return a function that limits a process to so many cores: XLA starts a thread for each core it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a peer's process: number of threads, huge pages for torch as for NumPy, PATH."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "THP_MEM_ALLOC_ENABLE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # ninja is there
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

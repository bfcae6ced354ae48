"""What an adapter is: a library that may be missing, may be unable, and otherwise steps on the memory of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from fastopt.bench import problem as memory
from fastopt.bench.cases import Case
from fastopt.bench.problem import Problem


class Contestant(NamedTuple):
    """A peer that is ready: its step, and its parameters now, as float32. `ready` comes before each sample."""

    step: Callable[[], object]
    params: Callable[[], Mapping[str, np.ndarray]]
    ready: Callable[[], object] | None = None
    note: str = ""


class Peer:
    """One library, in one of its forms. `packages` are what it imports; `apart` says that it has its own process."""

    name: str
    packages: tuple[str, ...] = ()
    apart = True
    own_state = False
    light = False  # whether it needs no compiler, so that a quick run has it too
    devices = False  # whether it steps on the memory of a CUDA device too

    def absent(self) -> str | None:
        """Name what is not installed, without importing anything; None if nothing is missing."""
        missing = [name for name in self.packages if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def cannot(self, case: Case) -> str | None:
        """Say why it cannot do a case; None if it can."""
        raise NotImplementedError

    def load(self, threads: int) -> None:
        """Import the library, and let it use so many threads."""
        raise NotImplementedError

    def problem(self, case: Case) -> Problem:
        """Allocate the memory of a case for a process of its own; the state too, unless the library wants its own."""
        if case.backend == "cuda":
            return memory.shared(memory.optimizer(case))
        return memory.fresh(case, state=not self.own_state)

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Make its step on this memory, or on copies of it where the library wants its own."""
        raise NotImplementedError

    def checked(self, case: Case) -> int:
        """Give the number of parameters of a tensor on which it is checked: an odd one, unless it needs another."""
        return 1003

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Choose the settings with which a contestant is fastest, such as the number of threads; it may step."""
        return contestant

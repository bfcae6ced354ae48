"""The interface of an adapter: its library may be missing or not support a case; otherwise it makes a step for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from fastopt.bench import problem as memory
from fastopt.bench.cases import Case
from fastopt.bench.problem import Problem


class Contestant(NamedTuple):
    """A step that is ready to be timed: `params` returns the current parameters in float32.

    `setup` is called before each sample; `note` is shown with the results.
    """

    step: Callable[[], object]
    params: Callable[[], Mapping[str, np.ndarray]]
    setup: Callable[[], object] | None = None
    note: str = ""


class Peer:
    """One library, or one of its implementations."""

    name: str
    packages: tuple[str, ...] = ()  # which it imports
    own_process = True  # whether it runs in its own process
    own_state = False  # whether it allocates its own state
    light = False  # whether it starts without compiling, so that quick runs include it
    supports_cuda = False

    def absent(self) -> str | None:
        """Say which packages are not installed, without importing any; None if all are."""
        missing = [name for name in self.packages if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def cannot(self, case: Case) -> str | None:
        """Say why it does not support a case; None if it does."""
        raise NotImplementedError

    def load(self, threads: int) -> None:
        """Import the library and set its number of threads."""
        raise NotImplementedError

    def problem(self, case: Case) -> Problem:
        """Allocate the arrays of a case in its own process; those of the state only if it does not allocate them."""
        if case.backend == "cuda":
            return memory.of_optimizer(memory.optimizer(case))
        return memory.allocate(case, state=not self.own_state)

    def make(self, case: Case, problem: Problem) -> Contestant:
        """Make its step on these arrays, or on copies if the library needs its own."""
        raise NotImplementedError

    def check_size(self, case: Case) -> int:
        """Return the tensor size for the check of its result; an odd one, so that kernels have a remainder loop."""
        return 1003

    def tune(self, case: Case, contestant: Contestant) -> Contestant:
        """Choose the fastest settings, such as the number of threads; may take steps to find out."""
        return contestant

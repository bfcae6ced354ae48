"""Steps prepared on a device, so that they can be captured into a CUDA graph.

A graph repeats what was captured. So t, the scheduled settings and all that depends on t live on the device, in a table
of the next steps, and each step, captured or not, uses the next row: bit for bit the same steps. The same table serves
steps that the device may skip: it alone knows which is next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.arrays.library import Device, Library
from fastopt.errors import BackendError, SettingError
from fastopt.kernels.launch import steps
from fastopt.parameters import Group


class PreparedSteps:
    """The next `steps` steps of some groups, in the memory of their device.

    With `ahead` they are prepared anew by `calls` whenever so many were launched, as no graph launches them.
    """

    def __init__(self, groups: Sequence[Group], library: Library, device: Device, steps: int, *, ahead: bool = False):
        self.ahead = ahead
        self._groups, self._library, self._device, self.steps = groups, library, device, steps
        self._counter: Any = None  # of the backend: says on the device which row is next
        self._first = 0  # t before the first prepared step
        self._calls = 0  # since steps were prepared

    def prepare(self, seed: int, t: int) -> None:
        """Prepare the steps after step t; waits for the device. An error leaves what was prepared before as it was."""
        rows = range(t + 1, t + 1 + self.steps)
        scalars = [[group.plan.scalars(k) for k in rows] for group in self._groups]  # all, before anything is written
        keys = [[group.plan.keys(seed, k) for k in rows] for group in self._groups]
        self._library.wait(self._device)  # for replays that still read the table
        launches: list[Any] = [group.launch for group in self._groups]
        counter = self._counter or launches[-1].counter()  # all are skipped, or none
        for launch, table, noise in zip(launches, scalars, keys, strict=True):
            launch.prepare(counter, table, noise)
        self._library.copy(counter.row, np.zeros(1, np.int64))
        self._library.wait(self._device)  # for the copies, which another stream would not
        self._counter, self._first, self._calls = counter, t, 0

    def prepare_next(self, seed: int, steps: int) -> None:
        """Prepare as many steps again, after those that were taken; captured graphs go on with them."""
        if steps != self.steps:
            what = "the number of prepared steps is fixed: captured graphs know where the table lies."
            raise SettingError(what, got=steps, expected=self.steps)
        self.prepare(seed, self._first + min(self._launched(), self.steps))

    def calls(self, seed: int) -> list[tuple]:
        """Prepare the launch of the next step, whichever that is when it runs."""
        if self.ahead and self._calls == self.steps:
            self.prepare_next(seed, self.steps)
        self._calls += 1
        launches: list[Any] = [group.launch for group in self._groups]
        if self._groups[0].plan.program.over_all:
            calls = steps([(launch, (), None) for launch in launches])
        else:
            calls = [c for launch in launches for c in launch.captured_calls()]
        return calls + self._counter.calls

    def skipped(self) -> int:
        """Wait for the device and read how many steps were skipped."""
        self._library.wait(self._device)
        return int(self._library.to_numpy(self._counter.skipped)[0])

    def _launched(self) -> int:
        """Wait for the device and read how many steps were launched since the last ones were prepared."""
        self._library.wait(self._device)
        return int(self._library.to_numpy(self._counter.row)[0])

    @property
    def first(self) -> int:
        """Steps taken before the prepared ones."""
        return self._first

    def t(self) -> int:
        """Read how many steps were taken in all, or raise a BackendError if more were launched than prepared."""
        count = self._launched()
        if count <= self.steps:
            return self._first + count
        raise BackendError(
            f"{count - self.steps} steps were not taken: no more were prepared.",
            got=f"{count} replays of {self.steps} prepared steps; parameters and state are those after the last",
            do=f"call opt.capturable({self.steps}) again before they are used up",
        )

"""Copies between devices and page-locked memory of the CPU, on streams of their own, and a thread for what follows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch  # pyright: ignore[reportMissingImports]


class Gradient(NamedTuple):
    """A gradient on its way to the CPU."""

    copy: torch.Tensor
    source: torch.Tensor  # alive until it is copied
    arrived: Any = None  # an event on the device, or None: it is there

    def wait(self) -> torch.Tensor:
        """Return the copy when it is complete."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.copy


class Transfers:
    """Copies between devices and page-locked memory, on two streams of each device, so that both ways go at once."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, tuple[Any, Any]] = {}  # to the CPU, to the device

    def _of(self, device: torch.device) -> tuple[Any, Any]:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self._streams[device]

    def start(self, tensor: torch.Tensor) -> Gradient:
        """Begin to copy a tensor to the CPU, after what the device's current stream has to do."""
        copy = empty_on_host(tensor, page_locked=tensor.is_cuda)
        if not tensor.is_cuda:
            return Gradient(copy.copy_(tensor), tensor)
        down, _ = self._of(tensor.device)
        down.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(down):
            copy.copy_(tensor, non_blocking=True)
        return Gradient(copy, tensor, down.record_event())

    def read(self, source: torch.Tensor, host: torch.Tensor) -> None:
        """Copy a tensor to the CPU, and wait for it."""
        if not source.is_cuda:
            host.copy_(source)
            return
        down, _ = self._of(source.device)
        down.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(down):
            host.copy_(source)

    def write(self, host: torch.Tensor, target: torch.Tensor, gradient: Gradient | None) -> None:
        """Begin to copy a tensor to its device, when all is done there that came before a gradient, or before now."""
        if not target.is_cuda:
            target.copy_(host)
            return
        _, up = self._of(target.device)
        if gradient is None or gradient.arrived is None:
            up.wait_stream(torch.cuda.current_stream(target.device))
        else:
            up.wait_event(gradient.arrived)
        with torch.cuda.stream(up):
            target.copy_(host, non_blocking=True)

    def finish(self) -> None:
        """Let the devices' current streams wait for what is under way to them."""
        for device, (_, up) in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(up)


def empty_on_host(like: torch.Tensor, *, page_locked: bool) -> torch.Tensor:
    """Make a tensor of the CPU of a tensor's type, shape and order."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu", pin_memory=page_locked)


class Worker:
    """One thread that does what is submitted, in order."""

    def __init__(self) -> None:
        self._pending: list[Future] = []
        self._process, self._pool = -1, None

    def submit(self, job: Callable, *args: Any) -> None:
        """Do this after all that was submitted before."""
        if self._process != os.getpid():  # at first, and in a forked child, which has no threads
            self._process, self._pool, self._pending = os.getpid(), ThreadPoolExecutor(1, "fastopt-offload"), []
        assert self._pool is not None
        self._pending.append(self._pool.submit(job, *args))

    def wait(self) -> None:
        """Wait until all is done, and raise the first error there was."""
        errors = []
        while self._pending:
            error = self._pending[0].exception()
            del self._pending[0]  # after the wait, which may be interrupted
            errors += [] if error is None else [error]
        if errors:
            raise errors[0]

"""Copies between devices and page-locked memory of the CPU, on streams of their own, and a thread for what follows."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch  # pyright: ignore[reportMissingImports]
from torch.multiprocessing.reductions import StorageWeakRef  # pyright: ignore[reportMissingImports]

from fastopt.errors import BackendError


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

    def _after_current(self, device: torch.device) -> tuple[Any, Any]:
        """Return the two streams of a device, which then wait for what its current stream has to do."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device), torch.cuda.Stream(device)
        for stream in self._streams[device]:
            stream.wait_stream(torch.cuda.current_stream(device))
        return self._streams[device]

    def start(self, tensor: torch.Tensor) -> Gradient:
        """Begin to copy a tensor to the CPU, after what the device's current stream has to do."""
        copy = empty_on_host(tensor, page_locked=tensor.is_cuda)
        if not tensor.is_cuda:
            return Gradient(copy.copy_(tensor), tensor)
        down = self._after_current(tensor.device)[0]
        with torch.cuda.stream(down):
            copy.copy_(tensor, non_blocking=True)
        return Gradient(copy, tensor, down.record_event())

    def read(self, source: torch.Tensor, host: torch.Tensor) -> None:
        """Copy a tensor to the CPU, and wait for it."""
        if not source.is_cuda:
            host.copy_(source)
            return
        with torch.cuda.stream(self._after_current(source.device)[0]):
            host.copy_(source)

    def write(self, host: torch.Tensor, target: torch.Tensor) -> None:
        """Begin to copy a tensor to its device, after what the device's current stream has to do."""
        if not target.is_cuda:
            target.copy_(host)
            return
        with torch.cuda.stream(self._after_current(target.device)[1]):
            target.copy_(host, non_blocking=True)

    def finish(self) -> None:
        """Let the devices' current streams wait for what is under way to them."""
        for device, (_, up) in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(up)

    def contents(self, tensor: torch.Tensor) -> tuple:
        """Return what changes when a tensor is written to, as autograd counts, or gets other memory.

        The weak reference keeps the number of a storage that is gone from being another's.
        """
        return tensor._version, tensor.storage_offset(), StorageWeakRef(tensor.untyped_storage())


class Worker:
    """One thread that does what is submitted, in order. It ends with this object."""

    def __init__(self) -> None:
        self._jobs: queue.Queue = queue.Queue()
        self._process, self._thread = os.getpid(), None
        self._errors: list[BaseException] = []

    def submit(self, job: Callable, *args: Any) -> None:
        """Do this after all that was submitted before, with as many threads of torch's as here.

        Errors are kept for `raise_error`.
        """
        self._require_process()
        if self._thread is None or not self._thread.is_alive():
            arguments = self._jobs, self._errors
            self._thread = threading.Thread(target=_work, args=arguments, name="fastopt-offload", daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None).atexit = False
        self._jobs.put((job, args, torch.get_num_threads()))

    def wait(self) -> None:
        """Wait until all is done that was submitted."""
        self._require_process()
        self._jobs.join()

    def raise_error(self) -> None:
        """Raise the first error there was since this was asked last."""
        errors = self._errors[:]
        self._errors.clear()
        if errors:
            raise errors[0]

    def _require_process(self) -> None:
        """Begin anew in a forked child, which has no such thread; raise an error if it was at work."""
        if self._process == os.getpid():
            return
        pending, self._jobs = self._jobs.unfinished_tasks, queue.Queue()
        self._process, self._thread, self._errors = os.getpid(), None, []
        if pending:
            what = "this process was forked between backward and step, while a thread of its parent was stepping."
            raise BackendError(what, do="fork after step(), or load a checkpoint into a new optimizer")


def _work(jobs: queue.Queue, errors: list[BaseException]) -> None:
    known = None
    while (found := jobs.get()) is not None:
        job, args, threads = found
        try:
            if threads != known:  # a new thread has its own number, and products have other bits with another one
                torch.set_num_threads(threads)
                known = threads
            with torch.no_grad():
                job(*args)
        except BaseException as error:  # raised by the thread that asks for it
            errors.append(error)
        finally:
            del found, job, args
            jobs.task_done()


def empty_on_host(like: torch.Tensor, *, page_locked: bool) -> torch.Tensor:
    """Make a tensor of the CPU of a tensor's type, shape and order."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu", pin_memory=page_locked)

"""A run that is killed while it saves, again and again, for test_torch_crashes.

`python torch_killed.py HOW STORAGE FOLDER KILLS`. It is a process of its own that starts no threads, which its forked
children would not have.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from test_torch_state import STORAGES, bits, made, train


def save_file(net: Any, opt: Any, step: int, folder: Path) -> None:
    torch.save((net.state_dict(), opt.state_dict(), step), folder / "new.pt")
    os.replace(folder / "new.pt", folder / "last.pt")


def load_file(net: Any, opt: Any, folder: Path) -> int:
    if not (folder / "last.pt").exists():
        return 0
    model, state, step = torch.load(folder / "last.pt", weights_only=True)
    net.load_state_dict(model)
    opt.load_state_dict(state)
    return step


def save_distributed(net: Any, opt: Any, step: int, folder: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # pyright: ignore[reportMissingImports]
    from torch.distributed.checkpoint.state_dict import get_state_dict  # pyright: ignore[reportMissingImports]
    from torch.distributed.checkpoint.state_dict_saver import save  # pyright: ignore[reportMissingImports]

    model, state = get_state_dict(net, opt)
    shutil.rmtree(folder / "new", ignore_errors=True)
    save({"model": model, "state": state, "step": step}, storage_writer=FileSystemWriter(folder / "new"))
    (folder / "new").rename(folder / f"step-{step:06}")


def load_distributed(net: Any, opt: Any, folder: Path) -> int:
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # pyright: ignore[reportMissingImports]
    from torch.distributed.checkpoint.state_dict import (  # pyright: ignore[reportMissingImports]
        get_state_dict,
        set_state_dict,
    )
    from torch.distributed.checkpoint.state_dict_loader import load  # pyright: ignore[reportMissingImports]

    whole = sorted(folder.glob("step-*"))
    if not whole:
        return 0
    model, state = get_state_dict(net, opt)
    into = {"model": model, "state": state, "step": 0}
    load(into, storage_reader=FileSystemReader(whole[-1]))
    set_state_dict(net, opt, model_state_dict=into["model"], optim_state_dict=into["state"])
    return into["step"]


WAYS = {"file": (save_file, load_file), "distributed": (save_distributed, load_distributed)}


def run(how: str, storage: str, folder: Path, ready: int) -> None:
    """Go on from the last checkpoint, for ever."""
    save, load = WAYS[how]
    net, opt = made(*STORAGES[storage], steps=0)
    step = load(net, opt, folder)
    train(net, opt, range(step, step + 1))
    os.write(ready, b".")
    while True:
        step += 1
        save(net, opt, step, folder)
        os.write(ready, b".")
        train(net, opt, range(step, step + 1))


def wait(pipe: int) -> None:
    """Wait until a child has written to a pipe."""
    assert select.select([pipe], [], [], 60)[0], "a child does not go on"
    os.read(pipe, 1)


def main(how: str, storage: str, folder: Path, kills: int) -> None:
    """Kill a run at random moments, and compare what is left with a run that was not killed."""
    made(*STORAGES[storage], steps=1)  # imports, compiles and loads what the children need
    rng, saved, took = random.Random(0), 0, 0.02  # saves that were finished, seconds that the last took
    for _ in range(kills):
        waiting, ready = os.pipe()
        child = os.fork()
        if not child:
            try:
                run(how, storage, folder, ready)
            finally:
                os._exit(1)
        os.close(ready)
        try:
            wait(waiting)
            for _ in range(rng.randrange(3)):
                began = time.perf_counter()
                wait(waiting)
                saved, took = saved + 1, time.perf_counter() - began
            time.sleep(rng.uniform(0, 1.2 * took))  # so the next save is in whatever state
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(waiting)
    net, opt = made(*STORAGES[storage], steps=0)
    step = WAYS[how][1](net, opt, folder)
    assert step >= saved > 0
    assert bits(net, opt) == bits(*made(*STORAGES[storage], steps=step))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))

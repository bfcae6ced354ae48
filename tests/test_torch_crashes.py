"""A run that is killed while it saves goes on from its last whole checkpoint, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_state import bits, made, train  # noqa: E402

KILLS = 34  # for each of three storages, so a hundred for each way to save


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
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model, state = get_state_dict(net, opt)
    shutil.rmtree(folder / "new", ignore_errors=True)
    save({"model": model, "state": state, "step": step}, storage_writer=FileSystemWriter(folder / "new"), no_dist=True)
    (folder / "new").rename(folder / f"step-{step:06}")


def load_distributed(net: Any, opt: Any, folder: Path) -> int:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    whole = sorted(folder.glob("step-*"))
    model, state = get_state_dict(net, opt)
    into = {"model": model, "state": state, "step": 0}
    if whole:
        load(into, storage_reader=FileSystemReader(whole[-1]), no_dist=True)
        set_state_dict(net, opt, model_state_dict=into["model"], optim_state_dict=into["state"])
    return into["step"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("storage", [None, "8bit", "split_8bit"])
@pytest.mark.parametrize(("save", "load"), [(save_file, load_file), (save_distributed, load_distributed)])
def test_a_run_killed_while_it_saves_goes_on_from_its_last_checkpoint(save, load, storage, tmp_path):
    dtype = torch.bfloat16 if storage == "split_8bit" else torch.float32
    made(dtype, storage, steps=1)  # what is compiled, the children have
    rng = random.Random(0)
    for _ in range(KILLS):
        waiting, ready = os.pipe()
        child = os.fork()
        if not child:
            try:
                net, opt = made(dtype, storage, steps=0)
                step = load(net, opt, tmp_path)
                train(net, opt, range(step, step + 1))
                os.write(ready, b".")
                while True:
                    step += 1
                    save(net, opt, step, tmp_path)
                    train(net, opt, range(step, step + 1))
            finally:
                os._exit(1)
        os.close(ready)
        assert os.read(waiting, 1) == b"."
        os.close(waiting)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    net, opt = made(dtype, storage, steps=0)
    step = load(net, opt, tmp_path)
    assert step > 5
    twin, other = made(dtype, storage, steps=step)
    assert bits(net, opt) == bits(twin, other)

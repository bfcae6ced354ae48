"""Two processes that train together by gloo, for test_torch_trainers: `python torch_processes.py ddp|fsdp …`."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from typing import Any

import pytest
import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]
from torch.multiprocessing.spawn import spawn  # pyright: ignore[reportMissingImports]

import fastopt.torch


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3, bias=False))


def data(step: int, rank: int) -> Any:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def expected(steps: int) -> list[Any]:
    """Train in one process on what both have: the mean of their gradients."""
    net = model()
    opt = torch.optim.AdamW(net.parameters(), lr=0.05)
    for step in range(steps):
        opt.zero_grad()
        for rank in range(2):
            (net(data(step, rank)).square().mean() / 2).backward()
        opt.step()
    return [p.detach() for p in net.parameters()]


def close(found: list[Any], steps: int) -> None:
    for p, q in zip(found, expected(steps), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # the order of sums, through six steps


def ddp(rank: int, flatten: str) -> None:
    net = torch.nn.parallel.DistributedDataParallel(model())
    opt = fastopt.torch.AdamW(net.parameters(), lr=0.05, flatten=flatten == "True")
    for step in range(6):
        opt.zero_grad()
        net(data(step, rank)).square().mean().backward()
        opt.step()
    close([p.detach() for p in net.parameters()], 6)


def fsdp(rank: int, folder: str) -> None:
    import torch.distributed.checkpoint.state_dict_loader as loader  # pyright: ignore[reportMissingImports]
    import torch.distributed.checkpoint.state_dict_saver as saver  # pyright: ignore[reportMissingImports]
    from torch.distributed.checkpoint.state_dict import (  # pyright: ignore[reportMissingImports]
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh  # pyright: ignore[reportMissingImports]
    from torch.distributed.fsdp import fully_shard  # pyright: ignore[reportMissingImports]
    from torch.distributed.tensor import DTensor  # pyright: ignore[reportMissingImports]

    mesh = init_device_mesh("cpu", (2,))

    def build(**own: Any) -> Any:
        net = model()
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net, fastopt.torch.AdamW(net.parameters(), lr=0.05, **own)

    def train(net: Any, opt: Any, steps: range) -> None:
        for step in steps:
            opt.zero_grad()
            net(data(step, rank)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
            opt.step()

    def whole(net: Any) -> list[Any]:
        return [p.full_tensor().detach().clone() for p in net.parameters()]

    net, opt = build()
    train(net, opt, range(3))
    p = next(net.parameters())
    assert isinstance(p, DTensor)
    assert isinstance(opt.state[p]["exp_avg"], DTensor)
    saved = {"net": net.state_dict(), "opt": get_optimizer_state_dict(net, opt)}
    saver.save(saved, checkpoint_id=folder)
    train(net, opt, range(3, 6))
    close(whole(net), 6)

    again, other = build()
    loaded = {"net": again.state_dict(), "opt": get_optimizer_state_dict(again, other)}
    loader.load(loaded, checkpoint_id=folder)
    again.load_state_dict(loaded["net"])
    set_optimizer_state_dict(again, other, loaded["opt"])
    train(again, other, range(3, 6))
    for a, b in zip(whole(net), whole(again), strict=True):
        assert torch.equal(a, b)

    small, eight = build(storage="8bit")
    train(small, eight, range(6))
    kept = eight.state_dict()["state"][0]
    assert isinstance(kept["exp_avg"], DTensor)
    assert kept["exp_avg"].shape == next(small.parameters()).shape
    with pytest.raises(fastopt.LayoutError, match="distributed"):
        build(flatten=True)


def run(rank: int, port: int, script: str, arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        {"ddp": ddp, "fsdp": fsdp}[script](rank, *arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        found = free.getsockname()[1]
    spawn(run, (found, sys.argv[1], sys.argv[2:]), nprocs=2)

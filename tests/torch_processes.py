"""Processes that train together by gloo, for test_torch_distributed: `python torch_processes.py 2 ddp …`.

Each script is a function here; `spawn` starts as many processes as the first argument says.

Over 300 lines: a started process costs seconds, so each script tries much.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from typing import Any

import pytest
import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]
import torch.distributed.checkpoint.state_dict_loader as loader  # pyright: ignore[reportMissingImports]
import torch.distributed.checkpoint.state_dict_saver as saver  # pyright: ignore[reportMissingImports]
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


STORAGES = {
    "plain": (torch.float32, None),
    "half": (torch.bfloat16, "bf16"),
    "split": (torch.bfloat16, "split"),
    "kahan": (torch.bfloat16, "bf16_kahan"),
    "8bit": (torch.float32, "8bit"),
    "split_8bit": (torch.bfloat16, "split_8bit"),
}


def network(rows: int) -> Any:
    """Return a network; of that with 12 rows the shards of 1, 2 and 3 processes consist of whole tiles of 256."""
    torch.manual_seed(0)
    columns, last = (256, 768) if rows == 12 else (6, 5)
    first, second = torch.nn.Linear(columns, rows, bias=rows != 12), torch.nn.Linear(rows, last, bias=False)
    return torch.nn.Sequential(first, torch.nn.Tanh(), second)


def sharded(storage: str, rows: int, *, steps: int = 0) -> Any:
    """Return a network sharded over all processes, and its optimizer."""
    from torch.distributed.device_mesh import init_device_mesh  # pyright: ignore[reportMissingImports]
    from torch.distributed.fsdp import fully_shard  # pyright: ignore[reportMissingImports]

    dtype, kind = STORAGES[storage]
    net, mesh = network(rows).to(dtype), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    opt = fastopt.torch.AdamW(net.parameters(), lr=0.01, storage=kind)
    steps_of_all(net, opt, range(steps))
    return net, opt


def steps_of_all(net: Any, opt: Any, steps: range) -> None:
    """Train on the same batch in each process: the mean of two equal gradients is exact."""
    for step in steps:
        opt.zero_grad()
        weight = next(net.parameters())
        x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(step))
        net(x.to(weight.dtype)).float().square().mean().backward()
        opt.step()


def values_of(net: Any, opt: Any) -> dict[str, Any]:
    """Return copies of all values of parameters and state, whole."""
    from torch.distributed.tensor import DTensor  # pyright: ignore[reportMissingImports]

    found = dict(net.named_parameters())
    for k, entries in opt.state_dict()["state"].items():
        for name, x in entries.items():
            assert name == "step" or (isinstance(x, DTensor) and x.placements == found_at(net, k).placements)
            found[f"{k}/{name}"] = x
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in found.items()}
    return {name: x.detach().clone() for name, x in whole.items()}


def found_at(net: Any, k: int) -> Any:
    return list(net.parameters())[k]


def save(rank: int, folder: str) -> None:
    """Train three steps and save, then three more; each storage, with names nested and in a flat dict."""
    from torch.distributed.checkpoint.state_dict import (  # pyright: ignore[reportMissingImports]
        StateDictOptions,
        get_state_dict,
    )

    for storage in STORAGES:
        for rows in (12, 7):
            net, opt = sharded(storage, rows, steps=3)
            for flat in (False, True):
                names = StateDictOptions(flatten_optimizer_state_dict=flat)
                model, state = get_state_dict(net, opt, options=names)
                saver.save({"model": model, "state": state}, checkpoint_id=f"{folder}/{storage}-{rows}-{flat}")
            saved = values_of(net, opt)
            steps_of_all(net, opt, range(3, 6))
            ended = values_of(net, opt)
            if rank == 0:
                torch.save((saved, ended), f"{folder}/{storage}-{rows}.pt")


def load(rank: int, folder: str) -> None:
    """Load what two processes saved, and go on as they did."""
    from torch.distributed.checkpoint.state_dict import (  # pyright: ignore[reportMissingImports]
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    world = dist.get_world_size()
    for storage in STORAGES:
        for rows in (12, 7):
            # Shards that are not whole tiles have tiles, and random bits, that other numbers of processes have not.
            regrouped = rows == 7 and world != 2
            if regrouped and "8bit" in storage:
                continue
            saved, ended = torch.load(f"{folder}/{storage}-{rows}.pt")
            for flat in (False, True):
                names = StateDictOptions(flatten_optimizer_state_dict=flat)
                net, opt = sharded(storage, rows)
                model, state = get_state_dict(net, opt, options=names)
                into = {"model": model, "state": state}
                loader.load(into, checkpoint_id=f"{folder}/{storage}-{rows}-{flat}")
                set_state_dict(net, opt, model_state_dict=into["model"], optim_state_dict=into["state"], options=names)
                equal(values_of(net, opt), saved, f"{storage}, {rows} rows, loaded by {world}")
                if world <= 2 and not (
                    regrouped and storage in ("half", "kahan")
                ):  # the mean of three gradients is rounded
                    steps_of_all(net, opt, range(3, 6))
                    equal(values_of(net, opt), ended, f"{storage}, {rows} rows, continued by {world}")


def equal(found: dict[str, Any], expected: dict[str, Any], text: str) -> None:
    assert found.keys() == expected.keys(), text
    for name, x in expected.items():
        assert torch.equal(found[name], x), f"{text}: {name}"


def plain(rank: int, folder: str) -> None:
    """Load what two processes saved into torch.optim, without sharding."""
    from torch.distributed.checkpoint.state_dict import (  # pyright: ignore[reportMissingImports]
        get_state_dict,
        set_state_dict,
    )

    for storage in ("plain", "8bit"):
        saved, _ = torch.load(f"{folder}/{storage}-12.pt")
        net = network(12)
        opt = torch.optim.AdamW(net.parameters(), lr=0.01)
        model, state = get_state_dict(net, opt)
        into = {"model": model, "state": state}
        loader.load(into, checkpoint_id=f"{folder}/{storage}-12-False")
        set_state_dict(net, opt, model_state_dict=into["model"], optim_state_dict=into["state"])
        for k, entries in opt.state_dict()["state"].items():
            for name, x in entries.items():
                assert torch.equal(x, saved[f"{k}/{name}"]), name


def fsdp1(rank: int, folder: str) -> None:
    """Gather and scatter state with the older FullyShardedDataParallel, which flattens parameters."""
    from torch.distributed.fsdp import FullyShardedDataParallel  # pyright: ignore[reportMissingImports]

    for storage in STORAGES:
        dtype, kind = STORAGES[storage]

        def build(dtype: Any = dtype, kind: Any = kind) -> Any:
            torch.manual_seed(0)
            net = FullyShardedDataParallel(torch.nn.Linear(256, 6).to(dtype), device_id=torch.device("cpu"))
            return net, fastopt.torch.AdamW(net.parameters(), lr=0.01, storage=kind)

        def train(net: Any, opt: Any, steps: range, dtype: Any = dtype) -> None:
            for step in steps:
                opt.zero_grad()
                x = torch.randn(4, 256, generator=torch.Generator().manual_seed(step)).to(dtype)
                net(x).float().square().mean().backward()
                opt.step()

        net, opt = build()
        train(net, opt, range(3))
        model, state = net.state_dict(), FullyShardedDataParallel.optim_state_dict(net, opt)
        again, other = build()
        again.load_state_dict(model)
        other.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(again, other, state))
        train(net, opt, range(3, 6))
        train(again, other, range(3, 6))
        for p, q in zip(net.parameters(), again.parameters(), strict=True):
            assert torch.equal(p, q), storage


def partial(rank: int, folder: str) -> None:
    """Step parameters whose gradients are not reduced yet, as those of norms with sequence parallelism."""
    from torch.distributed.device_mesh import init_device_mesh  # pyright: ignore[reportMissingImports]
    from torch.distributed.tensor import Replicate, Shard  # pyright: ignore[reportMissingImports]
    from torch.distributed.tensor.parallel import (  # pyright: ignore[reportMissingImports]
        ColwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    ends = []
    for cls in (torch.optim.AdamW, fastopt.torch.AdamW):
        torch.manual_seed(0)
        net: Any = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
        layouts = ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate())
        plans = {"0": SequenceParallel(sequence_dim=0), "1": layouts}
        net = parallelize_module(net, init_device_mesh("cpu", (2,)), plans)
        opt = cls(net.parameters(), lr=0.01)
        for step in range(5):
            opt.zero_grad()
            net(torch.randn(4, 4, generator=torch.Generator().manual_seed(10 * step + rank))).square().sum().backward()
            assert net[0].weight.grad.placements[0].is_partial()
            opt.step()
        ends.append([p.full_tensor().detach() for p in net.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)  # five steps, each of a few roundings


def zero(rank: int, folder: str) -> None:
    """Divide the state among processes by torch's ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # pyright: ignore[reportMissingImports]

    ends = []
    for divided in (False, True):
        net = torch.nn.parallel.DistributedDataParallel(model())
        cls, own = fastopt.torch.AdamW, {"lr": 0.05, "storage": "8bit"}
        params = net.parameters()
        opt: Any = ZeroRedundancyOptimizer(params, optimizer_class=cls, **own) if divided else cls(params, **own)
        for step in range(6):
            opt.zero_grad()
            net(data(step, rank)).square().mean().backward()
            opt.step()
        if divided:
            opt.consolidate_state_dict(to=0)
            if rank == 0:
                assert len(opt.state_dict()["state"]) == len(list(net.parameters()))
        ends.append([p.detach() for p in net.parameters()])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(q, p, rtol=0.05, atol=0.02)  # other offsets of noise: 8 bits are rounded otherwise


def in_backward(rank: int, folder: str) -> None:
    """Step sharded parameters in the backward pass."""
    from torch.distributed.device_mesh import init_device_mesh  # pyright: ignore[reportMissingImports]
    from torch.distributed.fsdp import fully_shard  # pyright: ignore[reportMissingImports]

    ends = []
    for within in (False, True):
        net, mesh = network(12), init_device_mesh("cpu", (2,))
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        if within:
            opt: Any = fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01, storage="8bit")
        else:
            opt = fastopt.torch.AdamW(net.parameters(), lr=0.01, storage="8bit")
        for step in range(4):
            opt.zero_grad()
            x = torch.randn(4, 256, generator=torch.Generator().manual_seed(10 * step + rank))
            net(x).square().mean().backward()
            if within:
                with pytest.raises(fastopt.SettingError, match="was taken in the backward pass"):
                    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
        ends.append(values_of(net, opt))
    equal(ends[1], ends[0], "in the backward pass")

    for make in (fastopt.torch.in_backward, fastopt.torch.offload):  # which average gradients after they are taken
        replicated = torch.nn.parallel.DistributedDataParallel(model())
        opt = make(replicated.parameters(), fastopt.torch.AdamW)
        with pytest.raises(fastopt.SettingError, match=r"(?s)was taken in the backward pass.*DistributedDataParallel"):
            replicated(data(0, rank)).square().mean().backward()


SCRIPTS = {f.__name__: f for f in (ddp, fsdp, save, load, plain, fsdp1, partial, zero, in_backward)}


def run(rank: int, port: int, world: int, script: str, arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        SCRIPTS[script](rank, *arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a thread of torch's that asks for the GIL while Python ends is unwound there, on which C++ aborts


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("localhost", 0))
        found = free.getsockname()[1]
    processes = int(sys.argv[1])
    spawn(run, (found, processes, sys.argv[2], sys.argv[3:]), nprocs=processes)

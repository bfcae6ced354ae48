"""Steps on the CPU for a model elsewhere: a CPU stands in for the device.

Once as it is, where each copy is made at once, and once with streams on which a copy is made no sooner than something
waits for it. Over 300 lines: those streams are a device of their own.
"""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_in_backward import CASES, equal, network  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import LayoutError, SettingError  # noqa: E402
from fastopt.torch import transfers  # noqa: E402
from fastopt.torch.gradients import TakenGradient  # noqa: E402

AdamW = fastopt.torch.AdamW


def loss_of(net: Any, step: int) -> Any:
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
    return net(x).float().square().mean()


def train(
    net: Any, opt: Any, steps: range, schedule: Any = None, accumulate: int = 1, clip: float | None = None
) -> None:
    for step in steps:
        opt.zero_grad()
        for k in range(accumulate):
            loss_of(net, 10 * step + k).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step()
        if schedule is not None:
            schedule.step()


WAYS = {
    "in backward": {},
    "accumulated": {"accumulate": 3},
    "open": {"accumulate": None},
    "clipped": {"accumulate": None},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "dtype", "storage"), CASES.values(), ids=CASES)
def test_the_bits_are_those_of_the_optimizer_on_a_cpu(name, dtype, storage, way):
    """With a schedule, two groups, and a checkpoint from which an ordinary optimizer goes on, and the reverse."""
    own, cls = WAYS[way], getattr(fastopt.torch, name)
    loop: Any = {"accumulate": 1 if way == "in backward" else 3, "clip": 0.01 if way == "clipped" else None}
    nets, opts = [network(dtype), network(dtype)], []
    for net, make in zip(nets, (cls, lambda groups, **o: fastopt.torch.offload(groups, cls, **own, **o)), strict=True):
        groups = [{"params": net[:4].parameters()}, {"params": net[4:].parameters(), "weight_decay": 0.3}]
        opts.append(make(groups, lr=0.02, storage=storage, seed=3))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.9) for opt in opts]
    train(nets[0], opts[0], range(5), schedules[0], **loop)
    train(nets[1], opts[1], range(5), schedules[1], **loop)
    assert equal(*nets)
    saved = [opt.state_dict() for opt in opts]
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    assert str(sorted(saved[0]["state"].items())) == str(sorted(saved[1]["state"].items()))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert str(dict(opts[0].state[p])) == str(dict(opts[1].state[q]))
    for opt, other in zip(opts, reversed(saved), strict=True):
        opt.load_state_dict(copy.deepcopy(other))
    train(nets[0], opts[0], range(5, 8), **loop)
    train(nets[1], opts[1], range(5, 8), **loop)
    assert equal(*nets)


def test_steps_are_taken_while_backward_goes_on():
    net, threads, done = network(), [], threading.Event()
    opt = fastopt.torch.offload(net, AdamW, lr=0.01)
    step_one = opt.optimizer.step_one

    def note(p: Any, **own: Any) -> None:
        step_one(p, **own)
        threads.append(threading.current_thread().name)
        done.set()

    opt.optimizer.step_one = note
    net[0].weight.register_hook(lambda g: done.wait(30) and g)  # the first layer waits for the last to be stepped
    train(net, opt, range(1))
    assert done.is_set()
    assert len(threads) == 12
    assert set(threads) == {"fastopt-offload"}


def test_gradients_are_freed_as_they_come():
    net, alive = network(), []
    opt = fastopt.torch.offload(net, AdamW)
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(
                sum(q.grad is not None and type(q.grad) is not TakenGradient for q in net.parameters())
            )
        )
    train(net, opt, range(2))
    assert alive == [0] * 24
    assert all(p.grad is None for p in net.parameters())
    assert all(host.grad is None for host in opt._hosts.values())


def test_clipping_from_outside_is_refused():
    net = network()
    opt = fastopt.torch.offload(net, AdamW)
    loss_of(net, 0).backward()
    with pytest.raises(SettingError, match=r"(?s)was taken in the backward pass.*offload with accumulate=None"):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    with pytest.raises(SettingError, match="was taken"):
        scaler.step(opt)


def test_more_gradients_than_promised_are_refused():
    net = network()
    opt = fastopt.torch.offload(net, AdamW, accumulate=2)  # noqa: F841 — its hooks live with it
    loss_of(net, 0).backward()
    loss_of(net, 1).backward()
    with pytest.raises(
        SettingError, match=r"(?s)offloaded AdamW in the backward pass: .*gradient 3 of parameter.*accumulate=2"
    ):
        loss_of(net, 2).backward()


def test_fewer_gradients_than_promised_are_stepped_by_step():
    nets = [network(), network()]
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW, accumulate=3)]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(2), accumulate=2)
    assert equal(*nets)


def test_zero_grad_forgets_what_was_accumulated():
    nets = [network(), network()]
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW, accumulate=2)]
    for net, opt in zip(nets, opts, strict=True):
        loss_of(net, 7).backward()
        opt.zero_grad(set_to_none=False)
        opt.zero_grad()
        opt.step()
        train(net, opt, range(2), accumulate=2)
    assert equal(*nets)
    assert float(opts[1].state[nets[1][0].weight]["step"]) == 2


def test_frozen_parameters_take_no_memory_until_they_get_a_gradient():
    nets = [network(torch.bfloat16), network(torch.bfloat16)]
    for net in nets:
        net[0].requires_grad_(requires_grad=False)
    made = [AdamW, lambda p, **own: fastopt.torch.offload(p, AdamW, **own)]
    opts = [make(net.parameters(), storage="bf16", seed=5) for make, net in zip(made, nets, strict=True)]
    for k in range(2):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, range(k, k + 2))
        assert equal(*nets)
        assert (nets[1][0].weight in opts[1]._copied) == (k == 1)
        for net in nets:
            net[0].requires_grad_(requires_grad=True)
    frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    fastopt.torch.offload([frozen, torch.nn.Parameter(torch.ones(2))], AdamW)


@pytest.mark.parametrize("storage", [None, "split"])
def test_what_others_write_to_a_parameter_is_followed(storage):
    dtype = torch.bfloat16 if storage else torch.float32
    nets = [network(dtype), network(dtype)]
    opts = [AdamW(nets[0].parameters(), storage=storage), fastopt.torch.offload(nets[1], AdamW, storage=storage)]
    other = network(dtype)
    other[0].weight.data.mul_(3)
    for k in range(3):
        for net, opt in zip(nets, opts, strict=True):
            if k == 1:
                net.load_state_dict(other.state_dict())
            if k == 2:
                net[2].weight.data = net[2].weight.data * 0.5
            train(net, opt, range(k, k + 1))
        assert equal(*nets)


def test_groups_are_added_and_options_followed():
    nets = [network(), network()]
    opts = [AdamW(nets[0][:4].parameters()), fastopt.torch.offload(nets[1][:4], AdamW)]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(2))
        opt.add_param_group({"params": net[4:].parameters(), "lr": 0.5})
        opt.param_groups[0]["betas"] = (0.5, 0.6)
        opt.param_groups[1]["note"] = "somebody's"
        train(net, opt, range(2, 4))
    assert equal(*nets)
    assert opts[1].state_dict()["param_groups"] == opts[0].state_dict()["param_groups"]
    before = opts[1].state_dict()
    with pytest.raises(SettingError, match="lr"):
        opts[1].add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert str(opts[1].state_dict()) == str(before)
    names = [("w", torch.nn.Parameter(torch.ones(2)))]
    assert fastopt.torch.offload(names, AdamW).state_dict()["param_groups"][0]["param_names"] == ["w"]


def test_after_an_error_in_the_worker_step_raises_it_and_another_goes_on():
    nets = [network(), network()]
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW)]
    before = [p.detach().clone() for p in nets[1].parameters()]
    for opt in opts:
        opt.param_groups[0]["lr"] = -1.0
    for net, opt in zip(nets, opts, strict=True):
        loss_of(net, 0).backward()
        with pytest.raises(SettingError, match="lr is out of its range"):
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(nets[1].parameters(), before, strict=True))
    for opt in opts:
        opt.param_groups[0]["lr"] = 0.01
        opt.step()
    assert equal(*nets)
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(2))
    assert equal(*nets)


def test_hooks_see_steps_loads_and_saves():
    net, seen = network(), []
    opt = fastopt.torch.offload(net, AdamW)
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.register_state_dict_pre_hook(lambda _: seen.append("save"))
    opt.register_state_dict_post_hook(lambda _, d: {**d, "more": 1})
    opt.register_load_state_dict_pre_hook(lambda _, d: seen.append(d.pop("more")))
    opt.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    assert float(opt.step(lambda: loss_of(net, 0)).detach()) > 0
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before", "after", "save", 1, "loaded"]


def test_distributed_checkpoints_name_the_state():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    nets = [network(), network()]
    opts = [fastopt.torch.offload(net, AdamW, storage="8bit", lr=0.01) for net in nets]
    train(nets[0], opts[0], range(3))
    nets[1].load_state_dict(nets[0].state_dict())
    saved = get_optimizer_state_dict(nets[0], opts[0])
    assert "0.weight" in saved["state"]
    set_optimizer_state_dict(nets[1], opts[1], saved)
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(3, 5))
    assert equal(*nets)


def test_state_is_a_dict_of_the_parameters():
    net = network()
    opt = fastopt.torch.offload(net, AdamW, storage="8bit")
    p = net[0].weight
    assert p not in opt.state
    assert len(opt.state) == 0
    train(net, opt, range(1))
    assert set(opt.state) == set(net.parameters())
    opt.state[p]["exp_avg"].zero_()
    assert float(opt.state_dict()["state"][0]["exp_avg"].abs().sum()) == 0
    del opt.state[p]
    assert 0 not in opt.state_dict()["state"]
    opt.state = {}
    assert not opt.state_dict()["state"]
    train(net, opt, range(1))
    assert float(opt.state[p]["step"]) == 1


def test_what_cannot_work_is_refused_by_name():
    net = network()
    bad = [
        ({"flatten": True}, "flatten=True"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"max_norm": 1.0}, "max_norm"),
        ({"storage": "split"}, "another type"),
    ]
    for own, match in bad:
        with pytest.raises((SettingError, LayoutError), match=match):
            fastopt.torch.offload(net, AdamW, **own)
    with pytest.raises(SettingError, match=r"(?s)offload: .*torch.optim.adamw.*expected .*fastopt.torch.AdamW"):
        fastopt.torch.offload(net, torch.optim.AdamW)
    opt = fastopt.torch.offload(net, AdamW)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(SettingError, match=r"offloaded AdamW: .*cannot be copied or pickled"):
            copied(opt)
    opt.param_groups[0]["params"].pop()
    with pytest.raises(LayoutError, match="other parameters"):
        loss_of(net, 0).backward()
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    opt = fastopt.torch.offload(embedding, AdamW)
    with pytest.raises(LayoutError, match=r"gradient of parameter 0 of group 0 is sparse"):
        embedding(torch.tensor([1])).sum().backward()


class LateStream:
    """Runs what was launched on it when somebody waits for it, and no sooner."""

    def __init__(self, device: Any = None):
        self.work: list[Any] = []
        self.done = 0

    def run(self, end: int) -> None:
        while self.done < end:
            work, self.done = self.work[self.done], self.done + 1
            work()

    def record_event(self) -> LateEvent:
        return LateEvent(self, len(self.work))

    def wait_event(self, event: LateEvent) -> None:
        self.work.append(event.synchronize)

    def wait_stream(self, other: LateStream) -> None:
        self.wait_event(other.record_event())


class LateEvent:
    def __init__(self, stream: LateStream, end: int):
        self.stream, self.end = stream, end

    def synchronize(self) -> None:
        self.stream.run(self.end)


class MainStream(LateStream):
    """Where the model runs, which the CPU does at once."""

    def wait_event(self, event: LateEvent) -> None:
        event.synchronize()


@pytest.fixture
def late(monkeypatch):
    """Let all tensors seem to be on a device, those for the CPU excepted, and copies run late."""
    on_host, main, current, copy_ = set(), MainStream(), threading.local(), torch.Tensor.copy_
    empty = transfers.empty_on_host

    def empty_on_host(like: Any, *, page_locked: bool) -> Any:
        made = empty(like, page_locked=False)
        assert page_locked
        on_host.add(made.data_ptr())
        return made.fill_(float("nan"))

    @contextmanager
    def stream(chosen: LateStream) -> Any:
        current.stream = chosen
        yield
        current.stream = None

    def late_copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
        chosen = getattr(current, "stream", None)
        if chosen is None:
            return copy_(target, source)
        chosen.work.append(lambda: no_grad_copy(target, source))
        if not non_blocking:
            chosen.run(len(chosen.work))
        return target

    def no_grad_copy(target: Any, source: Any) -> None:
        with torch.no_grad():
            copy_(target.data, source)

    for module in (transfers, sys.modules["fastopt.torch.offload"]):  # the name is the function's too
        monkeypatch.setattr(module, "empty_on_host", empty_on_host)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda t: t.data_ptr() not in on_host), raising=False)
    monkeypatch.setattr(torch.Tensor, "copy_", late_copy)
    monkeypatch.setattr(torch.cuda, "Stream", LateStream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)


@pytest.mark.parametrize("waits", [True, False], ids=["right", "without a wait"])
@pytest.mark.parametrize("way", ["in backward", "accumulated", "clipped"])
def test_every_copy_is_waited_for(way, waits, late, monkeypatch):
    own = WAYS[way]
    loop: Any = {"accumulate": own.get("accumulate", 1) or 2, "clip": 0.01 if way == "clipped" else None}
    nets = [network(torch.bfloat16), network(torch.bfloat16)]
    opts: list[Any] = [AdamW(nets[0].parameters(), storage="split", lr=0.02)]
    opts.append(fastopt.torch.offload(nets[1], AdamW, storage="split", lr=0.02, **own))
    if not waits:
        monkeypatch.setattr(transfers.Transfers, "finish", lambda _: None)
    train(nets[0], opts[0], range(4), **loop)
    train(nets[1], opts[1], range(4), **loop)
    assert equal(*nets) == waits


def test_nothing_is_kept_alive():
    net = network()
    opt = fastopt.torch.offload(net, AdamW)
    train(net, opt, range(1))
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())


def test_a_forked_child_steps_too():
    code = """
import os, torch, fastopt.torch
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.ones(10))
opt = fastopt.torch.offload([p], fastopt.torch.SGD, lr=1.0)
def step():
    p.grad = torch.ones(10)
    opt.step()
step()
child = os.fork()
step()
if child == 0:
    os._exit(0 if p.tolist() == [-1.0] * 10 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)

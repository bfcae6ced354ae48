"""What people do between backward and step while an optimizer takes the gradients in the backward pass.

Over 300 lines: most of it beside the ordinary optimizer, in each of three ways.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_in_backward import equal, network  # noqa: E402
from test_torch_offload import loss_of, train  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import LayoutError, SettingError  # noqa: E402

AdamW, SGD = fastopt.torch.AdamW, fastopt.torch.SGD
WAYS = {
    "in_backward": lambda params, cls, **own: fastopt.torch.in_backward(params, cls, **own),
    "offload": lambda params, cls, **own: fastopt.torch.offload(params, cls, **own),
    "open": lambda params, cls, **own: fastopt.torch.offload(params, cls, accumulate=None, **own),
}
ways = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)


def p3() -> Any:
    return torch.nn.Parameter(torch.ones(3))


# Gradients that are dropped, replaced, changed, and of odd layouts.

CHANGES = {
    "set to None": lambda p: setattr(p, "grad", None),
    "zeroed": lambda p: p.grad.zero_(),
    "replaced": lambda p: setattr(p, "grad", torch.full((3,), 0.5)),
    "scaled": lambda p: p.grad.mul_(0.25),
    "clipped": lambda p: torch.nn.utils.clip_grad_norm_([p], 0.125),
    "clipped by value": lambda p: torch.nn.utils.clip_grad_value_([p], 0.25),
    "added to": lambda p: p.grad.add_(torch.ones(3), alpha=0.5),
    "nothing": lambda p: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_gradient_is_what_was_made_of_it(change, before, after):
    ends = []
    for make in (lambda params, cls, **own: cls(params, **own), WAYS["open"]):
        p = p3()
        opt = make([p], SGD, lr=1.0, weight_decay=0.25)
        for _ in range(before + 1):
            (p * 2).sum().backward()
        CHANGES[change](p)
        for _ in range(after):
            p.sum().backward()
        opt.step()
        assert p.grad is None or make is not WAYS["open"]
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("drop", ["set to None", "zeroed", "zero_grad"])
def test_gradients_that_were_dropped_are_not_counted(drop):
    p = p3()
    opt = fastopt.torch.offload([p], SGD, lr=1.0, accumulate=2)
    (p * 5).sum().backward()
    if drop == "zero_grad":
        opt.zero_grad()
    else:
        CHANGES[drop](p)
    p.sum().backward()
    p.sum().backward()
    opt.step()
    assert p.tolist() == [-1.0] * 3


@ways
def test_gradients_that_are_views_of_a_number(make):
    p = p3()
    opt = make([p], SGD, lr=1.0)
    p.sum().backward()
    if make is WAYS["open"]:
        p.sum().backward()
    opt.step()
    assert p.tolist() == [-1.0 if make is WAYS["open"] else 0.0] * 3
    p.grad = torch.tensor(1.0).expand(3)
    with pytest.raises(LayoutError, match="another order"):
        opt.step()
    assert p.grad is not None


@pytest.mark.parametrize("accumulate", [2, None])
def test_gradients_with_a_graph_are_accumulated(accumulate):
    p = p3()
    opt = fastopt.torch.offload([p], SGD, lr=1.0, accumulate=accumulate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, once in a process
        (p * 2).sum().backward(create_graph=True)
        (p * 3).sum().backward(create_graph=True)
    opt.step()
    assert p.tolist() == [-4.0] * 3


def test_a_gradient_scaler_and_its_skipped_steps():
    ends = []
    for make in (lambda params, cls, **own: cls(params, **own), WAYS["open"]):
        p = p3()
        opt, scaler = make([p], SGD, lr=1.0), torch.amp.GradScaler("cpu", init_scale=8.0)
        for scale in (1.0, float("inf"), 0.5):
            scaler.scale((p * scale).sum()).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        ends.append((p.tolist(), scaler.get_scale()))
    assert ends[0] == ends[1]


# The same parameter in two places.


@ways
def test_two_optimizers_of_the_same_parameters_are_refused(make):
    p = p3()
    first = make([p], AdamW)
    for other in WAYS.values():
        with pytest.raises(SettingError, match=r"(?s)another optimizer takes the gradients.*do .*delete"):
            other([p], AdamW)
    del first
    gc.collect()
    make([p], AdamW)


@ways
def test_a_parameter_in_a_group_twice_is_refused(make):
    p = p3()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        with pytest.raises(LayoutError, match="in the group twice"):
            make([p, p], AdamW)


@ways
def test_gradients_go_on_as_torchs_after_the_optimizer(make):
    p = p3()
    opt = make([p], AdamW)
    p.sum().backward()
    del opt
    gc.collect()
    for _ in range(200):  # until the worker has done what it was given
        if p.grad is None:
            break
        time.sleep(0.05)
    p.sum().backward()
    found: Any = p.grad
    assert found.tolist() == [1.0] * 3
    torch.optim.SGD([p]).step()


def test_a_group_that_is_refused_leaves_nothing_behind():
    a, b = p3(), p3()
    opt = fastopt.torch.offload([a], AdamW)
    for group, error in (
        ({"params": [b], "lr": -1.0}, SettingError),
        ({"params": [("x", b)]}, ValueError),
        ({"params": {b}}, TypeError),
        ({"params": [b * 2]}, ValueError),
        ({"params": [a]}, ValueError),
    ):
        with pytest.raises(error):
            opt.add_param_group(group)
    assert len(opt.param_groups) == len(opt.optimizer.param_groups) == 1
    assert list(opt._hosts) == [a]
    other = AdamW([b])
    (a + b).sum().backward()
    opt.step()
    assert b.grad is not None
    other.step()
    assert torch.equal(a, b)


def test_what_torch_refuses_is_refused_with_its_words():
    for params, error, words in (
        ([], ValueError, "empty parameter list"),
        (torch.nn.Tanh(), ValueError, "empty parameter list"),
        ([torch.nn.Parameter(torch.ones(2)) * 2], ValueError, "non-leaf"),
        (["p"], TypeError, "can only optimize Tensors"),
    ):
        for make in (WAYS["offload"], WAYS["in_backward"]):
            with pytest.raises(error, match=words):
                make(params, AdamW)


# Parameters that are written to, converted, shared.


@ways
def test_lazy_parameters_may_wait(make):
    if make is not WAYS["in_backward"]:
        with pytest.raises(LayoutError, match="has no shape yet"):
            make(torch.nn.LazyLinear(3), AdamW)
        return
    nets = [torch.nn.LazyLinear(3), torch.nn.LazyLinear(3)]
    opts = [AdamW(nets[0].parameters()), make(nets[1], AdamW)]
    for net, opt in zip(nets, opts, strict=True):
        net(torch.ones(1, 2))
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(0.5)
        for _ in range(2):
            net(torch.ones(1, 2)).sum().backward()
            opt.step()
            opt.zero_grad()
    assert equal(*nets)


def test_a_parameter_that_was_converted_is_refused():
    net = torch.nn.Linear(2, 2)
    opt = fastopt.torch.offload(net, AdamW)
    train_one = lambda dtype: net(torch.ones(2, dtype=dtype)).sum().backward()  # noqa: E731
    net.bfloat16()
    with pytest.raises(LayoutError, match=r"(?s)parameter . of group 0 has changed since the optimizer was made"):
        train_one(torch.bfloat16)
    opt.zero_grad()
    net.float()
    train_one(torch.float32)
    opt.step()
    net.weight.data = torch.ones(3, 2)
    net.bias.data = torch.ones(3)
    with pytest.raises(LayoutError, match="has changed"):
        train_one(torch.float32)


def test_converted_back_and_forth_memory_is_followed():
    """`p.data =` is not counted by autograd, and memory that was freed may come back at the same address."""
    nets = [network(), network()]
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW)]
    for step in range(6):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, range(step, step + 1))
        for net in nets:
            net.bfloat16()
            net.float()
        assert equal(*nets)


def test_writes_that_autograd_does_not_count_are_followed_when_told():
    nets = [network(), network()]
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW)]
    for step in range(4):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, range(step, step + 1))
            for p in net.parameters():
                p.data.clamp_(-0.1, 0.1)
        opts[1].read_parameters()
    assert equal(*nets)


def test_state_is_saved_after_others_have_written_to_parameters():
    nets, saved = [network(torch.bfloat16), network(torch.bfloat16)], []
    opts = [AdamW(nets[0].parameters(), storage="split"), fastopt.torch.offload(nets[1], AdamW, storage="split")]
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(2))
        with torch.no_grad():
            net[0].weight.mul_(0.5)
        saved.append(opt.state_dict())
        opt.load_state_dict(saved[-1])
        train(net, opt, range(2, 4))
    assert equal(*nets)
    first, second = (str(sorted(state["state"].items())) for state in saved)
    assert first == second


def test_parameters_are_as_before_until_step():
    net = network()
    opt = fastopt.torch.offload(net, AdamW, lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    loss_of(net, 0).backward()
    opt._worker.wait()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    opt.step()
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_writes_between_backward_and_step_are_refused_or_followed():
    p, q = p3(), p3()
    opt = fastopt.torch.offload([p, q], SGD, lr=0.5)
    (p + q).sum().backward()
    with torch.no_grad():
        p.mul_(3)
    with pytest.raises(SettingError, match=r"(?s)written to between backward and step.*got .*parameter 0 of group 0"):
        opt.step()
    assert (p.tolist(), q.tolist()) == ([3.0] * 3, [0.5] * 3)
    (p + q).sum().backward()
    opt.step()
    assert (p.tolist(), q.tolist()) == ([2.5] * 3, [0.0] * 3)
    free = fastopt.torch.offload([r := p3()], SGD, lr=0.5, accumulate=None)
    r.sum().backward()
    with torch.no_grad():
        r.mul_(3)
    free.step()
    assert r.tolist() == [2.5] * 3


@ways
def test_memory_of_a_gradient_that_was_taken_is_not_shared(make):
    net = torch.nn.Linear(2, 2)
    opt = make(net, AdamW)
    net(torch.ones(2)).sum().backward()
    for use in (net.share_memory, net.weight.grad.numpy, net.weight.grad.untyped_storage, net.weight.grad.data_ptr):
        with pytest.raises(SettingError, match="its memory was asked for"):
            use()
    opt.step()


# Options, hooks, errors.


def test_options_are_read_at_the_first_gradient():
    for make, expected in ((WAYS["offload"], 0.0), (WAYS["in_backward"], 0.0), (WAYS["open"], 0.5)):
        p = p3()
        opt = make([p], SGD, lr=1.0)
        p.sum().backward()
        opt.param_groups[0]["lr"] = 0.5
        opt.step()
        assert p.tolist() == [expected] * 3


@ways
def test_global_hooks_see_one_step(make):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    p, seen = p3(), []
    opt = make([p], AdamW)
    hook = register_optimizer_step_pre_hook(lambda opt, *_: seen.append(opt))
    try:
        p.sum().backward()
        opt.step()
    finally:
        hook.remove()
    assert seen == [opt]


@ways
def test_a_backward_pass_that_fails_can_be_skipped(make):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no gradient")

    net = network()
    opt = make(net, AdamW)
    x = torch.ones(1, 20)
    with pytest.raises(RuntimeError, match="no gradient"):
        net[6:](Fails.apply(net[:6](x))).sum().backward()
    if make is not WAYS["open"]:
        opt.zero_grad()
        with pytest.raises(SettingError, match=r"(?s)another gradient before step.*do .*also .*failed"):
            loss_of(net, 0).backward()
        opt.step()
    opt.zero_grad()
    train(net, opt, range(2))


def test_a_step_is_not_compiled():
    p = p3()
    opt = fastopt.torch.offload([p], SGD, lr=1.0, accumulate=None)
    p.sum().backward()
    torch.compile(lambda: opt.step(), backend="eager")()
    assert p.tolist() == [0.0] * 3


# Threads, processes, memory.


def test_state_is_saved_in_threads_while_the_main_one_trains():
    nets, stop, errors = [network(), network()], [], []
    opts = [AdamW(nets[0].parameters()), fastopt.torch.offload(nets[1], AdamW)]

    def read():
        try:
            while not stop:
                opts[1].state_dict()
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(40))
    stop.append(True)
    for thread in threads:
        thread.join(60)
    assert not errors
    assert equal(*nets)


def test_an_error_of_a_step_is_raised_by_step_alone():
    p = p3()
    opt = fastopt.torch.offload([p], AdamW)
    opt.param_groups[0]["lr"] = -1.0
    p.sum().backward()
    opt.param_groups[0]["lr"] = 1.0
    opt.state_dict()
    with pytest.raises(SettingError, match=r"lr=-1\.0"):
        opt.step()
    opt.step()
    assert p.tolist() != [1.0] * 3


def test_a_child_forked_while_steps_are_under_way_is_told():
    code = """
import os, signal, sys, threading, torch, fastopt.torch
from fastopt import BackendError
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.ones(10))
opt = fastopt.torch.offload([p], fastopt.torch.SGD, lr=1.0)
done = threading.Event()
opt._worker.submit(done.wait, 60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        opt.state_dict()
    except BackendError as error:
        os._exit(0 if "forked between backward and step" in str(error) else 1)
    os._exit(2)
status = os.waitpid(child, 0)[1]
done.set()
p.sum().backward()
opt.step()
raise SystemExit(os.waitstatus_to_exitcode(status) or p.tolist() != [0.0] * 10)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("where", ["a thread that outlives the main one", "atexit"])
def test_training_goes_on_at_the_end_of_the_process(where):
    code = """
import atexit, threading, time, torch, fastopt.torch
p = torch.nn.Parameter(torch.ones(3))
opt = fastopt.torch.offload([p], fastopt.torch.SGD, lr=1.0)
def train():
    for _ in range(5):
        p.sum().backward()
        opt.step()
        time.sleep(0.02)
    print(p.tolist())
"""
    starts = {"atexit": "atexit.register(train)"}
    start = starts.get(where, "threading.Thread(target=train).start()")
    command = [sys.executable, "-W", "ignore", "-c", f"{code}\n{start}"]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout == "[-4.0, -4.0, -4.0]\n", done.stderr


def test_threads_and_gradients_do_not_pile_up():
    before, opt = threading.active_count(), None
    for _ in range(20):
        p = p3()
        opt = fastopt.torch.offload([p], SGD, accumulate=None)
        for _ in range(20):
            p.sum().backward()
        opt.step()
    assert opt is not None
    assert opt._worker._jobs.qsize() == 0
    del opt
    gc.collect()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_an_interrupt_finds_a_step_taken_or_not(monkeypatch):
    """What is raised right after the step of the copies finds their gradients used."""
    p = p3()
    opt = fastopt.torch.offload([p], SGD, lr=0.5, accumulate=None)
    p.sum().backward()

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opt, "_send", lambda: interrupted(None))
        with pytest.raises(KeyboardInterrupt):
            opt.step()
    assert p.tolist() == [1.0] * 3
    opt.step()
    assert p.tolist() == [0.5] * 3

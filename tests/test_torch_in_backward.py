"""Steps in the backward pass: the same bits as steps after it, without memory for gradients."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_state import STORAGES  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import LayoutError, SettingError  # noqa: E402
from fastopt.torch.gradients import TakenGradient  # noqa: E402


def network(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(20, 20), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers).to(dtype)


def train(net: Any, opt: Any, steps: range, schedule: Any = None) -> None:
    for step in steps:
        opt.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
        net(x).float().square().mean().backward()
        opt.step()
        if schedule is not None:
            schedule.step()


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


CASES = {
    **{f"AdamW-{name}": ("AdamW", *chosen) for name, chosen in STORAGES.items()},
    "SGD": ("SGD", torch.float32, None),
    "NAdam": ("NAdam", torch.float32, None),
}


@pytest.mark.parametrize(("name", "dtype", "storage"), CASES.values(), ids=CASES)
def test_steps_in_the_backward_pass_have_the_bits_of_steps_after_it(name, dtype, storage):
    """With a schedule, and a group of its own options; a checkpoint goes on in an ordinary optimizer."""
    cls, nets, opts = getattr(fastopt.torch, name), [network(dtype), network(dtype)], []
    for net, make in zip(nets, (cls, lambda groups, **own: fastopt.torch.in_backward(groups, cls, **own)), strict=True):
        groups = [{"params": net[:4].parameters()}, {"params": net[4:].parameters(), "weight_decay": 0.3}]
        opts.append(make(groups, lr=0.02, storage=storage, seed=3))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.9) for opt in opts]
    for k in range(2):
        train(nets[k], opts[k], range(5), schedules[k])
    assert equal(*nets)
    saved = [opt.state_dict() for opt in opts]
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    assert str(sorted(saved[0]["state"].items())) == str(sorted(saved[1]["state"].items()))
    again = cls([{"params": nets[1][:4].parameters()}, {"params": nets[1][4:].parameters()}], storage=storage, seed=3)
    again.load_state_dict(copy.deepcopy(saved[1]))
    train(nets[0], opts[0], range(5, 8))
    opts.clear()  # with their hooks
    schedules.clear()
    gc.collect()
    train(nets[1], again, range(5, 8))
    assert equal(*nets)


def test_few_gradients_live_at_a_time():
    net, alive = network(), []
    opt = fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01)
    for p in net.parameters():  # runs after the optimizer's
        p.register_post_accumulate_grad_hook(lambda _: alive.append(sum(map(has_memory, net.parameters()))))
    train(net, opt, range(3))
    assert len(alive) == 3 * 12
    assert max(alive) == 0
    assert all(p.grad is None for p in net.parameters())


def has_memory(p: Any) -> bool:
    return p.grad is not None and type(p.grad) is not TakenGradient


def test_what_uses_a_gradient_that_was_taken_is_refused():
    net = network()
    opt = fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01)
    net(torch.ones(1, 20)).sum().backward()
    p = net[0].weight
    uses = [
        lambda: torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0),
        lambda: torch.nn.utils.clip_grad_value_(net.parameters(), 1.0),
        lambda: torch.isfinite(p.grad),
        lambda: float(p.grad.norm()),
        lambda: p.grad.add_(p),
        lambda: torch.optim.SGD(net.parameters()).step(),
        lambda: net.share_memory(),
        lambda: p.grad.numpy(),
        lambda: p.grad.data_ptr(),
    ]
    for use in uses:
        with pytest.raises(SettingError, match=r"(?s)was taken in the backward pass.*got .*accumulate=None"):
            use()
    assert repr(p.grad) == "TakenGradient(shape=(20, 20), dtype=torch.float32)"
    opt.zero_grad(set_to_none=False)
    opt.step()
    assert p.grad is None


def test_state_that_is_read_between_two_parameters_is_not_stored_again():
    nets, read = [network(), network()], []
    opts = [fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01, storage="8bit") for net in nets]
    for p in nets[1].parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: read.extend(opts[1].state[q]["exp_avg"].sum() for q in nets[1].parameters() if q in opts[1].state)
        )
    for net, opt in zip(nets, opts, strict=True):
        train(net, opt, range(4))
    assert equal(*nets)
    assert len(read) > 100


def test_gradients_cannot_be_accumulated():
    net = network()
    opt = fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01)
    net(torch.ones(1, 20)).sum().backward()
    with pytest.raises(SettingError, match=r"(?s)AdamW in the backward pass: .*another gradient before step"):
        net(torch.ones(1, 20)).sum().backward()
    opt.step()  # which ends the iteration
    net(torch.ones(1, 20)).sum().backward()


def test_parameters_that_are_unfrozen_or_have_gradients_of_other_origin_are_stepped_by_step():
    nets = [network(), network()]
    for net in nets:
        net[0].weight.requires_grad_(requires_grad=False)
    opts = [fastopt.torch.AdamW(nets[0].parameters()), fastopt.torch.in_backward(nets[1], fastopt.torch.AdamW)]
    for k in range(2):
        for net, opt in zip(nets, opts, strict=True):
            train(net, opt, range(k, k + 1))
            net[0].weight.requires_grad_(requires_grad=True)
    for net, opt in zip(nets, opts, strict=True):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
    assert equal(*nets)
    assert float(opts[1].state[nets[1][0].weight]["step"]) == 2


def test_tied_parameters_are_stepped_once():
    ends = []
    for make in (fastopt.torch.SGD, lambda p, **own: fastopt.torch.in_backward(p, fastopt.torch.SGD, **own)):
        p = torch.nn.Parameter(torch.ones(3))
        opt = make([p], lr=0.1)
        (p.sum() + (2 * p).square().sum()).backward()
        opt.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_what_cannot_work_is_refused_by_name():
    net = network()
    for own, match in (({"flatten": True}, "flatten"), ({"max_norm": 1.0}, "norm of all gradients")):
        with pytest.raises(SettingError, match=match):
            fastopt.torch.in_backward(net, fastopt.torch.AdamW, **own)
    with pytest.raises(SettingError, match=r"(?s)in_backward: .*torch.optim.adamw.*expected .*fastopt.torch.AdamW"):
        fastopt.torch.in_backward(net, torch.optim.AdamW)

    class DistributedDataParallel(torch.nn.Module):
        pass

    with pytest.raises(LayoutError, match="between processes"):
        fastopt.torch.in_backward(DistributedDataParallel(), fastopt.torch.AdamW)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    opt = fastopt.torch.in_backward(net, fastopt.torch.AdamW)
    scaler.scale(net(torch.ones(1, 20)).sum()).backward()
    with pytest.raises(SettingError, match="_amp_foreach_non_finite_check_and_unscale_"):
        scaler.step(opt)


def test_hooks_end_with_the_optimizer():
    net = network()
    opt = fastopt.torch.in_backward(net, fastopt.torch.AdamW, lr=0.01)
    train(net, opt, range(1))
    copied, gone = copy.deepcopy(opt), weakref.ref(opt)
    before = [p.detach().clone() for p in net.parameters()]
    del opt
    gc.collect()
    assert gone() is None
    net(torch.ones(1, 20)).sum().backward()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.grad is not None for p in net.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    del copied

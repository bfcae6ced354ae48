"""Gradients clipped by their global norm within fastopt.torch's step, beside torch.nn.utils.clip_grad_norm_."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import fastopt  # noqa: E402
import fastopt.torch  # noqa: E402
from fastopt import LayoutError, SettingError  # noqa: E402

NORMS = 2e-6  # 34 · 2⁻²⁴: ours is within 6 of the exact norm, torch's adds in float32 in an order of its own

SHAPES = [(300, 7), (10,), (1,), (64, 65), (), (5000,)]


def params(seed: int = 0) -> list[Any]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=make).requires_grad_() for shape in SHAPES]


def give(ps: Any, t: int, size: float = 1.0, without: int | None = None) -> None:
    make = torch.Generator().manual_seed(100 + t)
    for k, p in enumerate(ps):
        g = size * torch.randn(p.shape, generator=make)
        p.grad = None if k == without else g.to(p.dtype)


CLASSES = {
    "SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01}, "AdamW": {"lr": 0.01}, "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01}, "RMSprop": {"lr": 0.01}, "Adagrad": {"lr": 0.1}, "Adamax": {"lr": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_clipped_run_is_that_of_torch(kind, flatten):
    """Two groups, a parameter that misses a gradient now and then, small and large gradients, maximize in one."""
    ours, theirs = params(), params()
    options = CLASSES[kind]

    def groups(ps: Any) -> Any:
        return [{"params": ps[:3]}, {"params": ps[3:], "lr": 0.5 * options["lr"], "maximize": True}]

    mine = getattr(fastopt.torch, kind)(groups(ours), **options, flatten=flatten, max_norm=1.0)
    peer = getattr(torch.optim, kind)(groups(theirs), **options)
    for t in range(60):
        size, without = (0.001, 10.0)[t % 2], 4 if t % 3 == 0 else None
        give(ours, t, size, without)
        give(theirs, t, size, without)
        kept = [None if p.grad is None else p.grad.clone() for p in ours]
        mine.step()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        peer.step()
        torch.testing.assert_close(mine.grad_norm, norm, rtol=NORMS, atol=0)
        assert all(p.grad is None or torch.equal(p.grad, g) for p, g in zip(ours, kept, strict=True))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-4)  # 60 steps of at most 0.1, whose factors differ by ulps


@pytest.mark.parametrize("storage", [None, "8bit", "split_8bit", "bf16"])
def test_the_bits_are_those_of_an_optimizer_of_fastopt(storage):
    """One tensor: a row, as in a flat buffer."""
    (p,) = ps = [torch.randn(70_001).requires_grad_()]
    dtype = torch.float32 if storage in (None, "8bit") else torch.bfloat16
    opt = fastopt.Optimizer(
        fastopt.ClipByGlobalNorm(fastopt.Adam(lr=0.01), 0.5), {"p": p.detach().to(dtype).float().numpy()},
        storage=storage, seed=3,
    )  # fmt: skip
    p.data = p.data.to(dtype)
    mine = fastopt.torch.Adam(ps, lr=0.01, storage=storage, seed=3, max_norm=0.5)
    for t in range(5):
        give(ps, t)
        g = p.grad.float().numpy()
        opt.step(
            {
                "p": g
                if dtype == torch.float32
                else (g.view(np.uint32) >> 16).astype(np.uint16).view(opt.grads["p"].dtype)
            }
        )
        mine.step()
    assert np.array_equal(p.detach().float().numpy(), opt.params["p"].astype(np.float32))


def test_the_norm_is_over_parameters_of_every_type_and_count_of_steps():
    ps = [torch.zeros(300).requires_grad_(), torch.zeros(3, dtype=torch.float32).requires_grad_()]
    opt = fastopt.torch.SGD([{"params": ps[:1]}, {"params": ps[1:]}], lr=1.0, momentum=0.5, max_norm=1.0)
    ps[0].grad = torch.ones(300)
    opt.step()  # the second has taken no step yet: another cohort from now on
    ps[1].grad = torch.full((3,), 10.0)
    opt.step()
    assert float(opt.grad_norm) == pytest.approx(600**0.5)
    torch.testing.assert_close(ps[1].detach(), torch.full((3,), -10 / 600**0.5))


def test_the_norm_is_that_of_the_last_step_in_the_parameters_precision():
    for size in (1e25, 1e-30):
        p = torch.zeros(3, dtype=torch.float64).requires_grad_()
        opt = fastopt.torch.SGD([p], lr=0.1, max_norm=1.0)
        p.grad = torch.full((3,), size, dtype=torch.float64)
        opt.step()
        assert float(opt.grad_norm) == pytest.approx(3**0.5 * size)
        q = torch.zeros(2, dtype=torch.float64).requires_grad_()
        opt.add_param_group({"params": [q]})
        assert float(opt.grad_norm) == pytest.approx(3**0.5 * size)
        p.grad = None
        opt.step()
        assert float(opt.grad_norm) == 0.0
        opt.param_groups[0]["lr"] = -1.0
        assert float(opt.grad_norm) == 0.0
    with pytest.raises(SettingError, match="max_norm is for all groups"):
        fastopt.torch.SGD([{"params": params(), "max_norm": 1.0}], lr=0.1)


def test_it_goes_with_gradscaler():
    ps, qs = params(), params()
    mine, peer = fastopt.torch.AdamW(ps, lr=0.01, max_norm=0.5), torch.optim.AdamW(qs, lr=0.01)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)]
    for t in range(10):
        for scaler, own in zip(scalers, (ps, qs), strict=True):
            scaler.scale(torch.ones(()))
            give(own, t, 2.0**10)
            if t == 4:
                own[3].grad[5, 5] = float("inf")
        scalers[0].step(mine)
        scalers[1].unscale_(peer)
        norm = torch.nn.utils.clip_grad_norm_(qs, 0.5)
        scalers[1].step(peer)
        if t != 4:
            torch.testing.assert_close(mine.grad_norm, norm, rtol=NORMS, atol=0)
        for scaler in scalers:
            scaler.update()
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # ten steps of 0.01, whose factors differ by ulps


def test_it_survives_copies_pickles_and_checkpoints():
    ps = params()
    opt = fastopt.torch.Adam(ps, lr=0.01, max_norm=0.5)
    assert opt.grad_norm is None
    give(ps, 0)
    opt.step()
    saved = io.BytesIO()
    torch.save(opt.state_dict(), saved)
    both = copy.deepcopy((ps, opt))
    other = fastopt.torch.Adam([p.detach().clone().requires_grad_() for p in ps], lr=0.01, max_norm=0.5)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for own, o in ((ps, opt), both, (other.param_groups[0]["params"], other)):
        give(own, 1)
        o.step()
    for p, q, r in zip(ps, both[0], other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_rules_with_totals_of_each_tensor():
    from test_totals import Trust

    ps = [torch.ones(300).requires_grad_(), torch.full((40, 40), 2.0).requires_grad_()]
    for flatten in (False, True):
        own = [p.detach().clone().requires_grad_() for p in ps]
        opt = fastopt.torch.Fused(own, Trust(lr=0.1), flatten=flatten)
        give(own, 0)
        opt.step()
        assert opt.grad_norm is None
        for p, start in zip(own, ps, strict=True):
            alone = fastopt.Optimizer(Trust(lr=0.1), {"p": start.detach().numpy()})
            alone.step({"p": p.grad.numpy()})
            assert np.array_equal(p.detach().numpy(), alone.params["p"])


def test_what_has_no_total_here_is_refused():
    with pytest.raises(SettingError, match="max_norm"):
        fastopt.torch.Adam(params(), max_norm=0.0)
    net = torch.nn.Linear(3, 3)
    with pytest.raises(SettingError, match="max_norm"):
        fastopt.torch.in_backward(net, fastopt.torch.Adam, max_norm=1.0)
    opt = fastopt.torch.in_backward(net, fastopt.torch.Fused, rule=fastopt.ClipByGlobalNorm(fastopt.SGD()))
    loss = net(torch.ones(1, 3)).sum()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(SettingError, match="backward pass steps each by itself"):
        loss.backward()
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items()), opt


def test_a_distributed_parameter_has_no_totals(tmp_path):
    """Their parts are in other processes, of which there is one here."""
    dist = pytest.importorskip("torch.distributed.tensor", reason="this build of torch is not distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        p = torch.nn.Parameter(dist.distribute_tensor(torch.ones(300), mesh))
        opt = fastopt.torch.SGD([p], lr=1.0, max_norm=1.0)
        p.grad = dist.distribute_tensor(torch.ones(300), mesh)
        with pytest.raises(LayoutError, match="this process's part alone"):
            opt.step()
        assert torch.equal(p.to_local(), torch.ones(300))
    finally:
        torch.distributed.destroy_process_group()

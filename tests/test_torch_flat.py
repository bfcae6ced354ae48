"""Flattened parameters of fastopt.torch: they lie side by side in flat buffers, and nobody notices it but the step."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="fastopt.torch needs torch: pip install torch")

import fastopt.torch  # noqa: E402
from fastopt import LayoutError  # noqa: E402

STORAGES = pytest.mark.parametrize("storage", [None, "8bit", {"m": "bf16"}], ids=["plain", "8bit", "mixed"])


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(10)])


def trained(storage: Any = None, *, steps: int = 2, set_to_none: bool = True) -> tuple[Any, Any]:
    net = network()
    opt = fastopt.torch.AdamW(net.parameters(), lr=0.01, storage=storage, flatten=True)
    for _ in range(steps):
        opt.zero_grad(set_to_none=set_to_none)
        net(torch.ones(2, 16)).square().mean().backward()
        opt.step()
    return net, opt


def size(x: Any) -> int:
    return x.untyped_storage().nbytes()


# ---------------------------------------------------------------- storages of their own


@STORAGES
def test_each_tensor_has_a_storage_of_exactly_its_size(storage):
    net, opt = trained(storage, set_to_none=False)
    state = [x for p in net.parameters() for n, x in opt.state[p].items() if n != "step"]
    for x in [*net.parameters(), *(p.grad for p in net.parameters()), *state]:
        assert (size(x), x.storage_offset(), x._is_view()) == (x.nbytes, 0, False)
    storages = {x.untyped_storage().data_ptr() for x in [*net.parameters(), *state]}
    assert len(storages) == len(list(net.parameters())) + len(state)


@STORAGES
def test_pickles_and_files_hold_each_tensor_once(storage):
    net, opt = trained(storage)
    plain = network()
    usual = fastopt.torch.AdamW(plain.parameters(), lr=0.01, storage=storage)
    for _ in range(2):
        usual.zero_grad()
        plain(torch.ones(2, 16)).square().mean().backward()
        usual.step()
    for flat, separate in ((net, plain), (opt.state_dict(), usual.state_dict()), (opt.state, usual.state)):
        assert len(pickle.dumps(flat)) == pytest.approx(len(pickle.dumps(separate)), rel=0.02)
    file = io.BytesIO()
    torch.save(net[0].state_dict(), file)
    assert file.tell() < 3 * sum(p.nbytes for p in net[0].parameters()) + 2000


def test_safetensors_and_accelerate_save_every_tensor(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    accelerate = pytest.importorskip("accelerate")
    net, opt = trained()
    safetensors.save_model(net, str(tmp_path / "model.st"))
    names = set(net.state_dict())
    assert set(safetensors.load_file(str(tmp_path / "model.st"))) == names
    run = accelerate.Accelerator(cpu=True)
    run.prepare(net, opt)
    run.save_state(str(tmp_path / "run"))
    run.save_model(net, str(tmp_path / "saved"))
    assert set(safetensors.load_file(str(tmp_path / "run" / "model.safetensors"))) == names
    assert set(safetensors.load_file(str(tmp_path / "saved" / "model.safetensors"))) == names
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    run.load_state(str(tmp_path / "run"))
    assert all(torch.equal(before[n], x) for n, x in net.state_dict().items())


def test_a_copied_or_unpickled_model_is_independent():
    net, opt = trained()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        before = [p.detach().clone() for p in other.parameters()]
        opt.step()
        assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))
        assert not torch.equal(other[0].weight, net[0].weight)
        assert sum(size(p) for p in other.parameters()) == sum(p.nbytes for p in net.parameters())


def test_tensors_in_a_flat_buffer_are_not_resized():
    net, opt = trained(set_to_none=False)
    for x in (net[0].weight.grad, opt.state[net[0].weight]["exp_avg"]):
        with pytest.raises(RuntimeError, match="not resizable"):
            x.resize_(1000)


def test_shared_memory_is_not_left_silently():
    """As in training with several processes, each with an optimizer of its own (Hogwild)."""
    net = network()
    net.share_memory()
    with pytest.raises(LayoutError, match=r"(?s)parameter 0 of group 0 is shared.*do .*flatten=False"):
        fastopt.torch.AdamW(net.parameters(), flatten=True)
    assert all(p.is_shared() for p in net.parameters())


def test_a_model_that_is_shared_later_goes_on():
    ends = []
    for flatten in (False, True):
        net = network()
        opt = fastopt.torch.AdamW(net.parameters(), lr=0.01, flatten=flatten)
        for step in range(4):
            opt.zero_grad()
            net(torch.ones(2, 16)).square().mean().backward()
            opt.step()
            if step == 1:
                net.share_memory()
        assert all(p.is_shared() for p in net.parameters())
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*ends)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clip", [False, True])
def test_parameters_that_take_no_part_are_left_alone_as_in_torch(set_to_none, clip):
    """A branch that is not taken is not decayed and not counted, unless its gradient is zero instead of None."""
    runs = []
    for module, own in ((torch.optim, {}), (fastopt.torch, {"flatten": True})):
        torch.manual_seed(0)
        net = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(4)])
        opt = module.AdamW(net.parameters(), lr=0.1, weight_decay=0.5, **own)
        without = []
        for step in range(8):
            opt.zero_grad(set_to_none=set_to_none)
            branches = [net[step % 3], *([net[3]] if step == 5 else [])]
            torch.stack([branch(torch.ones(1, 3)).square().sum() for branch in branches]).sum().backward()
            if clip:  # which multiplies every gradient that there is
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            without.append([p.grad is None for p in net.parameters()])
            opt.step()
        counts = [float(opt.state[p]["step"]) for p in net.parameters()]
        runs.append((without, counts, [p.detach() for p in net.parameters()]))
    (without, counts, params), own = runs
    assert own[:2] == (without, counts)
    assert len(set(counts)) > 1
    for p, q in zip(params, own[2], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)  # eight steps, each of a few roundings


def test_state_made_by_a_step_of_zeros_leaves_no_gradients():
    """As torch.distributed.checkpoint makes it, to have something to load into."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    used, unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.nn.init.ones_(unused.weight)
    net = torch.nn.ModuleList([used, unused])
    opt = fastopt.torch.AdamW(net.parameters(), lr=0.1, weight_decay=0.5, flatten=True)
    get_optimizer_state_dict(net, opt)
    for _ in range(3):
        opt.zero_grad()
        used(torch.ones(1, 2)).sum().backward()
        opt.step()
    assert unused.weight.grad is None
    assert torch.equal(unused.weight, torch.ones(2, 2))
    assert float(opt.state[unused.weight]["step"]) == 1  # the step of zeros, as with torch


def rows(opt: Any) -> int:
    (bucket,) = opt._buckets
    (cohort,) = bucket.arranged.cohorts
    return len(cohort.rows)


def test_parameters_whose_gradients_stay_in_place_are_one_row_of_a_step():
    params = [torch.nn.Parameter(torch.ones(n)) for n in (5, 0, 300, 1)]
    opt: Any = fastopt.torch.AdamW(params, flatten=True)
    at = []
    for _ in range(4):
        opt.zero_grad(set_to_none=False)
        torch.cat([p.flatten() for p in params]).sum().backward()
        opt.step()
        at.append(params[2].grad.data_ptr())
    assert len(set(at[1:])) == 1  # the first were made by the backward pass
    assert rows(opt) == 1
    assert "flat buffers" in repr(opt)
    opt.zero_grad()
    torch.cat([p.flatten() for p in params]).sum().backward()
    opt.step()
    assert rows(opt) == 3


def test_zeroing_leaves_gradients_that_others_hold():
    """Those that backward made lie in memory of their own; a later zero_grad must not write to it."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = fastopt.torch.SGD([p], lr=0.1, flatten=True)
    (2 * p).sum().backward()
    held = p.grad
    opt.zero_grad(set_to_none=False)
    assert held.tolist() == [2.0] * 3
    assert p.grad.tolist() == [0.0] * 3
    (3 * p).sum().backward()
    zeroed = p.grad
    opt.zero_grad()
    (5 * p).sum().backward()
    opt.zero_grad(set_to_none=False)
    assert zeroed.tolist() == [3.0] * 3

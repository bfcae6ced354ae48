"""fastopt.torch.Muon: torch's arguments and results, groups for what is no matrix, and the products in torch."""

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
from fastopt.kernels.rules.muon import NewtonSchulz  # noqa: E402
from fastopt.torch import Muon  # noqa: E402

AUX = fastopt.Adam(lr=0.01, weight_decay=0.1, decoupled=True)


def network() -> Any:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(2, 6, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(54, 8), torch.nn.Tanh(),
              torch.nn.Linear(8, 4))  # fmt: skip
    return torch.nn.Sequential(*layers)


def backward(net: Any, seed: int) -> None:
    x = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    net(x.to(net[0].weight.dtype)).square().mean().backward()


def train(net: Any, opt: Any, steps: range) -> Any:
    for k in steps:
        opt.zero_grad()
        backward(net, k)
        opt.step()
    return net


def values(net: Any) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in net.parameters()]


def assert_equal(found: Any, expected: Any) -> None:
    for a, b in zip(values(found), values(expected), strict=True):
        np.testing.assert_array_equal(a, b)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_muon
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (16, 16)])
def test_products_in_bfloat16_are_as_near_as_torchs(options, shape):
    """How far a step in bfloat16 is from that in float64 depends on singular values: torch's is the measure."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    makers = {
        "exact": lambda p: Muon([p], lr=0.02, **options),
        "torch": lambda p: torch.optim.Muon([p], lr=0.02, **options),
        "ours": lambda p: Muon([p], lr=0.02, ns_dtype="bfloat16", **options),
    }
    ends = {}
    for name, make in makers.items():
        p = torch.nn.Parameter(start.double() if name == "exact" else start.clone())
        p.grad = p.detach().square()
        make(p).step()
        ends[name] = p.detach().double()
    far = {name: (x - ends["exact"]).norm().item() for name, x in ends.items()}
    assert 0 < far["ours"] < 1.5 * far["torch"], far


@needs_muon
def test_state_goes_both_ways():
    nets = [torch.nn.Linear(6, 5, bias=False) for _ in range(2)]
    theirs, own = torch.optim.Muon(nets[0].parameters(), lr=0.02), Muon(nets[1].parameters(), lr=0.5)
    for net, opt in zip(nets, (theirs, own), strict=True):
        net(torch.ones(2, 6)).square().sum().backward()
        opt.step()
    own.load_state_dict(theirs.state_dict())
    assert own.param_groups[0]["lr"] == 0.02
    name = "momentum_buffer"
    assert torch.equal(own.state[nets[1].weight][name], theirs.state[nets[0].weight][name])
    theirs.load_state_dict(own.state_dict())
    theirs.step()


@pytest.mark.parametrize("own", [{}, {"flatten": True}, {"max_norm": 0.1, "ema": 0.9, "skip_nonfinite": True}])
def test_the_steps_are_those_of_an_optimizer_of_numpy(own):
    """But for the products, which are another library's: of float64, to 1e-11 after ten steps."""
    net = network().double()
    rule: Any = fastopt.Muon(lr=0.02, aux=AUX, aux_for=("5.*",))
    if "ema" in own:
        rule = fastopt.EMA(rule, own["ema"])
        rule = fastopt.SkipNonfinite(fastopt.ClipByGlobalNorm(rule, max_norm=own["max_norm"]))
    other = fastopt.Optimizer(rule, {k: p.detach().numpy() for k, p in net.named_parameters()})
    opt = Muon(net.named_parameters(), lr=0.02, aux=AUX, aux_for=("5.*",), **own)
    for k in range(10):
        opt.zero_grad()
        backward(net, k)
        grads = {name: p.grad.numpy().copy() for name, p in net.named_parameters()}
        opt.step()
        other.step(grads)
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), other.params[name], rtol=0, atol=1e-11)


def test_groups_are_divided_and_have_options_of_their_own():
    net = network()
    opt = Muon(net.named_parameters(), lr=0.02, aux=AUX, aux_for=("5.*",))
    assert [(g["aux"], g["lr"], g["param_names"]) for g in opt.param_groups] == [
        (False, 0.02, ["0.weight", "3.weight"]),
        (True, 0.01, ["0.bias", "3.bias", "5.weight", "5.bias"]),
    ]
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    train(net, opt, range(1))
    schedule.step()
    assert [g["lr"] for g in opt.param_groups] == [0.01, 0.005]
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "param_names": ["late"], "lr": 0.5})
    assert opt.param_groups[2]["aux"]
    assert opt.param_groups[2]["lr"] == 0.5
    assert opt.param_groups[2]["betas"] == (0.9, 0.999)


def test_only_groups_of_aux_have_its_options():
    net = network()
    opt: Any = Muon(net.named_parameters(), lr=0.02, momentum=0.95, aux=AUX)
    assert "betas" not in opt.param_groups[0]
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10, base_momentum=0.5, max_momentum=0.8)
    assert opt.param_groups[0]["momentum"] == 0.8
    opt.param_groups[1]["betas"] = (0.5, 0.5)
    train(net, opt, range(1))
    assert opt._buckets.groups[1][0].plan.rule.betas == (0.5, 0.5)


def test_a_group_says_by_a_truth_value_whether_it_is_for_aux():
    matrix, vector = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(SettingError, match="there is none"):
        Muon([{"params": [matrix], "aux": True}])
    with pytest.raises(SettingError, match="there is none"):
        Muon([{"params": [matrix], "aux": "yes"}], aux=AUX)
    with pytest.raises(LayoutError, match="fewer than two dimensions"):
        Muon([{"params": [vector], "aux": False}], aux=AUX)
    opt = Muon([{"params": [matrix], "aux": True, "lr": 0.5}], aux=AUX)
    assert [(g["aux"], g["lr"]) for g in opt.param_groups] == [(True, 0.5)]


def test_it_is_saved_loaded_copied_and_resumed():
    nets = [network() for _ in range(4)]

    def made(net: Any) -> Any:
        return Muon(net.named_parameters(), lr=0.02, aux=AUX, aux_for=("5.*",), storage="8bit")

    opt = made(nets[0])
    train(nets[0], opt, range(3))
    file = io.BytesIO()
    torch.save((nets[0].state_dict(), opt.state_dict()), file)
    file.seek(0)
    model, state = torch.load(file, weights_only=True)
    nets[1].load_state_dict(model)
    again = made(nets[1])
    again.load_state_dict(state)
    both = copy.deepcopy((nets[0], opt))
    train(nets[0], opt, range(3, 6))
    train(nets[1], again, range(3, 6))
    train(*both, range(3, 6))
    assert_equal(nets[1], nets[0])
    assert_equal(both[0], nets[0])


def test_any_rule_with_functions_of_matrices_is_fused():
    net, other = network(), network()
    rule = fastopt.Muon(lr=0.02, aux=fastopt.Adam(lr=0.01), aux_for=("5.*",))
    opt = fastopt.torch.Fused(net.named_parameters(), fastopt.ClipByGlobalNorm(rule, max_norm=0.1))
    same = Muon(other.named_parameters(), lr=0.02, aux=fastopt.Adam(lr=0.01), aux_for=("5.*",), max_norm=0.1)
    train(net, opt, range(4))
    train(other, same, range(4))
    assert_equal(net, other)
    assert torch.equal(opt.grad_norm, same.grad_norm)
    again = fastopt.torch.Fused(net.named_parameters(), fastopt.ClipByGlobalNorm(rule, max_norm=0.1))
    again.load_state_dict(opt.state_dict())
    assert set(again.state[net[3].weight]) == {"step", "m"}
    assert set(again.state[net[3].bias]) == {"step", "m", "v"}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("options", [{"lr": 0.02, "aux": AUX}, {"lr": 0.02, "aux": AUX, "aux_for": ("5.*",)}])
def test_in_backward_and_offloaded_steps_are_the_same(options):
    nets = [network() for _ in range(3)]
    train(nets[0], Muon(nets[0].named_parameters(), **options), range(4))
    for net, wrap in zip(nets[1:], (fastopt.torch.in_backward, fastopt.torch.offload), strict=True):
        opt = wrap(net, Muon, **options)
        train(net, opt, range(4))
    assert_equal(nets[1], nets[0])
    assert_equal(nets[2], nets[0])


def test_autocast_does_not_change_the_products():
    nets = [network() for _ in range(2)]
    for net, enabled in zip(nets, (False, True), strict=True):
        opt = Muon(net.parameters(), lr=0.02, aux=AUX)
        for k in range(3):
            opt.zero_grad()
            backward(net, k)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                opt.step()
    assert_equal(*nets)


def test_mistakes_are_refused_when_the_optimizer_is_built():
    net = network()
    with pytest.raises(LayoutError, match="fewer than two dimensions"):
        Muon(net.parameters())
    with pytest.raises(LayoutError, match="fewer than two dimensions"):
        fastopt.torch.Fused(net.parameters(), fastopt.Muon())
    with pytest.raises(SettingError, match="named_parameters"):
        Muon(net.parameters(), aux=AUX, aux_for=("5.*",))
    with pytest.raises(SettingError, match="fits no parameter"):
        Muon(net.named_parameters(), aux=AUX, aux_for=("head.*",))
    with pytest.raises(SettingError, match="tuple of patterns"):
        Muon(net.named_parameters(), aux=AUX, aux_for="5.*")
    with pytest.raises(SettingError, match="options that could be for either"):
        Muon([{"params": list(net.parameters()), "lr": 0.1}], aux=AUX)
    with pytest.raises(SettingError, match="capturable"):
        Muon([net[3].weight], capturable=True)
    with pytest.raises(LayoutError, match="rows of"):
        Muon([torch.nn.Parameter(torch.ones(3, 4).T)])
    last = torch.nn.Parameter(torch.ones(3, 4, 2, 2).to(memory_format=torch.channels_last))
    Muon([last])  # whose rows do lie one after the other


def test_an_error_of_a_product_leaves_all_as_it_was(monkeypatch):
    net = network()
    opt = Muon(net.parameters(), lr=0.02, aux=AUX)
    train(net, opt, range(2))
    before, steps = values(net), [opt.state[p]["step"].item() for p in net.parameters()]
    backward(net, 9)

    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NewtonSchulz, "__call__", fails)
        with pytest.raises(KeyboardInterrupt):
            opt.step()
    for a, b in zip(values(net), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [opt.state[p]["step"].item() for p in net.parameters()] == steps
    opt.step()
    assert [opt.state[p]["step"].item() for p in net.parameters()] == [n + 1 for n in steps]

"""fastopt.torch in training code: schedulers, GradScaler, checkpoints to and from torch.optim, copies, hooks.

Over 300 lines: whatever training code does with an optimizer is tried once.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

import fastopt.torch  # noqa: E402

F = torch.nn.functional
TESTS = Path(__file__).parent
CLASSES = ["SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"]
flatten_or_not = pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flattened"])
MOMENTUM = {"SGD": {"momentum": 0.9, "dampening": 0.1}, "RMSprop": {"momentum": 0.9, "centered": True}}


class Convolutional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 6, 3), torch.nn.Conv2d(6, 8, 3, bias=False)
        self.norm, self.head = torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(F.relu(self.norm(self.second(x))).mean((2, 3)))


class Transformer(torch.nn.Module):
    """A transformer whose output weights are tied to its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)))


def network(kind, dtype=torch.float32):
    torch.manual_seed(0)
    return kind().to(dtype)


def batch(kind, step, dtype=torch.float32):
    rng = torch.Generator().manual_seed(step)
    if kind is Transformer:
        tokens = torch.randint(0, 20, (4, 9), generator=rng)
        return tokens[:, :-1], tokens[:, 1:]
    x = torch.randn(8, 1, 8, 8, generator=rng, dtype=torch.float32).to(dtype)
    return x, (x.float().mean((1, 2, 3)) * 40 + 5).long().clamp(0, 9)


def loss_of(model, kind, step, dtype=torch.float32):
    x, y = batch(kind, step, dtype)
    return F.cross_entropy(model(x).float().flatten(0, -2), y.flatten())


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@flatten_or_not
@pytest.mark.parametrize("kind", [Convolutional, Transformer])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW", "NAdam"])
def test_networks_reach_torchs_loss_with_scheduler_accumulation_clipping_and_scaler(name, kind, flatten):
    """The scheduler, OneCycleLR, also changes momentum.

    Rounding differences of 6e-8 grow over the steps, through a network of a few layers and an optimizer that divides by
    square roots. After 40 steps they are about 1e-5 of the loss; one step more or less would change its second digit.
    """
    losses, ends = [], []
    for module in (torch.optim, fastopt.torch):
        model = network(kind)
        own = {} if module is torch.optim else {"flatten": flatten}
        opt = getattr(module, name)(model.parameters(), lr=1e-3, **MOMENTUM.get(name, {}), **own)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.2 if name == "SGD" else 0.01, total_steps=40)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10)
        found = []
        for step in range(40):
            opt.zero_grad()
            loss: Any = None
            for part in range(2):
                loss = loss_of(model, kind, 2 * step + part) / 2
                scaler.scale(loss).backward()
            if step % 2:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(opt)
            scaler.update()
            scheduler.step()
            found.append(2 * loss.item())
        losses.append(found)
        ends.append(values(model))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert sum(losses[0][-10:]) < sum(losses[0][:10])
    assert not torch.equal(ends[1][0], values(network(kind))[0])


SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda t: 0.9**t},
    "MultiplicativeLR": {"lr_lambda": lambda t: 0.95},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 5]},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 4},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 6},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.01, "step_size_up": 3},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},
    "ReduceLROnPlateau": {"patience": 1},
}


def test_the_table_has_every_scheduler_of_torch():
    from torch.optim import lr_scheduler

    known = {n for n in lr_scheduler.__all__ if n not in ("LRScheduler", "ChainedScheduler", "SequentialLR")}
    assert known == SCHEDULERS.keys()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam"])
def test_schedulers_give_torchs_steps_without_compilation(name, scheduler, monkeypatch):
    ends = []
    for module in (torch.optim, fastopt.torch):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 40))
        opt = getattr(module, name)([p], lr=0.01, **({"momentum": 0.9} if name == "SGD" else {}))
        schedule = getattr(torch.optim.lr_scheduler, scheduler)(opt, **SCHEDULERS[scheduler])
        for step in range(10):
            p.grad = p.detach() * 2 + 0.1 * step
            opt.step()
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
            if step == 1 and module is fastopt.torch:
                monkeypatch.setattr("fastopt.kernels.jit.StoredCode", None)  # compiling raises from now on
        ends.append(p.detach().numpy())
    np.testing.assert_allclose(ends[1], ends[0], rtol=10 * 32 * 2**-24, atol=10 * 32 * 2**-24)  # as in test_torch_optim


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # torch 2.6 warns of itself
def test_sequential_and_chained_schedulers():
    kinds, ends = torch.optim.lr_scheduler, []
    for module in (torch.optim, fastopt.torch):
        p = torch.nn.Parameter(torch.ones(3))
        opt = module.SGD([p], lr=0.5)
        first, second = kinds.ConstantLR(opt, 0.5, total_iters=2), kinds.ExponentialLR(opt, 0.5)
        both = kinds.ChainedScheduler([kinds.SequentialLR(opt, [first, second], milestones=[2])])
        for _ in range(5):
            p.grad = torch.ones(3)
            opt.step()
            both.step()
        ends.append(p.tolist())
    assert ends[0] == ends[1]  # powers of two: exact


def test_a_tensor_as_learning_rate_is_read_at_each_step():
    p, lr = torch.nn.Parameter(torch.zeros(2)), torch.tensor(0.5)
    opt = fastopt.torch.SGD([p], lr=lr)
    for expected in (-0.5, -0.75):
        p.grad = torch.ones(2)
        opt.step()
        assert p.tolist() == [expected, expected]
        lr.fill_(0.25)


@pytest.mark.parametrize("in_step", [False, True])
@flatten_or_not
@pytest.mark.parametrize("name", CLASSES)
def test_grad_scaler_steps_with_unscaled_gradients_or_not_at_all(name, flatten, in_step):
    """With found_inf, parameters, state and counts do not change; else the step equals one with unscaled gradients.

    It unscales before the step, or leaves that to an optimizer that says it does so.
    """
    start = torch.linspace(-1, 1, 300)
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    own, plain = (getattr(fastopt.torch, name)([p], **MOMENTUM.get(name, {}), flatten=flatten) for p in params)
    own._step_supports_amp_scaling = in_step
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    for step in range(5):
        g = torch.cos(start * (step + 1))
        bad = step in (0, 3)
        scale = scaler.get_scale()
        params[0].grad = g * scale
        params[1].grad = g.clone()
        scaler.scale(torch.zeros(1))
        if bad:
            params[0].grad[7] = float("inf") if step else float("nan")
        before = copy.deepcopy((state_values(own), params[0].detach()))
        scaler.step(own)
        scaler.update()
        if bad:
            assert scaler.get_scale() == scale / 2
            assert torch.equal(before[1], params[0].detach())
            after = state_values(own)
            assert before[0].keys() == after.keys()
            assert all(torch.equal(before[0][k], after[k]) for k in after)
        else:
            plain.step()
            assert torch.equal(*[p.detach() for p in params])  # a power of two unscales exactly
            assert params[0].grad[0] == g[0] * (scale if in_step else 1.0)


def state_values(opt):
    return {f"{k}/{n}": v.clone() for k, x in opt.state_dict()["state"].items() for n, v in x.items()}


def take_steps(opt, p, steps):
    for t in steps:
        p.grad = torch.cos(p.detach() * (t + 1)).to(p.dtype)
        opt.step()


@flatten_or_not
@pytest.mark.parametrize("name", CLASSES)
def test_a_run_can_switch_between_torch_and_fastopt(name, flatten):
    more = MOMENTUM.get(name, {})
    ends, kinds = [], [torch.optim, fastopt.torch]
    for route in ([0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]):
        p, saved = torch.nn.Parameter(torch.linspace(-1, 1, 100, dtype=torch.float64)), None
        for k, which in enumerate(route):
            own = {"flatten": flatten} if which else {}
            opt = getattr(kinds[which], name)([p], **more, **own)
            if saved is not None:
                opt.load_state_dict(pickle.loads(saved))
            take_steps(opt, p, range(4 * k, 4 * k + 4))
            saved = pickle.dumps(opt.state_dict())
            assert "fastopt" not in str(saved)
        ends.append(p.detach().numpy())
    # 12 steps, each with about 16 roundings. For NAdam, whose steps are 0.002, roundings of float32: in it torch
    # multiplies the momenta, until it loads their product from a checkpoint, then in the parameter's dtype.
    tolerance = 12 * 32 * (2**-53 if name != "NAdam" else 0.002 * 2**-24)
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=tolerance, atol=tolerance)


def test_a_state_dict_can_be_loaded_with_weights_only():
    p = torch.nn.Parameter(torch.ones(300))
    opt = fastopt.torch.AdamW([p], storage="8bit")
    take_steps(opt, p, range(3))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert loaded["state"][0]["exp_avg"].dtype == torch.float32
    theirs = torch.optim.AdamW([p])
    theirs.load_state_dict(loaded)
    p.grad = torch.ones(300)
    theirs.step()


STORAGES = [None, "8bit", {"m": "bf16_sr", "v": "bf16_sr"}, {"v": "uf8"}]
HALF = [None, "bf16", "split", "split_8bit", "bf16_8bit", "bf16_kahan", "mixed_bf16"]


@flatten_or_not
@pytest.mark.parametrize(
    ("dtype", "storage"),
    [
        *[(torch.float32, s) for s in STORAGES],
        *[(torch.bfloat16, s) for s in HALF],
        (torch.float16, None),
        (torch.float16, "mixed_f16"),
        (torch.float64, None),
    ],
    ids=str,
)
def test_a_saved_or_copied_run_continues_bit_for_bit(dtype, storage, flatten):
    """With state_dict, pickle and deepcopy; a state_dict also loads into an optimizer with the other `flatten`."""

    def fresh():
        rng = torch.Generator().manual_seed(3)
        return [torch.nn.Parameter(torch.randn(n, generator=rng).to(dtype)) for n in (700, 5, 0, 256, 40_000)]

    def steps(opt, params, which):
        for t in which:
            for p in params:
                p.grad = torch.cos(p.detach().float() * (t + 1)).to(dtype)
            opt.step()

    options = {"storage": storage, "seed": 5, "flatten": flatten}
    params = fresh()
    opt = fastopt.torch.Adam(params, **options)
    steps(opt, params, range(3))
    saved = copy.deepcopy((opt.state_dict(), [p.detach() for p in params]))
    pickled = pickle.dumps((params, opt))
    copied = copy.deepcopy((params, opt))
    steps(opt, params, range(3, 6))
    others = [copied, pickle.loads(pickled)]
    for other_flatten in (False, True):
        new_params = fresh()
        with torch.no_grad():
            for p, v in zip(new_params, saved[1], strict=True):
                p.copy_(v)
        other = fastopt.torch.Adam(new_params, **{**options, "flatten": other_flatten})
        other.load_state_dict(saved[0])
        others.append((new_params, other))
    for new_params, other in others:
        steps(other, new_params, range(3, 6))
        for p, q in zip(params, new_params, strict=True):
            assert torch.equal(p, q)
        for a, b in zip(sorted(state_values(opt).items()), sorted(state_values(other).items()), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1]), a[0]


def test_split_is_an_exact_float32_master_whose_first_half_is_the_parameter():
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=rng).bfloat16()
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    own, full = fastopt.torch.AdamW([p], lr=1e-3, storage="split"), fastopt.torch.AdamW([q], lr=1e-3)
    for t in range(30):
        g = torch.cos(q.detach() * (t + 1)).bfloat16()
        p.grad, q.grad = g, g.float()
        own.step()
        full.step()
        assert torch.equal(own.state_dict()["state"][0]["master"], q.detach())
    assert (p.detach().float() - q.detach()).abs().max() <= q.abs().max() * 2**-8
    state = own.state[p]
    assert state.keys() == {"step", "master", "exp_avg", "exp_avg_sq"}
    assert torch.equal(state["master"], q.detach())
    assert state["exp_avg"].dtype == torch.float32


def test_8bit_state_has_the_expected_entries_and_size():
    p = torch.nn.Parameter(torch.ones(1000))
    opt: Any = fastopt.torch.Adam([p], storage="8bit")
    take_steps(opt, p, range(2))
    assert opt.state[p].keys() == {"step", "exp_avg", "exp_avg_sq"}  # as torch's, decoded when they are read
    assert opt.state[p]["exp_avg"].dtype == torch.float32
    (bucket,) = opt._buckets
    stored = bucket.state.own_planes(0)
    assert stored.keys() == {"m", "m.scale", "v", "v.scale"}
    assert sum(x.nbytes for x in stored.values()) == 2 * (1000 + 4 * 4)


def test_a_run_resumed_in_a_new_process_equals_an_uninterrupted_one(tmp_path):
    """Both end with the same bits in the model and the state."""
    code = f"""
import sys, torch, fastopt.torch
sys.path.insert(0, {str(TESTS)!r})
from test_torch_training import Transformer, network, loss_of
torch.set_num_threads(1)
mode, layout, path = sys.argv[1:]
model = network(Transformer)
opt = fastopt.torch.AdamW(model.parameters(), lr=0.01, storage="8bit", flatten=layout == "flattened")
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
first, last = {{"whole": (0, 12), "first": (0, 5), "second": (5, 12)}}[mode]
if mode == "second":
    saved = torch.load(path, weights_only=True)
    for thing, state in zip((model, opt, schedule), saved):
        thing.load_state_dict(state)
for step in range(first, last):
    opt.zero_grad()
    loss_of(model, Transformer, step).backward()
    opt.step()
    schedule.step()
torch.save([x.state_dict() for x in (model, opt, schedule)], path)
"""
    for layout in ("separate", "flattened"):
        whole, stopped = tmp_path / f"{layout}-whole", tmp_path / f"{layout}-stopped"
        for mode, path in (("whole", whole), ("first", stopped), ("second", stopped)):
            subprocess.run([sys.executable, "-c", code, mode, layout, str(path)], check=True)
        a, b = (torch.load(path, weights_only=True) for path in (whole, stopped))
        assert all(torch.equal(x, b[0][name]) for name, x in a[0].items())
        for i, entries in a[1]["state"].items():
            assert all(torch.equal(x, b[1]["state"][i][name]) for name, x in entries.items())


def test_closures_hooks_and_returned_losses():
    p = torch.nn.Parameter(torch.tensor([3.0]))
    opt = fastopt.torch.SGD([p], lr=0.25)
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        seen.append("closure")
        return loss

    with torch.no_grad():
        assert opt.step(closure).item() == 9.0
    assert seen == ["pre", "closure", "post"]
    assert p.item() == 1.5
    hooks = []
    opt.register_state_dict_post_hook(lambda o, d: hooks.append(sorted(d)))
    opt.register_load_state_dict_post_hook(lambda o: hooks.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert hooks == [["param_groups", "state"], "loaded"]


def test_backward_through_a_changed_parameter_fails_as_with_torch():
    w = torch.nn.Parameter(torch.ones(3, 3))
    for flatten in (False, True):
        opt = fastopt.torch.SGD([w], lr=0.1, flatten=flatten)
        loss = (torch.ones(2, 3, requires_grad=True) @ w).sum()
        w.grad = torch.ones(3, 3)
        opt.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_averaged_models_and_swa():
    models = [network(Convolutional), network(Convolutional)]
    ends = []
    for model, module in zip(models, (torch.optim, fastopt.torch), strict=True):
        opt = module.SGD(model.parameters(), lr=0.05, momentum=0.9)
        average = torch.optim.swa_utils.AveragedModel(model)
        schedule = torch.optim.swa_utils.SWALR(opt, swa_lr=0.01, anneal_epochs=3)
        for step in range(8):
            opt.zero_grad()
            loss_of(model, Convolutional, step).backward()
            opt.step()
            average.update_parameters(model)
            schedule.step()
        ends.append([p.detach().numpy() for p in average.parameters()])
    for a, b in zip(*ends, strict=True):
        # eight steps of a network; differences grow as described above
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_two_optimizers_over_the_same_parameters():
    p = torch.nn.Parameter(torch.ones(5))
    slow, fast = fastopt.torch.SGD([p], lr=0.5), fastopt.torch.AdamW([p], lr=0.5, weight_decay=0.0)
    p.grad = torch.ones(5)
    slow.step()
    fast.step()
    assert torch.allclose(p, torch.zeros(5), atol=1e-6)


def test_options_changed_in_place_take_effect():
    p = torch.nn.Parameter(torch.zeros(3))
    opt = fastopt.torch.SGD([p], lr=1.0)
    group = opt.param_groups[0]

    def moved():
        before = p.detach().clone()
        p.grad = torch.ones(3)
        opt.step()
        return (p.detach() - before).tolist()

    assert moved() == [-1.0] * 3
    group["lr"] = torch.tensor(1.0)  # the same number, but writable in place
    assert moved() == [-1.0] * 3
    group["lr"].fill_(0.5)
    assert moved() == [-0.5] * 3
    group["maximize"] = True
    assert moved() == [0.5] * 3
    opt = fastopt.torch.Adam([p], lr=1.0, betas=(0.0, 0.999))
    betas = opt.param_groups[0]["betas"] = [0.0, 0.999]
    assert moved() == pytest.approx([-1.0] * 3)
    betas[0] = 0.5
    p.grad = -torch.ones(3)
    before = p.detach().clone()
    opt.step()
    assert torch.equal(p, before)  # half of 1 and half of -1


def test_global_hooks_and_profilers_observe_the_step():
    """Torch's wrapper of `step` is called only if there are hooks or a profiler."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    opt = fastopt.torch.AdamW([p], lr=0.1)
    seen = []
    hooks = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append(("before", o is opt))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append(("after", o is opt))),
    ]
    assert opt.step(lambda: 4.0) == 4.0
    assert seen == [("before", True), ("after", True)]
    for hook in hooks:
        hook.remove()
    opt.step()
    assert len(seen) == 2
    with torch.profiler.profile() as profile:
        opt.step()
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}
    assert float(opt.state[p]["step"]) == 3
    hook = opt.register_step_pre_hook(lambda o, args, kwargs: (args, {"closure": lambda: 5.0}))
    assert opt.step() == 5.0
    hook.remove()
    assert opt.step() is None

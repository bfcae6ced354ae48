"""fastopt.torch compared with torch.optim step by step: every class with its settings, dtypes, groups and `flatten`.

Over 300 lines: the tables of classes and settings are shared by all of it.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

import fastopt.torch  # noqa: E402

STEPS = 50

# case → (class in torch.optim and fastopt.torch, settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    "sgd-momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd-dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd-nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd-maximize": ("SGD", {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "eps": 1e-3}),
    "rmsprop-centered": ("RMSprop", {"lr": 0.01, "eps": 1e-3, "centered": True, "weight_decay": 0.1}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.01, "eps": 1e-3, "momentum": 0.8, "alpha": 0.9}),
    "rmsprop-all": ("RMSprop", {"lr": 0.01, "eps": 1e-3, "momentum": 0.8, "centered": True, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam-decay": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adam-decoupled": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam-amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.9, 0.5), "eps": 1e-3}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw-decay": ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    "adamw-maximize": ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "maximize": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad-all": ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.1}),
    "adadelta": ("Adadelta", {"lr": 0.5, "eps": 1e-3}),
    "adadelta-decay": ("Adadelta", {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    "adamax": ("Adamax", {"lr": 0.01}),
    "adamax-decay": ("Adamax", {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}),
    "nadam": ("NAdam", {"lr": 0.01}),
    "nadam-decay": ("NAdam", {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.1}),
    "nadam-decoupled": ("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam": ("RAdam", {"lr": 0.01}),
    "radam-decay": ("RAdam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "maximize": True}),
    "radam-decoupled": ("RAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
}
CASES = {  # without the options that an older torch does not have
    case: (name, options)
    for case, (name, options) in CASES.items()
    if options.keys() <= inspect.signature(getattr(torch.optim, name)).parameters.keys()
}

# Each step rounds about 16 times on the way to each value, by at most half an ulp of values below 4; torch and fastopt
# differ only in the order of operations. Nothing amplifies an error: ε is large where square roots are small.
TOLERANCE = {
    torch.float64: STEPS * 16 * 2 * 2**-53,
    torch.float32: STEPS * 16 * 2 * 2**-24,
}
TYPES = [torch.float32, torch.float64, torch.bfloat16]
flatten_or_not = pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flattened"])


def parameters(dtype, device="cpu"):
    """Return parameters of many shapes and memory formats; the one with index 9 never gets a gradient."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    shapes = [
        normal(17, 5),
        normal(0),
        normal(()),
        normal(300),
        normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        normal(7, 6).t(),
        normal(1, 9),
        normal(3, 0, 2),
        normal(1),
        normal(4),  # never gets a gradient
        normal(0),
    ]
    return [torch.nn.Parameter(x.to(device)) for x in shapes]


def set_gradients(params, step):
    """Set the gradients of this step, the same at every call; some are None in some steps, one in all."""
    for i, p in enumerate(params):
        if i == 9 or (i == 3 and step % 5 in (1, 2)) or (i == 0 and step < 3) or (i == 1 and step % 2):
            p.grad = None
            continue
        rng = torch.Generator().manual_seed(1000 * step + i)
        g = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64))
        if p.grad is None or step % 7 == 3:
            p.grad = g
        else:
            p.grad.copy_(g)


def grouped(params, groups):
    """Return the first argument of an optimizer with one parameter group or three."""
    if groups == 1:
        return params
    return [{"params": params[:4]}, {"params": params[4:9], "lr": 0.02}, {"params": params[9:]}]


def make_ours(case, params, groups=1, **own):
    name, settings = CASES[case]
    return getattr(fastopt.torch, name)(grouped(params, groups), **settings, **own)


def make_torchs(case, params, groups=1, **more):
    name, settings = CASES[case]
    return getattr(torch.optim, name)(grouped(params, groups), **settings, **more)


def numbers(tensor):
    return tensor.detach().cpu().numpy()


def assert_same(ours, theirs, params, own, tolerance, message):
    """Assert that parameters and all state, by name, are equal within the tolerance."""
    for i, (p, q) in enumerate(zip(params, own, strict=True)):
        np.testing.assert_allclose(
            numbers(q), numbers(p), rtol=tolerance, atol=tolerance, err_msg=f"{message}, parameter {i}"
        )
        expected, found = theirs.state.get(p, {}), ours.state.get(q, {})
        assert expected.keys() == found.keys(), (message, i)
        for name, value in expected.items():
            np.testing.assert_allclose(
                numbers(found[name]), numbers(value), rtol=tolerance, atol=tolerance, err_msg=f"{message}, {i}, {name}"
            )
            assert found[name].dtype == value.dtype


@flatten_or_not
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_match_torch(case, dtype, groups, flatten):
    assert_fifty_steps_match_torch(case, dtype, groups, flatten, "cpu")


def assert_fifty_steps_match_torch(case, dtype, groups, flatten, device):
    params, own = parameters(dtype, device), parameters(dtype, device)
    theirs, ours = make_torchs(case, params, groups, foreach=False), make_ours(case, own, groups, flatten=flatten)
    for step in range(STEPS):
        set_gradients(params, step)
        set_gradients(own, step)
        theirs.step()
        ours.step()
        if step == 20:  # frozen later
            for each in (params, own):
                each[2].grad, each[2].requires_grad = None, False
        if step == 30:  # added later
            late = [torch.nn.Parameter(torch.ones(5, 3, dtype=dtype, device=device)) for _ in range(2)]
            params.append(late[0])
            own.append(late[1])
            theirs.add_param_group({"params": [late[0]], "lr": 0.03})
            ours.add_param_group({"params": [late[1]], "lr": 0.03})
            if "adagrad" in case and late[0] not in theirs.state:  # before torch 2.12 it makes no state for those
                begin = theirs.defaults["initial_accumulator_value"]
                theirs.state[late[0]] = {"step": torch.tensor(0.0), "sum": torch.full_like(late[0], begin)}
        if step in (0, 1, 5, 31, STEPS - 1):
            assert_same(ours, theirs, params, own, TOLERANCE[dtype], f"step {step}")
    moved = [not torch.equal(p, q) for p, q in zip(own, parameters(dtype, device), strict=False) if p.numel()]
    assert moved == [i != 7 for i in range(len(moved))]  # the eighth with elements is parameter 9


@flatten_or_not
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_steps_match_torch_up_to_rounding(case, groups, flatten):
    """Each step starts from torch's parameters and state, so that the rounding of a single step can be bounded.

    To compute an update torch rounds to bfloat16 after each of up to eight operations, each time by at most 2⁻⁹ of the
    update, or of the operands where the operation is a difference. fastopt computes in float32 and rounds once. Both
    round the new value once more, together by 2⁻⁸ of it.
    """
    dtype = torch.bfloat16
    params, own = parameters(dtype), parameters(dtype)
    theirs, ours = make_torchs(case, params, groups, foreach=False), make_ours(case, own, groups, flatten=flatten)
    for step in range(STEPS):
        before = [p.detach().float() for p in params]
        set_gradients(params, step)
        set_gradients(own, step)
        theirs.step()
        ours.step()
        for i, (p, q, b) in enumerate(zip(params, own, before, strict=True)):
            if not p.numel():
                continue
            update = (p.detach().float() - b).abs().max().item()
            np.testing.assert_allclose(
                q.detach().float().numpy(),
                p.detach().float().numpy(),
                rtol=2**-7,
                atol=16 * 2**-9 * update,
                err_msg=f"step {step}, parameter {i}",
            )
            assert all(v.dtype == dtype for n, v in ours.state.get(q, {}).items() if n not in ("step", "mu_product"))
        with torch.no_grad():
            for p, q in zip(params, own, strict=True):
                q.copy_(p)
        ours.load_state_dict(theirs.state_dict())


def test_bfloat16_steps_match_torchs_fused_adamw():
    """Torch's fused AdamW also computes in float32 and rounds once: a step differs by at most one rounding, 2⁻⁷."""
    case = "adamw"
    params, own = parameters(torch.bfloat16), parameters(torch.bfloat16)
    theirs, ours = make_torchs(case, params, fused=True), make_ours(case, own)
    for step in range(STEPS):
        set_gradients(params, step)
        set_gradients(own, step)
        theirs.step()
        ours.step()
        with torch.no_grad():
            for p, q in zip(params, own, strict=True):
                np.testing.assert_allclose(q.float().numpy(), p.float().numpy(), rtol=2**-7, err_msg=f"step {step}")
                q.copy_(p)
        ours.load_state_dict(theirs.state_dict())


@flatten_or_not
def test_long_and_short_tensors_in_one_step(flatten):
    """Some tensors are longer than the chunks that threads share, some are short."""
    sizes = [70_000, 3, 500_001, 257, 2_000_000, 1]
    values = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in sizes]
    params = [torch.nn.Parameter(v.clone()) for v in values]
    own = [torch.nn.Parameter(v.clone()) for v in values]
    theirs = torch.optim.AdamW(params, fused=True)
    ours = fastopt.torch.AdamW(own, flatten=flatten)
    for step in range(4):
        for i, (p, q) in enumerate(zip(params, own, strict=True)):
            rng = torch.Generator().manual_seed(step * 10 + i)
            p.grad = torch.randn(p.shape, generator=rng)
            q.grad = p.grad.clone()
        theirs.step()
        ours.step()
    for p, q in zip(params, own, strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=1e-6, atol=1e-6)  # 4 × 16 roundings


def test_flattening_does_not_change_bits_in_any_storage():
    """Noise is numbered by the tiles of each parameter, so it does not depend on where a parameter is in memory."""
    for storage in (None, "8bit", {"m": "bf16_sr", "v": "bf16_sr"}):
        rule = fastopt.GradientNoise(fastopt.Adam(lr=0.01), eta=0.1)
        values = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (1000, 3, 0, 257)]
        found = []
        for flatten in (False, True):
            own = [torch.nn.Parameter(v.clone()) for v in values]
            ours = fastopt.torch.Fused(own, rule, storage=storage, seed=3, flatten=flatten)
            for step in range(6):
                set_gradients(own, step)
                ours.step()
                ours.zero_grad(set_to_none=False)
            found.append([copy.deepcopy(p.detach()) for p in own])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)), storage


@flatten_or_not
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_one_loses_no_gradient(flatten, nesterov):
    """With momentum=1 the velocity is the sum of all gradients: of t gradients of 1 it is t, exactly in binary."""
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = fastopt.torch.SGD([p], lr=0.5, momentum=1.0, nesterov=nesterov, flatten=flatten)
    moved = 0.0
    for t in range(1, 9):
        p.grad = torch.ones_like(p)
        optimizer.step()
        moved += t + 1 if nesterov else t  # Nesterov: the velocity once more and the gradient
        assert p.tolist() == [-0.5 * moved] * 3


def test_averaged_form_refuses_a_beta_of_one():
    """An average whose gradients have the weight 1 − β = 0 would never move."""
    with pytest.raises(fastopt.SettingError, match="beta is out of its range"):
        fastopt.Momentum(beta=1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 1.5}),
        ("SGD", {"momentum": 0.9, "dampening": -0.5}),
        ("SGD", {"momentum": 0.9, "dampening": 1.5}),
        ("RMSprop", {"alpha": 1.0}),
        ("RMSprop", {"alpha": 0.0, "momentum": 1.0}),
        ("Adadelta", {"rho": 1.0}),
        ("Adadelta", {"rho": 0.0}),
    ],
)
def test_settings_at_the_ends_of_torchs_ranges(name, options):
    ends = []
    for module in (torch.optim, fastopt.torch):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
        opt = getattr(module, name)([p], lr=1e-10, **options)
        for step in range(6):
            p.grad = torch.cos((step + 1) * torch.linspace(0, 3, 7, dtype=torch.float64))
            opt.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-13, atol=0)  # six steps, each of a few roundings of float64

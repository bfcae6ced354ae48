"""What fastopt.torch does around a step within it: steps that are skipped, and averages of the parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import fastopt  # noqa: E402
import fastopt.torch  # noqa: E402
from fastopt import SettingError  # noqa: E402

SHAPES = [(300, 7), (10,), (1,), (64, 65), (), (5000,)]
BAD = {0: np.inf, 3: np.nan, 4: -np.inf, 9: np.nan}
"""The step, and what one gradient then has in one place."""


def params(seed: int = 0, dtype: Any = torch.float32) -> list[Any]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=make).to(dtype).requires_grad_() for shape in SHAPES]


def give(ps: Any, t: int, without: int | None = None) -> None:
    make = torch.Generator().manual_seed(100 + t)
    for k, p in enumerate(ps):
        g = torch.randn(p.shape, generator=make).to(p.dtype)
        p.grad = None if k == without else g
        if t in BAD and k == 3:
            g[t, 5] = BAD[t]


def assert_same(ours: Any, theirs: Any) -> None:
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


CLASSES = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, "AdamW": {"lr": 0.01}, "NAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01}, "Lion": {"lr": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("storage", [None, "8bit"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_skipped_steps_are_as_if_they_had_not_been(kind, flatten, storage):
    """Bit for bit, state and counts too; parameters that miss a gradient now and then count for themselves."""
    ours, theirs = params(), params()
    make = getattr(fastopt.torch, kind)

    def groups(ps: Any) -> Any:
        return [{"params": ps[:3]}, {"params": ps[3:], "lr": 0.005, "maximize": True}]

    opt = make(groups(ours), **CLASSES[kind], flatten=flatten, storage=storage, skip_nonfinite=True)
    twin = make(groups(theirs), **CLASSES[kind], flatten=flatten, storage=storage)
    for t in range(12):
        without = 4 if t % 3 == 2 else None
        give(ours, t, without)
        kept = [None if p.grad is None else p.grad.clone() for p in ours]
        opt.step()
        for p, g in zip(ours, kept, strict=True):
            np.testing.assert_array_equal(p.grad, g)
        if t not in BAD:
            give(theirs, t, without)
            twin.step()
        assert_same(ours, theirs)
    assert (opt.skipped, twin.skipped) == (4, 0)
    for found, expected in zip(opt.state_dict()["state"].values(), twin.state_dict()["state"].values(), strict=True):
        # Of SGD, whose steps torch does not count, a run that may skip its first one is counted.
        assert found.keys() - {"step"} == expected.keys() - {"step"}
        for name, x in expected.items():
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(found[name])), name


def test_skipping_goes_with_clipping_and_a_scaler():
    """The scaler skips by itself what is not finite, and nothing else is; the norm is of unscaled gradients."""
    ours, theirs = params(), params()
    opt = fastopt.torch.AdamW(ours, lr=0.01, max_norm=1.0, skip_nonfinite=True)
    twin = fastopt.torch.AdamW(theirs, lr=0.01, max_norm=1.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for t in range(6):
        for ps, o, scaler in zip((ours, theirs), (opt, twin), scalers, strict=True):
            scaler.scale(torch.ones(()))
            give(ps, t)
            for p in ps:
                p.grad *= 8.0
            scaler.step(o)
            scaler.update(8.0)
        assert_same(ours, theirs)
    assert opt.state[ours[0]]["step"] == twin.state[theirs[0]]["step"] == 3
    torch.testing.assert_close(opt.grad_norm, twin.grad_norm, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "storage"), [(torch.float32, None), (torch.float32, "8bit"), (torch.bfloat16, "split")]
)
@pytest.mark.parametrize("flatten", [False, True])
def test_averages_are_those_of_the_parameters_of_all_steps(dtype, storage, flatten):
    ps = params(dtype=dtype)
    opt = fastopt.torch.AdamW(ps, lr=0.01, ema=0.8, skip_nonfinite=True, storage=storage, flatten=flatten)
    trajectory = []
    for t in range(12):
        give(ps, t)
        opt.step()
        if t not in BAD:  # a skipped step is not averaged
            now = [opt.state[p].get("master", p).detach().double().clone() for p in ps]
            trajectory.append(now)
    weights = [0.8**k for k in range(len(trajectory))]
    before = [p.detach().clone() for p in ps]
    with opt.averaged():
        for k, p in enumerate(ps):
            exact = sum(w * x[k] for w, x in zip(weights, reversed(trajectory), strict=True)) / sum(weights)
            # Each of 8 averages is rounded thrice, p's largest value is below 8: 24 · 2⁻²⁴ · 8, and bfloat16's 2⁻⁹.
            torch.testing.assert_close(opt.state[p]["ema"].double(), exact, rtol=0, atol=1.2e-5)
            assert torch.equal(p.detach(), opt.state[p]["ema"].to(dtype))
        give(ps, 1)
        with pytest.raises(SettingError, match="in their place"):
            opt.step()
        with pytest.raises(SettingError, match="in their place"), opt.averaged():
            pass
    assert_same(ps, before)
    opt.step()


def test_parameters_that_were_never_stepped_stay_as_they_are_in_an_average():
    ps = params()
    opt = fastopt.torch.SGD(ps, lr=0.1, ema=0.5)
    with pytest.raises(SettingError, match="no averages"), opt.averaged():
        pass
    give(ps, 1, without=1)
    opt.step()
    kept = ps[1].detach().clone()
    with opt.averaged():
        assert torch.equal(ps[1], kept)


def test_a_parameter_whose_first_step_was_skipped_has_no_average():
    ps = [torch.nn.Parameter(torch.full((3,), 1.5)), torch.nn.Parameter(torch.full((3,), 2.5))]
    opt = fastopt.torch.AdamW(ps, lr=0.1, ema=0.9, skip_nonfinite=True)
    ps[0].grad = torch.full((3,), float("nan"))
    opt.step()
    with pytest.raises(SettingError, match="no averages"), opt.averaged():
        pass
    ps[0].grad, ps[1].grad = None, torch.ones(3)
    opt.step()
    with opt.averaged():
        assert ps[0].tolist() == [1.5] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_average_moves_though_parameters_have_few_bits(dtype):
    """By a thousandth of the difference: in the parameters' own 16 bits it would stand still."""
    p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    opt = fastopt.torch.SGD([p], lr=1.0, ema=0.999)
    for t in range(300):
        p.grad = torch.full_like(p, -1.0 if t == 100 else 0.0)
        opt.step()
    weights = 0.999 ** np.arange(299, -1, -1)
    exact = 1 + weights[100:].sum() / weights.sum()
    # Each of 300 averages is rounded thrice.
    assert opt.state[p]["ema"].tolist() == pytest.approx([exact] * 4, rel=300 * 3 * 2.0**-24)


def test_nothing_is_saved_while_averages_are_in_place():
    p = torch.nn.Parameter(torch.ones(4))
    opt = fastopt.torch.AdamW([p], lr=0.1, ema=0.9)
    p.grad = torch.ones(4)
    opt.step()
    kept = opt.state_dict()
    with opt.averaged():
        assert torch.is_grad_enabled()
        for act in (
            opt.state_dict,
            lambda: opt.load_state_dict(kept),
            lambda: copy.deepcopy(opt),
            lambda: opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
            opt.step,
        ):
            with pytest.raises(SettingError, match="in their place"):
                act()


def test_an_error_within_the_block_leaves_all_as_it_was():
    ps = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
    opt = fastopt.torch.AdamW(ps, lr=0.1, ema=0.9)
    for _ in range(2):
        for p in ps:
            p.grad = torch.ones(4)
        opt.step()
    kept = [p.detach().clone() for p in ps]

    def fails() -> None:
        with opt.averaged():
            ps[0].data = torch.zeros(5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert_same(ps, kept)
    opt.step()


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_run_resumes_bit_for_bit_after_a_skipped_first_step(way):
    """Of SGD, whose first step is another, torch keeps no count."""
    results = []
    for resumes in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 5))
        options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "skip_nonfinite": True}
        opt = fastopt.torch.SGD([p], **options)
        p.grad = torch.full((5,), float("nan"))
        opt.step()
        if resumes and way == "deepcopy":
            opt = copy.deepcopy(opt)
            p = opt.param_groups[0]["params"][0]
        elif resumes:
            saved = opt.state_dict()
            opt = fastopt.torch.SGD([p], **options)
            opt.load_state_dict(saved)
        p.grad = torch.linspace(1.0, 2.0, 5)
        opt.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Lion"])
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_run_with_averages_resumes_bit_for_bit(kind, way):
    """Also of SGD, of which torch keeps no count: the weight of the next average depends on it."""
    ps = params()
    opt = getattr(fastopt.torch, kind)(ps, lr=0.01, ema=0.9)
    for t in (1, 2, 5, 6):
        give(ps, t)
        opt.step()
    if way == "state_dict":
        others = [p.detach().clone().requires_grad_() for p in ps]
        other = getattr(fastopt.torch, kind)(others, lr=0.01, ema=0.9)
        other.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    else:
        twin = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
        other, others = twin, twin.param_groups[0]["params"]
    for t in (7, 8):
        give(ps, t)
        give(others, t)
        opt.step()
        other.step()
    assert_same(ps, others)
    for p, q in zip(ps, others, strict=True):
        assert torch.equal(opt.state[p]["ema"], other.state[q]["ema"])


@pytest.mark.parametrize(("kind", "options"), [("AdamW", {"lr": 0.01}), ("SGD", {"lr": 0.01, "momentum": 0.9})])
def test_averages_of_a_run_that_had_none_start_at_its_parameters(kind, options):
    ps = params()
    plain = getattr(torch.optim, kind)(ps, **options)
    for t in (1, 2, 5):
        give(ps, t)
        plain.step()
    opt = getattr(fastopt.torch, kind)(ps, **options, ema=0.9)
    opt.load_state_dict(plain.state_dict())
    give(ps, 6)
    before = [p.detach().clone() for p in ps]
    opt.step()
    t = int(opt.state[ps[0]]["step"])
    weight = np.float32((1 - 0.9) / (1 - 0.9**t))
    for p, old in zip(ps, before, strict=True):
        expected = old.numpy() + weight * (p.detach().numpy() - old.numpy())
        np.testing.assert_array_equal(opt.state[p]["ema"], expected)


def test_settings_that_are_none_are_refused():
    ps = params()
    make: Any = fastopt.torch.AdamW
    for ema in (1.0, -0.1, float("nan"), "0.9", True):
        with pytest.raises(SettingError, match="ema"):
            make(ps, ema=ema)
    with pytest.raises(SettingError, match="skip_nonfinite"):
        make(ps, skip_nonfinite="yes")
    for name, value in (("ema", 0.9), ("skip_nonfinite", True), ("max_norm", 1.0)):
        with pytest.raises(SettingError, match=f"{name} is for all groups"):
            make([{"params": ps, name: value}])
    for way in (fastopt.torch.in_backward, fastopt.torch.offload):
        with pytest.raises(SettingError, match="known"):
            way(params(), make, skip_nonfinite=True)
        way(params(), make, skip_nonfinite=False, max_norm=None, ema=None)
    with pytest.raises(SettingError, match="alone"):
        fastopt.torch.offload(params(), make, ema=0.9)


def test_any_rule_of_fastopt_can_skip():
    ps = [torch.nn.Parameter(torch.ones(3))]
    opt = fastopt.torch.Fused(ps, fastopt.SkipNonfinite(fastopt.SGD(lr=1.0)))
    for bad in (True, False):
        ps[0].grad = torch.full((3,), float("inf") if bad else 1.0)
        opt.step()
    assert (ps[0].tolist(), opt.skipped, float(opt.state[ps[0]]["step"])) == ([0.0] * 3, 1, 1.0)

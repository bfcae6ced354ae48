"""The API of fastopt.torch: torch's arguments, what is refused, and changes of parameters, gradients and state.

Over 300 lines: whatever torch.optim's users may do to it is tried once.
"""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_training import CLASSES  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import LayoutError, SettingError  # noqa: E402
from fastopt.torch import c_abi  # noqa: E402

flatten_or_not = pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flattened"])


def parameter(*shape, **options):
    return torch.nn.Parameter(torch.ones(*shape, **options))


def set_gradient(p, g=None):
    """Set the gradient of p, 0.5 unless given, and return p."""
    p.grad = torch.full_like(p, 0.5) if g is None else g
    return p


def assert_error(error, match, call):
    """Assert that a call raises this error, and that its message has more than one line."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n  " in str(caught.value), "none of the lines 'got', 'expected' and 'do' is in the message"


def test_importing_fastopt_does_not_import_torch():
    code = "import sys, fastopt; assert 'torch' not in sys.modules; import fastopt.torch; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


OWN = ["flatten", "storage", "seed", "max_norm", "skip_nonfinite", "ema"]
"""Arguments that torch's classes do not have."""


@pytest.mark.parametrize("name", [n for n in fastopt.torch.__all__ if hasattr(torch.optim, n) and n != "Muon"])
def test_arguments_and_defaults_are_torchs(name):
    ours, theirs = getattr(fastopt.torch, name), getattr(torch.optim, name)
    found = list(inspect.signature(ours).parameters.values())
    expected = list(inspect.signature(theirs).parameters.values())
    assert found[: len(expected)] == expected
    assert [p.name for p in found[len(expected) :]] == [
        "flatten",
        "storage",
        "seed",
        "max_norm",
        "skip_nonfinite",
        "ema",
    ]
    assert issubclass(ours, theirs)
    assert ours([parameter(2)]).defaults == theirs([parameter(2)]).defaults


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muons_arguments_begin_with_torchs():
    """It is no subclass: torch's refuses tensors of other than two dimensions, which are stepped here."""
    theirs = inspect.signature(torch.optim.Muon).parameters
    found = list(inspect.signature(fastopt.torch.Muon).parameters.values())
    assert [(p.name, p.default) for p in found[: len(theirs)]] == [(p.name, p.default) for p in theirs.values()]


def test_invalid_settings_are_refused():
    p = [parameter(3)]
    cases: Any = (
        ({"differentiable": True}, SettingError, "differentiable"),
        ({"lr": float("inf")}, SettingError, "lr"),
        ({"betas": (0.9, 1.0)}, ValueError, "beta"),
        ({"flatten": "yes"}, SettingError, "flatten"),
        ({"storage": "9bit"}, SettingError, "8bit"),
        ({"storage": {"w": "f8"}}, SettingError, "'w'"),
        ({"storage": "split"}, LayoutError, "bfloat16"),
        ({"seed": 1.5}, SettingError, "seed"),
    )
    for settings, error, match in cases:
        with pytest.raises(error, match=match):
            fastopt.torch.AdamW(p, **settings)
    captured = fastopt.torch.AdamW([set_gradient(parameter(3))], capturable=True)
    with pytest.raises(SettingError, match="capturable=True is for steps on a CUDA device"):
        captured.step()  # as torch's: the parameters may move before
    for hint in ({"foreach": True}, {"fused": True}, {"foreach": False}):
        fastopt.torch.AdamW(p, **hint)  # accepted but without effect: every step is fused


def test_invalid_parameters_are_refused():
    for p, match in (
        (torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)), "complex"),
        (torch.nn.Parameter(torch.ones(3).to_sparse()), "dense"),
        (torch.nn.Parameter(torch.ones(3).expand(2, 3)), "one run of memory"),
        (torch.nn.Parameter(torch.ones(4, 4)[:, :2]), "one run of memory"),
        (torch.nn.Parameter(torch.ones(3, dtype=torch.float8_e4m3fn)), "type"),
    ):
        assert_error(LayoutError, match, lambda p=p: fastopt.torch.AdamW([p]))
    p = parameter(3)
    assert_error(LayoutError, "twice", lambda: fastopt.torch.AdamW([p, p]))
    opt = fastopt.torch.AdamW([p])
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    assert_error(LayoutError, "complex", lambda: opt.add_param_group({"params": [z]}))
    assert_error(SettingError, "eps", lambda: opt.add_param_group({"params": [parameter(2)], "eps": -1.0}))
    assert len(opt.param_groups) == 1


@flatten_or_not
def test_frozen_parameters_of_any_kind_are_ignored(flatten):
    """So are those that have no memory yet; whatever gets a gradient is stepped, or refused by name."""
    frozen = [
        torch.ones(3, dtype=torch.uint8),
        torch.ones(3, dtype=torch.float8_e4m3fn),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3).expand(2, 3),
        torch.ones(4, 4)[:, :2],
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
    ]
    lazy, p = torch.nn.LazyLinear(2), parameter(3)
    deferred = torch.nn.Parameter(torch.ones(3, device="meta"))
    params = [*(torch.nn.Parameter(x, requires_grad=False) for x in frozen), p, *lazy.parameters(), deferred]
    opt: Any = fastopt.torch.AdamW(params, lr=0.1, flatten=flatten)
    opt.load_state_dict(opt.state_dict())
    for _ in range(2):
        set_gradient(p)
        opt.step()
    assert len(opt.state) == 1
    opt.zero_grad()
    lazy(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert {float(opt.state[q]["step"]) for q in lazy.parameters()} == {1.0}
    torch.testing.assert_close(lazy.bias.grad, torch.ones(2))
    assert float(opt.state[p]["step"]) == 2
    broadcast = params[3]
    broadcast.requires_grad_()
    broadcast.grad = torch.ones(2, 3)
    assert_error(LayoutError, "parameter 3 of group 0 does not fill one run of memory", opt.step)
    broadcast.grad = None
    opt.step()


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no Parameter.grad_dtype")
@flatten_or_not
def test_gradients_of_the_type_that_a_parameter_asks_for_are_followed(flatten):
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 300)) for _ in range(2))
    opt = fastopt.torch.AdamW([p], lr=0.1, flatten=flatten)
    plain = fastopt.torch.AdamW([q], lr=0.1)
    for step in range(4):
        opt.zero_grad()
        if step == 2:
            p.grad_dtype = torch.bfloat16
        (p.sin() * (step + 1)).sum().backward()
        q.grad = p.grad.float()
        assert p.grad.dtype == (torch.float32 if step < 2 else torch.bfloat16)
        opt.step()
        plain.step()
        assert torch.equal(p.detach(), q.detach())


@flatten_or_not
def test_invalid_gradients_are_refused_and_nothing_is_written(flatten):
    embedding = torch.nn.Embedding(5, 4, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    p, square = embedding.weight, parameter(4, 4)
    for name, g, match in (
        ("sparse", p.grad, "sparse"),
        ("another order", torch.ones(4, 5).t(), "order"),
        ("broadcast", torch.ones(1, 4).expand(5, 4), "order"),
        ("of the parameter", p.detach(), "memory of a"),
    ):
        p.grad = None
        opt = fastopt.torch.AdamW([set_gradient(square), p], flatten=flatten)
        before = square.detach().clone()
        p.grad = p.detach() if name == "of the parameter" else g  # flattening has moved the parameter
        assert_error(LayoutError, match, opt.step)
        assert torch.equal(square, before), name
        assert all(float(x["step"]) == 0 for x in opt.state.values())
        p.grad = torch.ones(5, 4)
        opt.step()
        assert not torch.equal(square, before)
    q = parameter(2)
    q.grad = torch._neg_view(torch.ones(2))
    assert_error(LayoutError, "negative view", fastopt.torch.SGD([q], flatten=False).step)


def test_shared_memory_is_refused_and_tied_weights_are_one_parameter():
    whole = torch.ones(6)
    a, b = torch.nn.Parameter(whole[:4]), torch.nn.Parameter(whole[2:])
    opt = fastopt.torch.SGD([set_gradient(a), set_gradient(b)])
    assert_error(LayoutError, "overlap", opt.step)
    assert whole.tolist() == [1.0] * 6
    assert_error(LayoutError, "parameter 0 of group 0 and parameter 1", lambda: fastopt.torch.SGD([a, b], flatten=True))
    assert a.data_ptr() == whole.data_ptr()
    layer, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    head.weight = layer.weight
    both = torch.nn.Sequential(layer, head)
    opt = fastopt.torch.SGD(both.parameters(), flatten=True)
    both(torch.ones(3)).sum().backward()
    opt.step()
    assert layer.weight is head.weight
    assert layer.weight.data_ptr() == head.weight.data_ptr()


@flatten_or_not
@pytest.mark.parametrize("size", [1, 200])
def test_replaced_tensors_give_the_same_steps_as_torch(flatten, size):
    """Gradients and parameters are replaced, removed or written, of one parameter or of all, as in torch.optim."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(3).astype(np.float32) for _ in range(size)]
    twins = [[torch.nn.Parameter(torch.tensor(x)) for x in start] for _ in range(2)]
    optimizers = torch.optim.AdamW(twins[0]), fastopt.torch.AdamW(twins[1], flatten=flatten)
    old_tensors: list[Any] = []  # kept alive, so that their memory is not reused

    def replace_gradient(p):
        p.grad = p.grad * 2

    def replace_and_keep_old_gradient(p):
        old_tensors.append(p.grad)
        p.grad = torch.ones(3)

    def replace_gradient_data(p):
        p.grad.data = p.grad.data * 3

    def replace_and_keep_old_gradient_data(p):
        old_tensors.append(p.grad.data)
        p.grad.data = torch.full((3,), 0.25)

    def drop_gradient(p):
        p.grad = None

    def replace_data(p):
        p.data = p.data * 0.5

    def replace_and_keep_old_data(p):
        old_tensors.append(p.data)
        p.data = torch.ones(3) * 0.1

    def in_place(p):
        p.data.mul_(0.5)
        p.grad.mul_(2.0)

    changes = [replace_gradient, drop_gradient, replace_gradient_data, replace_data, in_place]
    changes += [replace_and_keep_old_gradient, replace_and_keep_old_gradient_data, replace_and_keep_old_data]
    step = 0
    for change in changes:
        for which in (slice(0, 1), slice(None)):
            for _ in range(2):
                step += 1
                for params, opt in zip(twins, optimizers, strict=True):
                    opt.zero_grad(set_to_none=step % 2 == 0 and opt is optimizers[0])
                    for k, p in enumerate(params):
                        g = torch.cos(torch.arange(3.0) + k + step)
                        p.grad = g if p.grad is None else p.grad.copy_(g)
                    for p in params[which]:
                        change(p)
                    opt.step()
                for p, q in zip(*twins, strict=True):
                    np.testing.assert_allclose(
                        q.detach().numpy(), p.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=change.__name__
                    )  # 32 steps; the bound is derived in test_torch_optim


def test_a_parameter_may_be_replaced_in_a_group_together_with_its_state():
    """As code that prunes parameters does: it truncates the state and moves it to the new parameter."""
    ends = []
    for module in (torch.optim, fastopt.torch):
        p, q = parameter(6), parameter(2)
        opt = module.Adam([{"params": [p]}, {"params": [q]}], lr=0.1)
        for step in range(6):
            group = opt.param_groups[0]
            if step == 3:
                old = group["params"][0]
                stored = opt.state.pop(old)
                stored["exp_avg"] = stored["exp_avg"][:4].clone()
                stored["exp_avg_sq"] = stored["exp_avg_sq"][:4].clone()
                p = group["params"][0] = torch.nn.Parameter(old.detach()[:4].clone())
                opt.state[p] = stored
            p.grad, q.grad = torch.linspace(-1, 1, 6)[: len(p)].clone(), torch.ones(2)
            opt.step()
        ends.append(torch.cat([p, q]).detach())
        assert {float(x["step"]) for x in opt.state.values()} == {6.0}
    torch.testing.assert_close(*ends)


@flatten_or_not
def test_dtypes_may_be_mixed_in_a_group(flatten):
    types = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32)
    twins = [[parameter(5, dtype=dtype) for dtype in types] for _ in range(2)]
    optimizers = torch.optim.AdamW(twins[0], lr=0.1), fastopt.torch.AdamW(twins[1], lr=0.1, flatten=flatten)
    for step in range(3):
        for params, opt in zip(twins, optimizers, strict=True):
            for p in params:
                p.grad = torch.full_like(p, step + 1)
            opt.step()
    for p, q in zip(*twins, strict=True):
        torch.testing.assert_close(p, q)  # the default tolerance is several roundings of the dtype


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["step", "training"])
def test_steps_under_torch_compile_are_the_same(what):
    ends = []
    for compiled in (False, True):
        c_abi.functions.cache_clear()  # as in a new process, where the first step tries torch's functions
        p = set_gradient(parameter(4))
        opt = fastopt.torch.AdamW([p], lr=0.1)

        def training(p=p, opt=opt):
            opt.zero_grad()
            (p * p).sum().backward()
            opt.step()

        call = opt.step if what == "step" else training
        call = torch.compile(call, backend="eager") if compiled else call
        for _ in range(3):
            call()
        assert float(opt.state[p]["step"]) == 3
        ends.append(p.detach())
    assert torch.equal(*ends)


@flatten_or_not
def test_state_may_be_reset_written_and_replaced(flatten):
    p = set_gradient(parameter(4))
    opt: Any = fastopt.torch.Adam([p], lr=0.1, flatten=flatten)
    first = parameter(4).detach() - 0.1

    def step_from_ones():
        p.data.fill_(1.0)
        opt.step()
        torch.testing.assert_close(p.detach(), first)
        assert float(opt.state[p]["step"]) == 1

    step_from_ones()
    opt.step()
    opt.state.clear()
    step_from_ones()
    opt.state[p]["step"].fill_(0.0)
    opt.state[p]["exp_avg"].zero_()
    opt.state[p]["exp_avg_sq"].zero_()
    step_from_ones()
    opt.state[p] = {}
    step_from_ones()
    opt.state[p]["exp_avg"] = torch.zeros(4)
    opt.state[p].update(exp_avg_sq=torch.zeros(4), step=torch.tensor(0.0))
    step_from_ones()
    opt.state = type(opt.state)(opt.state.changes)
    step_from_ones()


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    p = set_gradient(parameter(4))
    opt = fastopt.torch.Adam([p])
    opt.step()
    before = {n: x.clone() for n, x in opt.state[p].items()}
    good = opt.state_dict()

    def changed(**entries):
        return {**good, "state": {0: {**good["state"][0], **entries}}}

    other = torch.optim.RMSprop([parameter(4)])
    other.param_groups[0]["params"][0].grad = torch.ones(4)
    other.step()
    for state, error, match in (
        (changed(exp_avg=torch.ones(5)), LayoutError, "exp_avg.*does not match"),
        (changed(exp_avg=torch.ones(4, dtype=torch.float64)), LayoutError, "lose precision"),
        (changed(master=torch.ones(4, dtype=torch.float64)), LayoutError, "lose precision"),
        (changed(exp_avg=3.0), LayoutError, "does not match"),
        (changed(step=-5.0), LayoutError, "'step' of parameter 0 of group 0 is not a step count"),
        (changed(step=torch.tensor(float("nan"))), LayoutError, "not a step count"),
        (changed(step=torch.ones(3)), LayoutError, "not a step count"),
        ({**good, "state": {0: "exp_avg"}}, LayoutError, "is not a dict"),
        ({**good, "state": other.state_dict()["state"]}, LayoutError, "square_avg.*fits nothing"),
        ({**good, "param_groups": []}, ValueError, "groups"),
        ({**good, "param_groups": [{**good["param_groups"][0], "eps": -1.0}]}, SettingError, "eps"),
    ):
        with pytest.raises(error, match=match):
            opt.load_state_dict(state)
        assert opt.param_groups[0]["eps"] == 1e-8
        assert all(torch.equal(before[n], x) for n, x in opt.state[p].items())
    half = set_gradient(parameter(4, dtype=torch.bfloat16))
    narrow = fastopt.torch.Adam([half])
    with pytest.raises(LayoutError, match="storage"):
        narrow.load_state_dict(good)
    fastopt.torch.Adam([half], storage={"m": "f32", "v": "f32"}).load_state_dict(good)
    captured = {**good, "param_groups": [{**good["param_groups"][0], "capturable": True}]}
    opt.load_state_dict(captured)
    assert opt.param_groups[0]["capturable"] is False


def test_a_step_after_conversion_of_the_model_is_refused():
    for convert, match in ((lambda m: m.double(), "changed"), (lambda m: m.bfloat16(), "changed")):
        model = torch.nn.Linear(3, 3)
        opt = fastopt.torch.AdamW(model.parameters())
        model(torch.ones(3)).sum().backward()
        opt.step()
        opt.zero_grad()
        convert(model)
        model(torch.ones(3, dtype=model.weight.dtype)).sum().backward()
        assert_error(LayoutError, match, opt.step)


def test_a_users_rule_with_groups_and_a_scheduler():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class SignMomentum:
        lr: float = 0.1
        beta: float = 0.9

        def scalars(self, t):
            return {"lr": self.lr, "beta": self.beta, "rest": 1 - self.beta}

        def update(self, p, g, m, *, lr, beta, rest):
            m = beta * m + rest * g
            return p - lr * np.sign(m), m

    p, q = set_gradient(parameter(3)), set_gradient(parameter(2))
    noisy = fastopt.GradientNoise(SignMomentum(lr=0.25), eta=0.0)
    opt = fastopt.torch.Fused([{"params": [p]}, {"params": [q], "lr": 0.5, "beta": 0.0}], noisy)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    opt.step()
    schedule.step()
    opt.step()
    assert p.tolist() == [1 - 0.25 - 0.125] * 3
    assert q.tolist() == [1 - 0.5 - 0.25] * 2
    assert opt.state[p].keys() == {"step", "m"}
    assert opt.param_groups[1]["beta"] == 0.0
    climbing = fastopt.torch.Fused([set_gradient(parameter(1))], fastopt.SGD(lr=0.5), maximize=True)
    climbing.step()
    assert climbing.param_groups[0]["params"][0].item() == 1.25
    assert_error(fastopt.RuleError, "rule", lambda: fastopt.torch.Fused([p], fastopt.SGD))


def test_lion_equals_the_reference():
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal(20), rng.standard_normal((5, 20))
    p = torch.nn.Parameter(torch.tensor(w))
    opt = fastopt.torch.Lion([p], lr=0.01, weight_decay=0.1)
    reference = fastopt.Optimizer(fastopt.Lion(lr=0.01, weight_decay=0.1), {"w": w}, backend="reference")
    for g in grads:
        p.grad = torch.tensor(g)
        opt.step()
        reference.step({"w": g})
    assert (p.detach().numpy() == reference.params["w"]).all()
    assert (opt.state[p]["exp_avg"].numpy() == reference.state("m")["w"]).all()


@flatten_or_not
def test_a_step_equals_the_reference(flatten):
    """Also of tensors in another memory format: rules process elements in the order of memory."""
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
    w = np.array(p.detach().permute(0, 2, 3, 1).numpy())
    opt = fastopt.torch.AdamW([p], lr=0.01, flatten=flatten)
    reference = fastopt.Optimizer(fastopt.Adam(lr=0.01, weight_decay=0.01), {"w": w}, backend="reference")
    for step in range(5):
        p.grad = torch.cos(p.detach() * (step + 2))
        reference.step({"w": np.ascontiguousarray(p.grad.permute(0, 2, 3, 1).numpy())})
        opt.step()
        assert p.is_contiguous(memory_format=torch.channels_last)
        assert (p.detach().permute(0, 2, 3, 1).numpy() == reference.params["w"]).all()


@flatten_or_not
def test_state_is_freed_with_the_optimizer_without_the_garbage_collector(flatten):
    def stepped():
        p = set_gradient(parameter(4))
        opt = fastopt.torch.AdamW([p], flatten=flatten)
        opt.step()
        return weakref.ref(opt.state[p]["exp_avg"])

    stepped()  # torch keeps the first optimizer of a process alive, in modules that it imports at that time
    gc.collect()
    gc.disable()
    try:
        assert stepped()() is None
    finally:
        gc.enable()


METHODS = ("step", "zero_grad", "state_dict", "load_state_dict", "add_param_group")


@pytest.mark.parametrize("name", CLASSES)
def test_methods_have_torchs_signatures(name):
    def described(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    ours, theirs = (getattr(module, name) for module in (fastopt.torch, torch.optim))
    for method in METHODS:
        assert described(getattr(ours, method)) == described(getattr(theirs, method)), method
    assert [p for p in described(ours) if p[0] not in OWN] == described(theirs)


def test_hooks_see_how_step_was_called():
    """And may change the arguments, as torch lets them."""

    def closure():
        return torch.tensor(5.0)

    def called(module):
        p = set_gradient(parameter(2))
        opt, seen = module.SGD([p], lr=0.1), []

        def before(optimizer, args, kwargs):
            seen.append((len(args), args[0] is optimizer, [x is closure for x in args[1:]], sorted(kwargs)))
            return args, kwargs

        opt.register_step_pre_hook(before)
        opt.register_step_post_hook(lambda optimizer, args, kwargs: seen.append((len(args), sorted(kwargs))))
        losses = [opt.step(), opt.step(None), opt.step(closure), opt.step(closure=closure), opt.step(closure=None)]
        return seen, losses

    assert called(fastopt.torch) == called(torch.optim)


def test_step_takes_nothing_but_a_closure():
    opt = fastopt.torch.SGD([set_gradient(parameter(2))], lr=0.1)
    assert opt.step(closure=lambda: 3.0) == 3.0
    for wrong in (lambda: opt.step(None, None), lambda: opt.step(grads=None)):
        with pytest.raises(TypeError, match="argument"):
            wrong()


def test_update_counts_what_it_writes_for_autograd():
    """Which refuses then to go back through values that are no longer there."""
    import fastopt

    p, m, g = torch.ones(3), torch.zeros(3), torch.ones(3)
    x = torch.ones(3, requires_grad=True)
    loss = (x * p).sum()
    fastopt.update(fastopt.Momentum(lr=0.5), 1, {"p": p, "g": g, "m": m})
    assert [t._version for t in (p, m, g)] == [1, 1, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

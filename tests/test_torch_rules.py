"""The optimizers of fastopt.torch that have a rule's own settings, and those with train() and eval()."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

import fastopt  # noqa: E402
import fastopt.torch  # noqa: E402
from fastopt import SettingError  # noqa: E402
from fastopt.torch.of_rules import OfRule  # noqa: E402

KINDS = [kind for kind in vars(fastopt.torch).values() if isinstance(kind, type) and issubclass(kind, OfRule)]
AVERAGING = ["ScheduleFreeSGD", "ScheduleFreeAdamW", "GPAAdamW"]


def gradient(k: int, t: int, shape: Any) -> np.ndarray:
    return np.random.default_rng([k, t]).standard_normal(shape).astype(np.float32)


def parameters() -> list[Any]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), torch.nn.Parameter(torch.ones(5))]


def step(opt: Any, params: list[Any], t: int) -> None:
    for k, p in enumerate(params):
        p.grad = torch.from_numpy(gradient(k, t, tuple(p.shape)))
    opt.step()


def values(params: list[Any]) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in params]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_rule_is_a_class_here():
    known = {"momentum": "SGD"}  # by torch's name
    for name, rule in {**fastopt.RULES, **fastopt.MATRIX_RULES}.items():
        assert hasattr(fastopt.torch, known.get(name, rule.__name__)), name
    assert len(KINDS) >= 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_its_steps_are_those_of_the_optimizer_of_numpy(kind):
    params = parameters()
    own = (
        {"lr": 0.05, "weight_decay": 0.1} if "weight_decay" in inspect.signature(kind.rule).parameters else {"lr": 0.05}
    )
    opt = kind(params, **own)
    other = fastopt.Optimizer(kind.rule(**own), {str(k): p.detach().numpy() for k, p in enumerate(params)})
    for t in range(1, 8):
        step(opt, params, t)
        other.step({name: gradient(int(name), t, p.shape) for name, p in other.params.items()})
    assert same(values(params), list(other.params.values()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_goes_on_from_its_saved_state(kind):
    params, file = parameters(), io.BytesIO()
    opt = kind(params, lr=0.05)
    for t in range(1, 4):
        step(opt, params, t)
    torch.save((params, opt.state_dict()), file)
    file.seek(0)
    loaded, state = torch.load(file, weights_only=True)
    again, both = kind(loaded, lr=0.5), copy.deepcopy((opt, params))
    again.load_state_dict(state)
    unpickled = pickle.loads(pickle.dumps((opt, params)))
    for t in range(4, 7):
        for one, theirs in ((opt, params), (again, loaded), both, unpickled):
            step(one, theirs, t)
    for theirs in (loaded, both[1], unpickled[1]):
        assert same(values(theirs), values(params))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_has_the_arguments_of_its_rule(kind):
    arguments = inspect.signature(kind).parameters
    assert next(iter(arguments)) == "params"
    for name, setting in inspect.signature(kind.rule).parameters.items():
        assert arguments[name].default == setting.default
    assert kind.__name__ == kind.rule.__name__
    assert f"fastopt.{kind.__name__}" in kind.__doc__
    assert kind([torch.nn.Parameter(torch.ones(2))], 0.25).param_groups[0]["lr"] == 0.25
    with pytest.raises(SettingError, match=kind.__name__):
        kind([torch.nn.Parameter(torch.ones(2))], lr=-1.0)
    with pytest.raises(SettingError, match=rf"{kind.__name__}(.|\n)*learning_rate"):
        kind([torch.nn.Parameter(torch.ones(2))], learning_rate=1.0)
    with pytest.raises(SettingError, match="maximize"):
        kind([torch.nn.Parameter(torch.ones(2))], maximize="no")


@pytest.mark.parametrize("name", ["Rprop", "ASGD"])
def test_torchs_classes_take_this_state_and_copies_go_on(name):
    params = parameters()
    opt = getattr(fastopt.torch, name)(params, lr=0.01)
    for t in range(1, 4):
        step(opt, params, t)
    theirs = getattr(torch.optim, name)(parameters(), lr=0.01)
    theirs.load_state_dict(opt.state_dict())
    (both, copies), (unpickled, others) = copy.deepcopy((opt, params)), pickle.loads(pickle.dumps((opt, params)))
    for one, own in ((opt, params), (both, copies), (unpickled, others)):
        step(one, own, 4)
    assert same(values(copies), values(params))
    assert same(values(others), values(params))
    if name == "ASGD":
        reference = torch.optim.ASGD(parameters(), lr=0.01)
        for t in range(1, 5):
            step(reference, reference.param_groups[0]["params"], t)
        found, expected = (o.state[o.param_groups[0]["params"][0]] for o in (opt, reference))
        assert float(found["eta"]) == pytest.approx(float(expected["eta"]), rel=1e-6)
        assert float(found["mu"]) == float(expected["mu"])


@pytest.mark.parametrize(("name", "options"), [("Rprop", {"lr": 0.01}), ("ASGD", {"lr": 0.1, "t0": 4})])
def test_torchs_state_is_taken(name, options):
    """In float32 the two differ by roundings, of at most 2⁻²³ of numbers of about 1 in each of five steps."""
    params = parameters(), parameters()
    theirs, own = (getattr(m, name)(p, **options) for m, p in zip((torch.optim, fastopt.torch), params, strict=True))
    for t in range(1, 4):
        step(theirs, params[0], t)
    own.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for p, q in zip(*params, strict=True):
            q.copy_(p)
    for t in range(4, 9):
        step(theirs, params[0], t)
        step(own, params[1], t)
    for p, q in zip(*params, strict=True):
        np.testing.assert_allclose(p.detach(), q.detach(), rtol=0, atol=5 * 2.0**-23)


@pytest.mark.parametrize("storage", [None, "8bit"])
def test_sophias_curvature_is_refreshed_in_the_state(storage):
    p, rule = parameters()[0], fastopt.SophiaG(lr=0.05, rho=0.5)
    opt = fastopt.torch.SophiaG([p], lr=0.05, rho=0.5, storage=storage)
    other = fastopt.Optimizer(rule, {"p": p.detach().numpy()}, storage=storage)
    for t in range(1, 9):  # the last step stores what was written before it
        step(opt, [p], t)
        other.step({"p": gradient(0, t, (3, 4))})
        if t % 3 == 1:
            found = gradient(0, 100 + t, (3, 4))
            opt.state[p]["h"] = rule.refreshed(opt.state[p]["h"], torch.from_numpy(found))
            other.assign_state("h", {"p": rule.refreshed(other.state("h")["p"], found)})
    assert np.array_equal(p.detach().numpy(), other.params["p"])
    assert np.array_equal(opt.state[p]["h"].numpy(), other.state("h")["p"])


# --- train() and eval()


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("storage", [None, "8bit", "split"])
def test_eval_puts_the_average_in_place_and_train_takes_it_away(name, storage):
    params = parameters()
    if storage == "split":
        params = [torch.nn.Parameter(p.detach().bfloat16()) for p in params]
    kind = getattr(fastopt.torch, name)
    opt, rule = kind(params, lr=0.05, storage=storage), kind.rule(lr=0.05)
    opt.eval()
    opt.train()  # before the first step there is nothing to switch
    for t in range(1, 5):
        for k, p in enumerate(params):
            p.grad = torch.from_numpy(gradient(k, t, tuple(p.shape))).to(p.dtype)
        opt.step()
    precise = [opt.state[p]["master"] if storage == "split" else p.detach() for p in params]
    expected = [rule.averaged(x.float(), opt.state[p]["z"]).to(p.dtype) for x, p in zip(precise, params, strict=True)]
    before = [p.detach().clone() for p in params]
    opt.eval()
    opt.eval()
    assert all(torch.equal(p.detach(), x) for p, x in zip(params, expected, strict=True))
    with pytest.raises(SettingError, match=r"call train\(\)"):
        opt.step()
    opt.train()
    opt.train()
    assert all(torch.equal(p.detach(), x) for p, x in zip(params, before, strict=True))
    with opt.averaged():
        assert all(torch.equal(p.detach(), x) for p, x in zip(params, expected, strict=True))


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("loaded_in", ["train", "eval"])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_checkpoint_of_either_mode_goes_on_bit_for_bit(name, saved_in, loaded_in, model_first):
    kind, params, file = getattr(fastopt.torch, name), parameters(), io.BytesIO()
    opt = kind(params, lr=0.05)
    for t in range(1, 4):
        step(opt, params, t)
    getattr(opt, saved_in)()
    torch.save({"model": [p.detach() for p in params], "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others = parameters()
    again = kind(others, lr=0.5)
    step(again, others, 9)
    getattr(again, loaded_in)()

    def load_model() -> None:
        with torch.no_grad():
            for p, x in zip(others, saved["model"], strict=True):
                p.copy_(x)

    if model_first:
        load_model()
    again.load_state_dict(saved["opt"])
    if not model_first:
        load_model()
    assert same(values(others), values(params))
    for one in (opt, again):
        one.eval()
    assert same(values(others), values(params))
    for one, theirs in ((opt, params), (again, others)):
        one.train()
        for t in range(4, 7):
            step(one, theirs, t)
    assert same(values(others), values(params))


@pytest.mark.parametrize("wrong", [None, "junk", torch.zeros(3), torch.zeros((3, 4), dtype=torch.int64)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_damaged_value_in_training_is_refused_and_changes_nothing(mode, wrong):
    params = parameters()
    opt = fastopt.torch.ScheduleFreeAdamW(params, lr=0.1)
    for t in range(1, 4):
        step(opt, params, t)
    trained = values(params)
    opt.eval()
    averages, saved = values(params), opt.state_dict()
    saved["state"][0]["trained"] = wrong
    getattr(opt, mode)()
    with pytest.raises(fastopt.LayoutError, match="trained"):
        opt.load_state_dict(saved)
    assert same(values(params), averages if mode == "eval" else trained)
    opt.train()
    assert same(values(params), trained)


def test_a_model_that_is_converted_in_evaluation_stays_so():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12))
    opt = fastopt.torch.ScheduleFreeSGD([p], lr=0.1)
    p.grad = torch.ones(12)
    opt.step()
    trained = p.detach().clone()
    opt.eval()
    p.data = p.data.to(torch.bfloat16)
    opt.train()
    assert torch.equal(p.detach(), trained.bfloat16())


def test_evaluation_is_better_than_training_where_gradients_are_noisy():
    p = torch.nn.Parameter(torch.ones(1000))
    opt = fastopt.torch.ScheduleFreeSGD([p], lr=0.2)
    for t in range(1, 500):
        p.grad = p.detach() + torch.from_numpy(gradient(0, t, (1000,)))
        opt.step()
    noisy = p.detach().norm()
    opt.eval()
    assert p.detach().norm() < 0.8 * noisy

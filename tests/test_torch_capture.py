"""capturable=True: a captured step, replayed, takes the next steps, with the bits of steps that are not captured.

There need not be a GPU: the kernels run on the host (see fake_cupy), torch's tensors lie on the CPU, and a graph is a
list of what was launched and of torch's operations, none of which has an effect while it is captured. On a GPU the same
is tested in tests/device.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from cuda_host import COMPILER

torch = pytest.importorskip("torch", reason="fastopt.torch is for PyTorch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import BackendError, SettingError  # noqa: E402
from fastopt.kernels.compiler.noise import noise_keys  # noqa: E402
from fastopt.kernels.compiler.plan import host_scalars, plan  # noqa: E402
from fastopt.torch import adapter, bucket  # noqa: E402
from fastopt.torch.device_numbers import LAST, LR, DeviceNumbers, Symbol, keys_on_device  # noqa: E402

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")

SIZES = (1000, 3, 257, 40)


class Recorded:
    """An operation of torch in a graph."""

    def __init__(self, function: Any, args: tuple, kwargs: dict, made: Any):
        self.call, self.made = (function, args, kwargs), made

    def run_on_host(self, shape: Any, values: Any) -> None:
        function, args, kwargs = self.call
        again = function(*args, **kwargs)
        aliased = any(r.alias_info is not None for r in function._schema.returns)
        for old, new in [] if aliased else zip(_tensors(self.made), _tensors(again), strict=True):
            old.copy_(new)


def _tensors(made: Any) -> list:
    return [made] if isinstance(made, torch.Tensor) else [x for x in made or () if isinstance(x, torch.Tensor)]


class Recording(TorchDispatchMode):
    """Records operations into a list, and undoes what they write."""

    def __init__(self, graph: list):
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a number was read from the device in a capture"
        named = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        written = [given[a.name] for a in named if a.name in given]
        before = [w.clone() for w in written]
        made = func(*args, **(kwargs or {}))
        for w, value in zip(written, before, strict=True):
            w.copy_(value)
        self._graph.append((Recorded(func, args, kwargs or {}, made), None, None))
        return made


@pytest.fixture
def device(cupy, monkeypatch):
    """Let fastopt.torch take the CPU's tensors for a device's, and return a context that captures a graph."""
    stream = cupy.cuda.Stream("captured")

    @contextmanager
    def running(_: Any):
        with stream:
            yield

    monkeypatch.setattr(bucket, "running", running)
    monkeypatch.setattr(adapter, "running", running)
    monkeypatch.setattr(bucket, "choose", lambda *_: "cuda")
    monkeypatch.setattr(bucket, "require_capturable", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", stream.is_capturing)

    @contextmanager
    def capture():
        graphs: list = []
        stream.begin_capture()
        try:
            with Recording(stream._captured):
                yield graphs
        finally:
            graphs.append(stream.end_capture())

    return capture


@contextmanager
def on_the_cpu():
    """Step a twin as on the CPU, beside the stand-in."""
    kept = bucket.choose, bucket.running, adapter.running
    bucket.choose = lambda *_: "cpu"
    bucket.running = adapter.running = lambda *_: nullcontext()
    try:
        yield
    finally:
        bucket.choose, bucket.running, adapter.running = kept


def parameters(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in SIZES]


def set_gradients(params: list, t: int) -> None:
    """Write gradients into the tensors that are there, as a replayed backward pass does."""
    generator = torch.Generator().manual_seed(100 + t)
    for p in params:
        value = torch.randn(p.shape, generator=generator).to(p.dtype)
        if p.grad is None:
            p.grad = value
        else:
            p.grad.copy_(value)


def assert_same_state(ours: Any, twin: Any) -> None:
    for a, b in zip(ours.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        mine, theirs = ours.state[a], twin.state[b]
        assert list(mine) == list(theirs)
        for name in mine:
            assert torch.equal(mine[name].cpu(), theirs[name]), name


CASES: dict[str, tuple[Any, dict]] = {
    "AdamW": (fastopt.torch.AdamW, {"lr": 1e-2}),
    "Adam amsgrad": (fastopt.torch.Adam, {"lr": 1e-2, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    "NAdam": (fastopt.torch.NAdam, {"lr": 1e-2, "betas": (0.5, 0.8), "momentum_decay": 4.0}),
    "RAdam": (fastopt.torch.RAdam, {"lr": 1e-2, "betas": (0.9, 0.99)}),
    "Adamax": (fastopt.torch.Adamax, {"lr": 1e-2}),
    "Adadelta": (fastopt.torch.Adadelta, {"lr": 0.5}),
    "RMSprop": (fastopt.torch.RMSprop, {"lr": 1e-2, "momentum": 0.9, "centered": True}),
    "SGD": (fastopt.torch.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3}),
    "Lion": (fastopt.torch.Lion, {"lr": 1e-3, "weight_decay": 0.1}),
    "Fused": (fastopt.torch.Fused, {"rule": fastopt.Momentum(lr=0.1, beta=0.9, bias_correction=True)}),
    "AdamW 8bit": (fastopt.torch.AdamW, {"lr": 1e-2, "storage": "8bit"}),
    "AdamW bf16": (fastopt.torch.AdamW, {"lr": 1e-2, "storage": "bf16", "seed": 7}),
    "AdamW split_8bit": (fastopt.torch.AdamW, {"lr": 1e-2, "storage": "split_8bit"}),
}


@pytest.mark.parametrize("flatten", [False, True], ids=["table", "flatten"])
@pytest.mark.parametrize("case", CASES)
def test_a_replayed_step_takes_the_next_steps(case, flatten, device):
    cls, options = CASES[case]
    dtype = torch.bfloat16 if options.get("storage") in ("bf16", "split_8bit") else torch.float32
    params, theirs = parameters(dtype), parameters(dtype)
    rate = torch.tensor(options.get("lr", 0.1), dtype=torch.float64)
    given = {k: v for k, v in options.items() if k != "lr"}
    ours = cls(params, **given, **({} if case == "Fused" else {"lr": rate}), flatten=flatten, capturable=True)
    twin = cls(theirs, **given, **({} if case == "Fused" else {"lr": float(rate)}), flatten=flatten)
    if case == "Fused":
        ours.param_groups[0]["lr"] = rate

    def step_twin(t):
        set_gradients(theirs, t)
        twin.param_groups[0]["lr"] = float(rate)
        with on_the_cpu():
            twin.step()

    for t in (1, 2, 3):
        set_gradients(params, t)
        ours.step()
        step_twin(t)
        if t == 2:  # what was read where it is stored in fewer bits is compared by the next step
            assert_same_state(ours, twin)
    ours.state_dict()
    if not flatten:
        for p in params:
            p.grad = p.grad.clone()  # the capture's backward pass makes its own
    before = [p.clone() for p in params]
    with device() as graphs:
        ours.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True)), "capturing takes no step"
    for t in range(4, 12):
        set_gradients(params, t)
        if t % 3 == 0:
            rate.mul_(0.5)  # as torch's schedulers write to a tensor
        graphs[0].launch()
        step_twin(t)
    assert_same_state(ours, twin)
    for t in (12, 13):  # steps outside of the graph, with gradients elsewhere, and the graph again
        kept = [p.grad for p in params]
        if not flatten:
            for p in params:
                p.grad = None
        set_gradients(params, t)
        ours.step()
        step_twin(t)
        for p, g in zip(params, kept, strict=True):
            p.grad = g
    set_gradients(params, 14)
    graphs[0].launch()
    step_twin(14)
    assert_same_state(ours, twin)
    other = cls(parameters(dtype), **given, **({} if case == "Fused" else {"lr": 0.1}), flatten=flatten)
    with on_the_cpu():
        other.load_state_dict(ours.state_dict())
        counts = [[x.get("step") for x in opt.state.values()] for opt in (other, twin)]
        assert counts[0] == counts[1]


def test_parameters_without_a_gradient_keep_their_count(device):
    params, theirs = parameters(), parameters()
    ours, twin = fastopt.torch.Adam(params, capturable=True), fastopt.torch.Adam(theirs)
    for t in range(1, 6):
        set_gradients(params, t)
        set_gradients(theirs, t)
        if t < 3:
            params[1].grad = theirs[1].grad = None
        ours.step()
        with on_the_cpu():
            twin.step()
    assert [float(ours.state[p]["step"]) for p in params] == [5, 3, 5, 5]
    assert_same_state(ours, twin)
    with device() as graphs:
        ours.step()
    for t in (6, 7):
        set_gradients(params, t)
        set_gradients(theirs, t)
        graphs[0].launch()
        with on_the_cpu():
            twin.step()
    assert_same_state(ours, twin)


def step_both(params: list, theirs: list, t: int, ours: Any, twin: Any, graph: Any = None) -> None:
    """Take step t with gradients of its own, here by a graph if there is one."""
    for own in (params, theirs):
        without = [p.grad is None for p in own]
        set_gradients(own, t)
        for p, none in zip(own, without, strict=True):
            p.grad = None if none and t > 1 else p.grad
    ours.step() if graph is None else graph.launch()
    with on_the_cpu():
        twin.step()


DIVERGE = {
    "a step in which a parameter has no gradient": lambda p, state: setattr(p, "grad", None),
    "a count that somebody writes": lambda p, state: state["step"].fill_(40),
    "state that somebody deletes": lambda p, state: state.clear(),
}


@pytest.mark.parametrize("what", DIVERGE)
def test_counts_may_part_after_a_capture(what, device):
    params, theirs = parameters(), parameters()
    ours, twin = fastopt.torch.Adam(params, lr=0.1, capturable=True), fastopt.torch.Adam(theirs, lr=0.1)
    for t in (1, 2):
        step_both(params, theirs, t, ours, twin)
    with device() as graphs:
        ours.step()
    kept = [p.grad for p in params], [p.grad for p in theirs]
    for own, opt in ((params, ours), (theirs, twin)):
        DIVERGE[what](own[1], opt.state[own[1]])
    if what.startswith("state"):
        graphs.clear()  # its memory is not the optimizer's any more, as with torch.optim
    step_both(params, theirs, 3, ours, twin)
    for own, grads in zip((params, theirs), kept, strict=True):
        for p, g in zip(own, grads, strict=True):
            p.grad = g
    for t in (4, 5):
        step_both(params, theirs, t, ours, twin, *graphs)
    assert_same_state(ours, twin)


def test_state_in_fewer_bits_is_read_anew_after_a_replay_and_written_to_if_somebody_did(device):
    params, theirs = parameters(), parameters()
    ours = fastopt.torch.AdamW(params, lr=0.1, storage="8bit", capturable=True)
    twin = fastopt.torch.AdamW(theirs, lr=0.1, storage="8bit")
    for t in (1, 2):
        step_both(params, theirs, t, ours, twin)
    assert_same_state(ours, twin)
    with device() as graphs:
        ours.step()
    for t in (3, 4):
        step_both(params, theirs, t, ours, twin, graphs[0])
        assert_same_state(ours, twin)  # which reads all of it
        assert torch.equal(ours.state_dict()["state"][0]["exp_avg"], twin.state[theirs[0]]["exp_avg"])
    step_both(params, theirs, 5, ours, twin)
    assert_same_state(ours, twin)
    for opt, own in ((ours, params), (twin, theirs)):
        opt.state[own[0]]["exp_avg"].mul_(0.5)
    with device(), pytest.raises(BackendError, match="written"):
        ours.step()
    step_both(params, theirs, 6, ours, twin)
    assert_same_state(ours, twin)


def test_memory_of_a_graph_lives_as_long_as_the_optimizer(device):
    params = parameters()
    ours: Any = fastopt.torch.AdamW(params, lr=0.1, capturable=True)
    set_gradients(params, 1)
    ours.step()
    arranged = weakref.ref(next(iter(ours._buckets)).arranged)
    with device():
        ours.step()
    for change in (
        lambda: setattr(params[0], "grad", None),
        lambda: ours.param_groups[0].update(weight_decay=0.5),
        lambda: ours.state[params[1]]["step"].fill_(7),
        lambda: ours.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
        lambda: ours.load_state_dict(ours.state_dict()),
    ):
        change()
        for group in ours.param_groups:
            group["capturable"] = True
        ours.step()
    gc.collect()
    assert arranged() is not None
    ours = None
    gc.collect()
    assert arranged() is None


@pytest.mark.parametrize("cls", [fastopt.torch.SGD, fastopt.torch.Adagrad, fastopt.torch.Lion, fastopt.torch.AdamW])
def test_a_group_is_capturable_when_its_options_are_checked(cls, monkeypatch):
    checked = []
    monkeypatch.setattr(adapter.Adapter, "_require_group", lambda self, k: checked.append(dict(self.param_groups[k])))
    opt = cls(parameters(), lr=0.1, capturable=True)
    opt.add_param_group({"params": parameters()})
    assert [group["capturable"] for group in checked] == [True, True]  # so a learning rate may be on a device
    assert opt.defaults["capturable"] is True


def test_a_gradient_scale_is_read_and_a_step_skipped_on_the_device(device):
    params, theirs = parameters(), parameters()
    ours: Any = fastopt.torch.AdamW(params, fused=True, capturable=True)
    twin = fastopt.torch.AdamW(theirs)
    scale, found = torch.tensor(1024.0), torch.tensor(0.0)

    def scaled(t):
        set_gradients(params, t)
        for p in params:
            p.grad.mul_(scale)

    def step_twin(t):
        set_gradients(theirs, t)
        with on_the_cpu():
            twin.step()

    ours.grad_scale, ours.found_inf = scale, found
    for t in (1, 2):
        scaled(t)
        ours.step()
        step_twin(t)
    with device() as graphs:
        ours.step()
    for t in (3, 4, 5, 6):
        scale.mul_(2.0 if t % 2 else 0.25)
        scaled(t)
        found.fill_(t == 4)
        graphs[0].launch()
        if t != 4:
            step_twin(t)
    assert_same_state(ours, twin)
    assert float(ours.state[params[0]]["step"]) == 5


def test_what_is_not_prepared_is_refused_in_a_capture_and_changes_nothing(device):
    def refused(opt: Any, match: str) -> None:
        before = [p.clone() for p in params]
        with device(), pytest.raises(BackendError, match=match):
            opt.step()
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))

    params = parameters()
    set_gradients(params, 1)
    opt = fastopt.torch.AdamW(params, capturable=True)
    refused(opt, "there was none")
    opt.step()
    params[2].grad = None
    refused(opt, "other parameters have gradients")
    opt.step()
    opt.load_state_dict(opt.state_dict())
    opt.param_groups[0]["capturable"] = True  # which a load leaves out where parameters are on the CPU
    refused(opt, "cannot be captured")
    opt.step()
    opt.param_groups[0]["weight_decay"] = 0.5
    refused(opt, "an option has changed")
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(SettingError, match="lr"):
        opt.step()
    opt.param_groups[0]["lr"] = 0.1
    refused(opt, "an option has changed")
    opt.param_groups[0]["weight_decay"] = 0.01
    opt.param_groups[0]["capturable"] = False
    refused(opt, "pass capturable=True")
    with on_the_cpu():
        opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [4, 4, 1, 4]


from dataclasses import dataclass  # noqa: E402


@dataclass(frozen=True)
class Squared:
    """A rule that squares its learning rate on the host."""

    lr: Any = 0.1

    def scalars(self, t):
        return {"lr": self.lr**2}

    def update(self, p, g, *, lr):
        return p - lr * g


@dataclass(frozen=True)
class Compared(Squared):
    """A rule that compares its learning rate on the host."""

    def scalars(self, t):
        return {"lr": 0.0 if self.lr == 0.001 else self.lr}


@dataclass(frozen=True)
class Halved:
    """A rule without scalars."""

    def scalars(self, t):
        return {}

    def update(self, p, g):
        return p * 0.5


def test_a_rule_without_scalars_is_captured_too(device):
    params = parameters()
    before = [p.clone() for p in params]
    set_gradients(params, 1)
    fastopt.torch.Fused(params, Halved(), capturable=True).step()
    assert all(torch.equal(2 * p, q) for p, q in zip(params, before, strict=True))


def test_options_that_a_graph_cannot_follow_are_refused(device):
    params = parameters()
    set_gradients(params, 1)
    scheduled = fastopt.Adam(lr=fastopt.schedules.Cosine(1e-3, 10))
    refused = {
        "still change": fastopt.torch.Adagrad(params, lr_decay=0.1, capturable=True),
        "is a schedule": fastopt.torch.Fused(params, scheduled, capturable=True),
        "more with a number": fastopt.torch.Fused(params, Squared(lr=1e-3), capturable=True),
        "does more": fastopt.torch.Fused(params, Compared(lr=1e-3), capturable=True),
    }
    for match, opt in refused.items():
        before = [p.clone() for p in params]
        with pytest.raises(BackendError, match=match):
            opt.step()
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    wrong = (-1.0, "range"), (float("nan"), "range"), (True, "range"), (torch.ones(2), "no number")
    for lr, match in wrong:
        opt = fastopt.torch.SGD(params, lr=1.0, capturable=True)
        opt.param_groups[0]["lr"] = lr
        with pytest.raises(SettingError, match=match):
            opt.step()
    with pytest.raises(SettingError, match="backward pass"):
        fastopt.torch.in_backward(torch.nn.Linear(2, 2), fastopt.torch.AdamW, capturable=True)
    with pytest.raises(SettingError, match="capturable"):
        fastopt.torch.SGD(params, lr=1.0, capturable="yes")


NUMBERS: dict[str, Any] = {
    "adam": fastopt.Adam(lr=LR, weight_decay=0.1, decoupled=True),
    "adamax": fastopt.Adamax(lr=LR),
    "radam": fastopt.RAdam(lr=LR, betas=(0.9, 0.99), weight_decay=0.1, decoupled_weight_decay=True),
    "nesterov": fastopt.Momentum(lr=LR, nesterov=True, bias_correction=True),
    "dampening": fastopt.Momentum(lr=LR, dampening=0.5),
    "lion": fastopt.Lion(lr=LR, weight_decay=0.3),
    "scaled": fastopt.ScaledGradient(fastopt.RMSprop(lr=LR), factor=0.5),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_on_the_device_are_those_of_the_host_at_every_step(name, dtype):
    rule = NUMBERS[name]
    program = plan(rule, np.dtype(dtype)).program
    made = DeviceNumbers(rule, program, lambda own, t, entries: (own, {}), (), torch.device("cpu"))
    for lr in (1e-3, 0.7, 1 / 3):
        scalars = host_scalars(program, _with(rule, lr))
        rate = torch.tensor(lr, dtype=torch.float64)
        for t in itertools.chain(range(1, 400, 7), (2, 3, 4, 5, 6, 5000, 36_000, 36_700, 50_000, 2**30, LAST)):
            found, _ = made.at(torch.tensor([t - 1, 6], dtype=torch.float64), {"lr": rate})
            expected = np.array([scalars(t), scalars(7)], np.float64).astype(dtype)
            assert found.numpy().tobytes() == expected.tobytes(), (t, lr)


def _with(rule: Any, lr: float) -> Any:
    from fastopt.groups import changed

    return changed(rule, {"lr": lr})


def test_keys_on_the_device_are_those_of_the_host():
    for seed in (0, 1, 2**63 - 1, 2**63, 2**64 - 1, -5):
        for t in (1, 2, 1000, 2**24, 2**40):
            found = keys_on_device(seed, torch.tensor(float(t - 1), dtype=torch.float64))
            assert tuple(found.reshape(1).view(torch.int32).numpy().view(np.uint32).tolist()) == noise_keys(seed, t)


def test_a_symbol_is_no_number():
    assert LR(5) is LR
    for use in (
        bool,
        float,
        int,
        abs,
        lambda x: x < 1,
        lambda x: x**2,
        np.sqrt,
        lambda x: np.float32(1) * x if 0 else x // 2,
    ):
        with pytest.raises(BackendError, match="more with a number"):
            use(Symbol(("lr",)))

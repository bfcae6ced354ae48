"""Steps that are skipped by a condition: nothing is written, nothing is counted, on every backend alike."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from cases import CASES, fresh_buffers
from cuda_matrix import ARCHITECTURES, compile_source
from test_safety import interrupt
from test_totals import PARAMS, Trust, needs_gpp
from values import assert_same_bits

import fastopt
from fastopt import RuleError, SettingError, SkipNonfinite
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda.printer import print_condition_source, print_source

__all__ = ["interrupt"]  # a fixture

BAD = {3: np.nan, 4: np.inf, 7: -np.inf}
"""The step, and what one gradient then has in one place."""

BACKENDS = ["reference", "cpu", pytest.param("cuda", marks=needs_gpp)]


def gradients(t: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(t)
    found = {k: (rng.exponential() * rng.standard_normal(v.shape)).astype(dtype) for k, v in PARAMS.items()}
    if t in BAD:
        found["w3"].reshape(-1)[100 * t] = BAD[t]
    return found


def on_host(array: Any) -> np.ndarray:
    return array.get() if hasattr(array, "get") else np.asarray(array)


def step(opt: fastopt.Optimizer, g: dict[str, np.ndarray]) -> None:
    """Step with gradients of the host, wherever the parameters are."""
    for name, own in opt.grads.items():
        if hasattr(own, "set"):
            own.set(g[name].astype(own.dtype))
        else:
            own[...] = g[name].astype(own.dtype)
    opt.step()


def contents(opt: fastopt.Optimizer) -> dict[str, np.ndarray]:
    """Copy all that a step writes, as it is stored."""
    planes = [(k, name, a) for k, g in enumerate(opt._groups) for name, a in g.store.planes[0].items()]
    return {f"{k} {name}": on_host(a).copy() for k, name, a in planes if name != "g"}


@pytest.fixture
def maybe_cupy(request):
    """The fake CuPy where a backend needs it."""
    return request.getfixturevalue("cupy") if request.node.callspec.params.get("backend") == "cuda" else None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("case", "storage"), [("adam", "f32"), ("noise-adam", "bf16"), ("adam-decoupled", "split_8bit"), ("lion", "8bit")]
)
def test_a_run_with_skipped_steps_is_the_run_without_them(case, storage, backend, maybe_cupy):
    """In every storage: also 8-bit state, which encoding anew would change."""
    groups = {"w1": {"lr": 0.005}}
    opt = fastopt.Optimizer(SkipNonfinite(CASES[case]), PARAMS, groups=groups, storage=storage, backend=backend, seed=3)
    plain = fastopt.Optimizer(CASES[case], PARAMS, groups=groups, storage=storage, backend="reference", seed=3)
    for t in range(10):
        g = gradients(t)
        before = contents(opt)
        step(opt, g)
        if t in BAD:
            for name, x in contents(opt).items():
                assert_same_bits(x, before[name], f"{name} at {t}")
        else:
            step(plain, g)
    assert (opt.t, opt.skipped) == (7, 3)
    state, expected = opt.state_dict(), plain.state_dict()
    for name in expected.keys() - {"rules"}:
        assert_same_bits(np.asarray(state[name]), np.asarray(expected[name]), name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clipped_averaged_run_that_skips_is_put_together_from_passes(backend, maybe_cupy):
    """Over 200 steps: the norm, a choice, a product, Adam and the average, each by itself in NumPy."""
    inner = fastopt.Adam(lr=1e-2, weight_decay=0.1)
    whole = SkipNonfinite(fastopt.ClipByGlobalNorm(fastopt.EMA(inner, decay=0.9), max_norm=60.0), skip_above=300.0)
    opt = fastopt.Optimizer(whole, PARAMS, backend=backend)
    apart = fastopt.Optimizer(inner, PARAMS, backend="reference")
    average, skipped = np.zeros_like(apart.flat_params), 0
    for t in range(200):
        g = gradients(t)
        step(opt, g)
        flat = np.zeros_like(apart.flat_grads)
        flat[: sum(x.size for x in g.values())] = np.concatenate([x.ravel() for x in g.values()])
        with np.errstate(all="ignore"):
            norm = np.sqrt(fastopt.total(flat * flat))
            if not norm <= np.float32(300.0):
                skipped += 1
                continue
            factor = np.float32(60.0) / (norm + np.float32(1e-6))
        step(apart, {k: np.where(factor > 1, np.float32(1), factor) * x for k, x in g.items()})
        weight = np.float32(1.0 if apart.t == 1 else (1 - 0.9) / (1 - 0.9**apart.t))
        average += weight * (apart.flat_params - average)
    assert 10 < skipped < 190
    assert (opt.t, opt.skipped) == (200 - skipped, skipped)
    assert_same_bits(on_host(opt.flat_params), apart.flat_params)
    found = opt.state("ema")
    for name, x in apart._values.divide(average).items():
        assert_same_bits(on_host(found[name]), x, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_that_is_too_large_is_reported(backend, maybe_cupy):
    rule = SkipNonfinite(fastopt.ClipByGlobalNorm(fastopt.SGD(lr=1.0), 1.0), skip_above=10.0)
    opt = fastopt.Optimizer(rule, {"w": np.zeros(4)}, backend=backend)
    for size, t, skipped in ((3.0, 1, 0), (5.0, 2, 0), (5.1, 2, 1), (1e200, 2, 2), (np.nan, 2, 3), (0.0, 3, 3)):
        step(opt, {"w": np.full(4, size)})
        assert (opt.t, opt.skipped) == (t, skipped)
        if backend != "reference":
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(on_host(opt.grad_norm), np.sqrt(4 * np.float64(size) ** 2))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_finite_gradients_of_any_size_are_stepped(backend):
    for size in (3e38, -3e38, 1e-45, 0.0, -0.0):
        p = {"w": np.ones(700, np.float32)}
        opt = fastopt.Optimizer(SkipNonfinite(fastopt.SGD(lr=1e-39)), p, backend=backend)
        step(opt, {"w": np.full(700, size, np.float32)})
        assert (opt.t, opt.skipped) == (1, 0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("where", [0, 255, 256, 69_999, 70_000])
def test_one_bad_gradient_anywhere_is_seen(where, backend):
    p, g = np.ones(70_001, np.float32), np.ones(70_001, np.float32)
    buffers = {**fresh_buffers(CASES["momentum"], p), "g": g}
    before = {k: v.copy() for k, v in buffers.items()}
    g[where] = before["g"][where] = np.nan
    fastopt.update(SkipNonfinite(CASES["momentum"]), 1, buffers, backend=backend)
    for name, x in buffers.items():
        assert_same_bits(x, before[name], name)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_skip_and_go_on(threads):
    """A shared step that is skipped claims its chunks: nothing waits for ever, and the next step is whole."""
    before = fastopt.get_threads()
    try:
        fastopt.set_threads(threads)
        for storage in ("f32", "8bit"):
            opt = fastopt.Optimizer(
                SkipNonfinite(fastopt.Adam()), {"w": np.ones(1_300_001, np.float32)}, storage=storage
            )
            for bad in (False, True, True, False):
                opt.grads["w"][...] = 1.0
                opt.grads["w"][-1] = np.inf if bad else 1.0
                kept = opt.params["w"].copy()
                opt.step()
                assert (opt.params["w"] == kept).all() == bad
            assert (opt.t, opt.skipped) == (2, 2)
    finally:
        fastopt.set_threads(before)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_interrupted_step_is_taken_or_skipped_or_has_not_begun(backend, interrupt):
    rule = SkipNonfinite(fastopt.ZeroGradients(fastopt.SGD(lr=1.0)))
    opt = fastopt.Optimizer(rule, {"a": np.zeros(700), "b": np.zeros(3)}, groups={"b": {"lr": 2.0}}, backend=backend)
    good = {"a": np.ones(700), "b": np.ones(3)}
    opt.step(good)
    start = time.perf_counter()
    opt.step(good)
    one = time.perf_counter() - start
    rng = np.random.default_rng(0)
    for k in range(400):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 — it may be raised at any point in the block
            interrupt(1e-4 + 3 * one * rng.random())
            while True:
                opt.step(good if k % 2 else {**good, "b": np.full(3, np.nan)})
        assert np.all(opt.params["a"] == -opt.t)
        assert np.all(opt.params["b"] == -2 * opt.t)
    assert opt.t > 2
    assert opt.skipped > 2


@pytest.mark.parametrize("surface", ["numpy", "torch"])
def test_an_interrupt_finds_the_parameters_restored(surface, interrupt):
    """Wherever it arrives while averages are put in place, are there, or are taken away.

    Torch's own no_grad, interrupted as it ends, leaves gradients off: that is not looked at, but put right.
    """
    with_gradients = contextlib.nullcontext
    if surface == "torch":
        torch: Any = pytest.importorskip("torch", reason="torch is not installed")
        adapter: Any = import_module("fastopt.torch")
        with_gradients = torch.enable_grad
        p = torch.nn.Parameter(torch.zeros(2000))
        p.grad = torch.ones(2000)
        opt: Any = adapter.SGD([p], lr=1.0, ema=0.9)
        take = opt.step
        values = p.detach().numpy()
    else:
        opt = fastopt.Optimizer(fastopt.EMA(fastopt.SGD(lr=1.0), decay=0.9), {"w": np.zeros(2000)})
        values = opt.params["w"]

        def take() -> None:
            opt.step({"w": np.ones(2000)})

    take()
    take()
    start = time.perf_counter()
    with opt.averaged():
        assert values[0] > -2
    one = time.perf_counter() - start
    rng = np.random.default_rng(0)
    for _ in range(300):
        with with_gradients(), pytest.raises(KeyboardInterrupt):  # noqa: PT012 — it may be raised anywhere in it
            interrupt(1e-5 + 3 * one * rng.random())
            while True:
                with opt.averaged():
                    pass
        assert (values == -2).all()
    take()
    assert (values == -3).all()


@dataclass(frozen=True)
class Conditions:
    """A rule with two conditions of totals, one after the other, and of a scalar."""

    lr: float = 0.1
    limit: float = 5.0

    def scalars(self, t):
        return {"lr": self.lr, "limit": self.limit / t}

    def update(self, p, g, m, *, lr, limit):
        largest = fastopt.total(np.abs(g), over="all")
        fastopt.skip_unless((largest < 100.0) & (largest > limit))
        share = fastopt.total(g / largest, over="all")
        fastopt.skip_unless(np.abs(share) <= 0.75)
        return p - lr * share * g, m + g


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_conditions_must_all_hold(backend, maybe_cupy):
    found = []
    for size, other in ((1.0, -1.0), (10.0, -9.0), (1.0, 1.0), (60.0, -60.0), (0.5, -0.4), (np.nan, 1.0), (1.0, 0.0)):
        opt = fastopt.Optimizer(
            Conditions(), {"a": np.ones(3), "b": np.ones(3)}, groups={"b": {"lr": 0.2}}, backend=backend
        )
        step(opt, {"a": np.full(3, size), "b": np.full(3, other)})
        found.append(opt.t)
    assert found == [1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_one_group_is_to_be_skipped_all_are(backend, maybe_cupy):
    rule = SkipNonfinite(fastopt.SGD(lr=1.0), skip_above=10.0)
    groups = {"b": {"skip_above": 2.0}}
    opt = fastopt.Optimizer(rule, {"a": np.ones(3), "b": np.ones(3)}, groups=groups, backend=backend)
    for size, t in ((1.0, 0), (0.5, 1)):
        step(opt, {"a": np.full(3, size), "b": np.full(3, size)})
        assert opt.t == t
    assert opt.skipped == 1
    with pytest.raises(SettingError, match="skip steps, and those of others do not"):
        fastopt.Optimizer(OfNorm(), {"a": np.ones(3), "b": np.ones(3)}, groups={"b": SkipNonfinite(OfNorm())})


@dataclass(frozen=True)
class OfNorm(Trust):
    """A rule with the total that SkipNonfinite takes."""

    def update(self, p, g, m, *, lr):
        zero = fastopt.total(g * 0.0, over="all", of="zeros of finite gradients")
        return p - lr * (g + zero), m


def test_a_skipped_run_goes_on_from_a_checkpoint():
    opt = fastopt.Optimizer(SkipNonfinite(fastopt.Adam(lr=0.01)), PARAMS)
    for t in range(6):
        step(opt, gradients(t))
    assert opt.t == 4
    other = fastopt.Optimizer(SkipNonfinite(fastopt.Adam(lr=0.01)), PARAMS)
    other.load_state_dict(opt.state_dict())
    for o in (opt, other, copy.deepcopy(opt)):
        step(o, gradients(7))
        step(o, gradients(8))
        assert o.t == 5
        for name, p in opt.params.items():
            assert_same_bits(o.params[name], p, name)


def test_conditions_that_are_none_are_refused():
    def rule(condition: Any) -> Any:
        @dataclass(frozen=True)
        class Refused(Trust):
            def update(self, p, g, m, *, lr):
                fastopt.skip_unless(condition(p, g, lr))
                return p - lr * g, m

        return Refused()

    p = np.ones(3, np.float32)
    for condition, message in (
        (lambda p, g, lr: g > 0.0, "one truth value"),
        (lambda p, g, lr: fastopt.total(g, over="all"), "one truth value"),
        (lambda p, g, lr: fastopt.total(g) > 0.0, "more than totals over all"),
        (lambda p, g, lr: lr > 0.0, "depends on no total"),
        (lambda p, g, lr: True, "depends on no total"),
        (lambda p, g, lr: "yes", "one truth value"),
    ):
        for backend in ("cpu", "reference"):
            with pytest.raises(RuleError, match=message) as caught:
                fastopt.update(rule(condition), 1, {"p": p, "g": p.copy(), "m": p.copy()}, backend=backend)
            assert caught.value.where == "Refused.update"
    assert p.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bound", [0, 0.0, -1.0, math.nan, math.inf, "1", True])
def test_bounds_that_are_none_are_refused(bound):
    with pytest.raises(SettingError, match="skip_above"):
        SkipNonfinite(fastopt.SGD(), bound)


def test_bytes_per_parameter_are_those_of_one_more_pass_over_the_gradients():
    adam = trace(fastopt.Adam(), "f32").bytes_per_parameter
    for rule in (
        SkipNonfinite(fastopt.Adam()),
        SkipNonfinite(fastopt.ClipByGlobalNorm(fastopt.Adam()), skip_above=9.0),
    ):
        assert trace(rule, "f32").bytes_per_parameter == adam + 4 + 8 / 256


# ---- on a device, whose kernels run on the host here


@needs_gpp
def test_a_captured_step_skips_and_counts_on_the_device(cupy):
    """Its replays take the prepared steps one after the other, and a skipped one not at all."""
    rule = SkipNonfinite(fastopt.ClipByGlobalNorm(fastopt.Adam(lr=lambda t: 0.1 / t), 1.0))
    opt = fastopt.Optimizer(rule, PARAMS, groups={"w1": {"max_norm": 0.5}}, backend="cuda")
    twin = fastopt.Optimizer(rule, PARAMS, groups={"w1": {"max_norm": 0.5}}, backend="reference")
    opt.capturable(8)
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        opt.step()
        graph = stream.end_capture()
    for t in range(10):
        for name, g in gradients(t).items():
            opt.grads[name].set(g)
        graph.launch()
        step(twin, gradients(t))
    assert (opt.t, opt.skipped) == (twin.t, twin.skipped) == (7, 3)
    for name, p in twin.params.items():
        assert_same_bits(on_host(opt.params[name]), p, name)


@needs_gpp
def test_a_step_on_arrays_of_a_device_is_skipped(cupy):
    """Without an Optimizer, to which t is known: the condition has its scalars as arguments."""
    rule = SkipNonfinite(fastopt.ClipByGlobalNorm(CASES["momentum"], 1.0), skip_above=1000.0)
    start = fresh_buffers(CASES["momentum"], np.ones(700, np.float32))
    on_device = {name: cupy.empty(x.shape, x.dtype) for name, x in start.items()}
    for name, x in start.items():
        on_device[name].set(x)
    for t, size in ((1, 1.0), (2, np.inf), (3, 100.0), (4, 2.0)):
        start["g"][...] = size
        on_device["g"].set(start["g"])
        fastopt.update(rule, t, start, backend="reference")
        fastopt.update(rule, t, on_device)
        for name, x in start.items():
            assert_same_bits(on_host(on_device[name]), x, f"{name} at {t}")


@needs_gpp
def test_the_device_is_waited_for_once_in_many_steps(cupy, monkeypatch):
    monkeypatch.setattr("fastopt.optimizer.AHEAD", 4)
    opt = fastopt.Optimizer(SkipNonfinite(fastopt.Adam(lr=0.01)), PARAMS, backend="cuda")
    twin = fastopt.Optimizer(SkipNonfinite(fastopt.Adam(lr=0.01)), PARAMS, backend="reference")
    waits = []
    library = type(opt._values.library)
    wait = library.wait
    monkeypatch.setattr(library, "wait", lambda *args: (waits.append(t), wait(*args))[1])
    for t in range(13):
        step(opt, gradients(t))
        step(twin, gradients(t))
    assert sorted(set(waits)) == [0, 4, 8, 12]
    assert (opt.t, opt.skipped) == (twin.t, twin.skipped) == (10, 3)
    for name, p in twin.params.items():
        assert_same_bits(on_host(opt.params[name]), p, name)
    opt.capturable(3)
    step(opt, gradients(13))
    assert (opt.t, opt.skipped) == (11, 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_compiles_the_condition(architecture):
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is called through it")
    program = trace(SkipNonfinite(fastopt.ClipByGlobalNorm(fastopt.Adam()), skip_above=9.0), "bf16_8bit")
    assert print_condition_source(program) in print_source(program)
    for source in (print_condition_source(program), print_source(program.phases[-1])):
        assert compile_source(source, architecture)

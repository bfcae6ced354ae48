"""`matrixwise`: functions of whole matrices within a rule, on every backend, of the user's own rules too."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from test_safety import interrupt
from test_totals import needs_gpp
from values import assert_same_bits

import fastopt
from fastopt import LayoutError, RuleError, SettingError
from fastopt.kernels.compiler.trace import trace

__all__ = ["interrupt"]  # a fixture

SHAPES = {"a": (3, 5), "b": (5, 3), "again": (3, 5), "one": (1, 1), "conv": (4, 2, 3, 3), "tiles": (40, 50)}


def doubled(x: Any) -> Any:
    """Return XᵀX-like products that differ from matrix to matrix: every element depends on its row and column."""
    return (x @ x.swapaxes(1, 2)) @ x


@dataclass(frozen=True)
class Cubed:
    """A rule with a function of matrices of its own, a total of its result, and another one after it."""

    lr: float = 0.1
    twice: bool = False

    def scalars(self, t):
        return {"lr": self.lr, "half": 0.5}

    def update(self, p, g, m, *, lr, half):
        m = half * m + g
        x = fastopt.matrixwise(m, doubled)
        if self.twice:
            x = fastopt.matrixwise(x / (1.0 + fastopt.total(x * x)) + p, doubled)
        return p - lr * x, m


def values(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: (0.1 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def stepped(rule: Any, backend: str, storage: Any = None, *, shapes: Any = None, steps: int = 3) -> fastopt.Optimizer:
    dtype = np.float64 if storage == "f64" else np.float32
    opt = fastopt.Optimizer(rule, values(shapes or SHAPES, dtype), storage=storage, backend=backend, seed=3)
    rng = np.random.default_rng(1)
    for _ in range(steps):
        for name in SHAPES if shapes is None else shapes:
            g = opt.grads[name]
            found = (0.1 * rng.standard_normal(g.shape)).astype(g.dtype)
            g.set(found) if hasattr(g, "set") else g.__setitem__(..., found)
        opt.step()
    return opt


def assert_same_steps(rule: Any, backend: str, storage: Any = None) -> None:
    found, expected = (stepped(rule, name, storage).state_dict() for name in (backend, "reference"))
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert_same_bits(np.asarray(found[name]), value, f"{name} {storage}")


def test_on_an_array_it_is_the_function_of_its_matrix():
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(fastopt.matrixwise(x, doubled).reshape(2, 12), doubled(x.reshape(1, 2, 12))[0])
    assert fastopt.matrixwise(np.zeros((0, 3)), doubled).shape == (0, 3)
    for wrong in (1.0, np.ones(3, np.int64)):
        with pytest.raises(RuleError, match="takes an array of floats"):
            fastopt.matrixwise(wrong, doubled)
    with pytest.raises(LayoutError, match="fewer than two dimensions"):
        fastopt.matrixwise(np.ones(3), doubled)
    with pytest.raises(RuleError, match="not like what it was given"):
        fastopt.matrixwise(np.ones((2, 3)), lambda x: x @ x.swapaxes(1, 2))


STORAGES = list(fastopt.PRESETS)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("twice", [False, True])
def test_steps_have_the_bits_of_the_reference(storage, twice):
    assert_same_steps(Cubed(twice=twice), "cpu", storage)


@needs_gpp
@pytest.mark.parametrize("storage", ["f32", "8bit"])
def test_a_device_has_the_bits_of_the_reference(storage, cupy):
    assert_same_steps(Cubed(twice=True), "cuda", storage)


def test_around_it_go_clipping_averages_and_noise():
    rule = fastopt.GradientNoise(Cubed(), eta=0.01)
    assert_same_steps(fastopt.SkipNonfinite(fastopt.EMA(fastopt.ClipByGlobalNorm(rule, max_norm=0.3))), "cpu", "f32")


def test_it_equals_the_formula_in_float64():
    opt, ps = stepped(Cubed(), "cpu", "f64"), values(SHAPES, np.float64)
    ms, rng = {name: np.zeros_like(p) for name, p in ps.items()}, np.random.default_rng(1)
    for _ in range(3):
        for name, p in ps.items():
            m = ms[name]
            m[...] = 0.5 * m + 0.1 * rng.standard_normal(p.shape)
            matrix = m.reshape(len(m), -1)
            p -= 0.1 * (matrix @ matrix.T @ matrix).reshape(p.shape)
    for name, p in ps.items():
        np.testing.assert_allclose(opt.params[name], p, rtol=1e-13, atol=1e-15)


def test_matrices_of_one_shape_come_together():
    seen: list[tuple[int, ...]] = []

    def noted(x: Any) -> Any:
        seen.append(x.shape)
        return x.copy()

    @dataclass(frozen=True)
    class Noted:
        lr: float = 0.1

        def scalars(self, t):
            return {"lr": self.lr}

        def update(self, p, g, *, lr):
            return p - lr * fastopt.matrixwise(g, noted)

    shapes = {f"w{k}": (6, 4) if k % 2 else (3, 5) for k in range(20)} | {"large": (1000, 1000), "larger": (1000, 1000)}
    opt = fastopt.Optimizer(Noted(), values(shapes))
    opt.step()
    assert sorted(seen) == [(1, 1000, 1000), (1, 1000, 1000), (10, 3, 5), (10, 6, 4)]
    assert len({id(group.launch) for group in opt._groups}) == 1


def test_a_program_says_what_it_moves():
    program = trace(Cubed(), "f32")
    assert [phase.name for phase in program.phases] == [
        "cubed_pf32_gf32_mf32_matrices1", "cubed_pf32_gf32_mf32_step",
    ]  # fmt: skip
    assert program.bytes_per_parameter == (2 + 1) * 4 + (4 + 2) * 4  # g m, u; p g m u, p m
    assert not program.phases[-1].matrices


def test_update_takes_the_shape_of_p():
    p, g = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    for backend in ("cpu", "reference"):
        now = {"p": p.copy(), "g": g, "m": np.zeros_like(p)}
        fastopt.update(Cubed(), 1, now, backend=backend)
        np.testing.assert_allclose(now["p"], 1 - 0.1 * (0.75 * 0.5 * 2), rtol=1e-6)
    flat = {"p": np.ones(6, np.float32), "g": np.ones(6, np.float32), "m": np.zeros(6, np.float32)}
    for backend in ("cpu", "reference"):
        with pytest.raises(LayoutError, match="fewer than two dimensions"):
            fastopt.update(Cubed(), 1, flat, backend=backend)
    assert (flat["p"] == 1).all()
    with pytest.raises(LayoutError, match="fewer than two dimensions"):
        fastopt.Optimizer(Cubed(), {"w": np.ones((2, 2)), "b": np.ones(2)})


def test_what_is_no_value_of_floats_is_refused_while_it_is_traced():
    @dataclass(frozen=True)
    class OfTotal(Cubed):
        def update(self, p, g, m, *, lr, half):
            return p - lr * fastopt.matrixwise(fastopt.total(g), doubled) * g, m

    with pytest.raises(RuleError, match="takes values of floating point"):
        fastopt.Optimizer(OfTotal(), {"w": np.ones((2, 2))})


def fails(x: Any) -> Any:
    raise ZeroDivisionError


def shortened(x: Any) -> Any:
    return x[:, :1]


@dataclass(frozen=True)
class Failing(Cubed):
    wrong: bool = False

    def update(self, p, g, m, *, lr, half):
        return p - lr * half * fastopt.matrixwise(g, shortened if self.wrong else fails), m + g


def transposed(x: Any) -> Any:
    return x.swapaxes(-1, -2)


def writes(x: Any) -> Any:
    x *= 2
    return x


@dataclass(frozen=True)
class Transposed(Cubed):
    """A rule whose function returns a view of its argument, or writes to it."""

    wrong: bool = False

    def update(self, p, g, m, *, lr, half):
        return p - lr * half * fastopt.matrixwise(g, writes if self.wrong else transposed), m + g


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_function_may_return_a_view_and_may_not_write(backend):
    g = np.arange(9, dtype=np.float32).reshape(3, 3)
    opt = fastopt.Optimizer(Transposed(lr=1.0), {"w": np.zeros((3, 3), np.float32)}, backend=backend)
    opt.step({"w": g})
    assert np.array_equal(opt.params["w"], -0.5 * g.T)
    opt = fastopt.Optimizer(Transposed(wrong=True), {"w": np.zeros((3, 3), np.float32)}, backend=backend)
    with pytest.raises(ValueError, match="read-only"):
        opt.step({"w": g})
    assert not opt.params["w"].any()


def test_a_view_is_right_in_torch_too():
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    adapter: Any = import_module("fastopt.torch")
    p = torch.nn.Parameter(torch.zeros(3, 3))
    p.grad = torch.arange(9.0).reshape(3, 3)
    adapter.Fused([p], Transposed(lr=1.0)).step()
    assert torch.equal(p.detach(), -0.5 * p.grad.T)


@dataclass(frozen=True)
class OfNothing(Cubed):
    hashable: bool = True

    def update(self, p, g, m, *, lr, half):
        return p - lr * half * fastopt.matrixwise(g, None if self.hashable else {}), m + g  # type: ignore[arg-type]


def test_what_is_no_function_of_matrices_is_refused():
    for rule, message in ((OfNothing(), "no function of matrices"), (OfNothing(hashable=False), "not hashable")):
        with pytest.raises(RuleError, match=message):
            fastopt.Optimizer(rule, {"w": np.ones((2, 2))})
    with pytest.raises(RuleError, match="returned no array"):
        fastopt.matrixwise(np.ones((2, 2)), lambda x: None)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("wrong", "error"), [(False, ZeroDivisionError), (True, RuleError)])
def test_an_error_of_the_function_leaves_every_buffer_untouched(wrong, error, backend):
    groups, values = {"b": fastopt.SGD(lr=1.0)}, {"b": np.ones(3), "w": np.ones((2, 2))}
    opt = fastopt.Optimizer(Failing(wrong=wrong), values, groups=groups, backend=backend)
    before = opt.state_dict()
    with pytest.raises(error):
        opt.step(values)
    after = opt.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert opt.t == 0
    opt.assign(values)  # nobody holds it


def test_an_interrupt_finds_a_step_of_all_groups_taken_or_not(interrupt):
    shapes = {"b": (64,), "w": (64, 64), "v": (64, 64), "c": (5,)}
    zero = {name: np.zeros(shape) for name, shape in shapes.items()}
    opt = fastopt.Optimizer(fastopt.Muon(lr=1.0, weight_decay=0.0, aux=fastopt.SGD(lr=1.0)), zero)
    for g in opt.grads.values():
        g[...] = 1.0
    opt.step()
    start = time.perf_counter()
    opt.step()
    one = time.perf_counter() - start
    each, rng = opt.params["w"] / 2, np.random.default_rng(0)
    for _ in range(300):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 — it may be raised at any point in the block
            interrupt(1e-5 + 3 * one * rng.random())
            while True:
                opt.step()
        assert (opt.params["b"] == -opt.t).all()
        assert (opt.params["c"] == -opt.t).all()
        np.testing.assert_allclose(opt.params["w"], opt.t * each, rtol=1e-9)
        np.testing.assert_allclose(opt.params["v"], opt.t * each, rtol=1e-9)
    assert opt.t > 10


@needs_gpp
def test_on_a_device_it_is_not_captured(cupy):
    opt = fastopt.Optimizer(Cubed(), values(SHAPES), backend="cuda")
    with pytest.raises(SettingError, match="not prepared on a device"):
        opt.capturable(3)
    with pytest.raises(SettingError, match="cannot skip steps"):
        fastopt.Optimizer(fastopt.SkipNonfinite(Cubed()), values(SHAPES), backend="cuda")
    opt.step({name: cupy.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    assert opt.t == 1

"""Totals: the defined order, the same bits on every backend, and what follows: clipping by the global norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import CASES, fresh_buffers
from cuda_host import COMPILER
from cuda_matrix import ARCHITECTURES, compile_source
from hypothesis import given, settings
from hypothesis import strategies as st
from values import assert_same_bits

import fastopt
from fastopt import BackendError, LayoutError, RuleError, SettingError
from fastopt.kernels.backends import bind
from fastopt.kernels.backends import steps as steps_of
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda.launch import FOLD
from fastopt.kernels.cuda.printer import print_source, print_table_source, tile_header
from fastopt.kernels.formats import TILE
from fastopt.kernels.launch import Rows, run

SIZES = (1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 70_001)


@dataclass(frozen=True)
class Trust:
    """A rule with totals of each tensor, one after the other, of what it computes and of a constant."""

    lr: float = 0.1

    def scalars(self, t):
        return {"lr": self.lr}

    def update(self, p, g, m, *, lr):
        n = fastopt.total(np.ones_like(p))
        m = 0.5 * m + g / np.sqrt(fastopt.total(g * g) / n + 1e-8)
        trust = np.sqrt(fastopt.total(p * p)) / (np.sqrt(fastopt.total(m * m)) + 1e-8)
        return p - lr * trust * m, m


@dataclass(frozen=True)
class Both(Trust):
    """A rule with a total over all that depends on one of each tensor, and the other way round."""

    def update(self, p, g, m, *, lr):
        own = np.sqrt(fastopt.total(np.abs(g))) + 1.0
        all_ = fastopt.total(g / own, over="all")
        m = 0.5 * m + np.where(all_ < 0.0, g, p)
        return p - lr * m / (fastopt.total(m * all_) * 1e-6 + own), m


@dataclass(frozen=True)
class Spare(Trust):
    """A rule that takes totals over all which nothing depends on, the same one twice, and one of each tensor."""

    def update(self, p, g, m, *, lr):
        fastopt.total(p, over="all")
        fastopt.total(p)
        a, b = fastopt.total(g, over="all"), fastopt.total(g * g, over="all")
        c, d = fastopt.total(g * g, over="all"), fastopt.total(m, over="all")
        return p - lr * (a + b + c + d * fastopt.total(g)) * 1e-4 * g, 0.5 * m + g


CLIPPED = {name: fastopt.ClipByGlobalNorm(CASES[name], max_norm=0.25) for name in ("sgd", "adam", "noise-adam")}
RULES: dict[str, Any] = {
    "trust": Trust(),
    "both": Both(),
    "spare": Spare(),
    **{f"clipped-{k}": rule for k, rule in CLIPPED.items()},
}
SHIPPED = {case: rule for case, rule in CASES.items() if trace(rule, "f32").totals}
RULES |= SHIPPED
STORED = [(name, storage) for name in RULES.keys() - SHIPPED.keys() for storage in ("f32", "f64", "bf16", "split_8bit")]
STORED = sorted(STORED) + [(case, "f32") for case in SHIPPED] + [("lamb", "split_8bit")]


# ---- the definition


def slowly(x: np.ndarray) -> Any:
    """Fold as the definition says, one addition after the other."""
    level = list(x)
    first = True
    while first or len(level) > 1:
        sums = []
        for start in range(0, len(level), TILE):
            tile = level[start : start + TILE]
            tile += [x.dtype.type(0) if first else np.float64(0)] * (TILE - len(tile))
            for half in (128, 64, 32, 16, 8, 4, 2, 1):
                tile = [tile[i] + tile[i + half] for i in range(half)]
            sums.append(np.float64(tile[0]))
        level, first = sums, False
    return level[0] if level else np.float64(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 70_001])
def test_the_definition_is_the_fold_that_it_says(n, dtype):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    found = fastopt.total(x)
    assert found.dtype == dtype
    assert found == dtype(slowly(x))
    assert fastopt.total(x.reshape(1, -1), over="all") == found


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.floats(-17, 16))
def test_a_sum_of_squares_is_within_its_bound_of_the_exact_one(n, seed, exponent):
    """A square, eight additions of a tile and the last rounding: (1 + u)^10 − 1 ≤ 10.1 u, and float64's beneath."""
    x = (np.random.default_rng(seed).standard_normal(n) * 10.0**exponent).astype(np.float32)
    squares = x * x
    if not np.all((squares > 1e-37) | (x == 0)) or not np.all(np.isfinite(squares)):
        return
    exact = math.fsum(float(v) ** 2 for v in x)
    assert abs(float(fastopt.total(squares)) - exact) <= 10.1 * 2.0**-24 * exact


def test_what_is_no_array_of_floats_has_no_total():
    for value in (1.0, np.float32(1), np.ones(3, np.int64), np.float64(2)):
        with pytest.raises(RuleError, match="array of floats"):
            fastopt.total(value)
    with pytest.raises(RuleError, match="over one tensor or over all") as caught:
        fastopt.total(np.ones(3), over="al")
    assert "all" in str(caught.value)


# ---- the same bits


def arrays_of(program: Any, n: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = []
    for b in program.buffers:
        x = np.zeros(b.size(n), b.dtype)
        if b.dtype.kind == "f":
            x[...] = rng.standard_normal(x.size)
        elif b.name in ("p", "g") and b.dtype == np.uint16:
            x[...] = (rng.standard_normal(n).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        if b.buffer in ("v", "vmax"):
            x = np.abs(x) if b.dtype.kind == "f" else x
        made.append(x)
    return made


def rows_of(program: Any, sizes: Any, seed: int = 0) -> tuple[Rows, list[list[np.ndarray]]]:
    arrays = [arrays_of(program, n, seed + k) for k, n in enumerate(sizes)]
    addresses = [[a.__array_interface__["data"][0] for a in row] for row in arrays]
    offsets = np.cumsum([0, *(-(-n // TILE) * TILE for n in sizes[:-1])])
    return Rows(sizes, offsets, addresses, arrays), arrays


def taken(backend: str, rule: Any, storage: str, sizes: Any, change: Any = None) -> list[np.ndarray]:
    program = trace(rule, storage)
    rows, arrays = rows_of(program, sizes)
    if change is not None:
        change(program, arrays)
    launch = bind(backend, program, rows)
    for t in (1, 2):
        run(launch.calls(noise_keys(7, t) if program.noise else (), host_scalars(program, rule)(t)))
    return [a for row in arrays for a in row]


def assert_equal(rule: Any, storage: str, sizes: Any, change: Any = None) -> None:
    expected = taken("reference", rule, storage, sizes, change)
    for found, wanted in zip(taken("cpu", rule, storage, sizes, change), expected, strict=True):
        assert_same_bits(found, wanted, f"{rule} {storage} {sizes}")


@pytest.mark.parametrize(("name", "storage"), STORED)
def test_steps_with_totals_have_the_bits_of_the_reference(name, storage):
    for sizes in ([n] for n in SIZES):
        assert_equal(RULES[name], storage, sizes)
    assert_equal(RULES[name], storage, [1000, 0, 1, 256, 257, 3, 0, 511, 40_001, 1])
    assert_equal(RULES[name], storage, [0, 0, 5])
    assert_equal(RULES[name], storage, [0])


@pytest.mark.parametrize("name", ["both", "clipped-adam"])
def test_thousands_of_rows(name):
    assert_equal(RULES[name], "f32", [1 + k % 5 for k in range(3000)])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_bits_do_not_depend_on_the_threads(threads):
    before = fastopt.get_threads()
    try:
        fastopt.set_threads(threads)
        for storage in ("f32", "split_8bit"):
            assert_equal(RULES["clipped-adam"], storage, [1_300_001])
            assert_equal(RULES["both"], storage, [700_001, 1_000, 600_000])
    finally:
        fastopt.set_threads(before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
@pytest.mark.parametrize("name", ["trust", "clipped-sgd", "clipped-adam"])
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    def change(program, arrays):
        for b, a in zip(program.buffers, arrays[1], strict=True):
            if b.name == "g":
                a[300] = value

    assert_equal(RULES[name], "f32", [1000, 700, 5], change)


# ---- in an optimizer


def steps(opt: fastopt.Optimizer, count: int) -> None:
    for t in range(count):
        rng = np.random.default_rng(t)
        opt.step({k: (4 * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in opt.params.items()})


PARAMS = {
    f"w{k}": np.random.default_rng(k).standard_normal(shape).astype(np.float32)
    for k, shape in enumerate([(10,), (300, 7), (1,), (64, 64), (7003,)])
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_clipped_run_is_the_run_put_together_from_passes(backend):
    """200 steps beside: the norm by `fastopt.total`, a product with the factor, and the inner rule on that."""
    inner = fastopt.Adam(lr=1e-2, weight_decay=0.1)
    opt = fastopt.Optimizer(fastopt.ClipByGlobalNorm(inner, max_norm=50.0), PARAMS, backend=backend)
    apart = fastopt.Optimizer(inner, PARAMS, backend="reference")
    clipped = 0
    for t in range(200):
        rng = np.random.default_rng(t)
        g = {k: (rng.exponential() * rng.standard_normal(v.shape)).astype(np.float32) for k, v in PARAMS.items()}
        opt.step(g)
        flat = np.zeros_like(opt.flat_grads)
        flat[: sum(x.size for x in g.values())] = np.concatenate([x.ravel() for x in g.values()])
        factor = np.float32(50.0) / (np.sqrt(fastopt.total(flat * flat)) + np.float32(1e-6))
        clipped += bool(factor < 1)
        apart.step({k: np.where(factor > 1, np.float32(1), factor) * x for k, x in g.items()})
    assert 20 < clipped < 180
    for name, p in opt.params.items():
        assert_same_bits(p, apart.params[name], name)


def test_clipping_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ours = fastopt.Optimizer(fastopt.ClipByGlobalNorm(fastopt.Adam(lr=1e-2), max_norm=0.5), PARAMS)
    params = [torch.tensor(p, requires_grad=True) for p in PARAMS.values()]
    theirs = torch.optim.Adam(params, lr=1e-2)
    for t in range(100):
        rng = np.random.default_rng(t)
        g = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in PARAMS.items()}
        ours.step(g)
        for p, x in zip(params, g.values(), strict=True):
            p.grad = torch.tensor(x)
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        theirs.step()
    for p, x in zip(params, ours.params.values(), strict=True):
        np.testing.assert_allclose(x, p.detach().numpy(), rtol=0, atol=1e-5)  # 100 steps of 1e-2, each a few ulp off


def test_the_norm_is_over_all_groups():
    rule = fastopt.ClipByGlobalNorm(fastopt.Momentum(lr=0.1, beta=0.5), max_norm=1.0)
    groups = {"w1": {"lr": 0.2}, "w3": {"max_norm": 2.0}, "w4": fastopt.ClipByGlobalNorm(fastopt.SGD(lr=0.3), 0.5)}
    found = {}
    for backend in ("reference", "cpu"):
        opt = fastopt.Optimizer(rule, PARAMS, groups=groups, backend=backend)
        steps(opt, 3)
        found[backend] = {k: v.copy() for k, v in opt.params.items()}
    for name in PARAMS:
        assert_same_bits(found["cpu"][name], found["reference"][name], name)
    opt = fastopt.Optimizer(fastopt.ClipByGlobalNorm(fastopt.SGD(lr=1.0), 1.0), PARAMS, groups={"w0": {"lr": 2.0}})
    opt.assign({k: np.zeros_like(v) for k, v in PARAMS.items()})
    opt.step({k: np.ones_like(v) for k, v in PARAMS.items()})
    each = 1 / math.sqrt(sum(v.size for v in PARAMS.values()))
    for name, p in opt.params.items():
        np.testing.assert_allclose(p, -each * (2 if name == "w0" else 1), rtol=1e-6)


def test_a_run_goes_on_with_clipping():
    plain = fastopt.Optimizer(fastopt.Adam(lr=0.01), PARAMS)
    steps(plain, 3)
    clipped = fastopt.Optimizer(fastopt.ClipByGlobalNorm(fastopt.Adam(lr=0.01), 1e9), PARAMS)
    with pytest.raises(LayoutError, match="other rules") as caught:
        clipped.load_state_dict(plain.state_dict())
    assert "load {**state" in str(caught.value)
    clipped.load_state_dict({**plain.state_dict(), "rules": clipped.state_dict()["rules"]})
    for opt in (plain, clipped):
        opt.step({k: np.ones_like(v) for k, v in PARAMS.items()})
    for name in PARAMS:
        assert_same_bits(clipped.params[name], plain.params[name], name)


def test_the_norm_is_reported_without_clipping_it():
    opt = fastopt.Optimizer(fastopt.ScaledGradient(fastopt.ClipByGlobalNorm(fastopt.SGD(), 1.0), 0.5), PARAMS)
    for t in range(3):
        rng = np.random.default_rng(t)
        g = {k: (rng.standard_normal(v.shape)).astype(np.float32) for k, v in PARAMS.items()}
        opt.step(g)
        exact = math.sqrt(sum(float(np.sum((0.5 * x.astype(np.float64)) ** 2)) for x in g.values()))
        assert opt.grad_norm == pytest.approx(exact, rel=6 * 2.0**-24)  # half of the square's error, and the root's
    assert fastopt.Optimizer(fastopt.SGD(), PARAMS).grad_norm is None
    reference = fastopt.Optimizer(fastopt.ClipByGlobalNorm(fastopt.SGD()), PARAMS, backend="reference")
    with pytest.raises(BackendError, match="keeps no norm"):
        _ = reference.grad_norm


@dataclass(frozen=True)
class OfParameters(Trust):
    """A rule with a total over all that is no norm of gradients, but as early as one."""

    def update(self, p, g, m, *, lr):
        return p - lr * fastopt.total(p * p, over="all") * g, m + g


def test_groups_with_different_totals_are_refused():
    clipped = fastopt.ClipByGlobalNorm(fastopt.SGD())
    for other in (fastopt.SGD(), OfParameters()):
        for rule, own in ((clipped, other), (other, clipped)):
            with pytest.raises(SettingError, match="different totals over all"):
                fastopt.Optimizer(rule, PARAMS, groups={"w1": own})
    fastopt.Optimizer(clipped, PARAMS, groups={"w1": fastopt.ScaledGradient(clipped, -1.0)})


def test_what_is_no_norm_of_gradients_is_not_reported_as_one():
    assert fastopt.Optimizer(OfParameters(), PARAMS).grad_norm is None

    @dataclass(frozen=True)
    class Deaf(Trust):
        def update(self, p, g, m, *, lr):
            return p - lr * p, m + p

    opt = fastopt.Optimizer(fastopt.ClipByGlobalNorm(Deaf()), PARAMS)
    steps(opt, 1)
    assert opt.grad_norm is None
    opt = fastopt.Optimizer(fastopt.ClipByGlobalNorm(fastopt.SGD()), PARAMS)
    assert opt.grad_norm is None


def test_totals_of_a_tensor_are_of_each_parameter_of_an_optimizer():
    opt = fastopt.Optimizer(Trust(lr=0.5), PARAMS)
    steps(opt, 3)
    for name, first in PARAMS.items():
        alone = fastopt.Optimizer(Trust(lr=0.5), {name: first})
        for t in range(3):
            rng = np.random.default_rng(t)
            g = {k: (4 * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in PARAMS.items()}
            alone.step({name: g[name]})
        assert_same_bits(opt.params[name], alone.params[name], name)


@pytest.mark.parametrize("name", ["both", "spare"])
def test_several_launches_take_a_step_together(name):
    """Each a table of rows, as groups of a model are: the bits are those of one launch over all rows."""
    rule, sizes = RULES[name], [300, 1, 0, 1000, 257, 4, 70_001]
    program = trace(rule, "f32")
    scalars = host_scalars(program, rule)(1)
    whole, arrays = rows_of(program, sizes)
    run(bind("cpu", program, whole).calls((), scalars))
    for backend in ("cpu", "reference"):
        parts, found = [], []
        for first, end in ((0, 2), (2, 3), (3, 7)):
            rows, own = rows_of(program, sizes[first:end], seed=first)
            parts.append((bind(backend, program, rows), (), scalars))
            found += own
        run(steps_of(backend, parts))
        for row, expected in zip(found, arrays, strict=True):
            for a, b in zip(row, expected, strict=True):
                assert_same_bits(a, b, backend)


# ---- what it costs, errors


def test_bytes_per_parameter_count_every_pass():
    adam = trace(fastopt.Adam(), "f32").bytes_per_parameter
    clipped = trace(fastopt.ClipByGlobalNorm(fastopt.Adam()), "f32").bytes_per_parameter
    assert clipped == adam + 4 + 8 / TILE  # g once more, and the sums of tiles


def test_computing_again_reads_nothing_that_the_last_phase_does_not_read_anyway():
    """So keeping a value in memory from one phase to the next would move more bytes, of every rule here."""
    with_totals = [rule for rule in (*CASES.values(), *CLIPPED.values()) if trace(rule, "f32").totals]
    assert len(with_totals) > 8
    for rule in with_totals:
        *before, last = trace(rule, "f32").phases
        read = {b.name for b in last.buffers if b.read}
        for phase in before:
            assert {b.name for b in phase.buffers if b.elementwise and b.read} <= read, phase.name


@pytest.mark.parametrize("make", [fastopt.ClipByGlobalNorm, fastopt.ClipByValue])
@pytest.mark.parametrize("bound", [0, 0.0, -1.0, math.nan, math.inf, "1", None, True])
def test_bounds_that_are_none_are_refused(make, bound):
    with pytest.raises(SettingError, match="max_"):
        make(fastopt.SGD(), bound)


def test_bounds_may_follow_a_schedule():
    p = np.zeros(1)
    rule = fastopt.ClipByGlobalNorm(fastopt.SGD(lr=1.0), max_norm=lambda t: 0.5 * t)
    for t in (1, 2, 3):
        fastopt.update(rule, t, {"p": p, "g": np.full(1, 100.0)})
    assert abs(float(p[0]) + 3.0) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_clipping_by_value_is_the_inner_rule_on_clipped_gradients(backend):
    rule = CASES["clip-momentum"]
    ours, inner = fresh_buffers(rule, np.ones(300)), fresh_buffers(rule.rule, np.ones(300))
    for t in range(1, 6):
        ours["g"][...] = np.random.default_rng(t).standard_normal(300)
        inner["g"][...] = np.clip(ours["g"], -rule.max_value, rule.max_value)
        fastopt.update(rule, t, ours, backend=backend)
        fastopt.update(rule.rule, t, inner, backend=backend)
    assert_same_bits(ours["p"], inner["p"])


def test_clipping_by_value_keeps_nan_and_signs():
    for backend in ("reference", "cpu"):
        p, g = np.zeros(6), np.array([np.nan, np.inf, -np.inf, 0.25, -0.25, -2.0])
        fastopt.update(fastopt.ClipByValue(fastopt.SGD(lr=1.0), 0.5), 1, {"p": p, "g": g}, backend=backend)
        np.testing.assert_array_equal(p, [np.nan, -0.5, 0.5, -0.25, 0.25, 0.5])


def test_a_total_in_the_wrong_place_is_refused():
    @dataclass(frozen=True)
    class OfScalar(Trust):
        def update(self, p, g, m, *, lr):
            return p - fastopt.total(lr) * g, m

    @dataclass(frozen=True)
    class OfTotal(Trust):
        def update(self, p, g, m, *, lr):
            return p - fastopt.total(fastopt.total(g)) * g, m

    @dataclass(frozen=True)
    class OfTruth(Trust):
        def update(self, p, g, m, *, lr):
            return p - lr * g * fastopt.total(g > 0), m

    @dataclass(frozen=True)
    class OnTheHost(Trust):
        def scalars(self, t):
            return {"lr": fastopt.total(self.lr)}

    p, g, m = np.ones(3, np.float32), np.ones(3, np.float32), np.zeros(3, np.float32)
    for rule in (OfScalar(), OfTotal(), OfTruth(), OnTheHost()):
        with pytest.raises(RuleError, match="a total is of") as caught:
            fastopt.update(rule, 1, {"p": p, "g": g, "m": m})
        assert str(caught.value.where).startswith(type(rule).__name__) or isinstance(rule, OnTheHost)
    assert p.tolist() == [1, 1, 1]


# ---- on a device, whose kernels run on the host here


needs_gpp = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")


@needs_gpp
@pytest.mark.parametrize(
    ("name", "storage"),
    [("trust", "f32"), ("both", "f64"), ("both", "8bit"), ("clipped-adam", "split_8bit"),
     ("clipped-noise-adam", "bf16"), ("clipped-sgd", "f32"), *((case, "f32") for case in SHIPPED)],
)  # fmt: skip
def test_a_device_has_the_bits_of_the_reference(name, storage, cupy):
    for sizes in ([1], [255], [256], [257], [70_001], [1000, 0, 1, 256, 257, 3, 0, 511, 40_001, 1], [0, 0, 5], [0]):
        expected = taken("reference", RULES[name], storage, sizes)
        for found, wanted in zip(taken("cuda", RULES[name], storage, sizes), expected, strict=True):
            assert_same_bits(found, wanted, f"{name} {storage} {sizes}")


@needs_gpp
def test_groups_on_a_device_take_a_step_together(cupy):
    rule = fastopt.ClipByGlobalNorm(fastopt.Momentum(lr=0.1, beta=0.5), max_norm=1.0)
    groups = {"w1": {"lr": 0.2}, "w3": {"max_norm": 2.0}}
    reference = fastopt.Optimizer(rule, PARAMS, groups=groups, backend="reference")
    opt = fastopt.Optimizer(rule, PARAMS, groups=groups, backend="cuda")
    for t in range(3):
        rng = np.random.default_rng(t)
        for k, v in PARAMS.items():
            g = (4 * rng.standard_normal(v.shape)).astype(np.float32)
            opt.grads[k].set(g)
            reference.grads[k][...] = g
        opt.step()
        reference.step()
    for name, p in opt.params.items():
        assert_same_bits(p.get(), reference.params[name], name)
    assert opt.grad_norm.get().dtype == np.float32
    opt.capturable(3)  # what is prepared on the device takes the same steps
    for _ in range(3):
        opt.step()
        reference.step()
    assert opt.t == reference.t == 6
    for name, p in opt.params.items():
        assert_same_bits(p.get(), reference.params[name], name)


def compile_phases(rule: Any, storage: str, architecture: int) -> None:
    for phase in trace(rule, storage).phases:
        compile_source(print_source(phase), architecture)
        compile_source(print_table_source(phase), architecture)


@pytest.mark.parametrize("case", SHIPPED)
def test_the_phases_of_every_rule_compile(case):
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is called through it")
    compile_phases(SHIPPED[case], "f32", 75)  # the test below tries each architecture


def test_the_phases_and_the_folds_compile_for_the_oldest_and_the_newest_architecture():
    """Of all text only `warp_max` depends on the architecture, and it differs between these two."""
    pytest.importorskip("cupy", reason="CuPy is not installed: NVRTC is called through it")
    for architecture in (min(ARCHITECTURES), max(ARCHITECTURES)):
        for rule in (Both(), CLIPPED["noise-adam"]):
            for storage in ("f32", "f64", "split_8bit"):
                compile_phases(rule, storage, architecture)
        compile_source(tile_header() + FOLD, architecture)

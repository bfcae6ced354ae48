"""Storages in the public API: views, checkpoints and assignment of an Optimizer, and `update` on planes.

Over 300 lines: each property is tried on every preset, with the tables of what is refused.
"""

import copy
import io
import pickle
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from cases import CASES
from values import assert_same_bits

import fastopt
from fastopt import LayoutError, SettingError
from fastopt.kernels.formats import PRESETS, STORAGES

# No size but 0 is a multiple of the 256 elements of a tile.
SHAPES = {"w": (30, 41), "b": (7,), "empty": (0, 2), "scalar": (), "long": (3000,)}
COMPRESSED = [name for name in PRESETS if name not in ("f32", "f64")]


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def set_gradients(opt: fastopt.Optimizer, t: int) -> None:
    rng = np.random.default_rng([2, t])
    for grad in opt.grads.values():
        grad[...] = rng.standard_normal(grad.shape) * 10.0 ** rng.integers(-3, 2)


def take_steps(opt: fastopt.Optimizer, first: int, last: int) -> fastopt.Optimizer:
    """Take steps first … last − 1, each with gradients of its own, and return the optimizer."""
    for t in range(first, last):
        set_gradients(opt, t)
        opt.step()
    return opt


def assert_equal(a: fastopt.Optimizer, b: fastopt.Optimizer) -> None:
    ours, truth = a.state_dict(), b.state_dict()
    assert ours.keys() == truth.keys()
    for key, value in ours.items():
        assert np.array_equal(value, truth[key], equal_nan=np.asarray(value).dtype.kind == "f"), key
    for name in a.params:
        assert a.params[name].tobytes() == b.params[name].tobytes()


@dataclass(frozen=True)
class SignMomentum:
    lr: float = 1e-2
    beta: float = 0.9

    def scalars(self, t):
        return {"lr": self.lr, "beta": self.beta, "rest": 1 - self.beta}

    def update(self, p, g, m, *, lr, beta, rest):
        m = beta * m + rest * g
        return p - lr * np.sign(m), m


RULES = {
    "adam": CASES["adam"],
    "amsgrad in groups": CASES["adam-amsgrad"],
    "rmsprop centred": CASES["rmsprop-centered-momentum"],
    "adagrad from 0.1": CASES["adagrad-initial"],
    "noise": CASES["noise-adam"],
    "a user's rule": SignMomentum(),
}


# Adam in every preset; what the other rules add where it meets what a preset adds: several groups, state that stays
# exact in 8 bits, initial values that each kind of state must encode, noise with and without stochastic rounding.
IN_PRESETS = [("adam", preset) for preset in COMPRESSED]
IN_PRESETS += [("amsgrad in groups", preset) for preset in ("bf16", "split_8bit")]
IN_PRESETS += [("rmsprop centred", preset) for preset in ("8bit", "bf16_kahan")]
IN_PRESETS += [("adagrad from 0.1", preset) for preset in ("8bit", "bf16", "bf16_kahan")]
IN_PRESETS += [("noise", preset) for preset in ("bf16_8bit", "split")]
IN_PRESETS += [("a user's rule", preset) for preset in ("bf16_8bit", "mixed_f16")]


def test_every_rule_is_tried_in_a_preset():
    assert {case for case, _ in IN_PRESETS} == set(RULES)


@pytest.mark.parametrize(("case", "preset"), IN_PRESETS)
def test_backends_and_resumed_checkpoints_give_the_same_bits(case, preset):
    groups = {"*b": {"lr": 0.3}} if "groups" in case else None

    def make(backend: str = "auto") -> fastopt.Optimizer:
        return fastopt.Optimizer(RULES[case], values(), storage=preset, groups=groups, seed=3, backend=backend)

    opt = take_steps(make(), 0, 5)
    assert_equal(opt, take_steps(make("reference"), 0, 5))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **opt.state_dict())
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(dict(np.load(file)))
    copies = [resumed, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    take_steps(opt, 5, 9)
    for other in copies:
        assert_equal(take_steps(other, 5, 9), opt)


@pytest.mark.parametrize("g", ["f32", "bf16"])
def test_split_equals_float32_after_a_thousand_steps(g):
    rule = fastopt.Adam(lr=lambda t: 1e-2 / t**0.5, weight_decay=0.01)
    split = fastopt.Optimizer(rule, values(), storage={"p": "split", "g": g})
    plain = fastopt.Optimizer(rule, values(), storage={"g": g})
    take_steps(split, 0, 1000)
    take_steps(plain, 0, 1000)
    for name, master in split.master().items():
        assert_same_bits(master, plain.params[name], name)
        assert_same_bits(split.state("v")[name], plain.state("v")[name], name)
        assert np.all(np.abs(split.params[name].astype(np.float32) - master) <= np.abs(master) * 2.0**-8)


def test_the_dtypes_of_parameters_gradients_master_and_state():
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    for preset, p, g in (
        ("bf16", bfloat16, bfloat16),
        ("split", bfloat16, bfloat16),
        ("mixed_bf16", bfloat16, bfloat16),
        ("mixed_f16", np.dtype(np.float16), np.dtype(np.float16)),
        ("8bit", np.dtype(np.float32), np.dtype(np.float32)),
        ("bf16_8bit", bfloat16, bfloat16),
    ):
        opt = fastopt.Optimizer(fastopt.Adam(), values(), storage=preset)
        assert {x.dtype for x in (*opt.params.values(), opt.flat_params)} == {p}, preset
        assert {x.dtype for x in (*opt.grads.values(), opt.flat_grads)} == {g}, preset
        assert {x.dtype for x in (*opt.master().values(), *opt.state("v").values())} == {np.dtype(np.float32)}
        for name, shape in SHAPES.items():
            assert opt.params[name].shape == opt.grads[name].shape == opt.master()[name].shape == shape
            assert np.shares_memory(opt.params[name], opt.flat_params) or not opt.params[name].size


def test_mixed_bf16_parameters_are_the_rounded_master_after_every_step():
    opt = fastopt.Optimizer(fastopt.Adam(lr=0.1), values(), storage="mixed_bf16")
    for t in range(3):
        for name, master in opt.master().items():
            assert opt.params[name].tobytes() == master.astype(ml_dtypes.bfloat16).tobytes()
        take_steps(opt, t, t + 1)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_can_be_assigned_in_every_storage(preset):
    opt = take_steps(fastopt.Optimizer(fastopt.Adam(), values(), storage=preset), 0, 2)
    dtype = np.float64 if preset == "f64" else np.float32
    before = opt.master()
    new = np.linspace(-3, 3, 7).astype(dtype)
    opt.assign({"b": new})
    np.testing.assert_allclose(opt.master()["b"], new, rtol=2**-8)
    np.testing.assert_allclose(opt.params["b"].astype(dtype), new, rtol=2**-8)
    for name in set(SHAPES) - {"b"}:
        assert_same_bits(opt.master()[name], before[name])
    assert opt.t == 2
    with pytest.raises(LayoutError, match="'B' is unknown"):
        opt.assign({"B": new})
    with pytest.raises(LayoutError, match="'b' has the wrong shape"):
        opt.assign({"b": new[:3]})


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_views_are_read_only_if_other_planes_must_change_with_them(preset):
    opt = fastopt.Optimizer(fastopt.Adam(), values(), storage=preset)
    if len(STORAGES[PRESETS[preset].p].planes) == 1:
        opt.params["b"][...] = 2.0
        assert np.all(opt.master()["b"] == 2)
        return
    with pytest.raises(ValueError, match="read-only"):
        opt.params["b"][...] = 2.0


@pytest.mark.parametrize("to", ["f32", "split", "8bit", "bf16_8bit"])
@pytest.mark.parametrize("preset", ["f32", "split_8bit", "bf16"])
def test_a_checkpoint_loads_into_another_storage(preset, to):
    rule = fastopt.Adam(lr=0.01)
    opt = take_steps(fastopt.Optimizer(rule, values(), storage=preset), 0, 20)
    other = fastopt.Optimizer(rule, values(), storage=to)
    other.load_state_dict(opt.state_dict())
    assert other.t == 20
    for name in SHAPES:
        for mine, theirs, stored in (
            (opt.master(), other.master(), PRESETS[to].p),
            (opt.state("v"), other.state("v"), PRESETS[to].unsigned),
        ):
            # Half of the last bit of the significand, which has 8 bits (the first is implied) or 4.
            bound = {"f32": 0, "split": 0, "bf16_sr": 2.0**-8, "uf8": 2.0**-4}[stored]
            np.testing.assert_allclose(theirs[name], mine[name], rtol=bound)


def test_parameters_of_any_float_type_are_accepted_with_a_storage():
    given = {"a": np.ones(3), "b": np.full(3, 1.5, np.float16), "c": np.full(3, 2.5).astype(ml_dtypes.bfloat16)}
    opt = fastopt.Optimizer(fastopt.SGD(), given, storage="split")
    assert [opt.master()[name].tolist() for name in "abc"] == [[1.0] * 3, [1.5] * 3, [2.5] * 3]
    with pytest.raises(LayoutError, match=r"(?s)wrong type.*storage="):
        fastopt.Optimizer(fastopt.SGD(), {"c": given["c"]})


def test_passed_gradients_must_have_the_dtype_of_the_gradient_buffer():
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"w": np.zeros(3, np.float32)}, storage="bf16")
    with pytest.raises(LayoutError, match="bfloat16"):
        opt.step({"w": np.ones(3, np.float32)})
    assert opt.t == 0
    opt.step({"w": np.ones(3, ml_dtypes.bfloat16)})
    assert opt.params["w"].tolist() == [-1.0] * 3


def test_formats_can_be_chosen_per_buffer_and_default_to_float32():
    rule = fastopt.Adam()
    opt = fastopt.Optimizer(rule, values(), storage={"v": "uf8"}, groups={"b": fastopt.SGD()})
    adam, sgd = (group.plan.program for group in opt._groups)
    assert {b: s.name for b, s in adam.formats.items()} == {"p": "f32", "g": "f32", "m": "f32", "v": "uf8"}
    assert {b: s.name for b, s in sgd.formats.items()} == {"p": "f32", "g": "f32"}
    with pytest.raises(SettingError, match="no such format"):
        fastopt.Optimizer(rule, values(), storage={"m": ["f8"]})  # type: ignore[dict-item]
    with pytest.raises(SettingError, match=r"(?s)no such preset.*'8bit'"):
        fastopt.Optimizer(rule, values(), storage="8bits")


@pytest.mark.parametrize("preset", COMPRESSED)
def test_update_on_planes_equals_an_optimizer(preset):
    rule = CASES["adam"]
    opt = fastopt.Optimizer(rule, {"w": values()["long"]}, storage=preset, seed=4)
    (group,) = opt._groups
    n = values()["long"].size
    planes = {b.name: group.store.planes[0][b.name] for b in group.plan.program.buffers if b.buffer != "g"}
    copies = {b.name: planes[b.name][: b.size(n)].copy() for b in group.plan.program.buffers if b.buffer != "g"}
    for t in range(1, 4):
        take_steps(opt, t, t + 1)
        fastopt.update(rule, t, {**copies, "g": opt.flat_grads[:n]}, storage=preset, seed=4)
        for name, array in copies.items():
            assert np.array_equal(array, planes[name][: array.size]), name


def test_update_infers_formats_from_dtypes():
    rule, rng = fastopt.Momentum(lr=0.1), np.random.default_rng(0)
    p, g, m = (rng.standard_normal(500).astype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16))
    words = [p.copy(), g.view(np.uint16), m.view(np.uint16).copy()]
    fastopt.update(rule, 1, {"p": p, "g": g, "m": m})
    fastopt.update(rule, 1, dict(zip("pgm", words, strict=True)), storage={"p": "f32", "g": "bf16", "m": "f16"})
    assert_same_bits(p, words[0])
    assert np.array_equal(m.view(np.uint16), words[2])


def test_update_steps_torchs_bfloat16_in_place():
    torch = pytest.importorskip("torch")
    p, g = torch.ones(300, dtype=torch.bfloat16), torch.full((300,), 0.5, dtype=torch.bfloat16)
    fastopt.update(fastopt.SGD(lr=1.0), 1, {"p": p, "g": g})
    assert torch.all(p == 0.5)
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"w": p}, storage="bf16")
    opt.step({"w": g})
    assert not np.any(opt.params["w"])


def _adam(**other: np.ndarray) -> dict[str, np.ndarray]:
    buffers = {"p": np.ones(600, np.float32), "g": np.ones(600, np.float32)}
    buffers |= {b: np.zeros(600, np.uint8) for b in "mv"} | {f"{b}.scale": np.zeros(3, np.uint32) for b in "mv"}
    return buffers | other


REFUSED = {
    "no scale": ({k: v for k, v in _adam().items() if k != "m.scale"}, "8bit", "'m.scale' is missing"),
    "a short scale": (_adam(**{"m.scale": np.zeros(2, np.uint32)}), "8bit", r"uint32\[3\]"),
    "a scale of floats": (_adam(**{"m.scale": np.zeros(3, np.float32)}), "8bit", r"'m.scale' has the wrong dtype"),
    "codes of 16 bits": (_adam(m=np.zeros(600, np.uint16)), "8bit", r"uint8\[600\]"),
    "codes but no storage argument": (_adam(), None, "pass storage="),
    "float32 as bfloat16": (_adam(), "bf16_8bit", r"bfloat16\[600\]"),
    "an overlap": (_adam(v=(shared := np.zeros(700, np.uint8))[:600], m=shared[100:]), "8bit", "overlap"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_planes_are_refused_and_nothing_is_written(name):
    buffers, storage, message = REFUSED[name]
    before = {k: v.tobytes() for k, v in buffers.items()}
    with pytest.raises(LayoutError, match=message):
        fastopt.update(fastopt.Adam(), 1, buffers, storage=storage)
    assert {k: v.tobytes() for k, v in buffers.items()} == before


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stochastic_rounding_needs_an_offset_at_a_tile_boundary(backend):
    buffers = {b: np.ones(300, ml_dtypes.bfloat16) for b in "pg"}
    with pytest.raises(SettingError, match="a multiple of 256"):
        fastopt.update(fastopt.SGD(), 1, buffers, storage={"p": "bf16_sr", "g": "bf16"}, offset=100, backend=backend)


def test_stochastic_rounding_depends_on_seed_and_element_and_not_on_how_a_buffer_is_divided():
    rng = np.random.default_rng(5)
    storage = {"p": "bf16_sr", "g": "bf16"}
    whole = {b: rng.standard_normal(1000).astype(ml_dtypes.bfloat16) for b in "pg"}
    parts = [{b: a[s].copy() for b, a in whole.items()} for s in (slice(0, 512), slice(512, 1000))]
    other = {b: a.copy() for b, a in whole.items()}
    rule = fastopt.SGD(lr=1e-3)
    fastopt.update(rule, 1, whole, storage=storage, seed=1)
    fastopt.update(rule, 1, other, storage=storage, seed=2)
    for part, offset in zip(parts, (0, 512), strict=True):
        fastopt.update(rule, 1, part, storage=storage, seed=1, offset=offset)
    assert np.concatenate([part["p"] for part in parts]).tobytes() == whole["p"].tobytes()
    assert np.mean(whole["p"] != other["p"]) > 0.02


@pytest.mark.parametrize("attribute", ["unsigned", "exact"])
@pytest.mark.parametrize("names", ["m", ("mm",), ("p",), None, 5, [["m"]]])
def test_a_rule_that_declares_unknown_state_is_refused(attribute, names):
    rule = type("Named", (SignMomentum,), {attribute: names})()
    with pytest.raises(fastopt.RuleError, match=f"Named.{attribute}"):
        fastopt.Optimizer(rule, values(), storage="8bit")


def test_a_parameter_below_bfloat16_range_resumes_bit_for_bit_with_bf16_kahan():
    def make() -> fastopt.Optimizer:
        start = {"w": np.zeros(2, np.float32)}
        return fastopt.Optimizer(fastopt.SGD(lr=1.0), start, storage="bf16_kahan")

    opt, other = make(), make()
    opt.assign({"w": np.array([-4e-45, 1], np.float32)})  # below half of the smallest bfloat16
    other.load_state_dict(opt.state_dict())
    opt.step()
    other.step()
    assert opt.params["w"].tobytes() == other.params["w"].tobytes()


def test_a_missing_plane_is_reported_with_its_size_and_dtype():
    buffers = _adam()
    del buffers["m.scale"]
    with pytest.raises(LayoutError, match=r"np.zeros\(3, np.uint32\) as 'm.scale'"):
        fastopt.update(fastopt.Adam(), 1, buffers, storage="8bit")


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_torch_tensors_that_require_grad_are_refused(name):
    torch = pytest.importorskip("torch")
    p = torch.ones(4, dtype=getattr(torch, name), requires_grad=True)
    with pytest.raises(LayoutError, match="detach"):
        fastopt.update(fastopt.SGD(), 1, {"p": p, "g": torch.ones(4, dtype=p.dtype)})


def test_steps_with_zero_gradients_leave_zero_state_zero():
    opt = fastopt.Optimizer(fastopt.Adam(), values(), storage="8bit")
    for _ in range(20):
        opt.step()
    assert not any(np.any(a) for s in ("m", "v") for a in opt.state(s).values())
    assert all(np.array_equal(a, values()[name]) for name, a in opt.master().items())


def test_one_nan_affects_one_element():
    opt = fastopt.Optimizer(fastopt.Adam(), {"w": np.zeros(600, np.float32)}, storage="8bit")
    opt.grads["w"][...] = 1.0
    opt.grads["w"][100] = np.nan
    for _ in range(3):
        opt.step()
    for array in (opt.params["w"], opt.state("m")["w"], opt.state("v")["w"]):
        assert np.flatnonzero(np.isnan(array)).tolist() == [100]

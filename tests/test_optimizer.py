"""fastopt.Optimizer: flat memory and views, groups, steps, checkpoints, and errors that change nothing.

Over 300 lines: one class, and the tables of what it refuses.
"""

import copy
import dataclasses
import gc
import io
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from cases import CASES
from values import assert_same_bits

import fastopt
from fastopt import LayoutError, SettingError
from fastopt.kernels.rules.rule import initial

RNG = np.random.default_rng(0)
SHAPES = {"w": (7, 5), "b": (5,), "empty": (0, 3), "scalar": (), "head.w": (5, 60), "head.b": (60,)}


def values(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def gradients(t: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([2, t])
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def snapshot(opt: fastopt.Optimizer) -> dict[str, object]:
    """Return everything that a step may change, in a form that can be compared with ==."""
    flat = {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in opt.state_dict().items()}
    return {**flat, "grads": opt.flat_grads.tobytes()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "case", ["sgd", "adam", "adam-amsgrad", "rmsprop-centered-momentum", "adagrad-initial", "lion"]
)
def test_a_step_equals_update_on_each_parameter(case, dtype):
    rule = CASES[case]
    opt = fastopt.Optimizer(rule, values(dtype))
    start = initial(rule)
    names = [k.split("/")[0] for k in opt.state_dict() if k.endswith("/w")]
    alone = {
        name: {s: value if s == "p" else np.full_like(value, start.get(s, 0)) for s in names}
        for name, value in values(dtype).items()
    }
    for t in range(1, 5):
        opt.step(gradients(t, dtype))
        for name, buffers in alone.items():
            fastopt.update(rule, t, {**buffers, "g": gradients(t, dtype)[name]})
    assert opt.t == 4
    for name, buffers in alone.items():
        assert opt.params[name].shape == SHAPES[name]
        assert_same_bits(opt.params[name], buffers["p"], name)
        assert_same_bits(opt.master()[name], buffers["p"], name)
        for s in names[1:]:
            assert_same_bits(opt.state(s)[name], buffers[s], f"{s} of {name}")


def test_backends_give_the_same_bits():
    first = fastopt.Optimizer(CASES["adam"], values(), backend="cpu")
    second = fastopt.Optimizer(CASES["adam"], values(), backend="reference")
    for t in range(1, 4):
        first.step(gradients(t))
        second.step(gradients(t))
    assert snapshot(first) == snapshot(second)


def test_params_and_grads_are_views_of_flat_memory():
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), values())
    assert opt.flat_params.size % 256 == 0
    assert opt.flat_params.ctypes.data % 64 == 0
    for name in SHAPES:
        assert opt.params[name].size == 0 or np.shares_memory(opt.params[name], opt.flat_params)
        assert opt.grads[name].size == 0 or np.shares_memory(opt.grads[name], opt.flat_grads)
    opt.grads["b"][...] = 1.0
    before = opt.params["b"].copy()
    opt.step()
    assert np.array_equal(opt.params["b"], before - 1)
    with pytest.raises(LayoutError, match=r"(?s)cannot be replaced.*opt\.params\['b'\]\[\.\.\.\] = value"):
        opt.params["b"] = before  # type: ignore[index]


def test_given_and_returned_values_are_copies():
    given = values()
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), given)
    opt.step(gradients(1))
    assert all(np.array_equal(given[k], v) for k, v in values().items())
    copy = opt.master()
    copy["w"][...] = 0
    opt_state = fastopt.Optimizer(fastopt.Adam(), given).state("m")
    opt_state["w"][...] = 7
    assert np.any(opt.params["w"] != 0)


def test_parameters_and_gradients_may_have_any_memory_order():
    given = {"w": np.asfortranarray(values()["head.w"]), "s": values()["head.w"][::2, ::3]}
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), given)
    opt.step({"w": np.asfortranarray(given["w"]), "s": given["s"]})
    assert not np.any(opt.params["w"])
    assert not np.any(opt.params["s"])


def test_groups_have_their_own_settings_and_rules():
    base = fastopt.Adam(lr=0.1, weight_decay=0.5)
    groups = {"*b": {"weight_decay": 0.0}, "head.*": {"lr": 0.01}, "scalar": fastopt.SGD(lr=2.0)}
    opt = fastopt.Optimizer(base, values(), groups=groups)
    assert len(opt._groups) == 5
    opt.step(gradients(1))
    import dataclasses as d

    expected = {
        "w": base,
        "b": d.replace(base, weight_decay=0.0),
        "head.w": d.replace(base, lr=0.01),
        "head.b": d.replace(base, lr=0.01, weight_decay=0.0),
    }
    for name, rule in expected.items():
        p = values()[name]
        fastopt.update(rule, 1, {"p": p, "g": gradients(1)[name], "m": np.zeros_like(p), "v": np.zeros_like(p)})
        assert_same_bits(opt.params[name], p, name)
    assert opt.params["scalar"] == values()["scalar"] - np.float32(2) * gradients(1)["scalar"]
    assert list(opt.state("m")) == ["w", "b", "empty", "head.w", "head.b"]
    assert list(opt.params) == list(SHAPES)


def test_groups_with_equal_settings_are_merged():
    opt = fastopt.Optimizer(fastopt.Adam(), values(), groups={"b": {"lr": 1e-3}, "head.b": {"weight_decay": 0.0}})
    assert len(opt._groups) == 1


def test_noise_depends_only_on_the_element_and_not_on_its_group():
    rule = fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=1.0)
    opt = fastopt.Optimizer(
        rule, {"a": np.zeros(300), "b": np.zeros(300)}, groups={"b": {"eta": 4.0, "gamma": 0.0}}, seed=9
    )
    opt.step()
    whole = {"p": np.zeros(812), "g": np.zeros(812)}
    fastopt.update(rule, 1, whole, seed=9)
    assert_same_bits(opt.params["a"], whole["p"][:300])
    assert len(set(opt.params["a"]) | set(opt.params["b"])) == 600
    scale = 2 * 2**0.275  # √(4/(1/2^γ)) with γ = 0.55
    np.testing.assert_allclose(opt.params["b"], whole["p"][512:] * scale, rtol=1e-14)  # a few ulps


@pytest.mark.parametrize("storage", ["f32", "f64"])
def test_storage_chooses_the_precision(storage):
    opt = fastopt.Optimizer(fastopt.SGD(), {"w": np.ones(3, np.float32), "b": np.ones(3, np.float64)}, storage=storage)
    dtype = {"f32": np.float32, "f64": np.float64}[storage]
    assert opt.params["w"].dtype == opt.grads["b"].dtype == opt.flat_params.dtype == dtype


REFUSED = {
    "no parameters": (lambda: ({}, {}), LayoutError, "no parameters"),
    "a list": (lambda: ([np.ones(3)], {}), LayoutError, "go by name"),
    "a name that is not a string": (lambda: ({0: np.ones(3)}, {}), LayoutError, "is a string"),
    "integers": (lambda: ({"w": np.ones(3, int)}, {}), LayoutError, "'w' has the wrong type"),
    "a number": (lambda: ({"w": 1.0}, {}), LayoutError, "does not expose its memory"),
    "mixed": (lambda: ({"w": np.ones(3), "b": np.ones(3, np.float32)}, {}), LayoutError, "different precisions"),
    "a tuple as storage": (lambda: (values(), {"storage": ("f32", "bf16")}), SettingError, "a name or a dict"),
    "storage of an unknown buffer": (lambda: (values(), {"storage": {"w": "f32"}}), SettingError, "no buffer 'w'"),
    "unknown format": (lambda: (values(), {"storage": {"m": "f9"}}), SettingError, "'f8'"),
    "state format for the gradient": (lambda: (values(), {"storage": {"g": "f8"}}), SettingError, "the gradient"),
    "float64 with 8 bits": (lambda: (values(), {"storage": {"p": "f64", "m": "f8"}}), SettingError, "of float32"),
    "unknown storage": (lambda: (values(), {"storage": "f23"}), SettingError, "'f32'"),
    "unmatched": (lambda: (values(), {"groups": {"heads.*": {}}}), SettingError, "'heads.\\*' fits no parameter"),
    "unknown setting": (lambda: (values(), {"groups": {"b": {"wieght_decay": 0}}}), SettingError, "'weight_decay'"),
    "setting out of range": (lambda: (values(), {"groups": {"b": {"lr": -1}}}), SettingError, "lr is out of its range"),
    "a number as group": (lambda: (values(), {"groups": {"b": 0.1}}), SettingError, "a dict of settings, or a rule"),
    "list of groups": (lambda: (values(), {"groups": [("b", {})]}), SettingError, "go by patterns"),
    "number as pattern": (lambda: (values(), {"groups": {1: {}}}), SettingError, "go by patterns"),
    "fractional seed": (lambda: (values(), {"seed": 0.5}), SettingError, "seed is out of its range"),
    "large seed": (lambda: (values(), {"seed": 2**64}), SettingError, "seed is out of its range"),
    "low seed": (lambda: (values(), {"seed": -(2**63) - 1}), SettingError, "seed is out of its range"),
    "unknown backend": (lambda: (values(), {"backend": "cup"}), fastopt.BackendError, "'cpu'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_arguments_are_refused(name):
    make, error, message = REFUSED[name]
    params, options = make()
    with pytest.raises(error, match=message):
        fastopt.Optimizer(fastopt.Adam(), params, **options)


def test_a_group_may_set_settings_of_the_outer_and_the_inner_rule():
    inner = fastopt.Adam(lr=0.1, weight_decay=0.5)
    rule = fastopt.GradientNoise(inner, eta=0.3)
    groups = {"*b": {"weight_decay": 0.0, "eta": 0.0}, "head.w": {"rule": fastopt.SGD(), "lr": 0.5}}
    opt = fastopt.Optimizer(rule, values(), groups=groups, seed=5)
    expected = {
        "w": rule,
        "b": fastopt.GradientNoise(fastopt.Adam(lr=0.1), eta=0.0),
        "head.w": fastopt.GradientNoise(fastopt.SGD(lr=0.5), eta=0.3),
    }
    assert {name: group.plan.rule for group in opt._groups for name in group.shapes if name in expected} == expected
    for change, unknown in (({"wieght_decay": 0}, "weight_decay"), ({"rule": fastopt.SGD(), "betas": (0, 0)}, "betas")):
        with pytest.raises(SettingError, match=f"GradientNoise has no setting(.|\n)*{unknown}"):
            fastopt.Optimizer(rule, values(), groups={"b": change})


def test_a_group_with_a_rule_that_is_not_hashable_is_refused():
    rule = dataclasses.make_dataclass("Listed", [("table", list)], bases=(fastopt.SGD,), frozen=True, kw_only=True)
    for groups in ({"b": rule(table=[1])}, {"b": rule(table=()), "*": {"table": [1]}}):
        with pytest.raises(fastopt.RuleError, match=r"Optimizer, group '.': a rule's settings must be hashable"):
            fastopt.Optimizer(fastopt.SGD(), {"b": np.ones(3)}, groups=groups)


def test_a_pattern_that_equals_a_name_with_brackets_matches_only_that_name():
    opt: Any = fastopt.Optimizer(fastopt.SGD(), {"w[0]": np.ones(2), "w0": np.ones(3)}, groups={"w[0]": {"lr": 0.5}})
    assert [group.plan.rule.lr for group in opt._groups] == [0.5]  # as a shell pattern it would match w0


def changed_gradients(**changes):
    """Return a function that makes the gradients of step 1 with some replaced, or left out where given as None."""
    return lambda: {
        **{k: v for k, v in gradients(1).items() if changes.get(k, 0) is not None},
        **{k: v for k, v in changes.items() if v is not None},
    }


BAD_GRADIENTS = {
    "missing": (changed_gradients(w=None), "'w' is missing"),
    "misspelt": (lambda: {**changed_gradients(b=None)(), "bb": np.zeros(5)}, "did you mean 'b'"),
    "shape": (changed_gradients(b=np.zeros(6, np.float32)), "'b' has the wrong shape"),
    "type": (changed_gradients(b=np.zeros(5)), "astype"),
    "list": (changed_gradients(b=[0.0] * 5), "does not expose"),
    "not a mapping": (lambda: [1], "go by name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_GRADIENTS)
def test_bad_gradients_change_nothing(name):
    make, message = BAD_GRADIENTS[name]
    opt = fastopt.Optimizer(fastopt.Adam(), values())
    opt.step(gradients(1))
    before = snapshot(opt)
    with pytest.raises(LayoutError, match=message):
        opt.step(make())
    assert snapshot(opt) == before


def test_a_failing_schedule_of_the_last_group_changes_nothing():
    def runs_out(t: int) -> float:
        return 0.1 if t < 2 else float("nan")

    opt = fastopt.Optimizer(fastopt.Adam(), values(), groups={"head.*": {"lr": runs_out}})
    opt.step(gradients(1))
    before = snapshot(opt)
    with pytest.raises(SettingError, match="lr is out of its range"):
        opt.step()
    assert snapshot(opt) == before


@pytest.mark.parametrize("saved_as", ["pickle", "npz", "dict"])
@pytest.mark.parametrize(
    "case", ["adam-amsgrad", "nadam", "noise-adam", "adam-scheduled", "momentum-heavy-ball-dampening"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(case, saved_as):
    whole = fastopt.Optimizer(CASES[case], values(), seed=3)
    for t in range(1, 9):
        whole.step(gradients(t))
    first = fastopt.Optimizer(CASES[case], values(), seed=3)
    for t in range(1, 5):
        first.step(gradients(t))
    state = first.state_dict()
    first.step(gradients(99))  # does not change `state`, which is a copy
    if saved_as == "pickle":
        state = pickle.loads(pickle.dumps(state))
    elif saved_as == "npz":
        file = io.BytesIO()
        np.savez(file, **state)
        file.seek(0)
        state = np.load(file)
    second = fastopt.Optimizer(CASES[case], {k: np.zeros_like(v) for k, v in values().items()})
    second.load_state_dict(state)
    for t in range(5, 9):
        second.step(gradients(t))
    for key, value in whole.state_dict().items():
        assert np.array_equal(second.state_dict()[key], value), key


@pytest.mark.parametrize(
    "copy_by", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["deepcopy", "pickle"]
)
def test_a_copy_steps_independently(copy_by):
    first = fastopt.Optimizer(CASES["adam-scheduled"], values(), groups={"*b": {"lr": 0.5}}, storage="f64", seed=4)
    first.step(gradients(1, np.float64))
    second = copy_by(first)
    assert snapshot(second) == snapshot(first)
    before = snapshot(first)
    second.step()
    assert snapshot(first) == before
    first.step()
    assert snapshot(second) == snapshot(first)


class Named(fastopt.Optimizer):
    """A subclass by a user."""


def test_a_copy_has_the_same_class_and_the_original_groups():
    groups: dict[str, Any] = {"*b": {"lr": 0.5}}
    first = Named(fastopt.Adam(), values(), groups=groups)
    first.step(gradients(1))
    groups["*b"]["lr"] = 7.0
    groups["none"] = {}
    for second in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert type(second) is Named
        assert [group.plan.rule for group in second._groups] == [group.plan.rule for group in first._groups]
        assert snapshot(second) == snapshot(first)


OTHER_RULES = {
    "type": (fastopt.Lion(), fastopt.Momentum()),
    "zero or not": (fastopt.Momentum(), fastopt.Momentum(dampening=0.0)),
    "bool setting": (fastopt.Momentum(), fastopt.Momentum(nesterov=True)),
    "inner type": (fastopt.GradientNoise(fastopt.Adam()), fastopt.GradientNoise(fastopt.RAdam())),
    "inner setting zero or not": (
        fastopt.GradientNoise(fastopt.Momentum(dampening=0.0)),
        fastopt.GradientNoise(fastopt.Momentum()),
    ),
    "wrapped": (fastopt.Adam(), fastopt.GradientNoise(fastopt.Adam())),
}


@pytest.mark.parametrize("case", OTHER_RULES)
def test_the_state_of_another_rule_is_refused(case):
    saved, other = (fastopt.Optimizer(rule, values()) for rule in OTHER_RULES[case])
    before = snapshot(other)
    with pytest.raises(LayoutError, match="belongs to other rules"):
        other.load_state_dict(saved.state_dict())
    assert snapshot(other) == before


def test_number_settings_may_differ_when_state_is_loaded():
    saved = fastopt.Optimizer(fastopt.GradientNoise(fastopt.Adam(lr=0.1)), values())
    saved.step(gradients(1))
    rule = fastopt.GradientNoise(fastopt.Adam(lr=lambda t: 0.2, betas=(0.0, 0.5), weight_decay=0.1), eta=0.0)
    other = fastopt.Optimizer(rule, values())
    other.load_state_dict(saved.state_dict())
    assert snapshot(other)["m/w"] == snapshot(saved)["m/w"]


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, 2**64 - 1])
def test_any_64_bit_seed_is_saved_and_loaded(seed):
    opt = fastopt.Optimizer(fastopt.GradientNoise(fastopt.SGD()), values(), seed=seed)
    file = io.BytesIO()
    np.savez(file, **opt.state_dict())
    file.seek(0)
    other = copy.deepcopy(opt)
    other.load_state_dict(np.load(file))
    assert other.state_dict()["seed"] == seed


def test_groups_may_differ_when_state_is_loaded():
    grouped = fastopt.Optimizer(fastopt.Adam(), values(), groups={"*b": {"weight_decay": 0.1}})
    grouped.step(gradients(1))
    plain = fastopt.Optimizer(fastopt.Adam(), values())
    plain.load_state_dict(grouped.state_dict())
    assert_same_bits(plain.state("v")["head.b"], grouped.state("v")["head.b"])


BAD_STATES = {
    "missing": (lambda d: d.pop("m/w"), "'m/w' is missing"),
    "unknown": (lambda d: d.update({"m/ww": np.zeros(1)}), "'m/ww' is unknown"),
    "shape": (lambda d: d.update({"v/b": np.zeros(6, np.float32)}), "'v/b' has the wrong shape"),
    "type": (lambda d: d.update({"v/b": np.zeros(5)}), "'v/b' has the wrong dtype"),
    "t": (lambda d: d.update(t=1.5), "'t' is out of its range"),
    "negative t": (lambda d: d.update(t=-1), "'t' is out of its range"),
    "large t": (lambda d: d.update(t=2**63), "'t' is out of its range"),
    "seed": (lambda d: d.update(seed=2**64), "'seed' is out of its range"),
    "rules": (lambda d: d.update(rules="Lion"), "other rules"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_bad_state_changes_nothing(name):
    spoil, message = BAD_STATES[name]
    opt = fastopt.Optimizer(fastopt.Adam(), values())
    opt.step(gradients(1))
    other = fastopt.Optimizer(fastopt.Adam(), values())
    other.step(gradients(2))
    state, before = other.state_dict(), snapshot(opt)
    spoil(state)
    with pytest.raises(LayoutError, match=message):
        opt.load_state_dict(state)
    assert snapshot(opt) == before


def test_an_unknown_state_is_refused():
    with pytest.raises(LayoutError, match="no state 'x'"):
        fastopt.Optimizer(fastopt.Adam(), values()).state("x")
    with pytest.raises(LayoutError, match="no state 'm'"):
        fastopt.Optimizer(fastopt.SGD(), values()).state("m")


def test_a_nan_gradient_affects_only_its_own_element():
    opt = fastopt.Optimizer(fastopt.Adam(), values())
    opt.grads["b"][2] = np.nan
    opt.step()
    assert np.isnan(opt.params["b"]).tolist() == [False, False, True, False, False]
    assert not np.isnan(opt.params["head.w"]).any()


def test_repr_shows_rule_number_of_arrays_and_t():
    text = repr(fastopt.Optimizer(fastopt.SGD(lr=0.5), values()))
    assert "SGD(lr=0.5" in text
    assert "6 arrays" in text
    assert "t=0" in text


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_groups_whose_settings_differ_only_in_the_sign_of_zero_are_not_merged(backend):
    from test_program import rule

    signed = type(rule(lambda self, p, g, *, c: np.copysign(p, c), scalars=lambda self, t: {"c": self.c}, c=0.0))
    ones = {"a": np.ones(3), "b": np.ones(3)}
    opt = fastopt.Optimizer(signed(c=0.0), ones, groups={"b": {"c": -0.0}}, backend=backend)
    opt.step()
    assert opt.params["a"].tolist() == [1.0] * 3
    assert opt.params["b"].tolist() == [-1.0] * 3
    for c, expected in ((0.0, 1.0), (-0.0, -1.0), (0.0, 1.0)):
        buffers = {"p": np.ones(3), "g": np.ones(3)}
        fastopt.update(signed(c=c), 1, buffers, backend=backend)
        assert buffers["p"].tolist() == [expected] * 3


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_is_freed_with_the_optimizer_without_the_garbage_collector(backend):
    gc.collect()
    gc.disable()
    try:
        opt = fastopt.Optimizer(fastopt.Adam(), {"a": np.ones(3), "b": np.ones(5)}, backend=backend)
        opt.step()
        memory = weakref.ref(opt.flat_params.base)
        del opt
        assert memory() is None
        p, g = np.ones(3), np.ones(3)
        fastopt.update(fastopt.SGD(), 1, {"p": p, "g": g}, backend=backend)
        updated = weakref.ref(p)
        del p
        assert updated() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["lr", "rule", "t", "params", "flat_grads", "anything"])
def test_attributes_that_would_be_ignored_are_refused(name):
    opt = fastopt.Optimizer(CASES["sgd"], values())
    before = vars(opt).copy()
    with pytest.raises(SettingError, match=rf"(?s)Optimizer: setting the attribute '{name}' would change nothing.*do "):
        setattr(opt, name, 1)
    assert vars(opt).keys() == before.keys()
    opt._mine = 1  # what begins with an underscore is nobody's business
    opt.step()


def test_names_that_are_not_there_are_suggested():
    opt = fastopt.Optimizer(CASES["sgd"], {"weight": np.ones(2)})
    for views in (opt.params, opt.grads):
        assert "wight" not in views
        with pytest.raises(KeyError, match=r"did you mean 'weight'\?"):
            views["wight"]
    assert list(opt.params) == ["weight"]
    assert repr(opt.params) == "{'weight': array([1., 1.])}"
    with pytest.raises(AttributeError, match="decoupled weight decay"):
        fastopt.AdamW  # noqa: B018
    with pytest.raises(AttributeError, match="did you mean 'Adam'"):
        fastopt.Adamm  # noqa: B018
    assert not hasattr(fastopt, "__wrapped__")


@pytest.mark.parametrize("kind", [np.float32, lambda x: np.array(x), lambda x: np.array(x, np.float32)])
def test_a_schedule_may_return_an_array_of_one_number_without_dimensions(kind):
    opt = fastopt.Optimizer(fastopt.SGD(lr=lambda t: kind(0.25)), {"w": np.ones(2)})
    opt.step({"w": np.ones(2)})
    assert opt.params["w"].tolist() == [0.75, 0.75]
    opt = fastopt.Optimizer(fastopt.SGD(lr=lambda t: np.array([0.25])), {"w": np.ones(2)})
    with pytest.raises(SettingError, match="returns no number"):
        opt.step()

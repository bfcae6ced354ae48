"""Which rules are accepted: valid rules trace to the right program, invalid rules are refused with a helpful error.

Over 300 lines: nearly half of it are the rules that must be refused.
"""

import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import numpy as np
import pytest
from cases import CASES
from values import step

import fastopt
from fastopt import RuleError, SettingError
from fastopt.kernels.compiler.plan import host_scalars, plan
from fastopt.kernels.compiler.trace import trace

GLOBAL, GLOBAL_ARRAY = 2.0, np.ones(3)


def rule(update: Callable, name: str = "Mine", scalars: Callable | None = None, **settings: Any) -> Any:
    """Make a rule from its update; each scalar is 0.5 unless `scalars` is given."""
    keywords = [p.name for p in inspect.signature(update).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given = scalars or (lambda self, t: dict.fromkeys([k for k in keywords if k != "noise"], 0.5))
    fields = [(k, type(v), field(default=v)) for k, v in settings.items()]
    return make_dataclass(name, fields, frozen=True, namespace={"update": update, "scalars": given})()


def buffers_of(r: Any) -> dict[str, np.ndarray]:
    """Return an array of ones for each buffer, which is each positional parameter of the rule's update."""
    names = [p.name for p in inspect.signature(r.update).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    names = {"p", "g", *names} - {"args", "kwargs"}
    return {name: np.ones(5, np.float32) for name in names}


def _in_place_without_dimensions(self, p, g, *, lr):
    size = np.where(lr > 0.5, lr, lr)
    size *= 2
    return p - size * g


def _byte(x: Any) -> Any:
    return x.view(np.uint32).astype(np.int8)


def _with_attribute() -> Any:
    @dataclass(frozen=True)
    class Attributed:
        lr: float = 0.1

        def __post_init__(self):
            object.__setattr__(self, "flip", self.lr > 0.5)

        def scalars(self, t):
            return {"lr": self.lr}

        def update(self, p, g, *, lr):
            return p - lr * g if self.flip else p + lr * g  # type: ignore[attr-defined]

    return Attributed()


REFUSED: dict[str, tuple[Any, str]] = {
    "branches": (rule(lambda self, p, g, *, lr: p - lr * g if g > 0 else p), "branches on a value"),
    "branches on a scalar": (rule(lambda self, p, g, *, lr: p if lr > 0 else g), "branches on a value"),
    "and": (rule(lambda self, p, g: np.where((g > 0) and (p > 0), p, g)), "branches on a value"),
    "max": (rule(lambda self, p, g: max(p, g)), "branches on a value"),
    "np.maximum": (rule(lambda self, p, g: np.maximum(p, g)), r"np\.where\(\(a > b\)"),
    "np.minimum": (rule(lambda self, p, g: np.minimum(p, g)), r"np\.where\(\(a < b\)"),
    "np.clip": (rule(lambda self, p, g: np.clip(p, -1, 1)), "two np.where"),
    "np.exp": (rule(lambda self, p, g: p * np.exp(g)), "np.exp is not known"),
    "np.power": (rule(lambda self, p, g: np.power(g, 2)), "x \\* x"),
    "ninth power": (rule(lambda self, p, g: g**9), "this power is not known"),
    "power with a fraction": (rule(lambda self, p, g: g**0.3), "this power is not known"),
    "power that is not finite": (rule(lambda self, p, g: g ** float("nan")), "this power is not known"),
    "power of a number": (rule(lambda self, p, g: 2**g), "np.power is not known"),
    "remainder": (rule(lambda self, p, g: g % 2), "np.remainder is not known"),
    "remainder of a number": (rule(lambda self, p, g: 2 % g), "np.remainder is not known"),
    "floor division": (rule(lambda self, p, g: g // 2), "np.floor_divide is not known"),
    "divmod": (rule(lambda self, p, g: divmod(g, 2)[0]), "np.divmod is not known"),
    "matrix product": (rule(lambda self, p, g: p @ g), "np.matmul is not known"),
    "round": (rule(lambda self, p, g: round(g)), "write np.rint"),
    "round to digits": (rule(lambda self, p, g: round(g, 2)), "write np.rint"),
    "np.round": (rule(lambda self, p, g: np.round(g)), "write np.rint"),
    "math.trunc": (rule(lambda self, p, g: p - math.trunc(g)), "Python number"),
    "integer too large for a float": (rule(lambda self, p, g: g * 10**400), "out of the range of float32"),
    "filled with a string": (rule(lambda self, p, g: np.full_like(p, "x")), "neither a buffer nor a number"),
    "words filled with a fraction": (
        rule(lambda self, p, g: (p, np.full_like(g.view(np.uint32), 0.5))[0] if g.dtype == np.float32 else p % g),
        "no word of 32 bits|np.remainder",
    ),
    "printed": (rule(lambda self, p, g: p if f"{p}" else g), "prints a value"),
    "np.random": (rule(lambda self, p, g: p - np.random.random() * g), "draws a random number"),  # noqa: NPY002
    "random": (rule(lambda self, p, g: p - random.random() * g), "draws a random number"),
    "global number": (rule(lambda self, p, g: p - GLOBAL * g), "reads the global GLOBAL"),
    "global array": (rule(lambda self, p, g: p - GLOBAL_ARRAY * g), "reads the global GLOBAL_ARRAY"),
    "power of a scalar": (rule(lambda self, p, g, *, lr: p - lr**2 * g), "this power is not known"),
    "np.sum": (rule(lambda self, p, g: p - np.sum(g)), "not known|not elementwise"),
    "reduce": (rule(lambda self, p, g: p - np.add.reduce(g)), "not elementwise"),
    "np.mean": (rule(lambda self, p, g: p - np.mean(g)), "np.mean is not known"),
    "norm": (rule(lambda self, p, g: p / np.linalg.norm(g)), "np.norm is not known"),
    "out=": (rule(lambda self, p, g: np.add(p, g, out=p)), "called with out="),
    "method": (rule(lambda self, p, g: p - g.mean()), "attribute .mean"),
    "math": (rule(lambda self, p, g: p - math.sqrt(g)), "Python number"),
    "float()": (rule(lambda self, p, g: p - float(g)), "Python number"),
    "index": (rule(lambda self, p, g: p - g[0]), "Python number or an array"),
    "iteration": (rule(lambda self, p, g: sum(g)), "Python number or an array"),
    "np.asarray": (rule(lambda self, p, g: p - np.asarray(g)), "Python number or an array"),
    "foreign operand": (rule(lambda self, p, g: p - g * "3"), "neither a buffer nor a number"),
    "array constant": (rule(lambda self, p, g: p - g * np.ones(3)), "neither a buffer nor a number"),
    "float64 constant": (rule(lambda self, p, g: p - np.float64(0.1) * g), "change the precision"),
    "float64 where": (rule(lambda self, p, g: p - np.where(g > 0, 1.0, -1.0)), "change the precision"),
    "comparison as a number": (rule(lambda self, p, g: p - (g > 0) * g), "change the precision"),
    "condition not a comparison": (rule(lambda self, p, g: np.where(g, p, g)), "not a comparison"),
    "bitwise on floats": (rule(lambda self, p, g: p & g), "no such operation"),
    "bool result": (rule(lambda self, p, g: p > g), "not of the computing precision"),
    "number as result": (rule(lambda self, p, g: 0.0), "not of the computing precision"),
    "None as result": (rule(lambda self, p, g: None), "not of the computing precision"),
    "astype": (rule(lambda self, p, g: p.astype(np.float16)), "conversion"),
    "view": (rule(lambda self, p, g: p.view(np.int32)), "view"),
    "signed bytes added": (rule(lambda self, p, g: _byte(g) + _byte(p)), "an int8 has no operations"),
    "signed bytes compared": (rule(lambda self, p, g: np.where(_byte(g) > 3, p, g)), "an int8 has no operations"),
    "signed byte chosen": (rule(lambda self, p, g: np.where(p > g, _byte(p), _byte(g))), "an int8 has no operations"),
    "too few results": (rule(lambda self, p, g, m: p - m), "returns the new value of p and of each state buffer"),
    "too many results": (rule(lambda self, p, g: (p, g)), "returns the new value of p and of each state buffer"),
    "list of results": (rule(lambda self, p, g, m: [p, m]), "returns the new value of p and of each state buffer"),
    "no gradient": (rule(lambda self, p, m: (p, m)), "the parameter p and the gradient g"),
    "names swapped": (rule(lambda self, g, p: p), "the parameter p and the gradient g"),
    "*args": (rule(lambda self, p, g, *args: p), "names its buffers and scalars"),
    "**kwargs": (rule(lambda self, p, g, **kwargs: p), "names its buffers and scalars"),
    "number in update": (rule(lambda self, p, g: p - self.lr * g, lr=0.1), "reads the number self.lr inside update"),
    "number compared": (rule(lambda self, p, g: p if self.lr > 1 else g, lr=0.1), "reads the number self.lr"),
    "number equal to another": (rule(lambda self, p, g: p if self.lr == 1 else g, lr=0.1), "reads the number self.lr"),
    "number unequal": (rule(lambda self, p, g: p if self.lr != 1 else g, lr=0.1), "reads the number self.lr"),
    "numbers equal": (rule(lambda self, p, g: p if self.a == self.b else g, a=0.1, b=0.1), "reads the number self.a"),
    "number rounded": (rule(lambda self, p, g: p * round(self.lr), lr=0.1), "reads the number self.lr"),
    "absolute number": (rule(lambda self, p, g: p * abs(self.lr), lr=0.1), "reads the number self.lr"),
    "remainder of a setting": (rule(lambda self, p, g: p * (self.lr % 1), lr=0.1), "reads the number self.lr"),
    "tuple number": (rule(lambda self, p, g: p - self.b[0] * g, b=(0.1, 0.2)), r"reads the number self.b\[0\]"),
    "np on a number": (rule(lambda self, p, g: p - np.sqrt(self.lr) * g, lr=0.1), "reads the number self.lr"),
    "scalars missing": (
        rule(lambda self, p, g, *, lr: p - lr * g, scalars=lambda self, t: {}),
        "exactly the keyword-only",
    ),
    "scalars unknown": (
        rule(lambda self, p, g: p - g, scalars=lambda self, t: {"lr": 1.0}),
        "exactly the keyword-only",
    ),
    "scalars None": (
        rule(lambda self, p, g, *, lr: p - lr * g, scalars=lambda self, t: None),
        "returns a dict of exactly",
    ),
    "scalars named by numbers": (
        rule(lambda self, p, g, *, lr: p - lr * g, scalars=lambda self, t: {1: 0.1}),
        "exactly the keyword-only",
    ),
    "optional state computed where it is None": (
        rule(lambda self, p, g, m=None: (p - g, np.zeros_like(p) if m is None else m)),
        "something else where it is None",
    ),
    "in place without dimensions": (rule(_in_place_without_dimensions), "an operation in place"),
    "power of a comparison": (rule(lambda self, p, g: np.where((g > 0) ** 2, p, g)), "this power is not known"),
    "float64 power": (rule(lambda self, p, g: p - g ** np.float64(2)), "this power is not known"),
    "square of a comparison": (rule(lambda self, p, g: np.where(np.square(g > 0), p, g)), "change the precision"),
    "fabs of a uint32": (
        rule(lambda self, p, g: np.fabs(p.view(np.uint32)).view(np.float32)),
        "change the precision",
    ),
    "uint32 or float": (rule(lambda self, p, g: np.where(g > 0, p.view(np.uint32), 1.5)), "change the precision"),
    "comparison or number": (
        rule(lambda self, p, g: np.where(np.where(g > 0, p > 0, 1), p, g)),
        "change the precision",
    ),
    "−1 as uint32": (
        rule(lambda self, p, g: (p.view(np.uint32) & -1).view(np.float32)),
        "out of the range of uint32",
    ),
    "2³³ as uint32": (
        rule(lambda self, p, g: (p.view(np.uint32) ^ 2**33).view(np.float32)),
        "out of the range of uint32",
    ),
    "negative shift": (
        rule(lambda self, p, g: (p.view(np.uint32) >> -1).view(np.float32)),
        "out of the range of uint32",
    ),
    "value as a dict key": (rule(lambda self, p, g: {p: 1}), "uses a value as a key"),
    "attribute that is no field": (_with_attribute(), r"update reads self\.flip, which is not a field of Attributed"),
    "optional read, not written": (
        rule(lambda self, p, g, a=None: (p - g if a is None else p - a, a)),
        "read but never",
    ),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_cannot_be_traced_is_refused_and_nothing_is_written(name, backend):
    bad, message = REFUSED[name]
    buffers = buffers_of(bad)
    with pytest.raises(RuleError, match=message):
        fastopt.update(bad, 1, buffers, backend=backend)
    assert all(np.all(a == 1) for a in buffers.values())


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 1e39, 10**400, None, "much", "0.1", b"1", 1j, np.ones(1)],
    ids=lambda x: str(x)[:9],
)
def test_a_scalar_that_is_not_a_finite_float32_is_refused_and_nothing_is_written(value):
    bad = rule(lambda self, p, g, *, lr: p - lr * g, scalars=lambda self, t: {"lr": value})
    buffers = buffers_of(bad)
    with pytest.raises(SettingError, match="the scalar lr is not a finite float32"):
        fastopt.update(bad, 1, buffers)
    assert np.all(buffers["p"] == 1)


def boosted(self, p, g, *, lr):
    """Branch on every comparison of a number setting that is allowed inside an update."""
    if self.boost == 0:
        return p - lr * g
    if self.boost != 0 and self.boost != None and self.boost not in (0, None, "auto"):  # noqa: E711
        return p - lr * g * 4.0
    return p + lr * g


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("boost", "expected"), [(0.0, 0.5), (-0.0, 0.5), (2.5, -1.0), (lambda t: 0.0, -1.0)])
def test_a_number_may_be_compared_with_zero_and_none(backend, boost, expected):
    buffers = buffers_of(rule(boosted))
    fastopt.update(rule(boosted, boost=boost), 1, buffers, backend=backend)
    assert np.all(buffers["p"] == expected)


@dataclass(frozen=True)
class Tuned:
    """A user's rule with ints as defaults of floats, and an int setting, `times`, that is compiled in."""

    lr: float = 1
    b: tuple[float, float] = (0.0, 1)
    tilt: "float | None" = None
    times: int = 2

    def scalars(self, t):
        return {"lr": self.lr}

    def update(self, p, g, *, lr):
        return p - lr * g * self.times


def test_a_number_setting_may_have_any_numeric_type():
    first = trace(Tuned(), np.float32)
    for same in (Tuned(lr=2), Tuned(lr=2.0), Tuned(b=(0, 2)), Tuned(b=(0.0, 0.5))):
        assert trace(same, np.float32) is first
    assert trace(Tuned(lr=np.float32(0.5)), np.float32) is first  # type: ignore[arg-type]
    assert trace(Tuned(tilt=1), np.float32) is trace(Tuned(tilt=0.5), np.float32)
    assert trace(Tuned(lr=0), np.float32) is trace(Tuned(lr=0.0), np.float32) is not first
    buffers = buffers_of(Tuned())
    fastopt.update(Tuned(lr=np.float32(0.25)), 1, buffers)  # type: ignore[arg-type]
    assert np.all(buffers["p"] == 0.5)


@pytest.mark.parametrize("order", [(3, 3.0), (3.0, 3)])
def test_an_int_setting_is_compiled_in_even_if_given_as_a_float(order):
    kind = make_dataclass("Fresh", [], bases=(Tuned,), frozen=True)
    for times in order:
        buffers = buffers_of(kind(times=times))
        fastopt.update(kind(times=times), 1, buffers)
        assert np.all(buffers["p"] == -2.0)
    assert trace(kind(times=2), np.float32) is not trace(kind(times=3), np.float32)


def test_equal_settings_that_differ_in_sign_or_type_are_different_rules():
    def update(self, p, g, *, c):
        return np.copysign(p, c) + (g if self.k is True else g * 3)

    kind = type(rule(update, scalars=lambda self, t: {"c": self.c}, c=0.0, k=1))
    for first, second in [({"c": 0.0}, {"c": -0.0}), ({"k": 1}, {"k": True}), ({"k": True}, {"k": 1})]:
        for settings in (first, second, first):
            r, arrays = kind(**settings), [np.ones(2), np.ones(2)]
            planned = plan(r, np.dtype(np.float64))
            step("cpu", planned.program, arrays, (), planned.scalars(1))
            assert plan(r, np.dtype(np.float64)) is plan(kind(**settings), np.dtype(np.float64))
            assert arrays[0][0] == (-1.0 if str(r.c) == "-0.0" else 1.0) + (1.0 if r.k is True else 3.0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_optional_buffer_that_no_setting_uses_is_none(backend):
    optional = rule(lambda self, p, g, m=None: (p + g if m is None else p - g, m))
    buffers = {"p": np.ones(3), "g": np.ones(3)}
    fastopt.update(optional, 1, buffers, backend=backend)
    assert np.all(buffers["p"] == 2)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_field_computed_in_post_init_may_be_a_schedule(backend):
    @dataclass(frozen=True)
    class Derived:
        lr: Any = 0.5
        half: Any = field(init=False)
        third: Any = field(init=False, default=0.0)

        def __post_init__(self):
            object.__setattr__(self, "half", (lambda t: self.lr(t) / 2) if callable(self.lr) else self.lr / 2)
            object.__setattr__(self, "third", lambda t: t / 3)

        def scalars(self, t):
            return {"size": self.half + self.third}

        def update(self, p, g, *, size):
            return p - size * g

    for lr in (0.5, lambda t: t / 6):
        buffers = {"p": np.ones(3), "g": np.ones(3)}
        fastopt.update(Derived(lr), 3, buffers, backend=backend)
        assert np.all(buffers["p"] == 1 - 0.25 - 1.0)


def test_a_failed_reference_step_changes_no_group():
    base = fastopt.SGD(lr=0.5)
    late = rule(lambda self, p, g: p - g.astype(np.float64) if type(p).__name__ != "Symbol" else p - g)
    opt = fastopt.Optimizer(base, {k: np.ones(2, np.float32) for k in "ab"}, groups={"b": late}, backend="reference")
    with pytest.raises(RuleError, match="not an array like the old one"):
        opt.step({k: np.ones(2, np.float32) for k in "ab"})
    assert opt.t == 0
    assert np.all(opt.flat_params[opt.flat_params != 0] == 1)


@pytest.mark.parametrize(
    "initial", [None, 5, {"m": "0.5"}, {"m": None}, {"m": np.ones(2)}, {"m": math.nan}, {"m": 1e300}, {1: 0.0}], ids=str
)
def test_an_invalid_initial_is_refused(initial):
    bad = rule(lambda self, p, g, m: (p - m, g))
    object.__setattr__(bad, "initial", lambda: initial)
    with pytest.raises(RuleError, match="initial"):
        fastopt.Optimizer(bad, {"w": np.ones(3, np.float32)})


def test_gradient_noise_may_underflow_to_zero():
    noisy = fastopt.GradientNoise(fastopt.SGD(lr=0.5), eta=1.0, gamma=1e9)
    buffers = {"p": np.ones(3), "g": np.ones(3)}
    fastopt.update(noisy, 1, buffers)
    assert np.all(buffers["p"] == 0.5)


def test_names_that_collide_in_an_npz_file_are_refused():
    with pytest.raises(fastopt.LayoutError, match=r"'w' and 'w\.npy' are the same"):
        fastopt.Optimizer(fastopt.SGD(), {"w.npy": np.ones(2), "w": np.ones(3)})


def test_a_setting_excluded_from_comparison_is_refused():
    @dataclass(frozen=True)
    class Partial(Tuned):
        lr: float = field(default=0.1, compare=False)

    for use in (
        lambda: fastopt.update(Partial(), 1, buffers_of(Partial())),
        lambda: fastopt.Optimizer(Partial(), {"w": np.ones(3)}),
        lambda: fastopt.GradientNoise(Partial()),
    ):
        with pytest.raises(RuleError, match="differ in lr alone"):
            use()


@pytest.mark.parametrize("thing", [fastopt.Adam, "adam", None, 3])
def test_a_value_that_is_not_a_rule_is_refused(thing):
    with pytest.raises(RuleError):
        fastopt.update(thing, 1, {"p": np.ones(1), "g": np.ones(1)})


def test_a_rule_that_is_not_frozen_or_not_hashable_is_refused():
    @dataclass
    class Loose(fastopt.SGD.__base__):  # type: ignore[misc]
        lr: float = 0.1

        def scalars(self, t):
            return {}

        def update(self, p, g):
            return p

    with pytest.raises(RuleError, match="frozen dataclass"):
        fastopt.update(Loose(), 1, {"p": np.ones(1), "g": np.ones(1)})
    with pytest.raises(RuleError, match="must be hashable"):
        fastopt.update(rule(lambda self, p, g: p, table=(1, [2])), 1, {"p": np.ones(1), "g": np.ones(1)})
    with pytest.raises(RuleError, match="must be hashable"):
        fastopt.Optimizer(rule(lambda self, p, g: p, table=(1, [2])), {"w": np.ones(1)})


def test_an_error_inside_a_rule_reaches_the_caller_unchanged():
    def update(self, p, g):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fastopt.update(rule(update), 1, {"p": np.ones(1), "g": np.ones(1)})


def test_number_settings_share_a_program_and_other_settings_specialize_it():
    adam = fastopt.Adam
    first = trace(adam(lr=0.1), np.float32)
    assert trace(adam(lr=0.2, eps=1e-6, betas=(0.5, 0.6)), np.float32) is first
    assert trace(adam(lr=lambda t: 1 / t), np.float32) is first
    assert trace(adam(amsgrad=True), np.float32) is not first
    assert trace(adam(weight_decay=0.1), np.float32) is trace(adam(weight_decay=0.2), np.float32)
    assert trace(adam(), np.float64).dtype == np.float64


BYTES = {"sgd": 12, "momentum": 20, "rmsprop": 20, "rmsprop-centered-momentum": 36, "adam": 28, "adam-amsgrad": 36,
         "adagrad": 20, "adadelta": 28, "adamax": 28, "nadam": 28, "radam": 28, "lion": 20,
         "ademamix": 36, "adan": 44, "schedulefreesgd": 20,
         "signum": 20, "sophiag": 24, "gpaadamw": 36, "madgrad": 36, "rprop": 28, "asgd": 20, "grokfast-adam": 36,
         "lookahead-adam": 36}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
def test_bytes_per_parameter(case):
    assert trace(CASES[case], np.float32).bytes_per_parameter == BYTES[case]
    assert trace(CASES[case], np.float64).bytes_per_parameter == 2 * BYTES[case]


def test_optional_state_exists_only_if_a_setting_uses_it():
    assert trace(fastopt.Adam(), np.float32).state == ("m", "v")
    assert trace(fastopt.Adam(amsgrad=True), np.float32).state == ("m", "v", "vmax")
    assert trace(fastopt.RMSprop(momentum=0.9), np.float32).state == ("v", "m")
    assert trace(fastopt.GradientNoise(fastopt.RMSprop(centered=True)), np.float32).state == ("v", "a")


def test_a_buffer_returned_unchanged_is_not_written():
    masked = rule(lambda self, p, g, mask, *, lr: (p - lr * mask * g, mask), name="Masked")
    program = trace(masked, np.float32)
    assert [b.written for b in program.buffers] == [True, False, False]
    mask = np.array([0.0, 1.0], np.float32)
    mask.flags.writeable = False
    p = np.ones(2, np.float32)
    fastopt.update(masked, 1, {"p": p, "g": np.ones(2, np.float32), "mask": mask})
    assert p.tolist() == [1.0, 0.5]


def test_kernel_names_identify_the_specialization():
    names = {case: trace(r, np.float32).name for case, r in CASES.items()}
    assert names["adam"] == "adam_pf32_gf32_mf32_vf32"
    assert names["adam-amsgrad-l2"] == "adam_weight_decay_no_decoupled_amsgrad_pf32_gf32_mf32_vf32_vmaxf32"
    assert names["noise-adam"] == "gradientnoise_adam_pf32_gf32_mf32_vf32"
    from fastopt.kernels.cpu import print_source

    texts: dict[str, str] = {}
    for case, r in CASES.items():
        text = print_source(trace(r, np.float32))
        assert texts.setdefault(names[case], text) == text, f"{case}: one name, two kernels"


def test_schedules_are_evaluated_and_checked_each_step():
    r = fastopt.Momentum(lr=lambda t: 1.0 / t, beta=lambda t: 0.5)
    program = trace(r, np.float32)
    given = dict(zip(program.scalars, host_scalars(program, r)(4), strict=True))
    assert given["m_size"] == 0.25
    assert given["beta"] == 0.5
    nested = fastopt.GradientNoise(fastopt.SGD(lr=lambda t: 2.0 * t), eta=lambda t: 4.0, gamma=0.0)
    program = trace(nested, np.float32)
    given = dict(zip(program.scalars, host_scalars(program, nested)(3), strict=True))
    assert given["lr"] == 6.0
    assert given["noise_scale"] == 2.0
    with pytest.raises(SettingError, match="lr is out of its range"):
        host_scalars(trace(fastopt.SGD(lr=lambda t: -1.0), np.float32), fastopt.SGD(lr=lambda t: -1.0))(1)


def test_a_schedule_value_too_large_for_a_float_is_refused():
    with pytest.raises(SettingError, match="lr is out of its range"):
        host_scalars(trace(fastopt.SGD(), np.float32), fastopt.SGD(lr=lambda t: 10**400))(1)


@pytest.mark.parametrize("answer", [None, "0.1", np.ones(2), 1j])
def test_a_schedule_that_does_not_return_a_number_is_refused(answer):
    with pytest.raises(SettingError, match="returns no number at t=2"):
        host_scalars(trace(fastopt.SGD(), np.float32), fastopt.SGD(lr=lambda t: answer))(2)


OUT_OF_RANGE = [
    ("SGD", {"lr": -1}), ("SGD", {"lr": math.nan}), ("SGD", {"lr": math.inf}), ("SGD", {"lr": "fast"}),
    ("SGD", {"lr": True}),
    ("SGD", {"lr": None}), ("SGD", {"weight_decay": -0.1}), ("Momentum", {"beta": 1.0}), ("Momentum", {"beta": -0.1}),
    ("Momentum", {"dampening": float("inf")}), ("Momentum", {"dampening": 0.0, "bias_correction": True}),
    ("Momentum", {"dampening": 0.1, "nesterov": True}), ("RMSprop", {"alpha": 1.5}), ("RMSprop", {"momentum": -1}),
    ("Adam", {"betas": (0.9, 1.0)}), ("Adam", {"betas": 0.9}), ("Adam", {"betas": (0.9,)}),
    ("Adam", {"betas": (0.9, None)}),
    ("Adam", {"eps": -1e-8}), ("Adam", {"eps": 1j}), ("Adam", {"lr": np.ones(2)}),
    ("Adagrad", {"lr_decay": -1}), ("Adagrad", {"initial_accumulator_value": -1}), ("Adadelta", {"rho": 1.5}),
    ("Adamax", {"eps": -1}), ("NAdam", {"momentum_decay": -1}), ("NAdam", {"betas": (lambda t: 0.9, 0.999)}),
    ("RAdam", {"betas": (1.0, 0.999)}), ("Lion", {"betas": (0.9, math.nan)}), ("Lion", {"weight_decay": -1}),
    ("SGD", {"lr": 10**400}), ("Adam", {"decoupled": "false"}), ("Adam", {"amsgrad": 1}),
    ("Adam", {"amsgrad": lambda t: True}), ("Momentum", {"nesterov": np.ones(2)}), ("Momentum", {"nesterov": None}),
    ("RMSprop", {"centered": 0.0}), ("NAdam", {"decoupled_weight_decay": []}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), OUT_OF_RANGE, ids=lambda x: str(x).partition(" at 0x")[0][:40])
def test_settings_out_of_range_are_refused_by_the_constructor(name, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        getattr(fastopt, name)(**settings)


def test_gradient_noise_needs_a_rule_and_can_be_added_once():
    with pytest.raises(RuleError, match="class arrived"):
        fastopt.GradientNoise(fastopt.SGD)
    with pytest.raises(RuleError, match="already has a parameter"):
        fastopt.GradientNoise(fastopt.GradientNoise(fastopt.SGD()))


def test_settings_are_converted_to_python_floats():
    adam = fastopt.Adam(lr=np.float32(0.5), betas=[0, 0.5])  # type: ignore[arg-type]
    assert type(adam.lr) is float
    assert adam.betas == (0.0, 0.5)
    assert hash(adam) == hash(fastopt.Adam(lr=0.5, betas=(0.0, 0.5)))


@pytest.mark.parametrize("groups", [[], 0, "", False, ()], ids=repr)
def test_groups_that_are_not_a_mapping_are_refused_even_if_empty(groups):
    with pytest.raises(SettingError, match="go by patterns of names"):
        fastopt.Optimizer(fastopt.SGD(), {"w": np.ones(2)}, groups=groups)

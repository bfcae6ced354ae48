"""What exported C computes for a step t, scalars and the keys of random numbers, is what fastopt computes."""

from __future__ import annotations

import ctypes
import math
import re
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from c_kernels import COMPILERS, HAS_FMA, CKernels, compile_c
from cases import CASES, warming

import fastopt
from fastopt.kernels.c.printer import entry, header, print_host_functions
from fastopt.kernels.c.tile import names_of
from fastopt.kernels.compiler.host import UntraceableError, trace_scalars
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import STORAGES, unpack

needs_gcc = pytest.mark.skipif(COMPILERS["gcc"] is None, reason="needs gcc")


TIMES = [*range(1, 400), 1000, 4096, 99_999, 10**6, 2**40]
WITH_SCALARS = dict(CASES)
WITH_SCALARS |= {
    "clip": fastopt.ClipByGlobalNorm(fastopt.Adam(lr=0.01), max_norm=0.5),
    "max-lr": fastopt.Adam(lr=0.01, max_lr=0.1, weight_decay=0.3),
    "prodigy-bias-correction": fastopt.Prodigy(bias_correction=True),
    "schedulefreesgd-weighted": fastopt.ScheduleFreeSGD(lr=0.1, r=0.5, warmup_steps=3.0),
    "nadam-beta-0": fastopt.NAdam(betas=(0.0, 0.9)),
    "scheduled-clip": fastopt.ClipByGlobalNorm(fastopt.SGD(lr=0.1), max_norm=warming),
}


@pytest.fixture(scope="module")
def scalars_library(tmp_path_factory):
    """The functions that compute scalars, of each case, compiled with what contracts by default."""
    folder, parts = tmp_path_factory.mktemp("scalars"), [header()]
    for (case, rule), storage in product(WITH_SCALARS.items(), ("f32", "f64")):
        program = trace(rule, storage)
        text = "\n".join(print_host_functions(program, rule, names_of(program)))
        parts.append(re.sub(rf"\b{entry(program)}_", f"{_word(case)}_{storage}_", text))
    (folder / "scalars.c").write_text("\n".join(parts), encoding="utf-8")
    flags = ["-mfma"] if HAS_FMA else []
    compile_c("gcc", folder / "scalars.c", folder / "scalars.so", "-shared", "-fPIC", "-O3", *flags)
    return ctypes.CDLL(str(folder / "scalars.so"))


def _word(case):
    return case.replace("-", "_")


def with_rate(rule, rate):
    """Return a rule with another learning rate."""
    if hasattr(rule, "rule"):
        return replace(rule, rule=with_rate(rule.rule, rate))
    return replace(rule, lr=rate)


@needs_gcc
@pytest.mark.parametrize("storage", ["f32", "f64"])
@pytest.mark.parametrize("case", WITH_SCALARS)
def test_the_scalars_of_a_step_are_those_of_the_rule(case, storage, scalars_library):
    program = trace(WITH_SCALARS[case], storage)
    function = getattr(scalars_library, f"{_word(case)}_{storage}_scalars_at")
    for rule in (WITH_SCALARS[case], with_rate(WITH_SCALARS[case], 0.037)):
        scalars, out = host_scalars(program, rule), np.empty(len(program.scalars), program.dtype)
        arguments = trace_scalars(program, rule).arguments
        assert "lr" in arguments
        if set(arguments) != set(trace_scalars(program, WITH_SCALARS[case]).arguments):
            continue  # a schedule was replaced by a number
        grows = isinstance(rule, fastopt.ScheduleFreeSGD | fastopt.ScheduleFreeAdamW) and rule.r
        for t in TIMES if not grows else [t for t in TIMES if t < 10**5]:  # its loop is over all steps
            values = [float(x(t) if callable(x) else x) for x in arguments.values()]
            function(ctypes.c_int64(t), *map(ctypes.c_double, values), ctypes.c_void_p(out.ctypes.data))
            assert out.tolist() == np.array(scalars(t), program.dtype).tolist(), f"t = {t}"


def add_inverse(total, k, power):
    return total + math.exp(-power * math.log(k)) if k % 3 else 0.9 * total


def add_accumulated(total, k):
    return total + fastopt.accumulated(add_inverse, k, 0.0, 1.0)


@dataclass(frozen=True)
class Logged:
    """A rule whose scalars do what symbols cannot follow: `how` says what."""

    how: str
    lr: float = 0.1

    def scalars(self, t):
        if self.how == "a table":
            return {"lr": [0.1, 0.2, 0.3][t % 3] if isinstance(t, int) else [0.1][t]}
        if self.how == "other values":
            return {"lr": self.lr * (2.0 if type(t) is int else 1.0)}
        if self.how == "math.sin":
            return {"lr": math.sin(t)}
        if self.how == "text":
            return {"lr": self.lr + len(str(t))}
        if self.how == "a loop of its own":
            total, k = 0.0, 1
            while k <= t:
                total, k = total + 1 / k, k + 1
            return {"lr": total}
        if self.how == "learning rates accumulated":
            return {"lr": fastopt.accumulated(add_inverse, t, 0.0, self.lr)}
        if self.how == "learning rates enclosed":
            return {"lr": fastopt.accumulated(lambda x, k: x + self.lr / k, t, 0.0)}
        if self.how == "by a method":
            return {"lr": fastopt.accumulated(self.added, t, 0.0)}
        if self.how == "accumulated twice":
            return {"lr": fastopt.accumulated(add_accumulated, t, 0.0)}
        return {"lr": self.lr * math.exp(-math.log(t + 1.0)) + abs(math.sqrt(t) - 3) * (t >= 3)}

    def added(self, x, k):
        return x + 1 / k

    def update(self, p, g, *, lr):
        return p - lr * g


@dataclass(frozen=True)
class Derived:
    """A rule with a field that is computed from the learning rate, which a change of that alone does not reach."""

    lr: float = 0.1
    half: float = field(init=False, default=0.0)

    def __post_init__(self):
        object.__setattr__(self, "half", self.lr / 2)

    def scalars(self, t):
        return {"lr": self.half}

    def update(self, p, g, *, lr):
        return p - lr * g


def test_what_is_derived_from_the_learning_rate_is_refused():
    with pytest.raises(UntraceableError, match="not what its expressions compute"):
        trace_scalars(trace(Derived(), "f32"), Derived())


def test_a_schedule_may_end():
    rule = fastopt.SGD(lr=lambda t: [0.3, 0.2, 0.1][t - 1])
    made = trace_scalars(trace(rule, "f32"), rule)
    assert set(made.arguments) == {"lr"}
    never = fastopt.SGD(lr=lambda t: [][t])
    with pytest.raises(UntraceableError, match="raises an error at each step"):
        trace_scalars(trace(never, "f32"), never)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("a table", "number of Python's"),
        ("other values", "not what its expressions compute"),
        ("math.sin", "number of Python's"),
        ("text", "not what its expressions compute"),
        ("a loop of its own", "more than 8 times, or loops"),
        ("learning rates accumulated", "what a caller passes"),
        ("learning rates enclosed", "what a caller passes"),
        ("by a method", "no plain function"),
        ("accumulated twice", "what is itself accumulated"),
    ],
)
def test_scalars_that_cannot_be_followed_are_refused_with_their_first_values(how, why):
    rule = Logged(how)
    program = trace(rule, "f32")
    with pytest.raises(UntraceableError, match=why):
        trace_scalars(program, rule)
    text = fastopt.export_source(rule)
    assert "Logged.scalars(t) cannot be written in C" in text
    assert "_scalars_at(" not in text
    found = {m[0]: m[1].split() for m in re.findall(r"^     (\w+) +(\S+ +\S+ +\S+)(?: \*/)?$", text, re.MULTILINE)}
    for k, t in enumerate((1, 2, 3)):
        assert float(found["lr"][k]) == host_scalars(program, rule)(t)[0]


@dataclass(frozen=True)
class Accumulating:
    """A rule whose scalars accumulate, with branches and functions, over half of the steps and over all of them."""

    lr: float = 0.1
    k: Any = 2.0
    x0: Any = 1.0

    def scalars(self, t):
        powers = fastopt.accumulated(add_inverse, t, 0.25, 1.5)
        half = fastopt.accumulated(add_inverse, t / 2, 0.0, 0.5)
        return {"lr": self.lr * powers + half * self.x0, "other": powers * half + self.k}

    def update(self, p, g, *, lr, other):
        return p - lr * g * other


def refined(x, k):
    for _ in range(6):  # which uses x twice each time
        x = x * (2 - 0.5 * x)
    return x + 1 / (k * k)


@dataclass(frozen=True)
class Asking:
    """A rule that branches on what is accumulated, and whose settings have names that C's function uses itself."""

    lr: float = 0.1
    k: Any = 1.0
    k_: Any = 1.0
    t: Any = 1.0

    def scalars(self, t):
        total = fastopt.accumulated(add_inverse, t, 0.0, 1.0)
        factor = fastopt.accumulated(refined, t, 1.0) if total < 2 else max(total, 2.5)
        twice = math.sqrt(t + 1.0)  # in a field that does not depend on the branch
        return {"lr": self.lr * factor * self.k + self.k_ * self.t * t, "other": twice * (1 + twice)}

    def update(self, p, g, *, lr, other):
        return p - lr * g * other


@needs_gcc
def test_scalars_may_branch_on_what_is_accumulated_and_names_stay_apart(tmp_path):
    rule = Asking(k=lambda t: 1 / t, k_=lambda t: t + 2.0, t=lambda t: 0.5 * t)
    program = trace(rule, "f64")
    library = CKernels([(program, rule)], tmp_path).library
    function, out = getattr(library, f"{entry(program)}_scalars_at"), np.empty(2)
    arguments = list(trace_scalars(program, rule).arguments)
    assert sorted(arguments) == ["k", "k_", "lr", "t_"]
    for t in range(1, 40):
        given = {"lr": 0.1, "k": 1 / t, "k_": t + 2.0, "t_": 0.5 * t}
        values = [ctypes.c_double(given[name]) for name in arguments]
        function(ctypes.c_int64(t), *values, ctypes.c_void_p(out.ctypes.data))
        assert out.tolist() == list(host_scalars(program, rule)(t)), t


@needs_gcc
def test_a_rule_of_ones_own_may_accumulate(tmp_path):
    rule = Accumulating(k=lambda t: 1 / t, x0=lambda t: t + 0.5)
    program = trace(rule, "f64")
    library = CKernels([(program, rule)], tmp_path).library
    function, out = getattr(library, f"{entry(program)}_scalars_at"), np.empty(2)
    for t in [*range(1, 100), 7, 12_345]:
        values = map(ctypes.c_double, (0.1, 1 / t, t + 0.5))
        function(ctypes.c_int64(t), *values, ctypes.c_void_p(out.ctypes.data))
        assert out.tolist() == list(host_scalars(program, rule)(t)), t


@needs_gcc
def test_scalars_may_use_functions_comparisons_and_truth_values_as_numbers(tmp_path):
    rule = Logged("formula")
    program = trace(rule, "f64")
    made = CKernels([(program, rule)], tmp_path)
    out = np.empty(1)
    for t in TIMES:
        made.library.logged_how_formula_pf64_gf64_scalars_at(
            ctypes.c_int64(t), ctypes.c_double(0.3), ctypes.c_void_p(out.ctypes.data)
        )
        assert out[0] == Logged("formula", 0.3).scalars(t)["lr"]


@needs_gcc
def test_the_keys_of_a_step_are_those_of_fastopt(tmp_path):
    rule = fastopt.GradientNoise(fastopt.SGD())
    library = CKernels([(trace(rule, "f32"), rule)], tmp_path).library
    function, out = library.gradientnoise_sgd_pf32_gf32_keys_at, np.empty(2, np.uint32)
    for seed, t in product((0, 1, 5, 2**32 - 1, 2**63 + 7), (1, 2, 3, 1000, 2**40)):
        function(ctypes.c_uint64(seed), ctypes.c_uint64(t), ctypes.c_void_p(out.ctypes.data))
        assert tuple(out.tolist()) == noise_keys(seed, t)


def test_zero_bytes_are_state_that_is_zero():
    """As the comments of exported sources say that state begins."""
    for name, form in STORAGES.items():
        planes = [np.zeros(plane.size(300), plane.dtype) for plane in form.planes if plane.read]
        assert not unpack(form, planes).any(), name

"""Schedules: values computed by hand, comparison with PyTorch's and optax's, and properties of all schedules.

Over 300 lines: the values computed by hand, and a recorded run of torch, stand here.
"""

import math
import pickle
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import schedules
from fastopt.errors import SettingError
from fastopt.schedules import (
    Constant,
    Cosine,
    Delayed,
    Exponential,
    InverseTime,
    Join,
    OneCycle,
    Piecewise,
    Polynomial,
    Product,
    Schedule,
    Step,
    Sum,
    Warmup,
    WarmupStableDecay,
)

untimed = settings(deadline=None)


def near(value: float, expected: float, scale: float = 0.0) -> bool:
    """Whether two values are equal up to 8 roundings, each of at most an ulp of the largest term, `scale`."""
    return abs(value - expected) <= 8 * math.ulp(max(abs(expected), scale))


BY_HAND = [
    (Constant(0.1), {0: 0.1, 1: 0.1, 10**9: 0.1}),
    (InverseTime(0.2, k=1.0), {0: 0.2, 1: 0.1, 3: 0.05, 9: 0.02, 99: 0.002}),
    (InverseTime(0.3, k=0.0), {1: 0.3, 1000: 0.3}),
    (Exponential(0.8, gamma=0.5), {0: 0.8, 1: 0.4, 2: 0.2, 3: 0.1}),
    (Exponential(1.0, gamma=0.95), {1: 0.95, 2: 0.9025, 3: 0.857375}),
    (Exponential(1e-6, gamma=2.0), {1: 2e-6, 10: 1.024e-3}),
    (Exponential(0.5, gamma=0.0), {0: 0.5, 1: 0.0}),
    (Step(0.8, every=3, factor=0.5), {0: 0.8, 1: 0.8, 2: 0.8, 3: 0.4, 5: 0.4, 6: 0.2, 8: 0.2, 9: 0.1}),
    (Step(0.1, every=1, factor=0.1), {1: 0.01, 2: 0.001}),
    (Piecewise({1: 0.1, 4: 0.01, 6: 0.001}), {0: 0.1, 1: 0.1, 3: 0.1, 4: 0.01, 5: 0.01, 6: 0.001, 99: 0.001}),
    (Piecewise([(4, 0.01), (0, 0.1)]), {0: 0.1, 3: 0.1, 4: 0.01}),
    (Warmup(4), {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 1.0}),
    (Warmup(1), {0: 0.0, 1: 1.0}),
    (Warmup(0), {0: 1.0, 1: 1.0}),
    (Cosine(0.4, steps=6), {0: 0.4, 2: 0.3, 3: 0.2, 4: 0.1, 6: 0.0, 7: 0.0, 1000: 0.0}),  # cos of 60°, 90°, 120°
    (Cosine(0.5, steps=4, end=0.1), {0: 0.5, 1: 0.3 + 0.1 * math.sqrt(2), 2: 0.3, 4: 0.1, 5: 0.1}),
    (Cosine(0.85, steps=2, end=0.95), {1: 0.9, 2: 0.95, 3: 0.95}),
    (Polynomial(0.4, steps=4), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1, 4: 0.0, 5: 0.0}),
    (Polynomial(0.5, steps=4, power=2.0), {1: 0.28125, 2: 0.125, 3: 0.03125, 4: 0.0}),
    (Polynomial(0.1, steps=2, end=0.3), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.3}),
    (OneCycle(1.0, steps=10), {0: 0.04, 1: 0.04, 2: 0.52, 3: 1.0, 10: 4e-6, 11: 4e-6}),
    (OneCycle(1.0, 8, warmup_fraction=0.25), {1: 0.04, 2: 1.0, 4: 0.750001, 5: 0.500002, 6: 0.250003, 8: 4e-6}),
    (OneCycle(1.0, 2, warmup_fraction=0.5, end_divisor=1.0), {1: 1.0, 2: 0.04, 3: 0.04}),
    (OneCycle(1.0, 3, 0.0, end_divisor=1.0), {1: 0.76, 2: 0.28, 3: 0.04}),
    (
        WarmupStableDecay(0.4, warmup=2, stable=3, decay=4),
        {0: 0.0, 1: 0.2, 2: 0.4, 3: 0.4, 5: 0.4, 6: 0.3, 7: 0.2, 8: 0.1, 9: 0.0, 10: 0.0},
    ),
    (WarmupStableDecay(0.4, 0, 0, 2, end=0.2), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.2}),
    (Warmup(4) * Cosine(0.4, steps=6), {2: 0.15, 3: 0.15, 4: 0.1}),
    (0.5 * Exponential(0.8, 0.5) + 1, {1: 1.2, 2: 1.1}),
    (1 + Constant(-0.25) * 2, {1: 0.5}),
    (Polynomial(0.4, steps=4).delayed(3), {0: 0.4, 1: 0.4, 3: 0.4, 4: 0.3, 7: 0.0}),
    (Join({0: Warmup(2), 2: Polynomial(1.0, steps=4), 4: 0.25}), {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.75, 4: 0.5, 5: 0.25}),
]


@pytest.mark.parametrize(("schedule", "values"), BY_HAND, ids=[repr(schedule) for schedule, _ in BY_HAND])
def test_values_computed_by_hand(schedule, values):
    for t, expected in values.items():
        value = schedule(t)
        assert type(value) is float
        assert near(value, expected, scale=1.0), (t, value, expected)


def test_one_cycle_equals_recorded_values_of_torch():
    # torch 2.13.0: OneCycleLR(SGD(lr=1, momentum=0), max_lr=0.1, total_steps=12, cycle_momentum=False)
    stored = [
        0.0040000000000000036,
        0.0349789654219583,
        0.08792851591221287,
        0.09944154354509119,
        0.09330129698414118,
        0.0811745653949763,
        0.06473789976951033,
        0.046263710266697504,
        0.028306099820869922,
        0.01334775301888306,
        0.0034566987425395223,
        4e-07,
    ]
    schedule = OneCycle(0.1, steps=12)
    assert all(near(schedule(t), expected, scale=0.1) for t, expected in enumerate(stored, start=1))


# (our schedule, function (lr_scheduler module, optimizer) → torch's scheduler, torch's base lr, number of steps)
TORCH: dict[str, tuple[Schedule, Any, float, int]] = {
    "ExponentialLR": (Exponential(0.1, 0.9).delayed(1), lambda s, o: s.ExponentialLR(o, 0.9), 0.1, 40),
    "StepLR": (Step(0.1, 7, 0.5).delayed(1), lambda s, o: s.StepLR(o, 7, 0.5), 0.1, 40),
    "MultiStepLR": (
        Piecewise({0: 0.1, 5: 0.01, 12: 0.001}).delayed(1),
        lambda s, o: s.MultiStepLR(o, [5, 12], 0.1),
        0.1,
        20,
    ),
    "LinearLR": (Polynomial(0.02, 8, end=0.1).delayed(1), lambda s, o: s.LinearLR(o, 0.2, total_iters=8), 0.1, 20),
    "ConstantLR": (Piecewise({0: 0.05, 4: 0.1}).delayed(1), lambda s, o: s.ConstantLR(o, 0.5, 4), 0.1, 10),
    "PolynomialLR": (Polynomial(0.1, 30, power=0.9).delayed(1), lambda s, o: s.PolynomialLR(o, 30, 0.9), 0.1, 40),
    "CosineAnnealingLR": (
        Cosine(0.1, 30, end=0.01).delayed(1),
        lambda s, o: s.CosineAnnealingLR(o, 30, 0.01),
        0.1,
        31,  # after that torch's schedule rises again
    ),
    "OneCycleLR": (OneCycle(0.1, 37), lambda s, o: s.OneCycleLR(o, 0.1, 37, cycle_momentum=False), 1.0, 37),
    "OneCycleLR, settings": (
        OneCycle(0.1, 37, 0.45, 10.0, 50.0),
        lambda s, o: s.OneCycleLR(
            o, 0.1, 37, pct_start=0.45, div_factor=10.0, final_div_factor=50.0, cycle_momentum=False
        ),
        1.0,
        37,
    ),
    "LambdaLR": (Warmup(10) * 0.1, lambda s, o: s.LambdaLR(o, lambda n: min((n + 1) / 10, 1)), 0.1, 20),
    "SequentialLR": (
        Join({0: Polynomial(0.025, 4, end=0.1).delayed(1), 6: Exponential(0.1, 0.8).delayed(1)}),
        lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.25, total_iters=4), s.ExponentialLR(o, 0.8)], milestones=[6]),
        0.1,
        20,
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_schedules_match_torch(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's schedulers")
    ours, make, lr, steps = TORCH[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    for t in range(1, steps + 1):
        theirs = optimizer.param_groups[0]["lr"]
        # torch multiplies its last rate by a ratio that is mostly below 1. At most 8 roundings per step, each half an
        # ulp of the largest rate, 0.1, accumulate over the steps.
        assert abs(ours(t) - theirs) <= t * 8 * math.ulp(0.1), t
        optimizer.step()
        scheduler.step()


# (our schedule, function (optax module) → optax's schedule, the steps to compare)
OPTAX: dict[str, tuple[Schedule, Any, range]] = {
    "constant": (Constant(0.1), lambda o: o.constant_schedule(0.1), range(1, 5)),
    "exponential_decay": (
        Exponential(0.1, 0.5 ** (1 / 10)).delayed(1),
        lambda o: o.exponential_decay(0.1, 10, 0.5),
        range(1, 41),
    ),
    "exponential_decay, staircase": (
        Step(0.1, 7, 0.5).delayed(1),
        lambda o: o.exponential_decay(0.1, 7, 0.5, staircase=True),
        range(1, 41),
    ),
    "piecewise_constant": (
        Piecewise({0: 0.1, 5: 0.05, 12: 0.005}).delayed(1),
        lambda o: o.piecewise_constant_schedule(0.1, {5: 0.5, 12: 0.1}),
        range(1, 21),
    ),
    "linear": ((0.1 * Warmup(8)).delayed(1), lambda o: o.linear_schedule(0.0, 0.1, 8), range(1, 21)),
    "polynomial": (
        Polynomial(0.1, 30, power=2.0, end=0.01).delayed(1),
        lambda o: o.polynomial_schedule(0.1, 0.01, 2.0, 30),
        range(1, 41),
    ),
    "cosine_decay": (
        Cosine(0.1, 30, end=0.01).delayed(1),
        lambda o: o.cosine_decay_schedule(0.1, 30, alpha=0.1),
        range(1, 41),
    ),
    "warmup_cosine_decay": (
        Join({0: 0.1 * Warmup(6), 6: Cosine(0.1, 24, end=0.01)}).delayed(1),
        lambda o: o.warmup_cosine_decay_schedule(0.0, 0.1, 6, 30, 0.01),
        range(1, 41),
    ),
    "join": (
        Join({0: Exponential(0.1, 0.8).delayed(1), 6: 0.05}),
        lambda o: o.join_schedules([o.exponential_decay(0.1, 1, 0.8), o.constant_schedule(0.05)], [6]),
        range(1, 21),
    ),
    "warmup, stable, decay": (
        WarmupStableDecay(0.1, 4, 6, 10, end=0.01).delayed(1),
        lambda o: o.join_schedules(
            [o.linear_schedule(0.0, 0.1, 4), o.constant_schedule(0.1), o.linear_schedule(0.1, 0.01, 10)], [4, 10]
        ),
        range(1, 31),
    ),
    # Compared at the same t instead of t − 1, from the peak on: optax's rise starts at t = 0, ours and torch's at 1.
    "cosine_onecycle": (
        OneCycle(0.1, 20),
        lambda o: lambda n: o.cosine_onecycle_schedule(20, 0.1)(n + 1),
        range(6, 31),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_schedules_match_optax(name):
    optax = pytest.importorskip("optax", reason="compares with optax's schedules")
    ours, make, steps = OPTAX[name]
    theirs = make(optax)
    for t in steps:
        # optax computes in float32: at most 16 operations, each off by half a float32 ulp of the largest term, 0.1.
        assert abs(ours(t) - float(theirs(t - 1))) <= 8 * 2**-23 * 0.1, t


RATES = st.floats(0, 10) | st.sampled_from([0.0, 1e-3, 1.0, 5e-324])
STEPS = st.integers(1, 3000)
COUNTS = st.integers(0, 3000)
TIMES = st.integers(0, 10_000)
DECAYS = st.one_of(
    st.builds(InverseTime, RATES, RATES),
    st.builds(Exponential, RATES, st.floats(0, 1)),
    st.builds(Step, RATES, STEPS, st.floats(0, 1)),
)
RAMPS = st.one_of(st.builds(Cosine, RATES, STEPS, RATES), st.builds(Polynomial, RATES, STEPS, st.floats(0.1, 5), RATES))
SIMPLE = st.one_of(
    DECAYS,
    RAMPS,
    st.builds(Constant, st.floats(-10, 10)),
    st.builds(Warmup, COUNTS),
    st.builds(OneCycle, RATES, STEPS, st.floats(0, 0.99), st.floats(1, 100), st.floats(0.01, 1e6)),
    st.builds(WarmupStableDecay, RATES, COUNTS, COUNTS, STEPS, RATES),
    st.dictionaries(COUNTS, RATES).map(lambda table: Piecewise({**table, 0: 0.1})),
)
SCHEDULES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds(Product, inner, inner),
        st.builds(Sum, inner, inner),
        st.builds(Delayed, inner, COUNTS),
        st.builds(lambda a, b, n: Join({0: a, n: b}), inner, inner, STEPS),
    ),
    max_leaves=4,
)


@untimed
@given(SCHEDULES, TIMES)
def test_a_schedule_is_hashable_and_round_trips_through_pickle_and_repr(schedule, t):
    """Equal schedules have equal values and hashes, also after a round trip through pickle or through repr."""
    value = schedule(t)
    assert type(value) is float
    for same in (schedule, pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), dict(vars(schedules)))):
        assert same == schedule
        assert hash(same) == hash(schedule)
        assert same(t) == value


@untimed
@given(DECAYS, TIMES)
def test_decay_never_rises(schedule, t):
    # pow is accurate to one ulp but not guaranteed to be monotone.
    assert 0 <= schedule(t + 1) <= schedule(t) + math.ulp(schedule(t))
    assert schedule(t) <= schedule.start + math.ulp(schedule.start)
    assert schedule(0) == schedule.start


@untimed
@given(RAMPS, TIMES)
def test_a_ramp_runs_from_start_to_end(schedule, t):
    low, high = sorted((schedule.start, schedule.end))
    # (start − end) and its sum with end are each rounded once.
    slack = math.ulp(high)
    assert low - slack <= schedule(t) <= high + slack
    assert abs(schedule(0) - schedule.start) <= slack
    assert schedule(schedule.steps) == schedule(schedule.steps + t) == schedule.end
    step = schedule(t + 1) - schedule(t)
    assert step * (schedule.end - schedule.start) >= 0 or abs(step) <= slack


@untimed
@given(STEPS, TIMES)
def test_warmup_rises_to_one(steps, t):
    warmup = Warmup(steps)
    assert warmup(t) <= warmup(t + 1) <= 1
    assert warmup(1) == 1 / steps
    assert warmup(steps) == warmup(steps + t) == 1


@untimed
@given(st.floats(0.001, 10), st.integers(2, 3000), st.floats(0, 0.99), st.floats(1, 100), st.floats(1, 1e6), TIMES)
def test_one_cycle_rises_then_falls(peak, steps, fraction, start_divisor, end_divisor, t):
    schedule = OneCycle(peak, steps, fraction, start_divisor, end_divisor)
    start, turn, slack = peak / start_divisor, fraction * steps, 2 * math.ulp(peak)
    assert start / end_divisor - slack <= schedule(t) <= peak + slack
    assert schedule(steps) == schedule(steps + t) == start / end_divisor
    if t + 1 <= turn:
        assert schedule(t) <= schedule(t + 1) + slack
    if t >= turn:
        assert schedule(t) >= schedule(t + 1) - slack
    if turn > 1:
        assert abs(schedule(1) - start) <= slack
        # Continuous at the turn: half a cosine wave over n steps has at most a slope of π/2n of its height.
        before, after = math.floor(turn), math.floor(turn) + 1
        steepest = math.pi / 2 * peak / min(turn - 1, steps - turn)
        assert abs(schedule(after) - schedule(before)) <= steepest + 2 * slack


@untimed
@given(st.floats(0.001, 10), COUNTS, COUNTS, STEPS, st.floats(0, 1), TIMES)
@example(0.3, 2, 3, 4, 0.1, 5)  # here end + (peak − end) is not peak
def test_warmup_stable_decay_equals_a_join(peak, warmup, stable, decay, end, t):
    end *= peak
    schedule = WarmupStableDecay(peak, warmup, stable, decay, end)
    fall = Polynomial(peak, decay, end=end)
    joined = Join({0: peak * Warmup(warmup), warmup: Constant(peak), warmup + stable: fall})
    t = max(t, 1)
    # The same operations in another order: two roundings of values of at most peak.
    slack = 2 * math.ulp(peak)
    assert abs(schedule(t) - joined(t)) <= slack
    assert schedule(warmup) == schedule(warmup + stable) == peak
    # Continuous where segments meet: no step is larger than the steeper segment's.
    steepest = max(peak / max(warmup, 1), (peak - end) / decay)
    assert abs(schedule(t + 1) - schedule(t)) <= steepest + 2 * slack


@dataclass(frozen=True)
class Clock(Schedule):
    """A user's schedule: its value is t."""

    def at(self, t: int) -> float:
        return t


@untimed
@given(st.sets(STEPS, min_size=1, max_size=4), TIMES)
def test_join_counts_time_from_the_start_of_each_segment(starts, t):
    joined = Join({0: Clock(), **{start: 10_000 * k + Clock() for k, start in enumerate(sorted(starts), start=1)}})
    begun = [start for start in (0, *sorted(starts)) if start < t]
    k = max(len(begun) - 1, 0)
    assert joined(t) == 10_000 * k + t - (begun[-1] if begun else 0)


@untimed
@given(st.dictionaries(st.integers(1, 50), RATES, min_size=1), st.integers(0, 60))
def test_piecewise_is_a_lookup(table, t):
    table = {0: 1.0, **table}
    assert Piecewise(table)(t) == table[max(step for step in table if step <= t)]
    assert Piecewise(table) == Piecewise(reversed(list(table.items())))


@untimed
@given(SIMPLE, SIMPLE, st.floats(-10, 10), TIMES, COUNTS)
def test_operators_are_pointwise(a, b, x, t, steps):
    assert (a * b)(t) == a(t) * b(t)
    assert (a + b)(t) == a(t) + b(t)
    assert (a * x)(t) == (x * a)(t) == a(t) * x
    assert (a + x)(t) == (x + a)(t) == a(t) + x
    assert a.delayed(steps)(t) == a(max(t - steps, 0))
    assert sum([b], start=a)(t) == a(t) + b(t)


def test_numbers_of_any_library_become_python_numbers():
    schedule = Cosine(np.float64(0.5), np.int64(4), Fraction(1, 4))  # type: ignore[arg-type]
    assert repr(schedule) == "Cosine(start=0.5, steps=4, end=0.25)"
    assert schedule(np.int64(4)) == 0.25  # type: ignore[arg-type]
    assert np.float32(0.5) * schedule == 0.5 * schedule  # type: ignore[operator]
    assert repr(Piecewise({np.int32(4): 2, 1: np.float32(1)})) == "Piecewise(table=((1, 1.0), (4, 2.0)))"  # type: ignore[dict-item]


NOT_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, "0.1", None, True, 1j, [0.1], np.array([0.1]), Cosine]
NOT_COUNTS = [-1, 2.0, math.nan, "3", None, True, Constant(1.0)]
WRONG: list[tuple[Any, dict[str, Any], dict[str, list[Any]]]] = [
    (Constant, {"value": 1.0}, {"value": NOT_NUMBERS}),
    (InverseTime, {"start": 1.0, "k": 1.0}, {"start": [-1.0, *NOT_NUMBERS], "k": [-0.1, *NOT_NUMBERS]}),
    (Exponential, {"start": 1.0, "gamma": 0.9}, {"start": [-1.0, *NOT_NUMBERS], "gamma": [-0.1, *NOT_NUMBERS]}),
    (
        Step,
        {"start": 1.0, "every": 2, "factor": 0.1},
        {"start": [-1.0], "every": [0, *NOT_COUNTS], "factor": [-0.1, *NOT_NUMBERS]},
    ),
    (Warmup, {"steps": 3}, {"steps": NOT_COUNTS}),
    (
        Cosine,
        {"start": 1.0, "steps": 3, "end": 0.0},
        {"start": [-1.0, *NOT_NUMBERS], "steps": [0, *NOT_COUNTS], "end": [-1.0]},
    ),
    (
        Polynomial,
        {"start": 1.0, "steps": 3, "power": 1.0, "end": 0.0},
        {"start": [-1.0], "steps": [0, *NOT_COUNTS], "power": [0.0, -1.0, *NOT_NUMBERS], "end": [-1.0, *NOT_NUMBERS]},
    ),
    (
        OneCycle,
        {"peak": 1.0, "steps": 10, "warmup_fraction": 0.3, "start_divisor": 25.0, "end_divisor": 1e4},
        {
            "peak": [-1.0],
            "steps": [0, *NOT_COUNTS],
            "warmup_fraction": [-0.1, 1.0, 3, *NOT_NUMBERS],
            "start_divisor": [0.0, *NOT_NUMBERS],
            "end_divisor": [0.0, -1.0],
        },
    ),
    (
        WarmupStableDecay,
        {"peak": 1.0, "warmup": 1, "stable": 1, "decay": 1, "end": 0.0},
        {"peak": [-1.0], "warmup": NOT_COUNTS, "stable": NOT_COUNTS, "decay": [0, *NOT_COUNTS], "end": [-1.0]},
    ),
    (
        Piecewise,
        {"table": {1: 0.1}},
        {
            "table": [
                *({}, [], {2: 0.1}, {-1: 0.1}, {1.0: 0.1}, {True: 0.1}, {"1": 0.1}, [(1, 0.1), (1, 0.2)], [1, 2], "ab"),
                *(0.1, None, {1: math.nan}, {1: "0.1"}, {1: Constant(0.1)}, [(1, 0.1, 2)]),
            ]
        },
    ),
    (Join, {"table": {0: 1.0}}, {"table": [{}, {1: 1.0}, {0: "1"}, {0: Cosine}, {0: math.sqrt}, {0: math.nan}, 3]}),
    (Delayed, {"schedule": Constant(1.0), "steps": 1}, {"schedule": ["1", None, math.nan], "steps": NOT_COUNTS}),
    (Product, {"left": Constant(1.0), "right": 2}, {"left": ["1", None, True], "right": [math.nan, math.sqrt]}),
    (Sum, {"left": Constant(1.0), "right": 2}, {"left": ["1", None, True], "right": [math.nan, math.sqrt]}),
]


@pytest.mark.parametrize(
    ("cls", "good", "name", "bad"),
    [(cls, good, name, bad) for cls, good, wrong in WRONG for name, values in wrong.items() for bad in values],
)
def test_a_wrong_setting_is_refused(cls, good, name, bad):
    assert isinstance(cls(**good)(1), float)
    with pytest.raises(SettingError, match=rf"(?s)^{cls.__name__}: .*\n  got .*\n  expected ") as error:
        cls(**{**good, name: bad})
    assert name in str(error.value) or "step" in str(error.value)


@pytest.mark.parametrize("t", [-1, 1.0, math.nan, "1", None, True, np.float64(1), np.array([1])])
def test_t_must_be_a_non_negative_integer(t):
    with pytest.raises(SettingError, match=r"(?s)Cosine: t is out of its range.*got.*expected  an integer ≥ 0"):
        Cosine(0.1, 10)(t)


@pytest.mark.parametrize(
    "schedule",
    [
        Exponential(1.0, 2.0),
        Step(1.0, 1, 10.0),
        Constant(1e308) * 10,
        Constant(1e308) + 1e308,
        OneCycle(1.0, 9, 0.3, 1e-320),
    ],
)
def test_a_value_that_is_not_finite_is_refused(schedule):
    with pytest.raises(SettingError, match="not finite"):
        print([schedule(t) for t in (1, 2000)])


def test_operators_refuse_operands_that_are_not_numbers():
    schedule: Any = Constant(0.1)
    for other in ("2", None, [2.0], np.ones(2), math.sqrt):
        for wrong in (lambda x: schedule * x, lambda x: x * schedule, lambda x: schedule + x, lambda x: x + schedule):
            with pytest.raises(TypeError):
                wrong(other)
    with pytest.raises(SettingError, match="Product: right"):
        print(schedule * math.nan)
    with pytest.raises(SettingError, match="Delayed: steps"):
        schedule.delayed(-1)


@pytest.mark.parametrize("answer", [None, "x", "0.1", 1j, np.ones(2), []], ids=repr)
def test_a_schedule_that_does_not_return_a_number_is_refused(answer):
    @dataclass(frozen=True)
    class Odd(Schedule):
        def at(self, t):
            return answer

    for schedule in (Odd(), Odd() * 2.0, 1.0 + Odd(), Odd().delayed(3), Join({0: Odd()})):
        with pytest.raises(SettingError, match=r"Odd\(\).*: the value at t=7 is not a number"):
            schedule(7)


def test_schedules_in_a_named_tuple_are_followed():
    class Pair(NamedTuple):
        first: Any
        second: Any

    @dataclass(frozen=True)
    class Mine:
        rates: Any = (0.5, 0.5)

        def scalars(self, t):
            return {"lr": self.rates[0] * self.rates[1]}

        def update(self, p, g, *, lr):
            return p - lr * g

    p = np.ones(2)
    fastopt.update(Mine(Pair(lambda t: 0.5, 0.25)), 1, {"p": p, "g": np.ones(2)})
    assert p.tolist() == [0.875, 0.875]

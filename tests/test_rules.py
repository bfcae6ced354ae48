"""Each rule as a class: it has test cases, torch's defaults, its documented cost, and refuses invalid settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import rules_table
from cases import CASES, halving, warming

import fastopt
from fastopt.kernels import rules
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules import RULES, madgrad, nadam
from fastopt.kernels.rules.accumulated import _latest
from fastopt.kernels.rules.around import Around
from fastopt.kernels.rules.settings import follow


def test_every_rule_has_cases():
    alone = {case: rule for case, rule in CASES.items() if not isinstance(rule, Around)}
    assert {type(rule) for rule in alone.values()} == set(RULES.values())
    assert all(RULES[case.split("-")[0]] is type(rule) for case, rule in alone.items())
    # Those that are of several passes have their own tests, and so have two that change little.
    around = {x for x in vars(rules).values() if isinstance(x, type) and issubclass(x, Around)}
    assert around - {type(rule) for rule in CASES.values()} == {
        fastopt.ClipByGlobalNorm, fastopt.SkipNonfinite, fastopt.ScaledGradient, fastopt.ZeroGradients,
    }  # fmt: skip


def test_the_table_of_rules_is_up_to_date():
    assert rules_table.FILE.read_text() == rules_table.text(), "run python tests/rules_table.py"
    assert "—" not in [rules_table.source(rule) for rule in RULES.values()]


@pytest.mark.parametrize("first", [0x3F800000, 0x00000001, 0x00700000, 0x7F000000, 0x00800000, 0x3F000000])
def test_a_cube_root_is_near_the_exact_one(first):
    """Of a million numbers from each of these bits on: three octaves, the smallest, the largest."""
    bits = np.arange(first, min(first + 0x2000000, 0x7F800000), 31, dtype=np.uint32)
    x = bits.view(np.float32)
    exact = np.cbrt(x.astype(float))
    error = np.abs(madgrad.cube_root(x).astype(float) - exact) / np.spacing(exact.astype(np.float32)).astype(float)
    assert error.max() < 1.5


def test_the_roots_of_zero_infinity_and_nan_are_themselves():
    for dtype in (np.float32, np.float64):
        with np.errstate(all="ignore"):
            found = madgrad.cube_root(np.array([0, np.inf, np.nan], dtype))
        assert np.array_equal(found, np.array([0, np.inf, np.nan], dtype), equal_nan=True)


def test_no_two_cases_are_the_same():
    assert len(set(CASES.values())) == len(CASES)


@pytest.mark.parametrize("rule", RULES.values())
def test_the_docstring_states_the_bytes_that_the_kernel_moves(rule):
    stated = re.search(r"float32: (\d+) bytes", re.sub(r"\s+", " ", rule.__doc__))
    assert stated
    # The sums of tiles, of rules that take totals, are 8 bytes of 256 parameters each: less than a byte.
    assert int(trace(rule(), np.float32).bytes_per_parameter) == int(stated[1])


def test_defaults_equal_torchs():
    optim = pytest.importorskip("torch", reason="torch is not installed: no defaults to compare").optim
    shared = [rule for rule in RULES.values() if hasattr(optim, rule.__name__)]
    assert len(shared) >= 8
    for rule in shared:
        theirs = inspect.signature(getattr(optim, rule.__name__)).parameters
        for name, ours in inspect.signature(rule).parameters.items():
            if name not in ("decoupled", "eps_inside_sqrt", "max_lr"):
                assert ours.default == theirs[name].default, (rule, name)


def assert_independent_of_order(at: Callable[[int], Any]) -> None:
    """Assert that a function of t has the same values whether t grows or falls."""
    forwards = [at(t) for t in range(1, 60)]
    assert forwards == [at(t) for t in reversed(range(1, 60))][::-1]


@pytest.mark.parametrize("case", CASES)
def test_scalars_depend_only_on_t(case):
    assert_independent_of_order(follow(CASES[case])(1).scalars)


def forget() -> None:
    """Forget all numbers that were accumulated over steps."""
    _latest.cache_clear()


def product_from_scratch(t: int, *settings: float) -> float:
    """Return NAdam's product of momenta at step t, computed without the product of an earlier step."""
    forget()
    return nadam._product(t, *settings)


@pytest.fixture
def multiplied(monkeypatch):
    """Return a list that records the steps whose momentum is multiplied into NAdam's product."""
    steps, momentum = [], nadam._momentum
    monkeypatch.setattr(nadam, "_momentum", lambda k, *settings: steps.append(k) or momentum(k, *settings))
    return steps


@pytest.mark.parametrize("settings", [(0.9, 4e-3), (0.99, 0.0), (0.0, 4e-3), (0.5, 1e6)])
def test_nadams_product_is_the_same_step_by_step_and_from_scratch(settings):
    forget()
    stepwise = [nadam._product(t, *settings) for t in range(1, 1000)]
    assert stepwise == [product_from_scratch(t, *settings) for t in range(1, 1000)]
    assert stepwise[:30] == [prod(nadam._momentum(k, *settings) for k in range(1, t + 1)) for t in range(1, 31)]


def test_nadams_product_continues_from_the_last_step(multiplied):
    product_from_scratch(20, 0.9, 4e-3)
    multiplied.clear()
    nadam._product(21, 0.9, 4e-3)
    assert multiplied == [21]


def test_nadams_product_stops_when_it_is_too_small_to_matter(multiplied):
    assert 1 - product_from_scratch(10**15, 0.9, 4e-3) == 1
    nadam._product(10**15 + 1, 0.9, 4e-3)
    assert len(multiplied) <= 38 / (1 - 0.9)  # 0.9ᵏ < 2⁻⁵⁴ after 356 steps, and every momentum is at most 0.9


def test_what_is_accumulated_does_not_depend_on_what_ran_before():
    def add(x, k, share):
        return x + share / k

    def grow(x, k, a):
        return x * a + k**a

    assert type(fastopt.accumulated(add, 2, 0.0, np.float32(0.5))) is not float
    assert fastopt.accumulated(add, 3, 0.0, 0.5) == 0.0 + 0.5 / 1 + 0.5 / 2 + 0.5 / 3
    fastopt.accumulated(grow, 40, 0, 3)
    later = fastopt.accumulated(grow, 41, 0.0, 3.0)
    forget()
    assert fastopt.accumulated(grow, 41, 0.0, 3.0) == later
    assert str(fastopt.accumulated(grow, 0, -0.0, 3.0)) == "-0.0"
    assert str(fastopt.accumulated(grow, 0, 0.0, 3.0)) == "0.0"
    assert fastopt.accumulated(grow, float("nan"), 7.0, 3.0) == 7.0


@pytest.mark.parametrize("settings", [(halving,), ([0.9],), ({},)])
def test_what_is_accumulated_depends_on_numbers_alone(settings):
    with pytest.raises(fastopt.RuleError, match="on no schedule"):
        fastopt.accumulated(lambda x, k, s: x + s, 3, 0.0, *settings)
    with pytest.raises(fastopt.RuleError, match="on no schedule"):
        fastopt.accumulated("add", 3, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"betas": (halving, 0.999)}, {"momentum_decay": halving}])
def test_nadams_momenta_cannot_follow_a_schedule(setting):
    with pytest.raises(fastopt.SettingError, match="cannot follow a schedule"):
        fastopt.NAdam(**setting)


def test_nadams_other_settings_can_follow_a_schedule():
    rule = fastopt.NAdam(lr=halving, betas=(0.9, warming))
    assert follow(rule)(12).scalars(12) == fastopt.NAdam(lr=halving(12), betas=(0.9, warming(12))).scalars(12)


def test_an_initial_value_cannot_follow_a_schedule():
    with pytest.raises(fastopt.SettingError, match="initial_accumulator_value"):
        fastopt.Adagrad(initial_accumulator_value=halving)

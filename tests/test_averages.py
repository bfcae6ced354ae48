"""EWA compared with the weighted sum in exact arithmetic and with other libraries; arrays; state; refused arguments.

Over 300 lines: one class, and the table of its refused arguments.
"""

import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.averages import EWA
from fastopt.errors import LayoutError, SettingError

untimed = settings(deadline=None)

BETAS = st.floats(0, 0.999)
SERIES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def exact(series: list[float], beta: float, corrected: bool) -> Fraction:
    """Return Σ (1 − β) βᵗ⁻ⁱ θ_i without rounding, divided by Σ (1 − β) βᵗ⁻ⁱ if the bias is corrected."""
    b, t = Fraction(beta), len(series)
    weights = [(1 - b) * b ** (t - i) for i in range(1, t + 1)]
    total = sum((w * Fraction(x) for w, x in zip(weights, series, strict=True)), Fraction(0))
    return total / sum(weights) if corrected else total


def bound(series: list[float], beta: float, u: float) -> float:
    """Return the largest error of an average, with roundings of relative size u and M = max |θ| ≥ |v|.

    A step rounds β and its product with v, at most 2u·β·M; 1 − β (twice: in float64, to the dtype) and its product with
    θ, 3u·(1 − β)·M; and their sum, u·M. Together that is at most 4u·M, which later steps do not amplify, so the error
    of v_t is at most 4t·u·M. The bias correction divides by 1 − βᵗ, which is at least 1 − β. The power has an error of
    at most 2u, which adds 2u·M/(1 − β) to the error of the quotient; rounding divisor and quotient adds 2u·M. Each
    product and the quotient may also underflow.
    """
    t, top = len(series), max(map(abs, series))
    return ((4 * t + 4) * u * top + 4 * t * (5e-324 if u < 1e-10 else 1.5e-45)) / (1 - beta)


@untimed
@given(SERIES, BETAS, st.booleans())
def test_update_is_the_weighted_sum(series, beta, corrected):
    average = EWA(beta, corrected)
    for t in range(1, len(series) + 1):
        value = average.update(series[t - 1])
        assert type(value) is float
        assert value == average.value
        assert average.t == t
        assert abs(Fraction(value) - exact(series[:t], beta, corrected)) <= bound(series[:t], beta, 2**-53)
        assert abs(Fraction(average.raw) - exact(series[:t], beta, False)) <= bound(series[:t], beta, 2**-53)


@untimed
@given(SERIES, BETAS, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_arrays_are_averaged_element_by_element(series, beta, corrected, dtype):
    rows = np.array(series, dtype)[:, None, None] * np.array([[1], [-2]], dtype)
    average = EWA(beta, corrected)
    value = [average.update(row) for row in rows][-1]
    assert value.shape == (2, 1)
    assert value.dtype == average.raw.dtype == dtype
    u = 2**-53 if dtype is np.float64 else 2**-24
    for i in (0, 1):
        column = rows[:, i, 0].tolist()
        assert abs(Fraction(float(value[i, 0])) - exact(column, beta, corrected)) <= bound(column, beta, u)
        assert abs(Fraction(float(average.raw[i, 0])) - exact(column, beta, False)) <= bound(column, beta, u)


def test_values_computed_by_hand():
    average = EWA(beta=0.5)
    assert [average.update(x) for x in (4.0, 1.0, 1.0)] == [4.0, 2.0, 1.25 / 0.875]
    assert (average.raw, average.t, average.window) == (1.25, 3, 2.0)
    average = EWA(beta=0.5, bias_correction=False)
    assert [average.update(x) for x in (4.0, 1.0, 1.0)] == [2.0, 1.5, 1.25]
    average = EWA(beta=0.0)
    assert [average.update(x) for x in (4.0, 1.0, -3.0)] == [4.0, 1.0, -3.0]
    assert repr(EWA()) == "EWA(beta=0.9, bias_correction=True) at t=0"
    assert (EWA().beta, EWA().bias_correction) == (0.9, True)


@untimed
@given(SERIES, BETAS)
def test_over_equals_the_formula_of_pandas(series, beta):
    """Pandas documents ewm(adjust=True) as Σ (1 − α)ⁱ x_{t−i} / Σ (1 − α)ⁱ; the factor α cancels."""
    values = EWA.over(series, beta)
    for t in range(1, len(series) + 1):
        weights = [Fraction(beta) ** i for i in range(t)]
        expected = sum(w * Fraction(x) for w, x in zip(weights, series[t - 1 :: -1], strict=True)) / sum(weights)
        assert abs(Fraction(float(values[t - 1])) - expected) <= bound(series[:t], beta, 2**-53)


@pytest.mark.parametrize("corrected", [True, False])
def test_update_matches_optax(corrected):
    optax = pytest.importorskip("optax", reason="compares with optax.ema")
    series = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    theirs = optax.ema(0.9, debias=corrected)
    state = theirs.init(series[0])
    ours = EWA(0.9, corrected)
    for t, x in enumerate(series, start=1):
        update, state = theirs.update(x, state)
        # Both are within `bound` of the exact average.
        gap = 2 * bound(series[:t].ravel().tolist(), 0.9, 2**-24)
        assert np.all(np.abs(ours.update(x) - np.asarray(update)) <= gap)


@untimed
@given(st.floats(-1e6, 1e6), BETAS, st.integers(1, 50))
def test_a_constant_is_its_own_average(x, beta, steps):
    value = EWA.over([x] * steps, beta)[-1]
    assert abs(value - x) <= bound([x] * steps, beta, 2**-53)


def test_one_minus_beta_is_not_computed_in_float32():
    # The float32 nearest to 1 − 0.999 has a relative error of at most 6e-8; 1 − float32(0.999) would have 1.3e-5.
    average = EWA(0.999, bias_correction=False)
    assert average.update(np.ones(1, np.float32)) == np.float32(1 - 0.999)


@pytest.mark.parametrize("kind", [int, float, np.int8, np.uint64, np.float16, np.float32, np.float64, Fraction])
def test_numbers_are_averaged_in_float64(kind):
    average = EWA(0.5)
    assert average.update(kind(3)) == 3.0
    assert type(average.update(kind(1))) is float
    assert average.raw == 1.25


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_integer_arrays_become_float64(dtype):
    average = EWA(0.5)
    average.update(np.array([100, 3], dtype))
    value = average.update(np.array([0.0, 1.0]))  # float64, the layout after the first update
    assert value.dtype == np.float64
    assert average.raw.tolist() == [25.0, 1.25]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("corrected", [True, False])
def test_arrays_of_any_shape_and_order(shape, corrected):
    average = EWA(0.5, corrected)
    average.update(np.ones(shape, np.float32))
    value = average.update(np.ones(shape, np.float32, order="F"))
    for array in (value, average.value, average.raw):
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.dtype) == (shape, np.float32)
    assert np.all(value == (1.0 if corrected else 0.75))
    assert np.all(average.update(np.ones((*shape, 2), np.float32)[..., 0]) == (1.0 if corrected else 0.875))


def test_returned_arrays_are_copies_and_the_buffer_is_reused():
    average, x = EWA(0.5), np.ones(3)
    first = average.update(x)
    buffer = average._v
    for array in (first, average.raw, average.value, average.state_dict()["raw"], x):
        array[:] = 7.0
    assert average.value.tolist() == [1.0, 1.0, 1.0]
    average.update(x)
    assert average._v is buffer
    plain = EWA(0.5, bias_correction=False)
    plain.update(x)[:] = 9.0
    plain.value[:] = 9.0
    assert plain.raw.tolist() == [3.5, 3.5, 3.5]


def test_before_the_first_update_and_after_reset():
    for corrected in (True, False):
        average = EWA(0.5, corrected)
        for _ in range(2):
            assert average.t == 0
            assert average.raw == 0.0
            assert math.isnan(average.value) if corrected else average.value == 0.0
            average.update(np.ones(2))
            average.reset()
            average.update(3.0)  # of another layout
            average.reset()


@pytest.mark.parametrize("layout", [float, lambda x: np.array([x, 1.0]), lambda x: np.array([x, 1.0], np.float32)])
def test_nan_and_infinity_persist_until_reset(layout):
    for wrong, then in ((math.nan, math.nan), (math.inf, math.inf), (-math.inf, -math.inf)):
        average = EWA(0.5)
        average.update(layout(1.0))
        for x in (wrong, 1.0):
            value = np.ravel(average.update(layout(x)))
            assert np.array_equal(value[0], then, equal_nan=True)
            assert np.all(value[1:] == 1.0)
        if math.isinf(wrong):
            assert np.isnan(np.ravel(average.update(layout(-wrong)))[0])
        average.reset()
        assert np.all(average.update(layout(1.0)) == 1.0)


@untimed
@given(SERIES, BETAS, st.booleans())
def test_over_equals_repeated_updates(series, beta, corrected):
    average = EWA(beta, corrected)
    assert EWA.over(series, beta, corrected).tolist() == [average.update(x) for x in series]


def test_over_a_series_of_arrays():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    average = EWA(0.5)
    values = EWA.over(rows, 0.5)
    assert values.dtype == np.float32
    assert np.array_equal(values, [average.update(row) for row in rows])
    assert EWA.over(rows[:, 0], 0.5).dtype == np.float32
    assert EWA.over([1, 2, 3]).dtype == np.float64
    assert EWA.over(rows.astype(np.int16)).dtype == np.float64
    assert EWA.over([]).shape == (0,)
    assert EWA.over(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("layout", [float, lambda x: np.array([x, -x], np.float32)])
def test_state_dict_and_pickle_round_trip(layout):
    first, second = EWA(0.9), EWA(0.9)
    second.load_state_dict(first.state_dict())
    assert second.t == 0
    for k in range(5):
        first.update(layout(k + 0.1))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    assert set(state) == {"beta", "t", "raw"}
    second.load_state_dict(state)
    assert np.array_equal(second.value, first.value)
    assert np.array_equal(second.update(layout(9.0)), first.update(layout(9.0)))
    assert np.array_equal(pickle.loads(pickle.dumps(first)).value, first.value)


def test_state_is_copied():
    average, state = EWA(0.5), {"beta": 0.5, "t": 1, "raw": np.ones(2)}
    average.load_state_dict(state)
    average.update(np.zeros(2))
    assert state["raw"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("beta", [1, 1.0, -0.1, 2.0, math.nan, math.inf, "0.9", None, True, 1j, [0.9], np.array([0.9])])
def test_beta_is_checked(beta):
    for make in (EWA, lambda x: EWA.over([1.0], x)):
        with pytest.raises(
            SettingError, match=r"(?s)EWA: beta is out of its range.*got.*expected  a finite number in \[0, 1\)"
        ):
            make(beta)


@pytest.mark.parametrize("choice", [0, 1, None, "yes", np.True_])
def test_bias_correction_is_checked(choice):
    with pytest.raises(SettingError, match="EWA: bias_correction"):
        EWA(0.9, choice)


NOT_NUMBERS: list[Any] = [
    *("1", None, True, 1j, [1.0], (1.0,), {"a": 1.0}, np.True_),
    *(np.array([True]), np.array([1j]), np.array(["1"]), np.array([None])),
    *(np.ones(2, np.float16), np.ones(2, np.longdouble), np.ones(2, ">f4"), np.ones(2, "m8[s]"), np.ones(2, "M8[s]")),
]


@pytest.mark.parametrize("x", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("updates", [0, 1])
def test_a_value_that_is_not_a_number_is_refused(x, updates):
    average = EWA(0.5)
    for _ in range(updates):
        average.update(2.0)
    with pytest.raises(LayoutError, match=r"(?s)EWA.update: .*got .*expected  a real number, or a NumPy array"):
        average.update(x)
    assert (average.t, average.raw) == (updates, float(updates))


@pytest.mark.parametrize(
    "x", [1.0, np.ones(()), np.ones(3), np.ones((2, 1)), np.ones((1, 2)), np.ones(2, np.float32)], ids=repr
)
def test_another_layout_is_refused(x):
    average = EWA(0.5)
    average.update(np.ones(2))
    with pytest.raises(LayoutError, match=r"(?s)EWA.update: .*got .*expected  float64\[2\].*do .*reset"):
        average.update(x)
    assert (average.t, average.raw.tolist()) == (1, [0.5, 0.5])
    average = EWA(0.5)
    average.update(1)
    with pytest.raises(LayoutError, match=r"(?s)got       float64\[2\].*expected  a number"):
        average.update(np.ones(2))
    assert (average.t, average.raw) == (1, 0.5)


@pytest.mark.parametrize("values", [1.0, None, "123", ["1"], [None], [True, False], [1j], [[1.0], [1.0, 2.0]], {1, 2}])
def test_over_refuses_a_value_that_is_not_a_series_of_numbers(values):
    with pytest.raises(LayoutError, match=r"(?s)EWA.over: .*got .*expected"):
        EWA.over(values)


GOOD = {"beta": 0.5, "t": 2, "raw": 1.0}


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (None, SettingError, "NoneType"),
        ([1, 2], SettingError, "list"),
        ({}, SettingError, "expected  .*'beta', 't', 'raw'"),
        ({"beta": 0.5, "t": 2}, SettingError, "expected  .*'beta', 't', 'raw'"),
        ({"betta": 0.5, "t": 2, "raw": 1.0}, SettingError, "did you mean 'beta'"),
        ({**GOOD, "v": 1.0}, SettingError, "'v'"),
        ({**GOOD, "beta": 0.9}, SettingError, "another beta"),
        ({**GOOD, "beta": None}, SettingError, "another beta"),
        ({**GOOD, "beta": np.array([0.5, 0.5])}, SettingError, "another beta"),
        ({**GOOD, "t": -1}, SettingError, "t is out of its range"),
        ({**GOOD, "t": 1.0}, SettingError, "t is out of its range"),
        ({**GOOD, "t": True}, SettingError, "t is out of its range"),
        ({**GOOD, "t": 0}, SettingError, "raw=0.0 at t=0"),
        ({**GOOD, "t": 0, "raw": np.zeros(2)}, SettingError, "raw=0.0 at t=0"),
        ({**GOOD, "raw": "1"}, LayoutError, "got       str"),
        ({**GOOD, "raw": [1.0]}, LayoutError, "got       list"),
        ({**GOOD, "raw": None}, LayoutError, "got       NoneType"),
        ({**GOOD, "raw": np.ones(2, np.float16)}, LayoutError, r"got       float16\[2\]"),
    ],
)
def test_a_wrong_state_is_refused(state, error, words):
    average = EWA(0.5)
    average.load_state_dict(GOOD)
    with pytest.raises(error, match=f"(?s)EWA.load_state_dict: .*{words}"):
        average.load_state_dict(state)
    assert average.state_dict() == GOOD


@pytest.mark.parametrize(
    "series",
    [
        [0.5, 2.0],
        [np.array([0.5, 2.0]), np.ones(2)],
        [np.ones(2, np.float32), np.zeros(2, np.float32)],
        [np.ones((), np.float32), np.zeros((), np.float32)],
    ],
    ids=repr,
)
def test_state_round_trips_through_an_npz_file(series, tmp_path):
    first, second = EWA(0.9), EWA(0.9)
    for _ in range(2):
        np.savez(tmp_path / "average.npz", **first.state_dict())
        with np.load(tmp_path / "average.npz") as state:
            second.load_state_dict(state)
        assert second.t == first.t
        assert all(np.array_equal(second.update(x), first.update(x)) for x in series)
        assert type(second.raw) is type(first.raw)
    with np.load(tmp_path / "average.npz") as state, pytest.raises(SettingError, match=r"EWA\(beta=0.9\)"):
        EWA(0.5).load_state_dict(state)


MASKED = np.ma.masked_array([1.0, 2.0], [False, True])


@pytest.mark.parametrize("x", [MASKED, MASKED.astype(np.float32), np.ma.masked_array([1, 2])], ids=repr)
def test_masked_arrays_are_refused(x):
    for average in (EWA().update, EWA.over):
        with pytest.raises(LayoutError, match=r"(?s)EWA.*MaskedArray.*pass its \.data"):
            average(x)
    with pytest.raises(LayoutError, match="MaskedArray"):
        EWA.over([x, x])


@pytest.mark.parametrize("x", [10**400, Fraction(10**400)], ids=["int", "Fraction"])
def test_a_number_beyond_the_largest_float_is_refused(x):
    average = EWA()
    with pytest.raises(LayoutError, match="beyond the largest float"):
        average.update(x)
    assert average.t == 0

"""minibatches: every sample once per epoch, the same samples of every array, replayable. And suggest_batch_size."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.batches import minibatches, suggest_batch_size
from fastopt.errors import LayoutError, SettingError

untimed = settings(deadline=None)

SAMPLES = st.integers(1, 200)
SIZES = st.none() | st.integers(1, 250)
SEEDS = st.none() | st.integers(0, 2**70)
EPOCHS = st.integers(0, 2**40)


@untimed
@given(SAMPLES, SIZES, SEEDS, EPOCHS, st.booleans())
def test_an_epoch_has_each_sample_once_and_can_be_replayed(n, size, seed, epoch, drop_last):
    x, y = np.arange(n), np.arange(2 * n).reshape(n, 2)
    batches = minibatches(x, y, size=size, seed=seed, epoch=epoch, drop_last=drop_last)
    got = list(batches)
    size = n if size is None else min(size, n)

    # The number of batches and their sizes.
    used = n // size * size if drop_last else n
    sizes = [size] * (used // size) + ([used % size] if used % size else [])
    assert len(batches) == len(got) == len(sizes) >= 1
    assert [len(bx) for bx, _ in got] == sizes

    # Each sample comes once, and rows of x and y stay paired.
    seen = np.concatenate([bx for bx, _ in got])
    assert len(np.unique(seen)) == len(seen) == used
    assert all(np.array_equal(by, y[bx]) for bx, by in got)
    assert seed is not None or np.array_equal(seen, x[:used])

    # The epoch can be replayed, by the same iterable and by a new one with other arrays of the same length.
    again = minibatches(x, size=size, seed=seed, epoch=epoch, drop_last=drop_last)
    assert np.array_equal(np.concatenate(list(again)), seen)
    assert np.array_equal(np.concatenate([bx for bx, _ in batches]), seen)
    assert np.array_equal(np.concatenate(list(minibatches(-x, size=size, seed=seed, epoch=epoch)))[:used], -seen)


def epoch_order(seed: int, epoch: int, n: int = 100) -> tuple[int, ...]:
    return tuple(np.concatenate(list(minibatches(np.arange(n), size=7, seed=seed, epoch=epoch))).tolist())


def test_every_seed_and_epoch_has_its_own_order():
    # There are 100! orders: the probability that two of these are equal by chance is 1e-152. The keys include (0, 1)
    # and (2³², 0), which SeedSequence([seed, epoch]) would confuse.
    keys = [(seed, epoch) for seed in (0, 1, 2, 2**32, 2**64) for epoch in (0, 1, 2, 3, 2**32)]
    assert len({epoch_order(*key) for key in keys} | {tuple(range(100))}) == len(keys) + 1


def test_the_order_is_that_of_the_documented_generator():
    bits = np.random.PCG64(np.random.SeedSequence(7, spawn_key=(3,)))
    assert epoch_order(7, 3) == tuple(np.random.Generator(bits).permutation(100).tolist())


def test_shuffling_neither_reads_nor_advances_the_global_generator():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002  # type: ignore[index]
    first = epoch_order(1, 2)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002  # type: ignore[index]
    np.random.seed(1)  # noqa: NPY002
    assert epoch_order(1, 2) == first


def test_full_batch_mini_batches_and_single_samples():
    x = np.arange(10)
    for size in (None, 10, 11, 10**12, np.int64(10)):
        for drop_last in (False, True):
            (batch,) = minibatches(x, size=size, drop_last=drop_last)  # type: ignore[arg-type]
            assert np.array_equal(batch, x)
    assert [b.tolist() for b in minibatches(x, size=1)] == [[k] for k in range(10)]
    assert [b.tolist() for b in minibatches(x, size=4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [b.tolist() for b in minibatches(x, size=4, drop_last=True)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert np.array_equal(sorted(next(iter(minibatches(x, seed=0)))), x)


def test_batches_are_views_or_copies_if_shuffled():
    x, y = np.arange(6.0), np.arange(12).reshape(6, 2)
    for batch in minibatches(x, size=4):
        assert isinstance(batch, np.ndarray)
        assert batch.base is x
    for batch in minibatches(x, y, size=4):
        assert isinstance(batch, tuple)
        assert all(np.shares_memory(part, whole) for part, whole in zip(batch, (x, y), strict=True))
    for batch in minibatches(x, y, size=4, seed=0):
        assert not any(np.shares_memory(part, whole) for part, whole in zip(batch, (x, y), strict=True))
        assert [part.dtype for part in batch] == [x.dtype, y.dtype]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ((), r"lengths \[\]"),
        ((np.empty(0),), r"lengths \[0\]"),
        ((np.empty((0, 3)), np.empty(0)), r"lengths \[0, 0\]"),
        ((np.ones(3), np.ones(4)), r"lengths \[3, 4\]"),
        ((np.ones(3), np.ones((3, 1)), np.empty(0)), r"lengths \[3, 3, 0\]"),
        (([1, 2, 3],), "array 0.*list.*asarray"),
        ((np.ones(3), "abc"), "array 1.*str"),
        ((np.ones(3), None), "array 1.*NoneType"),
        ((np.ones(()),), r"array 0.*ndarray of shape \(\)"),
        ((3,), "array 0.*int"),
    ],
)
def test_wrong_arrays_are_refused_at_once(arrays: Any, words):
    with pytest.raises(LayoutError, match=f"(?s)^minibatches: .*{words}"):
        minibatches(*arrays)


NOT_COUNTS = [-1, 1.0, math.nan, "3", True, [2]]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("size", bad) for bad in (0, *NOT_COUNTS)),
        *(("seed", bad) for bad in NOT_COUNTS),
        *(("epoch", bad) for bad in (None, *NOT_COUNTS)),
        *(("drop_last", bad) for bad in (0, None, "no")),
    ],
)
def test_wrong_settings_are_refused_at_once(name, bad: Any):
    with pytest.raises(SettingError, match=f"(?s)^minibatches: {name} .*got       {name}=.*expected"):
        minibatches(np.ones(3), **{name: bad})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 1, 1), 1),
        ((1_999, 1, 1_999), 1_999),  # the full batch fits exactly
        ((1_999, 1, 1_998), 512),  # the full batch does not fit
        ((2_000, 1, 1e9), 512),
        ((10**9, 0.5, 256), 512),
        ((10**9, 0.5, 255.9), 256),
        ((10**9, 3, 3 * 256), 256),
        ((10**9, 3, 3 * 256 - 1), 128),
        ((10**9, 3, 3 * 64), 64),
        ((500, 1, 499), 256),  # never more than there are samples
        ((64, 1, 64), 64),
        ((100, 1, 99), 64),
        ((60_000, np.int32(10_000_000), 1e9), 64),
        ((60_000, np.uint8(200), np.int32(10**9)), 512),
        ((60_000, 10**400, 10**403), 512),
        ((60_000, Fraction(10**400), Fraction(10**402)), 64),
        ((60_000, np.float32(0.5), np.float16(64)), 128),
    ],
)
def test_suggested_sizes_computed_by_hand(arguments, expected):
    size = suggest_batch_size(*arguments)
    assert type(size) is int
    assert size == expected


@untimed
@given(st.integers(1, 5000), st.integers(1, 10**6), st.integers(1, 10**9))
def test_a_suggested_size_is_the_largest_that_fits(samples, each, memory):
    sizes = [size for size in (64, 128, 256, 512) if size <= samples and size * each <= memory]
    if samples < 2000 and samples * each <= memory:
        assert suggest_batch_size(samples, each, memory) == samples
    elif sizes:
        assert suggest_batch_size(samples, each, memory) == sizes[-1]
    else:
        with pytest.raises(SettingError, match=f"not even {min(samples, 64)} samples fit in memory"):
            suggest_batch_size(samples, each, memory)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("samples", bad) for bad in (0, None, *NOT_COUNTS)),
        *(("bytes_per_sample", bad) for bad in (0, -1, math.nan, math.inf, "1", None, True)),
        *(("memory", bad) for bad in (0, -1.5, math.nan, math.inf, "8 GB", None, True)),
    ],
)
def test_wrong_amounts_are_refused(name, bad):
    arguments: Any = {"samples": 100, "bytes_per_sample": 8, "memory": 1e9, name: bad}
    with pytest.raises(SettingError, match=f"(?s)^suggest_batch_size: {name} .*got       {name}=.*expected"):
        suggest_batch_size(**arguments)

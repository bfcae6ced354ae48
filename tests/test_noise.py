"""Random bits are uniform, noise is normal, both are uncorrelated and depend only on the seed, step and element."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from values import assert_same_bits, step

import fastopt
from fastopt.kernels.compiler.noise import (
    RoundingBits,
    noise_keys,
    normal,
    tile_bits,
    words_for_noise,
    words_for_rounding,
)
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning
from fastopt.kernels.formats import TILE

N = 1 << 20


def noise(seed: int = 0, t: int = 1, first: int = 0, count: int = N) -> np.ndarray:
    return normal(words_for_noise(*noise_keys(seed, t), first, count)).astype(np.float64)


def test_bits_are_mapped_by_the_inverse_of_the_normal_distribution_function():
    every = normal(np.arange(2**23, dtype=np.uint32) << 9).astype(np.float64)
    assert np.array_equal(every, -every[::-1]), "not symmetric, so not zero-mean"
    assert np.all(np.diff(every) >= 0)
    # Φ(z) must be the uniform number. Φ' is 0.4 e^(−z²/2), so a relative error of 5e-5 in z becomes an error of at most
    # max(0.4 e^(−z²/2) z) · 5e-5 < 1.3e-5.
    sample = np.linspace(0, 2**23 - 1, 20_001).astype(int)
    uniform = (2 * sample + 1) / 2**24
    found = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in every[sample]])
    assert np.abs(found - uniform).max() < 1.3e-5
    assert abs((every**2).mean() - 1) < 1e-4  # twice the relative error of z
    assert 5.2 < every.max() < 5.4


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63])
def test_moments_and_correlations_are_those_of_independent_normal_numbers(seed):
    z = noise(seed)
    # Five standard errors: 1, √2, √15, √96 over √N for the first four moments, 1/√N for a correlation.
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(spread / N)
    for lag in (1, 2, 3, 31, 128, 255, 256, 257, 4096):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / math.sqrt(N - lag)
    others = [noise(seed, t=2), noise(seed, t=3), noise(seed + 1), noise(seed, first=N), noise(seed, first=1 << 40)]
    for other in others:
        assert abs((z * other).mean()) < 5 / math.sqrt(N)


def test_one_element_over_many_steps_is_independent_too():
    z = np.array([noise(t=t, count=4) for t in range(1, 20_001)])
    assert np.all(np.abs(z.mean(0)) < 5 / math.sqrt(len(z)))
    assert np.all(np.abs((z[:-1] * z[1:]).mean(0)) < 5 / math.sqrt(len(z)))


def test_sums_over_a_tile_have_the_moments_of_sums_of_independent_normal_numbers():
    z = np.concatenate([noise(t=t) for t in range(1, 9)]).reshape(-1, TILE)
    tiles = len(z)
    # Of k independent numbers the sum over √k is normal, with a variance that has the standard error √(2/tiles) and a
    # kurtosis of 3 ± √(24/tiles); the sum of squares is χ² with k degrees of freedom, of variance 2k and kurtosis
    # 3 + 12/k, whose own estimate has about the standard error of the normal one.
    for x, variance, kurtosis in ((z.sum(1), TILE, 3), ((z**2).sum(1) - TILE, 2 * TILE, 3 + 12 / TILE)):
        assert abs(x.mean()) < 5 * math.sqrt(variance / tiles)
        assert abs((x**2).mean() / variance - 1) < 5 * math.sqrt(2 / tiles)
        assert abs((x**4).mean() / variance**2 - kurtosis) < 6 * math.sqrt(24 / tiles)


def test_bits_are_distinct_within_a_tile_and_collide_as_often_as_random_words_over_all_tiles():
    words = words_for_noise(*noise_keys(3, 4), 0, N)
    tiles = np.sort(words.reshape(-1, TILE), axis=1)
    assert np.all(tiles[:, 1:] != tiles[:, :-1])
    chance = N * (N - 1) / 2 / 2**32  # pairs that are equal: 128, Poisson
    assert abs(N - len(np.unique(words)) - chance) < 5 * math.sqrt(chance)


# Bits for stochastic rounding. An element's word serves two buffers of 20 bits: its upper ones the first, its lower
# ones the second. Each buffer of 16 bits has a sequence of its own, two of them with the same step. Over the steps each
# element's bits are uniform, and any two are uncorrelated.

STEPS = 1 << 15


@cache
def _step_keys(seed: int, first: int, steps: int) -> np.ndarray:
    return np.array([noise_keys(seed, t) for t in range(first, first + steps)], np.uint32).T


KINDS = {"of 16 bits": (16,) * 8, "of 20 bits": (20,) * 8, "of 20 and of 16 bits": (20, 16) * 4}
"""How many bits buffers take, one after the other."""

each_kind = pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)


def rounding_words(
    kinds: tuple[int, ...], *, seed: int = 0, first: int = 1, tile: int = 0, steps: int = STEPS
) -> list[np.ndarray]:
    """Return the words of one tile for buffers that take so many bits.

    A row for each step, a column for each index in the tile.
    """
    key0, key1 = _step_keys(seed, first, steps)
    of_tile = tile_bits(key0, key1, np.uint32(tile & 0xFFFFFFFF), np.uint32(tile >> 32))
    index = np.arange(TILE, dtype=np.uint32)
    rounding = RoundingBits(of_tile, lambda begin, step, bits: begin[:, None] + step[:, None] * index)
    return [rounding.of_next_buffer(bits) for bits in kinds]


def numbers(words: list[np.ndarray], kinds: tuple[int, ...]) -> np.ndarray:
    """Return the upper bits of words as numbers in (0, 1): the columns of the first words, then those of the others."""
    given = zip(words, kinds, strict=True)
    return np.hstack([((w >> (32 - bits)).astype(np.float32) + 0.5) / 2**bits for w, bits in given])


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlations of the columns of x with those of y, in standard errors of independent columns."""
    x, y = ((a - a.mean(0)) / a.std(0) for a in (x, y))
    return x.T @ y / math.sqrt(len(x))


@each_kind
def test_bits_of_an_element_are_those_of_its_tile_and_index(kinds):
    for tile in (0, 5, 2**32 - 1, 2**32, 2**54):
        rounding = words_for_rounding(*noise_keys(0, 1), tile * TILE, TILE + 3)
        of_tile, of_next = (rounding_words(kinds, tile=k, steps=1) for k in (tile, tile + 1))
        for k, bits in enumerate(kinds):
            words = rounding.of_next_buffer(bits)
            assert np.array_equal(words[:TILE], of_tile[k][0])
            assert np.array_equal(words[TILE:], of_next[k][0, :3])


def test_a_buffer_of_20_bits_leaves_the_lower_ones_for_the_next():
    index = np.arange(TILE, dtype=np.uint32)

    def words(*kinds: int) -> list[np.ndarray]:
        rounding = RoundingBits(np.array([77], np.uint32), lambda begin, step, bits: begin + step * index)
        return [rounding.of_next_buffer(bits) for bits in kinds]

    for kinds in ((20, 20), (20, 16)):
        first, second = words(*kinds)
        assert np.array_equal(first << (32 - kinds[1]), second)
    a, b, c, d, e = words(16, 20, 16, 16, 20)
    assert np.array_equal(b << 16, c)
    assert np.array_equal(np.diff(a), np.diff(d))  # the second one of the first buffer's pair
    assert len({x[:2].tobytes() for x in (a, b, c, d, e)}) == 5


@each_kind
def test_bits_for_rounding_are_uniform_over_the_steps_at_each_index_for_each_buffer(kinds):
    bins = (numbers(rounding_words(kinds[:3]), kinds[:3]) * 256).astype(np.int64)
    for column in range(3 * TILE):
        counts = np.bincount(bins[:, column], minlength=256)
        chi2 = ((counts - STEPS / 256) ** 2).sum() / (STEPS / 256)
        # The cube root of χ²/k is nearly normal, with mean 1 − 2/9k and variance 2/9k (Wilson & Hilferty 1931).
        z = ((chi2 / 255) ** (1 / 3) - (1 - 2 / (9 * 255))) / math.sqrt(2 / (9 * 255))
        assert abs(z) < 5, f"index {column % TILE}, buffer {column // TILE}"


ROUNDINGS: dict[str, Callable] = {
    "bits": lambda u: u,
    "up with probability 1/2": lambda u: (u > 1 / 2).astype(np.float32),
    "up with probability 1/8": lambda u: (u > 7 / 8).astype(np.float32),
}


@each_kind
@pytest.mark.parametrize("what", ROUNDINGS)
def test_bits_for_rounding_at_any_two_indices_of_one_buffer_or_of_two_are_uncorrelated(what, kinds):
    x = ROUNDINGS[what](numbers(rounding_words(kinds[:3]), kinds[:3]))
    found = correlations(x, x) - math.sqrt(STEPS) * np.eye(3 * TILE)
    # There are 294,528 distinct pairs: the largest of so many normal numbers exceeds 6 with probability 1/1,700.
    assert np.abs(found).max() < 6
    # The standard deviation for independent words is 1 ± 1/√(2·294,528).
    assert abs(found[~np.eye(3 * TILE, dtype=bool)].std() - 1) < 0.02


@each_kind
def test_the_error_of_rounding_a_tile_has_the_variance_of_independent_errors(kinds):
    for words, bits in zip(rounding_words(kinds[:3]), kinds, strict=False):
        u = numbers([words], (bits,))
        for fraction in (0.5, 0.25, 0.1, 0.03):
            error = (u > 1 - fraction) - fraction  # of each element, if all are to be rounded up so often
            assert abs(error.mean()) < 5 * math.sqrt(fraction * (1 - fraction) / error.size)
            squares = error.sum(1) ** 2 / (TILE * fraction * (1 - fraction))
            assert abs(squares.mean() - 1) < 5 * squares.std() / math.sqrt(STEPS)  # in rare steps all go one way


OTHERS: dict[str, dict[str, int]] = {
    "the next tile": {"tile": 1},
    "a tile far away": {"tile": 2**32},
    "the next step": {"first": 2},
    "another seed": {"seed": 1},
}


@each_kind
@pytest.mark.parametrize("other", OTHERS)
def test_bits_for_rounding_are_uncorrelated_with_others(other, kinds):
    # 262,144 pairs, bound as above.
    own, others = (numbers(rounding_words(kinds[:2], **kind), kinds[:2]) for kind in ({}, OTHERS[other]))
    assert np.abs(correlations(own, others)).max() < 6


@each_kind
def test_bits_for_rounding_are_uncorrelated_with_those_of_further_buffers(kinds):
    words = zip(rounding_words(kinds), kinds, strict=True)
    first, second, *_, seventh, last = (numbers([w], (bits,)) for w, bits in words)
    for a, b in ((first, seventh), (first, last), (second, seventh), (second, last)):
        assert np.abs(correlations(a, b)).max() < 6


RULE = fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=1.0)
PROGRAM = trace(RULE, np.float32)


def noisy_step(n: int, *, seed: int = 7, t: int = 3, offset: int = 0, backend: str = "cpu") -> np.ndarray:
    """Return p after one step of noise alone, from p = 0 with gradient 0."""
    p, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
    step(backend, PROGRAM, [p, g], (*noise_keys(seed, t), offset), host_scalars(PROGRAM, RULE)(t))
    return p


def test_the_standard_deviation_is_the_annealed_one():
    for t in (1, 10, 1000):
        rule = fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=0.3, gamma=0.55)
        p = np.zeros(N)
        fastopt.update(rule, t, {"p": p, "g": np.zeros(N)})
        expected = math.sqrt(0.3 / (1 + t) ** 0.55)
        assert abs(p.std() / expected - 1) < 5 / math.sqrt(2 * N) + 1e-4


def test_noise_is_reproducible_and_depends_on_seed_and_step():
    assert_same_bits(noisy_step(1000), noisy_step(1000))
    assert not np.any(noisy_step(1000) == noisy_step(1000, seed=8))
    assert not np.any(noisy_step(1000) == noisy_step(1000, t=4))


def test_noise_does_not_depend_on_how_a_buffer_is_divided_at_tile_boundaries():
    whole = noisy_step(1000)
    parts = [noisy_step(256), noisy_step(512, offset=256), noisy_step(232, offset=768)]
    assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("offset", [2**32 - 512, 2**32, 2**40 - 768, 2**40, 2**41 - 256, 2**48 + 512])
def test_elements_and_tiles_beyond_32_bits(offset, monkeypatch):
    monkeypatch.setattr(tuning, "PARALLEL_FROM", 0)
    monkeypatch.setattr(tuning, "CHUNK", 256)
    assert_same_bits(noisy_step(2000, offset=offset), noisy_step(2000, offset=offset, backend="reference"))
    # 2⁴⁰ elements are 2³² tiles: the tile numbers differ only in their upper 32 bits.
    assert not np.any(noisy_step(500, offset=offset) == noisy_step(500, offset=offset + 2**40))
    assert not np.any(noisy_step(500, offset=offset) == noisy_step(500, offset=offset % 2**32 + 2**50))


def test_noise_escapes_a_saddle_point_that_gradient_descent_does_not():
    def distance(rule) -> float:
        p = np.array([1.0, 0.0])  # f = x² − y², started where the gradient in y is exactly 0
        for t in range(1, 101):
            fastopt.update(rule, t, {"p": p, "g": np.array([2 * p[0], -2 * p[1]])})
        return abs(p[1])

    assert distance(fastopt.SGD(lr=0.05)) == 0.0
    assert distance(fastopt.GradientNoise(fastopt.SGD(lr=0.05))) > 1.0

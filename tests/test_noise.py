"""The noise is normal, independent, keyed by seed, step and element, and nothing else."""

import math

import numpy as np
import pytest
from values import assert_same_bits

import fastopt
from fastopt.kernels import cpu
from fastopt.kernels.storage import indices, noise_keys, normal, random_bits

N = 1 << 20


def noise(seed: int = 0, t: int = 1, first: int = 0, count: int = N) -> np.ndarray:
    key0, key1 = (np.uint32(k) for k in noise_keys(seed, t))
    return normal(random_bits(key0, key1, *indices(first, count))).astype(np.float64)


def test_the_map_from_bits_is_the_inverse_of_the_normal_distribution_function():
    every = normal(np.arange(2**23, dtype=np.uint32) << 9).astype(np.float64)
    assert np.array_equal(every, -every[::-1]), "not symmetric, so not zero-mean"
    assert np.all(np.diff(every) >= 0)
    # Φ(z) must give back the uniform number. Its slope is at most 0.4, so a relative error of 5e-5 in z shows as at
    # most max(0.4 e^(−z²/2) z) · 5e-5 < 1.3e-5.
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
    for lag in (1, 2, 31, 256, 4096):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / math.sqrt(N - lag)
    others = [noise(seed, t=2), noise(seed, t=3), noise(seed + 1), noise(seed, first=1 << 32)]
    for other in others:
        assert abs((z * other).mean()) < 5 / math.sqrt(N)


def test_one_element_over_many_steps_is_independent_too():
    z = np.array([noise(t=t, count=4) for t in range(1, 20_001)])
    assert np.all(np.abs(z.mean(0)) < 5 / math.sqrt(len(z)))
    assert np.all(np.abs((z[:-1] * z[1:]).mean(0)) < 5 / math.sqrt(len(z)))


def test_no_two_elements_share_their_bits():
    key0, key1 = (np.uint32(k) for k in noise_keys(3, 4))
    assert len(np.unique(random_bits(key0, key1, *indices(0, N)))) == N


RULE = fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=1.0)


def step(n: int, *, seed: int = 7, t: int = 3, offset: int = 0, backend: str = "cpu") -> np.ndarray:
    p = np.zeros(n, np.float32)
    fastopt.update(RULE, t, {"p": p, "g": np.zeros_like(p)}, seed=seed, offset=offset, backend=backend)
    return p


def test_the_standard_deviation_is_the_annealed_one():
    for t in (1, 10, 1000):
        rule = fastopt.GradientNoise(fastopt.SGD(lr=1.0), eta=0.3, gamma=0.55)
        p = np.zeros(N)
        fastopt.update(rule, t, {"p": p, "g": np.zeros(N)})
        expected = math.sqrt(0.3 / (1 + t) ** 0.55)
        assert abs(p.std() / expected - 1) < 5 / math.sqrt(2 * N) + 1e-4


def test_it_replays_and_depends_on_seed_and_step():
    assert_same_bits(step(1000), step(1000))
    assert not np.any(step(1000) == step(1000, seed=8))
    assert not np.any(step(1000) == step(1000, t=4))


def test_how_a_buffer_is_divided_does_not_matter():
    whole = step(1000)
    parts = [step(300), step(1, offset=300), step(699, offset=301)]
    assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("offset", [2**32 - 500, 2**32 - 1, 2**32, 2**33 - 2, 2**40 + 3])
def test_indices_beyond_32_bits(offset, monkeypatch):
    monkeypatch.setattr(cpu, "PARALLEL_FROM", 0)
    monkeypatch.setattr(cpu, "CHUNK", 256)
    assert_same_bits(step(2000, offset=offset), step(2000, offset=offset, backend="reference"))
    assert not np.any(
        step(500, offset=offset) == step(500, offset=offset % 2**32 if offset >= 2**32 else offset + 2**32)
    )


def test_noise_leaves_a_saddle_that_gradient_descent_never_leaves():
    def distance(rule) -> float:
        p = np.array([1.0, 0.0])  # f = x² − y² from the ridge: y has no gradient at all
        for t in range(1, 101):
            fastopt.update(rule, t, {"p": p, "g": np.array([2 * p[0], -2 * p[1]])})
        return abs(p[1])

    assert distance(fastopt.SGD(lr=0.05)) == 0.0
    assert distance(fastopt.GradientNoise(fastopt.SGD(lr=0.05))) > 1.0

"""The problems of the laboratory: the surfaces of the race, one with many minima, and the loss of mini-batches.

Functions and gradients are written in the vocabulary of rules, so that the page's are traced from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastopt.demo.surfaces import SURFACES
from fastopt.kernels.compiler.noise import normal, random_bits, tile_bits, words_for_noise

SAMPLES = 64
"""Samples of the mini-batch problem: a power of two, so that an index is the upper bits of a random word."""
BATCHES = (1, 2, 4, 8, 16, 32, SAMPLES)
"""Batch sizes; the last one is all samples, each once."""
FIRST_OF_BATCH = 2
"""Index of the random word that chooses the first sample of a batch; those before it are of the gradient's noise."""


class Problem(NamedTuple):
    """A function to minimize, and how the page shows it.

    `f` and `gradient` are of (x, y); with `sampled` they are of (x, y, a, c), one sample's part of a mean.
    """

    title: str
    f: Callable[..., Any]
    gradient: Callable[..., tuple[Any, Any]]
    least: float  # the value at the minimum
    minima: tuple[tuple[float, float], ...]
    start: tuple[float, float]
    steps: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    sampled: bool = False

    @property
    def numbers(self) -> str:
        """Names of what `f` and `gradient` are of."""
        return "x y a c" if self.sampled else "x y"


def crate(x: Any, y: Any) -> Any:
    """Return f = (x² + y²) / 8 + (2 − b(x) − b(y)) / 4, where b(x) = (1 − 4d²)² and d is x − its nearest integer.

    A bowl with a dent at each pair of integers, as Rastrigin's function is, made of exact operations.
    """
    d, e = x - np.rint(x), y - np.rint(y)
    return (x**2 + y**2) / 8 + (2 - (1 - 4 * d**2) ** 2 - (1 - 4 * e**2) ** 2) / 4


def crate_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ∂f/∂x, ∂f/∂y of the crate; between two integers, where the nearest one jumps, both sides agree."""
    d, e = x - np.rint(x), y - np.rint(y)
    return x / 4 + 4 * d * (1 - 4 * d**2), y / 4 + 4 * e * (1 - 4 * e**2)


def square_error(x: Any, y: Any, a: Any, c: Any) -> Any:
    """Return (x + y a − c)² / 2: the error of a line with intercept x and slope y at the sample (a, c)."""
    return (x + y * a - c) ** 2 / 2


def square_error_gradient(x: Any, y: Any, a: Any, c: Any) -> tuple[Any, Any]:
    """Return its derivatives by x and y."""
    r = x + y * a - c
    return r, r * a


def _samples() -> tuple[np.ndarray, np.ndarray]:
    """Return a and c of each sample: points around the line 1 + a / 2, with three decimals."""
    z = normal(words_for_noise(1, 2, 0, 2 * SAMPLES)).astype(np.float64)
    a = np.round(1.2 * np.arange(SAMPLES) / SAMPLES * 3 - 0.6 + 0.2 * z[:SAMPLES], 3)
    return a, np.round(1 + a / 2 + z[SAMPLES:], 3)


SAMPLE_A, SAMPLE_C = _samples()


def _least_squares() -> tuple[tuple[float, float], float]:
    x, y = np.linalg.lstsq(np.stack([np.ones(SAMPLES), SAMPLE_A], 1), SAMPLE_C)[0].tolist()
    return (x, y), float(np.mean(square_error(x, y, SAMPLE_A, SAMPLE_C)))


_FIT, _LEAST_ERROR = _least_squares()


def _raced(key: str, title: str, least: float, steps: int, *, x_range: tuple[float, float] | None = None) -> Problem:
    s = SURFACES[key]
    return Problem(title, s.f, s.gradient, least, s.minima, s.start, steps, x_range or s.x_range, s.y_range)


PROBLEMS = {
    "bowl": _raced("bowl", "Elongated bowl", 0.0, 100, x_range=(-10.0, 4.0)),
    "saddle": _raced("saddle", "Saddle", -0.25, 100),
    "rosenbrock": _raced("rosenbrock", "Rosenbrock's valley", 0.0, 1000),
    "beale": _raced("beale", "Beale's plateau", 0.0, 500),
    "crate": Problem(
        "Many minima", crate, crate_gradient, 0.0, ((0.0, 0.0),), (-2.2, 1.45), 200, (-3.4, 3.4), (-2.6, 2.6)
    ),
    "batch": Problem(
        "Mini-batch loss", square_error, square_error_gradient, _LEAST_ERROR, (_FIT,), (-1.5, 2.5), 200,
        (-2.4, 4.0), (-2.0, 3.2), sampled=True,
    ),
}  # fmt: skip


def noisy(g: Any, scale: Any, key0: Any, key1: Any, index: Any) -> Any:
    """Return g + scale · z, where z is the standard normal number of an index under the keys of a step."""
    z = normal(random_bits(tile_bits(key0, key1, 0, 0), index))
    return g + scale * z.astype(g.dtype)


def sample_number(key0: Any, key1: Any, index: Any) -> Any:
    """Return which sample, 0 … 63, is at an index of a step's batch."""
    return random_bits(tile_bits(key0, key1, 0, 0), index) >> 26


def series_point(t: Any, z: Any, scale: Any) -> Any:
    """Return point t of the series that is averaged: a wave of parabolas of period 100 around 10, and noise."""
    u = t / 50
    half = u - np.floor(u)
    arch = 4 * half * (1 - half)
    odd = np.floor(u) - 2 * np.floor(np.floor(u) / 2)
    return 10 + 4 * arch * (1 - 2 * odd) + scale * z

"""The test functions of `fastopt race`: their gradients compared with their values, and their minima."""

from __future__ import annotations

import numpy as np
import pytest

from fastopt.demo.race import NEAR
from fastopt.demo.surfaces import SURFACES, Surface

each_surface = pytest.mark.parametrize("surface", SURFACES.values(), ids=list(SURFACES))


@each_surface
def test_the_gradient_is_the_derivative_of_the_function(surface: Surface):
    # Complex-step derivative: Im f(x + ih) / h = f' − h² f'''/6 + … without cancellation, so at h = 1e-30 only rounding
    # errors remain. No intermediate value of f, f' or the gradient exceeds 1e4 on this square, and each takes fewer
    # than 100 roundings of at most 2⁻⁵³: 100 · 1e4 · 2⁻⁵³ ≈ 1.1e-10.
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 1000))
    dx, dy = surface.gradient(x, y)
    h = 1e-30
    np.testing.assert_allclose(dx, surface.f(x + 1j * h, y).imag / h, rtol=0, atol=1.1e-10)
    np.testing.assert_allclose(dy, surface.f(x, y + 1j * h).imag / h, rtol=0, atol=1.1e-10)


@each_surface
def test_the_gradient_is_zero_at_minima_and_the_function_is_larger_around_them(surface: Surface):
    x, y = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 1000))
    for minimum in surface.minima:
        assert surface.gradient(*minimum) == (0, 0)
        assert np.all(surface.f(minimum[0] + x, minimum[1] + y) > surface.f(*minimum))


@each_surface
def test_a_race_starts_far_above_the_minima_and_within_the_plotted_range(surface: Surface):
    (height,) = {surface.f(*minimum) for minimum in surface.minima}
    assert surface.f(*surface.start) > height + 10 * NEAR
    for x, y in (surface.start, *surface.minima):
        assert surface.x_range[0] < x < surface.x_range[1]
        assert surface.y_range[0] < y < surface.y_range[1]

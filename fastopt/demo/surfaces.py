"""Four functions of two variables to minimize, with their gradients; each shows another difficulty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Surface(NamedTuple):
    """A function f(x, y) in NumPy, its gradient and minima, and the start and length of a race on it."""

    f: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], tuple[Any, Any]]
    minima: tuple[tuple[float, float], ...]
    start: tuple[float, float]
    steps: int
    x_range: tuple[float, float]  # of the picture
    y_range: tuple[float, float]


def bowl(x: Any, y: Any) -> Any:
    """Return f = (x² + 50 y²) / 2: fifty times steeper across than along, so its condition number is 50."""
    return (x**2 + 50 * y**2) / 2


def bowl_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ∂f/∂x, ∂f/∂y of the bowl."""
    return x, 50 * y


def saddle(x: Any, y: Any) -> Any:
    """Return f = (x² − y²) / 2 + y⁴ / 4: a saddle point at the origin between minima at (0, ±1)."""
    return (x**2 - y**2) / 2 + y**4 / 4


def saddle_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ∂f/∂x, ∂f/∂y of the saddle."""
    return x, y**3 - y


def rosenbrock(x: Any, y: Any) -> Any:
    """Return f = (1 − x)² + 100 (y − x²)² (Rosenbrock, 1960): a flat curved valley between steep walls."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ∂f/∂x, ∂f/∂y of Rosenbrock's function."""
    return 2 * (x - 1) - 400 * x * (y - x**2), 200 * (y - x**2)


def beale(x: Any, y: Any) -> Any:
    """Return f = Σ (c − x (1 − yᵏ))² over c = 1.5, 2.25, 2.625 and k = 1, 2, 3 (Beale, 1958): plateaus and ridges."""
    return (1.5 - x * (1 - y)) ** 2 + (2.25 - x * (1 - y**2)) ** 2 + (2.625 - x * (1 - y**3)) ** 2


def beale_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    """Return ∂f/∂x, ∂f/∂y of Beale's function."""
    a, b, c = 1.5 - x * (1 - y), 2.25 - x * (1 - y**2), 2.625 - x * (1 - y**3)
    return -2 * (a * (1 - y) + b * (1 - y**2) + c * (1 - y**3)), 2 * x * (a + 2 * b * y + 3 * c * y**2)


SURFACES = {
    "bowl": Surface(
        bowl, bowl_gradient, ((0.0, 0.0),), (-9.0, 1.0), 100, (-10.0, 2.0), (-1.5, 1.5)
    ),
    "saddle": Surface(
        saddle, saddle_gradient, ((0.0, 1.0), (0.0, -1.0)), (-1.2, 1e-3), 90, (-1.5, 0.8), (-1.4, 1.4)
    ),
    "rosenbrock": Surface(
        rosenbrock, rosenbrock_gradient, ((1.0, 1.0),), (-1.2, 1.0), 1000, (-1.6, 1.6), (-0.5, 2.1)
    ),
    "beale": Surface(beale, beale_gradient, ((3.0, 0.5),), (0.7, -1.6), 300, (-0.5, 4.0), (-2.0, 1.5)),
}  # fmt: skip

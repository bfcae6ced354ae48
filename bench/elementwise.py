"""Momentum, RMSprop and Adam written by hand as CuPy ElementwiseKernels, to compare with the generated kernels.

Each has the rule's default settings; momentum averages gradients. On a device they are a second reference for results,
and a baseline for speed: they load one value per thread. Results have the same bits unless denormal float32 values
occur, which CuPy's compiler options flush to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cuda.nvrtc import OPTIONS
from fastopt.kernels.devices import load_cupy


class Source(NamedTuple):
    """The arguments of an ElementwiseKernel: inputs, arrays updated in place, and the loop body; `T` is the dtype."""

    read: str
    written: str
    body: str


CLASSIC = {
    "Momentum": Source(
        "T g, T beta, T rest, T m_size, T g_size, T decay",
        "T p, T m",
        "m = beta * m + rest * g; p = p - m_size * m;",
    ),
    "RMSprop": Source(
        "T g, T lr, T alpha, T rest, T eps, T momentum, T decay",
        "T p, T v",
        "v = alpha * v + rest * (g * g); p = p - lr * (g / (sqrt(v) + eps));",
    ),
    "Adam": Source(
        "T g, T beta1, T rest1, T beta2, T rest2, T step_size, T root, T eps, T decay, T keep",
        "T p, T m, T v",
        "m = beta1 * m + rest1 * g; v = beta2 * v + rest2 * (g * g); p = p - step_size * m / (sqrt(v) * root + eps);",
    ),
}
"""By the name of the rule; scalars are in the order of its `update`."""


@lru_cache(maxsize=8)
def _kernel(rule: str) -> Any:
    source = CLASSIC[rule]
    cupy = load_cupy()
    return cupy.ElementwiseKernel(
        source.read, source.written, source.body, f"{rule.lower()}_elementwise", options=OPTIONS
    )


def bind(program: Program, arrays: Sequence[Any]) -> Callable[[tuple], None]:
    """Return `launch(scalars)`, a step of the rule on CuPy arrays, which are in the order of `program.buffers`."""
    kernel = _kernel(program.rule)
    p, g, *state = arrays

    def launch(scalars: tuple) -> None:
        with p.device:
            kernel(g, *map(program.dtype.type, scalars), p, *state)

    return launch

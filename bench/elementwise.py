"""The three classic rules by hand, as CuPy's ElementwiseKernel: the simple form, held against the printed kernels.

Momentum in its averaged form, RMSprop and Adam, each in its default settings. They are a second oracle on a device, and
what a printed kernel has to beat in the benchmark: CuPy's kernels load one value a thread and come in one shape. They
give the same bits where no denormal float32 occurs: CuPy compiles its kernels so that these become zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cuda.nvrtc import OPTIONS
from fastopt.kernels.devices import load_cupy


class Form(NamedTuple):
    """A rule as CuPy wants it: what is read, what is written in place, and the body of the loop, `T` being the type."""

    read: str
    written: str
    body: str


CLASSIC = {
    "Momentum": Form(
        "T g, T beta, T rest, T m_size, T g_size, T decay",
        "T p, T m",
        "m = beta * m + rest * g; p = p - m_size * m;",
    ),
    "RMSprop": Form(
        "T g, T lr, T alpha, T rest, T eps, T momentum, T decay",
        "T p, T v",
        "v = alpha * v + rest * (g * g); p = p - lr * (g / (sqrt(v) + eps));",
    ),
    "Adam": Form(
        "T g, T beta1, T rest1, T beta2, T rest2, T step_size, T root, T eps, T decay, T keep",
        "T p, T m, T v",
        "m = beta1 * m + rest1 * g; v = beta2 * v + rest2 * (g * g); p = p - step_size * m / (sqrt(v) * root + eps);",
    ),
}
"""By the rule's name; the scalars in the order of its `update`."""


@lru_cache(maxsize=8)
def _kernel(rule: str) -> Any:
    form = CLASSIC[rule]
    cupy = load_cupy()
    return cupy.ElementwiseKernel(form.read, form.written, form.body, f"{rule.lower()}_elementwise", options=OPTIONS)


def bind(program: Program, arrays: Sequence[Any]) -> Callable[[tuple], None]:
    """Prepare a step of a classic rule over CuPy arrays in the order of `program.buffers`; gives `launch(scalars)`."""
    kernel = _kernel(program.rule)
    p, g, *state = arrays

    def launch(scalars: tuple) -> None:
        with p.device:
            kernel(g, *map(program.dtype.type, scalars), p, *state)

    return launch

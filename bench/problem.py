"""The arrays of a case: parameters, gradients and state by name, with their initial values; and the ceiling's pass.

Contestants in this process use the same arrays, those of fastopt's optimizer: the speed of memory depends on where it
was allocated, by some per cent for the lifetime of a process. A contestant in another process gets equal arrays,
allocated in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt.arrays import library_of
from fastopt.arrays.numpy import visible_dtype
from fastopt.bench import ceiling
from fastopt.bench.cases import TIMED, Case
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.rules.rule import initial
from fastopt.parameters import views

_FLOAT = np.dtype(np.float32)


class Problem(NamedTuple):
    """Parameters and gradients by tensor; `state` by buffer and tensor, of buffers that are one array of floats."""

    params: Mapping[str, np.ndarray]
    grads: Mapping[str, np.ndarray]
    state: Mapping[str, Mapping[str, np.ndarray]]


def optimizer(case: Case, *, backend: str | None = None, storage: Any = None) -> fastopt.Optimizer:
    """Make fastopt's optimizer of a case, with parameters of 1 and small positive gradients.

    The ceiling's pass adds the gradient to parameters and state. With positive gradients the state stays valid.
    """
    ones = {name: np.broadcast_to(_FLOAT.type(1), n) for name, n in case.tensors.items()}
    made = fastopt.Optimizer(
        TIMED[case.rule], ones, storage=storage or case.storage, backend=backend or case.backend, groups=case.settings
    )
    fill(made.grads.values())
    return made


def of_optimizer(made: fastopt.Optimizer) -> Problem:
    """Return views of an optimizer's own arrays."""
    state: dict[str, dict[str, np.ndarray]] = {}
    for group in made._groups:
        for buffer in group.plan.program.state:
            planes = group.store.formats[buffer].planes
            if len(planes) == 1 and visible_dtype(planes[0]).kind in "fV":
                array = group.store.planes[0][buffer].view(visible_dtype(planes[0]))
                state.setdefault(buffer, {}).update(views(array, group.shapes))
    return Problem(made.params, made.grads, state)


def allocate(case: Case, *, state: bool = True) -> Problem:
    """Allocate the arrays of a case, with or without state, for a process without an optimizer of fastopt."""
    dtypes = {b: visible_dtype(f.planes[f.forward]) for b, f in case.program.formats.items() if len(f.planes) == 1}
    dtypes = {b: dtype for b, dtype in dtypes.items() if dtype.kind in "fV" and (state or b in ("p", "g"))}
    start = initial(TIMED[case.rule])
    names = {name: (n,) for name, n in case.tensors.items()}
    flat = {b: ceiling.filled(case.elements, dtype, start.get(b, 0.0)) for b, dtype in dtypes.items()}
    flat["p"].fill(1.0)
    arrays = {b: views(array, names) for b, array in flat.items()}
    fill(arrays["g"].values())
    return Problem(arrays.pop("p"), arrays.pop("g"), arrays)


def fill(grads: Iterable[Any]) -> None:
    """Fill gradients with small positive random numbers, the same every time."""
    values = 1e-3 * (0.5 + np.random.default_rng(0).random(1 << 20, np.float32))
    for array in grads:
        rounded = values[: array.size].astype(array.dtype, copy=False)
        for start in range(0, array.size, values.size):
            piece = array[start : start + values.size]
            library_of(piece).copy(piece, rounded[: piece.size])


def ceiling_pass(case: Case, problem: Problem) -> Callable[[], object]:
    """Return the ceiling's pass: it reads and writes as many arrays and bytes as a step of the case (ceiling.py).

    For a single float32 tensor it uses the arrays of the step itself, otherwise new float32 arrays: as many as the
    storage has, of one length, chosen so that the number of bytes is the same. A step in phases is as many passes.
    """
    passes = [_pass(case, problem, phase) for phase in case.program.phases or (case.program,)]
    if len(passes) == 1:
        return passes[0]

    def one_after_the_other() -> None:
        for each in passes:
            each()

    return one_after_the_other


def _pass(case: Case, problem: Problem, program: Program) -> Callable[[], object]:
    """Return the pass of a program, or of one of its phases."""
    arrays = [b for b in program.buffers if b.elementwise]
    written, read = ([b.name for b in arrays if b.written is which] for which in (True, False))
    if case.storage == "f32" and len(case.tensors) == 1:
        (name,) = case.tensors
        shared = {
            "p": problem.params[name],
            "g": problem.grads[name],
            **{b: of[name] for b, of in problem.state.items()},
        }
        return ceiling.bind([shared[b] for b in written], [shared[b] for b in read])
    traffic = case.elements * program.bytes_per_parameter
    n = max(round(traffic / (_FLOAT.itemsize * (len(read) + 2 * len(written)))), 1)
    return ceiling.bind(
        [ceiling.filled(n, _FLOAT, 1e-3) for _ in written], [ceiling.filled(n, _FLOAT, 1e-3) for _ in read]
    )


def memory_needed(case: Case) -> float:
    """Estimate the bytes that timing a case needs: the buffers twice, and temporary arrays of NumPy and torch."""
    buffers = sum(b.dtype.itemsize * (1 / 256 if b.tiled else 1) for b in case.program.buffers)
    return case.elements * (2 * buffers + 4 * _FLOAT.itemsize) + (1 << 29)


def memory_free() -> float:
    """Return the available bytes of main memory; infinity if the system does not report them."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024.0
    except (OSError, KeyError, ValueError):
        return float("inf")

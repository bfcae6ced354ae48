"""The memory of a case: parameters, gradients and state as named arrays, at the start of a run; and the ceiling.

Contestants in this process work on the very same arrays, those of fastopt's optimizer: other memory, even of the same
size, can be some per cent faster or slower for as long as a process lives. A contestant in a process of its own gets
equal copies, allocated the same way.
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
from fastopt.bench.cases import Case
from fastopt.kernels.rules.cases import CASES
from fastopt.kernels.rules.rule import initial
from fastopt.parameters import views

_FLOAT = np.dtype(np.float32)


class Problem(NamedTuple):
    """Parameters and gradients by tensor; `state` by buffer and tensor, of buffers that are one array of numbers."""

    params: Mapping[str, np.ndarray]
    grads: Mapping[str, np.ndarray]
    state: Mapping[str, Mapping[str, np.ndarray]]


def optimizer(case: Case, *, backend: str | None = None, storage: Any = None) -> fastopt.Optimizer:
    """Make fastopt's optimizer of a case, ready to step: parameters of 1, gradients small and positive.

    A ceiling that adds the gradient to all that is written leaves a state that the rule could be in.
    """
    ones = {name: np.broadcast_to(_FLOAT.type(1), n) for name, n in case.tensors.items()}
    made = fastopt.Optimizer(
        CASES[case.rule], ones, storage=storage or case.storage, backend=backend or case.backend, groups=case.settings
    )
    fill(made.grads.values())
    return made


def shared(made: fastopt.Optimizer) -> Problem:
    """View an optimizer's own memory."""
    state: dict[str, dict[str, np.ndarray]] = {}
    for group in made._groups:
        for buffer in group.plan.program.state:
            form = group.store.formats[buffer]
            if len(form.planes) == 1 and visible_dtype(form.planes[0]).kind in "fV":
                array = group.store.planes[0][buffer].view(visible_dtype(form.planes[0]))
                state.setdefault(buffer, {}).update(views(array, group.shapes))
    return Problem(made.params, made.grads, state)


def fresh(case: Case, *, state: bool = True) -> Problem:
    """Allocate the memory of a case, with or without state, for a process that has no optimizer of fastopt's."""
    dtypes = {b: visible_dtype(f.planes[f.forward]) for b, f in case.program.formats.items() if len(f.planes) == 1}
    dtypes = {b: dtype for b, dtype in dtypes.items() if dtype.kind in "fV" and (state or b in ("p", "g"))}
    start = initial(CASES[case.rule])
    names = {name: (n,) for name, n in case.tensors.items()}
    flat = {b: ceiling.filled(case.elements, dtype, start.get(b, 0.0)) for b, dtype in dtypes.items()}
    flat["p"].fill(1.0)
    arrays = {b: views(array, names) for b, array in flat.items()}
    fill(arrays["g"].values())
    return Problem(arrays.pop("p"), arrays.pop("g"), arrays)


def fill(grads: Iterable[Any]) -> None:
    """Fill gradients with small positive numbers, the same every time."""
    values = 1e-3 * (0.5 + np.random.default_rng(0).random(1 << 20, np.float32))
    for array in grads:
        rounded = values[: array.size].astype(array.dtype, copy=False)
        for start in range(0, array.size, values.size):
            part = array[start : start + values.size]
            library_of(part).copy(part, rounded[: part.size])


def passes(case: Case, problem: Problem) -> Callable[[], object]:
    """Make the ceiling: one pass over as many arrays, moving as many bytes, as a step of the case (fastopt.ceiling).

    A single float32 tensor's step and its ceiling use the same arrays. Elsewhere they are float32 arrays of the
    ceiling's own: as many as the storage has, all of one length, which makes the bytes the same.
    """
    arrays = [b for b in case.program.buffers if not b.tiled]
    written, read = ([b.name for b in arrays if b.written is which] for which in (True, False))
    if case.storage == "f32" and len(case.tensors) == 1:
        (name,) = case.tensors
        own = {"p": problem.params[name], "g": problem.grads[name], **{b: of[name] for b, of in problem.state.items()}}
        return ceiling.bind([own[b] for b in written], [own[b] for b in read])
    n = max(round(case.traffic / (_FLOAT.itemsize * (len(read) + 2 * len(written)))), 1)
    return ceiling.bind(
        [ceiling.filled(n, _FLOAT, 1e-3) for _ in written], [ceiling.filled(n, _FLOAT, 1e-3) for _ in read]
    )


def memory_needed(case: Case) -> float:
    """Estimate the bytes that timing a case takes: the buffers twice, and what NumPy and torch make on the way."""
    kept = sum(b.dtype.itemsize * (1 / 256 if b.tiled else 1) for b in case.program.buffers)
    return case.elements * (2 * kept + 4 * _FLOAT.itemsize) + (1 << 29)


def memory_free() -> float:
    """Give the bytes that are free, infinity where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024.0
    except (OSError, KeyError, ValueError):
        return float("inf")

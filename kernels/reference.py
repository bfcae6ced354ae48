"""The reference backend: the rule called on NumPy arrays. Slow, obvious, and the truth that every kernel equals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.errors import RuleError, explain
from fastopt.kernels import storage
from fastopt.kernels.launch import Launch
from fastopt.kernels.program import Program, parameters


def bind(program: Program, rule: Any, arrays: Sequence[np.ndarray]) -> Launch:
    """Prepare a step of `rule` over flat arrays in the order of `program.buffers`, as `cpu.bind` does."""
    dtype = program.dtype
    names = parameters(rule).buffers

    def calls(noise: tuple, scalars: tuple) -> list[tuple]:
        values = {b.name: a.copy() for b, a in zip(program.buffers, arrays, strict=True)}
        numbers = {name: dtype.type(x) for name, x in zip(program.scalars, scalars, strict=True)}
        with np.errstate(all="ignore"):
            if program.noise:
                key0, key1, offset = noise
                bits = storage.random_bits(np.uint32(key0), np.uint32(key1), *storage.indices(offset, arrays[0].size))
                numbers["noise"] = storage.normal(bits).astype(dtype)
            returned = rule.update(*[values.get(name) for name in names], **numbers)
        results = returned if isinstance(returned, tuple) else (returned,)
        new = dict(zip([name for name in names if name != "g"], results, strict=True))
        for b, array in zip(program.buffers, arrays, strict=True):
            if b.written:
                _require_same(rule, b.name, new[b.name], array)
        return [
            (array.__setitem__, ..., new[b.name]) for b, array in zip(program.buffers, arrays, strict=True) if b.written
        ]

    return Launch(calls)


def _require_same(rule: Any, name: str, value: Any, array: np.ndarray) -> None:
    found = np.asarray(value)
    if found.dtype != array.dtype or found.shape not in ((), array.shape):
        raise RuleError(
            explain(
                f"{type(rule).__name__}.update",
                f"the new {name} is not an array like the old one.",
                got=f"{found.dtype}{list(found.shape)}",
                expected=f"{array.dtype}{list(array.shape)}",
            )
        )

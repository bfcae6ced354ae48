"""The reference backend: the rule called on NumPy arrays. Slow, obvious, and the truth that every kernel equals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastopt.errors import RuleError, explain
from fastopt.kernels.launch import Launch
from fastopt.kernels.noise import element_bits, more_bits, normal, random_bits
from fastopt.kernels.program import Program, parameters, planes
from fastopt.kernels.storage import pack, unpack


def bind(program: Program, rule: Any, arrays: Sequence[np.ndarray]) -> Launch:
    """Prepare a step of `rule` over flat arrays in the order of `program.buffers`, as `cpu.bind` does."""
    names, with_noise = parameters(rule).buffers, parameters(rule).noise
    memory = {b.name: a for b, a in zip(program.buffers, arrays, strict=True)}
    n = arrays[0].size

    def calls(noise: tuple, scalars: tuple) -> list[tuple]:
        values = {
            b: unpack(storage, [memory[name] for name, plane in planes(b, storage).items() if plane.read])
            for b, storage in program.storages.items()
        }
        numbers = {name: program.dtype.type(x) for name, x in zip(program.scalars, scalars, strict=True)}
        with np.errstate(all="ignore"):
            words = _random_words(noise, n)
            if with_noise:
                numbers["noise"] = normal(random_bits(next(words))).astype(program.dtype)
            returned = rule.update(*[values.get(name) for name in names], **numbers)
            results = returned if isinstance(returned, tuple) else (returned,)
            new = dict(zip([name for name in names if name != "g"], results, strict=True))
            halves = (half for word in words for half in (word, word << 16))
            writes = []
            for b in program.values:
                storage = program.storages[b]
                _require_same(rule, b, new[b], program.dtype, n)
                value = np.broadcast_to(new[b], n).copy()
                packed = pack(storage, value, next(halves)) if storage.random else pack(storage, value)
                writes += [(memory[name], x) for name, x in zip(planes(b, storage), packed, strict=True)]
        return [(array.__setitem__, ..., x) for array, x in writes]

    return Launch(calls)


def _random_words(noise: tuple, n: int) -> Iterator[np.ndarray]:
    """Give 32 random bits for each element, then others, and so on."""
    if noise:
        key0, key1, offset = noise
        word = element_bits(key0, key1, offset, n)
        while True:
            yield word
            word = more_bits(word)


def _require_same(rule: Any, name: str, value: Any, dtype: np.dtype, n: int) -> None:
    found = np.asarray(value)
    if found.dtype != dtype or found.shape not in ((), (n,)):
        raise RuleError(
            explain(
                f"{type(rule).__name__}.update",
                f"the new {name} is not an array like the old one.",
                got=f"{found.dtype}{list(found.shape)}",
                expected=f"{dtype}[{n}]",
            )
        )

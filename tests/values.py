"""Test inputs that expose differences between backends, one step on any backend, and bitwise comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.formats import TILE, pack
from fastopt.kernels.launch import Rows, run

SIZES = (0, 1, 255, 256, 257, 1003, 70_001)


def special_values(dtype: Any) -> np.ndarray:
    """Return the values that arithmetic treats specially: NaN, ±∞, ±0, denormals, the largest, halves and ties."""
    limits = np.finfo(dtype)
    tiny, small, large = limits.smallest_subnormal, limits.tiny, limits.max
    positive = [0.0, 1.0, 0.5, 1.5, 2.5, 3.0, np.inf, tiny, 3 * tiny, small, small / 2, large, limits.eps]
    return np.array([np.nan, *positive, *(-x for x in positive)], dtype)


def adversarial_values(rng: np.random.Generator, count: int, dtype: Any) -> np.ndarray:
    """Return random numbers of very different magnitudes, one in four of them replaced by a special value."""
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 4, count)
    chosen = np.where(rng.random(count) < 0.25, rng.choice(special_values(dtype), count), values)
    return chosen.astype(dtype)


def adversarial_buffers(program: Program, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Return a program's arrays, full of adversarial values, each inside guard bytes that `guards_intact` checks.

    In formats that encode values, one tile in four, and one element in eight of the other tiles, is random bits
    instead: words, codes and scales that no encoder produces.
    """
    made: dict[str, np.ndarray] = {}
    for b, storage in program.formats.items():
        values = adversarial_values(rng, count, storage.computes)
        if storage.plain:
            made[b] = values
            continue
        raw = np.repeat(rng.random(-(-count // TILE)) < 0.25, TILE)[:count] | (rng.random(count) < 0.125)
        planes = pack(storage, values, rng.integers(0, 2**32, count, np.uint32))
        for (name, plane), array in zip(storage.plane_names(b).items(), planes, strict=True):
            patterns = rng.integers(0, 256, array.nbytes, np.uint8).view(array.dtype)
            made[name] = np.where(raw[::TILE] if plane.tiled else raw, patterns, array)
    return {b.name: guarded(made[b.name]) for b in program.buffers}


_GUARD, _PATTERN = 64, 0xA5


def guarded(values: np.ndarray, shift: int = 0) -> np.ndarray:
    """Copy values into a larger allocation, between guard bytes of a known pattern.

    The copy is `shift` bytes past a 64-byte boundary.
    """
    raw = np.full(values.nbytes + 4 * _GUARD, _PATTERN, np.uint8)
    start = -raw.ctypes.data % _GUARD + shift
    raw = raw[start : start + values.nbytes + 2 * _GUARD]
    inside = raw[_GUARD : _GUARD + values.nbytes].view(values.dtype)
    inside[...] = values
    return inside


def step(backend: str, program: Program, arrays: Sequence[np.ndarray], noise: tuple, scalars: tuple) -> None:
    """Take one step on a backend, on NumPy arrays in the order of `program.buffers`.

    `noise` is () or (key 0, key 1, offset).
    """
    addresses = [a.__array_interface__["data"][0] for a in arrays]
    rows = Rows([arrays[0].size], [noise[2] if noise else 0], [addresses], arrays)
    run(bind(backend, program, rows).calls(noise[:2], scalars))


def guards_intact(array: np.ndarray) -> bool:
    """Whether the bytes before and after an array made by `guarded` are unchanged."""
    raw: Any = array
    while raw.base is not None:
        raw = raw.base
    start = array.ctypes.data - raw.ctypes.data
    end = start + array.nbytes
    return bool(np.all(raw[:start] == _PATTERN) and np.all(raw[end:] == _PATTERN))


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Compare bit for bit; any NaN equals any other NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    word = np.dtype(f"u{actual.dtype.itemsize}")
    differ = actual.view(word) != expected.view(word)
    if actual.dtype.kind == "f":
        differ &= ~(np.isnan(actual) & np.isnan(expected))
    first = np.flatnonzero(differ)[:3]
    assert not first.size, (
        f"{what}: {differ.sum()} of {differ.size} differ, at {first}: {actual[first]} ≠ {expected[first]}"
    )

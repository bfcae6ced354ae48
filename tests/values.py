"""Inputs that find differences, and the comparison that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.formats import TILE, pack
from fastopt.kernels.launch import Rows, run

SIZES = (0, 1, 255, 256, 257, 1003, 70_001)


def special(dtype: Any) -> np.ndarray:
    """Give the values that arithmetic treats specially: NaN, ±∞, ±0, denormals, the largest, halves and ties."""
    limits = np.finfo(dtype)
    tiny, small, large = limits.smallest_subnormal, limits.tiny, limits.max
    positive = [0.0, 1.0, 0.5, 1.5, 2.5, 3.0, np.inf, tiny, 3 * tiny, small, small / 2, large, limits.eps]
    return np.array([np.nan, *positive, *(-x for x in positive)], dtype)


def nasty(rng: np.random.Generator, count: int, dtype: Any) -> np.ndarray:
    """Give normal numbers of widely different sizes, one in four of them replaced by a special value."""
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 4, count)
    chosen = np.where(rng.random(count) < 0.25, rng.choice(special(dtype), count), values)
    return chosen.astype(dtype)


def filled(program: Program, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Give a program's arrays, each inside guard bytes that `guards_intact` looks at.

    Where values are not kept as they are computed, one tile in four, and one element in eight of the others, is of bits
    drawn at random: words, codes and scales that no encoder makes.
    """
    made: dict[str, np.ndarray] = {}
    for b, storage in program.formats.items():
        values = nasty(rng, count, storage.computes)
        if storage.plain:
            made[b] = values
            continue
        raw = np.repeat(rng.random(-(-count // TILE)) < 0.25, TILE)[:count] | (rng.random(count) < 0.125)
        kept = pack(storage, values, rng.integers(0, 2**32, count, np.uint32))
        for (name, plane), array in zip(storage.plane_names(b).items(), kept, strict=True):
            patterns = rng.integers(0, 256, array.nbytes, np.uint8).view(array.dtype)
            made[name] = np.where(raw[::TILE] if plane.tiled else raw, patterns, array)
    return {b.name: guarded(made[b.name]) for b in program.buffers}


_GUARD, _PATTERN = 64, 0xA5


def guarded(values: np.ndarray, shift: int = 0) -> np.ndarray:
    """Copy values into the middle of a longer stretch of memory whose ends hold a pattern, `shift` bytes off 64."""
    raw = np.full(values.nbytes + 4 * _GUARD, _PATTERN, np.uint8)
    start = -raw.ctypes.data % _GUARD + shift
    raw = raw[start : start + values.nbytes + 2 * _GUARD]
    inside = raw[_GUARD : _GUARD + values.nbytes].view(values.dtype)
    inside[...] = values
    return inside


def step(backend: str, program: Program, arrays: Sequence[np.ndarray], noise: tuple, scalars: tuple) -> None:
    """Step NumPy arrays, in the order of `program.buffers`, on a backend; `noise` is () or two keys and an offset."""
    addresses = [a.__array_interface__["data"][0] for a in arrays]
    rows = Rows([arrays[0].size], [noise[2] if noise else 0], [addresses], arrays)
    run(bind(backend, program, rows).calls(noise[:2], scalars))


def guards_intact(array: np.ndarray) -> bool:
    """Whether nothing was written before or after an array from `guarded`."""
    raw: Any = array
    while raw.base is not None:
        raw = raw.base
    start = array.ctypes.data - raw.ctypes.data
    end = start + array.nbytes
    return bool(np.all(raw[:start] == _PATTERN) and np.all(raw[end:] == _PATTERN))


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """Compare bit for bit; a NaN equals a NaN whatever its payload."""
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

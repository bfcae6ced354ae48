"""How values are kept in memory, the tile they are kept in, and the noise that is keyed by their index.

Everything here that computes is plain NumPy code in the tracer's vocabulary: called on arrays it is the definition,
called on symbols it becomes part of a kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TILE = 256
"""Values in a tile: one scale block, one GPU warp × 8 values a lane, one short vector loop on the CPU. Groups of
parameters begin at a multiple of it."""

STORAGES: dict[str, np.dtype] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
"""The formats a buffer can have, by the name that appears in kernel names."""

NAMES = {dtype: name for name, dtype in STORAGES.items()}

_MASK64 = (1 << 64) - 1


def _mix64(z: int) -> int:
    """Scramble 64 bits on the host (the finaliser of SplitMix64, Steele, Lea & Flood 2014)."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def noise_keys(seed: int, t: int) -> tuple[int, int]:
    """Give the two 32-bit keys of step t's noise: different for every seed and every step."""
    key = _mix64(_mix64(seed & _MASK64) ^ t)
    return key & 0xFFFFFFFF, key >> 32


def _mix32(x: Any) -> Any:
    """Scramble 32 bits (the finaliser of MurmurHash3, Appleby 2011): a bijection, so no two indices collide."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


def random_bits(key0: Any, key1: Any, index_low: Any, index_high: Any) -> Any:
    """Hash an element's 64-bit index, given as two uint32 halves, under two uint32 keys to 32 random bits.

    Never a function of thread, chunk or launch shape, so that it replays bit for bit anywhere.
    """
    x = _mix32(index_low ^ key0)
    return _mix32(x ^ _mix32(index_high ^ key1))


# Coefficients of Giles' single-precision erfinv ("Approximating the erfinv function", GPU Computing Gems, 2011), highest
# power first, for w < 5 in powers of w − 2.5 and for w ≥ 5 in powers of √w − 3.
_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip
_SQRT2 = 1.41421356
_LN2 = 0.69314718


def normal(bits: Any) -> Any:
    """Turn 32 random bits (uint32) into a standard normal number (float32) by the inverse of its distribution function.

    23 of the bits choose x = (2k + 1)/2²³ − 1, symmetric about zero and never ±1, exact in float32; the result is
    √2·erfinv(x), within ±5.3. Its logarithm and its polynomials are written out in exactly rounded operations, so
    every backend gives the same bits, and none calls a mathematical library.
    """
    x = ((bits >> 9) << 1).astype(np.float32) * 2.0**-23 + (2.0**-23 - 1.0)
    y = (1.0 - x) * (1.0 + x)
    # y = 2^e · f with f in [√½, √2); log y = e ln 2 + 2 atanh(s), s = (f − 1)/(f + 1), |s| ≤ 0.172: the next term of
    # the series, 2s⁹/9, is below 3e-8.
    u = y.view(np.uint32) + (0x3F800000 - 0x3F3504F3)
    e = (u >> 23).astype(np.float32) - 127.0
    f = ((u & 0x007FFFFF) + 0x3F3504F3).view(np.float32)
    s = (f - 1.0) / (f + 1.0)
    q = s * s
    w = -(e * _LN2 + s * (2.0 + q * (0.6666667 + q * (0.4 + q * 0.2857143))))
    a, b = w - 2.5, np.sqrt(w) - 3.0
    tail = w >= 5.0
    z = np.where(tail, b, a)
    result = np.where(tail, np.full_like(z, _TAIL[0]), _CENTRE[0])
    for high, low in zip(_TAIL[1:], _CENTRE[1:], strict=True):
        result = result * z + np.where(tail, np.full_like(z, high), low)
    return x * (result * _SQRT2)


def indices(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the low and high halves of the indices first, first + 1, … as uint32 arrays."""
    index = np.arange(first, first + count, dtype=np.uint64)
    return (index & np.uint64(0xFFFFFFFF)).astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)

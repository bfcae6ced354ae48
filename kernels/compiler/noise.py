"""Random numbers keyed by seed, step and element: never by thread, chunk or launch shape, so they replay anywhere.

Everything here that computes is plain NumPy code in the tracer's vocabulary: called on arrays it is the definition,
called on symbols it becomes part of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastopt.kernels.formats import TILE

_MASK64 = (1 << 64) - 1

MIXING = 0x9E3779B97F4A7C15, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), 31
"""The increment, shifts and factors of `mix64`, of SplitMix64's finaliser (Steele, Lea & Flood 2014)."""


def mix64(z: int) -> int:
    """Scramble 64 bits on the host."""
    increment, *rounds, last = MIXING
    z = (z + increment) & _MASK64
    for shift, factor in rounds:
        z = ((z ^ (z >> shift)) * factor) & _MASK64
    return z ^ (z >> last)


def noise_keys(seed: int, t: int) -> tuple[int, int]:
    """Return the two 32-bit keys of step t's noise: different for every seed and every step."""
    key = mix64(mix64(seed & _MASK64) ^ t)
    return key & 0xFFFFFFFF, key >> 32


def _mix32(x: Any) -> Any:
    """Scramble 32 bits (the finaliser of MurmurHash3, Appleby 2011): a bijection, so no two indices collide."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


def tile_bits(key0: Any, key1: Any, tile_low: Any, tile_high: Any) -> Any:
    """Hash a tile's 64-bit number, given as two uint32 halves, under two uint32 keys to 32 random bits."""
    x = _mix32(tile_low ^ key0)
    return (x ^ _mix32(tile_high ^ key1)) * 0x9E3779B1


def random_bits(of_tile: Any, index: Any) -> Any:
    """Return 32 bits for the noise of the element of this index, 0 … 255, in a tile whose own bits are given.

    They are independent of other elements'; the upper are best.
    """
    x = (index ^ of_tile) * (_mix32(of_tile) | 1)
    return (x ^ (x >> 16)) * 0xC2B2AE35


class RoundingBits:
    """The bits with which a tile's elements are rounded: for one buffer after the other, in `rounding_order`.

    `sequence(first, step, bits)` makes the word of each element, `first + index * step`, of which only the upper `bits`
    are wanted, and the other bits of `step` are zero: a Weyl sequence, one addition for an element. Over the steps an
    element's bits are uniform, and any two elements of a tile are uncorrelated, of one buffer or of two. Three in
    arithmetic progression are not independent in one step, which rounding does not need.

    A buffer that takes 20 bits leaves the lower ones of its words for the next, whatever that takes. Two of 16 bits
    have sequences with the same step, of which one is the other and a constant.
    """

    def __init__(self, of_tile: Any, sequence: Callable[[Any, Any, int], Any]):
        self._of_tile, self._sequence = of_tile, sequence
        self._lower: Any = None  # a word whose lower bits are not used yet
        self._second: Any = None  # the first word and the step of the next sequence of 16 bits

    def of_next_buffer(self, count: int) -> Any:
        """Return a word for each element whose upper bits, 16 or 20 as `count` says, are random."""
        if self._lower is not None:
            word, self._lower = self._lower << (32 - count), None
            return word
        if count == 16:
            return self._sixteen()
        first, step = self._next()
        self._lower = self._sequence(first, step | 1, 32)
        return self._lower

    def _sixteen(self) -> Any:
        """Return the bits of a sequence that begins as the lower or the upper half of a tile's word says."""
        if self._second is not None:
            (first, step), self._second = self._second, None
            return self._sequence(first, step, 16)
        first, step = self._next()
        step = (step & 0xFFFF0000) | 0x10000
        self._second = first, step
        return self._sequence((first << 16) | (first >> 16), step, 16)

    def _next(self) -> tuple[Any, Any]:
        """Return the word of element 0 and a second hash: the difference to each next element, but for being odd."""
        self._of_tile = next_tile_bits(self._of_tile)
        return self._of_tile, (self._of_tile ^ (self._of_tile >> 15)) * 0x165667B1


def rounding_order(buffers: Iterable[str]) -> list[str]:
    """Return buffers in the order in which they take random bits: the parameters last.

    Moments are rounded at once, where a loop ends before the parameters, and so have a sequence in common.
    """
    return sorted(buffers, key=lambda b: b == "p")


def next_tile_bits(of_tile: Any) -> Any:
    """Turn a tile's 32 random bits into 32 others: each sequence for rounding begins with its own."""
    x = of_tile * 0x9E3779B1
    return x ^ (x >> 16)


# √2·erfinv(x)/x as a polynomial in s = √(−log(1 − x²)), highest power first: least squares in the relative error on
# 20,000 Chebyshev points of [0, 3.905], reweighted until the error levels out at 4.2e-5.
_NORMAL = (
    0.0001982846, -0.0031776035, 0.019680353, -0.056836393, 0.06963132,
    -0.02334358, 0.002180625, 0.33414847, -0.0015589065, 1.2533671,
)  # fmt: skip
_LN2 = 0.69314718


def normal(bits: Any) -> Any:
    """Turn 32 random bits (uint32) into a standard normal number (float32) by the inverse of its distribution function.

    23 of the bits choose x = (2k + 1)/2²³ − 1, symmetric about zero and never ±1, exact in float32; the result is
    √2·erfinv(x) with a relative error below 5e-5, within ±5.3. Its logarithm and its polynomial are written out in
    exactly rounded operations, so every backend gives the same bits and none calls a mathematical library.
    """
    x = centred(bits)
    return stretched(x, radius(x))


def centred(bits: Any) -> Any:
    """Turn 32 random bits into x in (−1, 1). As the mantissa of a float in [2, 4) they need no conversion."""
    return (((bits >> 9) | 0x40000000).view(np.float32) - 3.0) + 2.0**-23


def radius(x: Any) -> Any:
    """Compute s = √(−log(1 − x²))."""
    y = (1.0 - x) * (1.0 + x)
    # y = 2^e · f with f in [√½, √2); log y = e ln 2 + 2 atanh(r), r = (f − 1)/(f + 1), |r| ≤ 0.172: the next term of
    # the series, 2r⁷/7, is below 1.3e-6.
    u = y.view(np.uint32) + (0x3F800000 - 0x3F3504F3)
    e = ((u >> 23) | 0x4B000000).view(np.float32) - (2.0**23 + 127.0)  # an integer, as the mantissa of one
    f = ((u & 0x007FFFFF) + 0x3F3504F3).view(np.float32)
    r = (f - 1.0) / (f + 1.0)
    q = r * r
    return np.sqrt(-(e * _LN2 + r * (2.0 + q * (0.6666667 + q * 0.4))))


def stretched(x: Any, s: Any) -> Any:
    """Compute √2·erfinv(x), given s: the polynomial in pairs, so that the steps of a processor's pipeline overlap."""
    c9, c8, c7, c6, c5, c4, c3, c2, c1, c0 = _NORMAL
    s2 = s * s
    s4 = s2 * s2
    low = (c0 + c1 * s) + (c2 + c3 * s) * s2
    middle = (c4 + c5 * s) + (c6 + c7 * s) * s2
    return x * (low + (middle + (c8 + c9 * s) * s4) * s4)


def words_for_noise(key0: int, key1: int, first: int, count: int) -> np.ndarray:
    """Return `random_bits` of the elements first, first + 1, …; first is a multiple of the tile."""
    return _by_element(random_bits(_of_tiles(key0, key1, first, count)[:, None], _INDEX), count)


def words_for_rounding(key0: int, key1: int, first: int, count: int) -> RoundingBits:
    """Return the bits for rounding these elements."""

    def sequence(begin: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
        return _by_element(begin[:, None] + step[:, None] * _INDEX, count)

    return RoundingBits(_of_tiles(key0, key1, first, count), sequence)


_INDEX = np.arange(TILE, dtype=np.uint32)


def _of_tiles(key0: int, key1: int, first: int, count: int) -> np.ndarray:
    tiles = np.arange(first // TILE, -(-(first + count) // TILE), dtype=np.uint64)
    low, high = (tiles & np.uint64(0xFFFFFFFF)).astype(np.uint32), (tiles >> np.uint64(32)).astype(np.uint32)
    return tile_bits(np.uint32(key0), np.uint32(key1), low, high)


def _by_element(words: np.ndarray, count: int) -> np.ndarray:
    return words.reshape(-1)[:count]

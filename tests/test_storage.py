"""Each storage format compared with an independent implementation, on every bit pattern where that is feasible.

Over 300 lines: each property of a format is tried on all formats that have it.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from values import assert_same_bits

from fastopt.kernels.formats import NEAREST, STORAGES, TILE, Format, Scaled, pack, unpack

ALL_UINT16 = np.arange(2**16, dtype=np.uint32)
# Low halves of a float32: the ties at every bit at which a format may round, even and odd, and their neighbours.
LOW_HALVES = np.unique([min(max(d * 2**k + s, 0), 0xFFFF) for k in range(17) for d in (1, 3) for s in (-1, 0, 1)])
ALL_ONES = np.uint32(0xFFFFFFFF)

every_format = pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
SCALED = [s for s in STORAGES.values() if isinstance(s, Scaled)]
UNSCALED = [s for s in STORAGES.values() if not isinstance(s, Scaled)]
every_scaled_format = pytest.mark.parametrize("storage", SCALED, ids=lambda s: s.name)
RANDOM = [s for s in STORAGES.values() if s.random]
every_random_format = pytest.mark.parametrize("storage", RANDOM, ids=lambda s: s.name)


def floats(bits: Any) -> np.ndarray:
    return np.asarray(bits, np.uint32).reshape(-1).view(np.float32)


def sample() -> np.ndarray:
    """Return 6 million float32, which include the neighbours of every rounding boundary of every format."""
    return floats((ALL_UINT16[:, None] << 16) | LOW_HALVES.astype(np.uint32))


def all_floats() -> Iterator[np.ndarray]:
    for start in range(0, 2**32, 2**20):
        yield floats(np.arange(start, start + 2**20, dtype=np.uint32))


def without_nan(x: np.ndarray) -> np.ndarray:
    return x[~np.isnan(x)]


def read_planes(storage: Format, planes: list[np.ndarray]) -> list[np.ndarray]:
    return [a for plane, a in zip(storage.planes, planes, strict=True) if plane.read]


def unpack_read_planes(storage: Format, planes: list[np.ndarray]) -> np.ndarray:
    return unpack(storage, read_planes(storage, planes))


def encode(storage: Format, x: np.ndarray, bits: Any, scale: Any) -> np.ndarray:
    """Encode, with this scale if the format has scales, and return the first plane."""
    more = (scale,) if isinstance(storage, Scaled) else ()
    with np.errstate(all="ignore"):
        return storage.encode(x, bits, *more)[0].astype(storage.planes[0].dtype)


def decode(storage: Format, words: np.ndarray, scale: Any) -> np.ndarray:
    more = (scale,) if isinstance(storage, Scaled) else ()
    with np.errstate(all="ignore"):
        return storage.decode(words.astype(np.uint32), *more)


def round_float32(x: np.ndarray, digits: int, to: Any = np.rint) -> np.ndarray:
    """Round float32 to so many binary digits after the leading one, computed exactly in float64."""
    x = x.astype(np.float64)
    step = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 1, -126) - digits)
    y = to(x / step) * step
    return np.where(np.abs(y) < 2.0**128, y, np.copysign(np.inf, y)).astype(np.float32)


def round_half_away(q: np.ndarray) -> np.ndarray:
    """Round to an integer, ties away from zero; exact, because |q| is below 2²⁴."""
    return np.copysign(np.floor(np.abs(q) + 0.5), q)


# bfloat16 and float16: ml_dtypes and NumPy ---------------------------------------------------------------------------

ORACLES = {
    "bf16": (0, ml_dtypes.bfloat16, 0x7FC0),
    "f16": (0, np.float16, 0x7E00),
    "f32_bf16": (1, ml_dtypes.bfloat16, 0x7FC0),
    "f32_f16": (1, np.float16, 0x7E00),
}


@pytest.mark.parametrize("name", ["bf16", "bf16_sr", "f16", "f16_sr"])
def test_all_16_bit_patterns_decode_as_in_numpy_and_ml_dtypes(name):
    words = ALL_UINT16.astype(np.uint16)
    oracle = ml_dtypes.bfloat16 if name.startswith("bf16") else np.float16
    assert_same_bits(unpack(STORAGES[name], [words]), words.view(oracle).astype(np.float32), name)


def assert_rounds_as_its_oracle(name: str, x: np.ndarray) -> None:
    plane, oracle, nan = ORACLES[name]
    with np.errstate(all="ignore"):
        expected = np.where(np.isnan(x), np.uint16(nan), x.astype(oracle).view(np.uint16))
    assert np.array_equal(pack(STORAGES[name], x)[plane], expected)


@pytest.mark.parametrize("name", ORACLES)
def test_rounding_to_nearest_even_equals_numpys_and_every_nan_is_the_same(name):
    assert_rounds_as_its_oracle(name, sample())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_rounding_to_nearest_even_equals_numpys_on_all_floats(name):
    for x in all_floats():
        assert_rounds_as_its_oracle(name, x)


@pytest.mark.parametrize("name", ["f32_bf16", "f32_f16"])
def test_the_float32_beside_a_rounded_copy_is_exact(name):
    x = without_nan(sample())
    stored = pack(STORAGES[name], x)
    assert_same_bits(stored[0], x)
    assert_same_bits(unpack_read_planes(STORAGES[name], stored), x)


@pytest.mark.parametrize("storage", [s for s in STORAGES.values() if "p" in s.holds], ids=lambda s: s.name)
def test_the_forward_plane_is_the_rounded_value_in_the_dtype_of_its_view(storage):
    x = np.random.default_rng(0).standard_normal(10_000).astype(storage.computes)
    plane, stored = storage.planes[storage.forward], pack(storage, x)[storage.forward]
    viewed = stored.view(getattr(ml_dtypes, plane.view, None) or plane.view) if plane.view else stored
    digits = {"bfloat16": 7, "float16": 10}.get(viewed.dtype.name, 23)
    # The error is at most half a step of the value's binade, or a whole step with stochastic rounding. The smallest
    # normal float16 is 2⁻¹⁴.
    step = 2.0**-digits * np.maximum(np.abs(x), 2.0**-14)
    assert np.all(np.abs(viewed.astype(np.float64) - x) <= step * (1 if storage.random else 0.5))


# Decoded values are encoded unchanged --------------------------------------------------------------------------------


def all_patterns(storage: Format) -> list[np.ndarray]:
    """Return every bit pattern of a format's planes, or every pattern of the first plane with many of the second."""
    first, *others = [p for p in storage.planes if p.read]
    if first.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            return [sample().astype(first.dtype)]
    if not others:
        return [ALL_UINT16.astype(first.dtype)]
    low = np.arange(256) if others[0].dtype == np.uint8 else np.r_[LOW_HALVES, 0x7F80, 0xFF80, 0x3F80, 0x3C01, 0xBB83]
    both = np.meshgrid(ALL_UINT16, low, indexing="ij")
    return [a.reshape(-1).astype(p.dtype) for a, p in zip(both, (first, *others), strict=True)]


@pytest.mark.parametrize("storage", UNSCALED, ids=lambda s: s.name)
def test_decoded_values_are_encoded_unchanged(storage):
    x = unpack(storage, all_patterns(storage))
    if storage.name == "bf16_kahan":  # its encoder stores these as ∞: see LARGEST_KAHAN
        x = x[~(np.abs(x) >= LARGEST_KAHAN)]
    for bits in (NEAREST, np.uint32(0), ALL_ONES, np.uint32(0x0001FFFF)) if storage.random else (NEAREST,):
        assert np.array_equal(unpack_read_planes(storage, pack(storage, x, np.full(x.size, bits))), x, equal_nan=True)


REACHABLE = {"f8": range(4, 240), "uf8": range(224)}  # biased exponents of all scales that `Scaled.scale` returns


@every_scaled_format
def test_scales_are_exactly_these_powers_of_two(storage):
    x = without_nan(sample())
    found = np.unique(storage.scale(storage.peak(x)))
    assert np.array_equal(found, np.array(REACHABLE[storage.name], np.uint32) << 23)


@every_scaled_format
def test_every_code_at_every_scale_is_encoded_unchanged(storage):
    codes = np.arange(256, dtype=np.uint32)[:, None]
    scales = (np.array(REACHABLE[storage.name], np.uint32) << 23)[None]
    x = decode(storage, codes, scales)
    for bits in (np.uint32(0), NEAREST, ALL_ONES):
        assert_same_bits(decode(storage, encode(storage, x, bits, scales), scales), x)


def tiles_of_all_sizes(storage: Format, rng: np.random.Generator, tiles: int = 4000) -> np.ndarray:
    """Return tiles of all magnitudes, the last incomplete; half of them have a peak near which the scale changes."""
    edge = {"f8": 0x5FFF00, "uf8": 0x600000}[storage.name] + rng.integers(-2000, 2000, tiles // 2)
    peaks = np.r_[floats((rng.integers(0, 254, tiles // 2) << 23) + edge), 10.0 ** rng.uniform(-45, 38, tiles // 2)]
    size = peaks[:, None] * 10.0 ** -(rng.uniform(0, 12, (tiles, 1)) * rng.random((tiles, TILE)))
    size[:, 17] = peaks
    x = np.where(rng.random(size.shape) < 1e-3, np.nan, size).astype(np.float32).reshape(-1)[: -TILE + 19]
    return x if storage.name == "uf8" else x * rng.choice([-1, 1], x.size).astype(np.float32)


@every_scaled_format
def test_stochastically_rounded_values_are_packed_again_unchanged(storage):
    rng = np.random.default_rng(0)
    values = tiles_of_all_sizes(storage, rng)
    assert np.isfinite(values).mean() > 0.99
    planes = pack(storage, values, rng.integers(0, 2**32, values.size, np.uint32))
    x = unpack_read_planes(storage, planes)
    assert np.array_equal(np.isnan(x), np.isnan(values))
    assert_same_bits(unpack_read_planes(storage, pack(storage, x)), x)
    if storage.name == "f8":  # Control: some rounded peaks imply another scale; only the default bits find the old one.
        other = unpack_read_planes(storage, pack(storage, x, np.full(x.size, NEAREST)))
        assert not np.array_equal(other, x, equal_nan=True)


# Exact values, and error bounds --------------------------------------------------------------------------------------


def assert_split_is_exact(x: np.ndarray) -> None:
    word, low = pack(STORAGES["split"], x)
    assert_same_bits(unpack(STORAGES["split"], [word, low]), x)
    assert np.array_equal(word.view(ml_dtypes.bfloat16).astype(np.float32), round_float32(x, 7, round_half_away))


def test_split_is_an_exact_float32_whose_first_plane_is_the_nearest_bfloat16():
    assert_split_is_exact(without_nan(sample()))


@pytest.mark.slow
def test_split_is_exact_on_all_floats():
    for x in all_floats():
        assert_split_is_exact(without_nan(x))


def test_split24_rounds_to_24_bits_and_its_first_plane_is_the_nearest_bfloat16():
    x = without_nan(sample())
    word, low = pack(STORAGES["split24"], x)
    found = unpack(STORAGES["split24"], [word, low])
    assert_same_bits(found, round_float32(x, 15))
    assert_same_bits(word.view(ml_dtypes.bfloat16).astype(np.float32), round_float32(found, 7, round_half_away))


LARGEST_KAHAN = floats(0x7F7F8000)[0]  # half a step above the largest bfloat16: from here on the nearest is ∞


def test_bf16_kahan_stores_the_nearest_bfloat16_and_its_error_as_bfloat16():
    x = without_nan(sample())
    with np.errstate(over="ignore"):
        nearest = x.astype(ml_dtypes.bfloat16)
    word, error = pack(STORAGES["bf16_kahan"], x)
    assert np.array_equal(word, nearest.view(np.uint16))
    found = unpack(STORAGES["bf16_kahan"], [word, error])
    # For x in [2^e, 2^(e+1)) the error of the nearest bfloat16 is at most 2^(e−8). Stored as bfloat16 it is off by half
    # a step of 2^(e−9) · 2⁻⁷, so by at most 2^(e−17), or, if it is denormal, by half a step of 2⁻¹³³. The sum of both
    # has at most 24 bits, so it is exact.
    finite = np.abs(x) < LARGEST_KAHAN
    off = np.abs(found[finite].astype(np.float64) - x[finite])
    assert np.all(off <= np.maximum(2.0**-17 * np.abs(x[finite].astype(np.float64)), 2.0**-134))
    assert np.array_equal(found[~finite], np.copysign(np.inf, x[~finite]))


# NaN, ±∞, ±0 and values out of range ---------------------------------------------------------------------------------

NAN = {
    "bf16": (0x7FC0,), "bf16_sr": (0x7FC0,), "bf16_kahan": (0x7FC0, 0), "f16": (0x7E00,), "f16_sr": (0x7E00,),
    "split": (0x7FC0, 0), "split24": (0x7FC0, 0), "f8": (127,), "uf8": (255,),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in STORAGES if not name.startswith(("f32", "f64"))])
def test_every_nan_is_encoded_as_the_same_nan_and_decoded_as_nan(name):
    storage, x = STORAGES[name], sample()
    x = x[np.isnan(x)]
    more = [(np.uint32(k << 23),) for k in REACHABLE[name]] if isinstance(storage, Scaled) else [()]
    for bits in (np.uint32(0), NEAREST, ALL_ONES):
        for scale in more:
            with np.errstate(invalid="ignore"):
                planes = storage.encode(x, np.full(x.size, bits), *scale)
                assert np.all(np.isnan(storage.decode(*planes, *scale)))
            for plane, canonical in zip(planes, NAN.get(name, [plane[0] for plane in planes]), strict=True):
                assert np.all(plane == canonical), f"scale {scale}, bits {bits:#x}"


ANY_BITS = (0, NEAREST, 0xFFFFFFFF)
LARGEST = float(np.finfo(np.float32).max)
LARGEST_BF16 = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
TINY = float(np.finfo(np.float32).smallest_subnormal)
STEP_BF16, STEP_F16 = 2.0**-133, 2.0**-24  # the smallest bfloat16 and float16
# Format, value, random bits, stored value. The scale of f8 and uf8 is 2⁻⁴⁰.
EDGES = [
    *[(name, x, ANY_BITS, x) for name in STORAGES if name not in REACHABLE for x in (0.0, 1.0, -1.0, np.inf, -np.inf)],
    *[(name, -0.0, ANY_BITS, -0.0) for name in STORAGES if name not in ("bf16_kahan", "f8", "uf8")],
    *[(name, -0.0, ANY_BITS, 0.0) for name in ("bf16_kahan", "f8", "uf8")],
    ("bf16_sr", LARGEST_BF16, ANY_BITS, LARGEST_BF16),
    ("bf16_sr", LARGEST, (0,), LARGEST_BF16),
    ("bf16_sr", -LARGEST, (0xFFFFFFFF,), -np.inf),
    ("bf16_sr", TINY, (0,), 0.0),
    ("bf16_sr", -TINY, (0,), -0.0),
    ("bf16_sr", -TINY, (0xFFFFFFFF,), -STEP_BF16),
    ("f16_sr", 65504.0, ANY_BITS, 65504.0),
    ("f16_sr", -65519.0, (0,), -65504.0),
    ("f16_sr", -65519.0, (0xFFFFFFFF,), -np.inf),
    ("f16_sr", 65520.0, ANY_BITS, np.inf),
    ("f16_sr", -LARGEST, ANY_BITS, -np.inf),
    ("f16_sr", TINY, ANY_BITS, 0.0),
    ("f16_sr", -TINY, ANY_BITS, -0.0),
    ("f16_sr", -0.9 * STEP_F16, (0,), -0.0),
    ("f16_sr", -0.9 * STEP_F16, (0xFFFFFFFF,), -STEP_F16),
    ("f8", 0.0, ANY_BITS, 0.0),
    ("f8", TINY, ANY_BITS, 0.0),
    ("f8", -TINY, ANY_BITS, 0.0),
    ("f8", np.inf, ANY_BITS, np.nan),
    ("f8", -np.inf, ANY_BITS, np.nan),
    ("f8", LARGEST, ANY_BITS, np.nan),
    ("f8", -LARGEST, ANY_BITS, np.nan),
    ("uf8", 0.0, ANY_BITS, 0.0),
    ("uf8", TINY, ANY_BITS, 2.0**-40 * 1.125),
    ("uf8", np.inf, ANY_BITS, np.nan),
    ("uf8", -np.inf, ANY_BITS, np.nan),
    ("uf8", LARGEST, ANY_BITS, np.nan),
    ("uf8", -TINY, ANY_BITS, np.nan),
    ("uf8", -1.0, ANY_BITS, np.nan),
    ("uf8", -LARGEST, ANY_BITS, np.nan),
]


@pytest.mark.parametrize(("name", "x", "words", "expected"), EDGES)
def test_special_and_extreme_values(name, x, words, expected):
    storage = STORAGES[name]
    value, stored = np.full(1, x, storage.computes), np.full(1, expected, storage.computes)
    for bits in words:
        if isinstance(storage, Scaled):
            scale = np.float32(2.0**-40).view(np.uint32)
            found = decode(storage, encode(storage, value, np.uint32(bits), scale), scale)
        else:
            found = unpack_read_planes(storage, pack(storage, value, np.full(1, bits, np.uint32)))
        assert_same_bits(found, stored, f"{name}, bits {bits:#x}")


# Stochastic rounding -------------------------------------------------------------------------------------------------

ALL_RANDOM_BITS = ALL_UINT16 << 16
# Biased exponents, with the smallest and the largest.
SCALES = {"f8": [4, 5, 100, 127, 238, 239], "uf8": [0, 1, 100, 200, 223]}


def binades(storage: Format) -> Iterator[tuple[np.ndarray, Any, float]]:
    """Yield numbers ≥ 0 in every binade of a format, the scale, and how many steps their mean may be off."""
    rng = np.random.default_rng(1)

    def some(low: int, high: int, each: int) -> np.ndarray:
        """Return random numbers of each biased exponent from `low` to below `high`; exponent 0 is denormals."""
        exponents = np.arange(low, high).repeat(each)
        return floats((exponents << 23) | rng.integers(0, 2**23, exponents.size))

    match storage.name:
        case "bf16_sr":
            # 16 bits are dropped, and all 65,536 values of the random bits are used: the mean is exact.
            yield some(0, 254, 2), None, 0.0
        case "f16_sr":
            yield some(113, 142, 12), None, 0.0  # likewise for 13 bits, from 2⁻¹⁴ to 2¹⁵
            # Below 2⁻¹⁴ more bits are dropped than are random, which loses 2⁻¹³ steps. If the sum of value and random
            # bits itself rounds up to the next step, it is within 2⁻¹⁵ of it: then at most one more of 2¹³ rounds up.
            yield some(95, 113, 12), None, 2.0**-13
        case "f8":
            for k in SCALES["f8"]:
                # 20 bits are dropped of |x| + b, which is itself rounded by half of the last of them, 2⁻²¹ steps. Only
                # the upper 16 of the added bits are random, which loses 2⁻¹⁶ steps.
                yield some(max(k - 12, 0), k + 15, 4), np.uint32(k << 23), 2.0**-16 + 2.0**-21
        case "uf8":
            for k in SCALES["uf8"]:
                x = some(k, k + 31, 4)
                least = np.uint32(k << 23) + np.uint32(1 << 20)
                yield x[x.view(np.uint32) >= least], np.uint32(k << 23), 2.0**-16


@every_random_format
def test_stochastic_rounding_is_to_a_neighbour_monotone_in_the_bits_and_unbiased(storage):
    magnitude = {8: 0x7F, 16: 0x7FFF}[storage.planes[0].dtype.itemsize * 8] if storage.name != "uf8" else 0xFF
    for numbers, scale, resolution in binades(storage):
        for x in np.array_split(numbers, max(numbers.size // 32, 1)):
            up = np.empty((x.size, ALL_RANDOM_BITS.size), np.uint16)
            up[...] = encode(storage, x[:, None], ALL_RANDOM_BITS, scale) & magnitude
            assert np.all(np.diff(up.astype(np.int32), axis=1) >= 0), "codes are not monotone in the random bits"
            low, high = up[:, 0], up[:, -1]
            assert np.all(high - low <= 1), "codes are not neighbours"
            below, above = (decode(storage, code, scale).astype(np.float64) for code in (low, low + 1))
            assert np.all((below <= x) & (x < above))
            mean = below + (above - below) * (up != low[:, None]).mean(axis=1)
            assert np.all(np.abs(mean - x) <= resolution * (above - below))


@every_random_format
def test_the_lower_half_of_the_random_bits_hardly_affects_rounding(storage):
    """The lower half of one buffer's random bits is the upper half of the next buffer's."""
    for numbers, scale, _ in binades(storage):
        x = numbers[::7, None]
        plain = encode(storage, x, ALL_RANDOM_BITS[::16], scale).astype(np.int64)
        ones = encode(storage, x, ALL_RANDOM_BITS[::16] | 0xFFFF, scale).astype(np.int64)
        # At most one of all 65,536 random bits gives another code, so at most one of these 4,096.
        assert np.all((plain != ones).sum(axis=1) <= 1)


@pytest.mark.parametrize("name", ["bf16_sr", "f16_sr", "f8"])
def test_stochastic_rounding_is_symmetric_about_zero(name):
    storage = STORAGES[name]
    for x, scale, _ in binades(storage):
        for bits in (np.uint32(0), NEAREST, np.uint32(0x6789ABCD), ALL_ONES):
            one, other = (decode(storage, encode(storage, y, bits, scale), scale) for y in (x, -x))
            assert_same_bits(other + 0, -one + 0)  # zero may have no sign


@every_format
def test_random_bits_affect_only_formats_that_declare_it(storage):
    x = np.random.default_rng(2).random(10_000).astype(storage.computes)
    one, other = (pack(storage, x, np.full(x.size, bits)) for bits in (np.uint32(0), ALL_ONES))
    same = [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]
    assert all(same) != storage.random


# The scale of a tile -------------------------------------------------------------------------------------------------

# The bits of the largest peak, its code, and the smallest code that a peak gets.
PEAKS = {"f8": (0x7F5FFF00, 126, 118), "uf8": (0x7F600000, 254, 246)}


@every_scaled_format
def test_the_peak_of_a_tile_gets_one_of_the_largest_codes_and_never_nan(storage):
    largest, top_code, least_code = PEAKS[storage.name]
    near = np.array([0, 0x5FFF00, 0x600000, 0x7FFF00, 0x7FFFFF])[:, None] + np.r_[-260:260]
    peaks = np.unique((np.arange(255)[:, None, None] << 23) + near)
    peaks = peaks[(peaks >= 0) & (peaks <= largest)].astype(np.uint32)
    scale = storage.scale(storage.peak(floats(peaks)))
    codes = [encode(storage, floats(peaks), bits, scale) for bits in (np.uint32(0), ALL_ONES)]
    assert max(c.max() for c in codes) == top_code
    # The scale is as small as possible: with the next smaller one, its half, the peak's code would be 8 larger, which
    # is too large.
    smallest = REACHABLE[storage.name][0] << 23
    assert codes[0][scale > smallest].min() == least_code
    assert np.all(np.isfinite(decode(storage, codes[1], scale)))


@every_scaled_format
def test_a_finite_value_above_the_largest_code_becomes_that_code_or_nan(storage):
    largest, top_code, _ = PEAKS[storage.name]
    beyond = largest + (1 << 20)  # bits of the next code; 16 in these bits are 1/65,536 of a code
    between = floats(np.r_[largest + 16 : largest + 300, beyond - 300 : beyond])
    beyond = floats(np.r_[beyond : beyond + 300, 0x7F7FFF00:0x7F800000])
    for x, expected in ((between, {top_code, top_code + 1}), (beyond, {top_code + 1})):
        scale = storage.scale(storage.peak(x))
        assert np.all(scale == REACHABLE[storage.name][-1] << 23)
        codes = [encode(storage, x, bits, scale) for bits in (np.uint32(0), ALL_ONES)]
        assert [np.unique(c).tolist() for c in codes] == [[min(expected)], [max(expected)]]
    assert np.isnan(decode(storage, np.array(top_code + 1), scale[0]))


def normal_values(storage: Format, n: int = TILE, seed: int = 3) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return x * x if storage.name == "uf8" else x


@every_scaled_format
@pytest.mark.parametrize("bits", [0, 0x80000000, 0xFFFFFFFF])
def test_zeros_stay_zeros(storage, bits):
    for x in (np.zeros(TILE, np.float32), np.where(np.arange(TILE) % 2, normal_values(storage), np.float32(0))):
        assert np.all(unpack_read_planes(storage, pack(storage, x, np.full(TILE, bits, np.uint32)))[x == 0] == 0)


@every_scaled_format
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1003])
def test_each_tile_has_its_own_scale_and_the_last_may_be_incomplete(storage, n):
    x = normal_values(storage, n) * np.float32(10) ** (np.arange(n) // TILE).astype(np.float32)
    codes, scale = pack(storage, x)
    assert codes.shape == (n,)
    assert scale.shape == (-(-n // TILE),)
    for k in range(scale.size):
        alone = pack(storage, x[k * TILE : (k + 1) * TILE])
        assert np.array_equal(codes[k * TILE : (k + 1) * TILE], alone[0])
        assert scale[k] == alone[1][0]


@every_scaled_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_does_not_affect_the_rest_of_its_tile(storage, bad):
    x, poisoned = normal_values(storage), normal_values(storage)
    x[100], poisoned[100] = 0, bad
    clean, found = (unpack_read_planes(storage, pack(storage, a)) for a in (x, poisoned))
    assert np.isnan(found[100])
    assert_same_bits(np.delete(found, 100), np.delete(clean, 100))


@every_scaled_format
@pytest.mark.parametrize("huge", [1e10, 1e30, 1e38])
def test_one_huge_value_leaves_the_others_within_a_step_of_their_value(storage, huge):
    x = normal_values(storage)
    x[100] = huge
    codes, scale = pack(storage, x, np.random.default_rng(4).integers(0, 2**32, TILE, np.uint32))
    x, found = x.astype(np.float64), unpack(storage, [codes, scale]).astype(np.float64)
    b = float(scale.view(np.float32)[0])
    # With 3 bits of mantissa a step is at most an eighth of |x|, or for f8 of |x| + b. uf8 rounds everything below its
    # smallest code up to it.
    least = 1.125 * b
    bound = np.maximum(x / 8, least - x) if storage.name == "uf8" else (np.abs(x) + b) / 8
    assert np.all(np.abs(found - x) <= bound)
    assert np.all((found > 0) == (x > 0)) or storage.name == "f8"
    assert 0 < b < huge * {"f8": 2.0**-14, "uf8": 2.0**-30}[storage.name]


@every_scaled_format
def test_a_tile_of_denormals_is_accurate_to_the_smallest_step(storage):
    x = floats(np.random.default_rng(5).integers(0, 1 << 23, TILE))
    for bits in (np.uint32(0), ALL_ONES):
        found = unpack_read_planes(storage, pack(storage, x, np.full(TILE, bits))).astype(np.float64)
        # Codes of f8 are 2⁻¹²³ / 8 apart; those of uf8, at scale zero, 2²⁰ · 2⁻¹⁴⁹.
        assert np.all(np.abs(found - x) < {"f8": 2.0**-126, "uf8": 2.0**-129}[storage.name])

"""Storage formats: how the values of a buffer are kept in memory, as decode and encode; presets that combine them.

Everything here that computes is plain NumPy code in the tracer's vocabulary: called on arrays it is the definition,
called on symbols it becomes part of a kernel. A value is decoded, the rule computes with it in full precision, and what
it returns is encoded: no rule knows of a format, and a format knows of no rule.

A format keeps a value in one or more planes, arrays of their own. Elements of 8 and 16 bits reach decode as uint32, and
leave encode as uint32 of which the low bits are kept. Encoders give one canonical NaN. What was decoded is encoded
without a change, whatever the random bits: rounding is done once, when the rule has made a new value.
"""

# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastopt.errors import RuleError, explain

TILE = 256
"""Values in a tile: one scale block, one GPU warp × 8 values a lane, one short vector loop on the CPU. Groups of
parameters begin at a multiple of it."""

_U8, _U16, _U32 = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32)
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)


class Plane(NamedTuple):
    """One of the arrays that a format keeps: what its name adds to the buffer's, and the type of its elements."""

    suffix: str
    dtype: np.dtype
    view: str = ""  # the type that its bits are of, where NumPy's kernels know it as a uint only
    read: bool = True  # False: only written, for others to read
    tiled: bool = False  # one element for each tile


class Storage:
    """A format. `decode(*planes)` gives the value, `encode(x, bits)` the new planes, a tuple.

    `bits` is a uint32 whose upper 16 bits are random, the element's own, where the format is `random`: see `NEAREST`.
    """

    name: ClassVar[str]
    planes: ClassVar[tuple[Plane, ...]]
    computes: ClassVar[np.dtype] = _F32
    forward: ClassVar[int] = 0  # number of the plane that a forward pass reads
    random: ClassVar[bool] = False
    holds: ClassVar[tuple[str, ...]] = ("p", "g", "state")  # what it is meant for, and tested with

    @property
    def plain(self) -> bool:
        """Whether values are kept as they are computed."""
        return len(self.planes) == 1 and self.planes[0].dtype == self.computes

    def decode(self, *planes: Any) -> Any:
        """Give the value that the planes hold."""
        raise NotImplementedError

    def encode(self, x: Any, bits: Any) -> tuple:
        """Give the planes that hold a value, rounded if need be."""
        raise NotImplementedError


class Scaled(Storage):
    """A format with one scale for each tile: `encode` takes it, and `scale` makes it from the largest `peak`."""

    def peak(self, x: Any) -> Any:
        """Give what a value asks of its tile's scale, as a uint32."""
        raise NotImplementedError

    def scale(self, peak: Any) -> Any:
        """Give the scale of a tile, its last plane, from the largest of its values' peaks."""
        raise NotImplementedError

    def other_scales(self, scale: np.ndarray) -> Sequence[np.ndarray]:
        """Give the scales that values may have had which now ask for these, if there are others."""
        return ()

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        raise NotImplementedError


NEAREST = np.uint32(0x80000000)
"""What stands for random bits where a value is packed that no step has made: to nearest."""


class F32(Storage):
    """float32: 4 bytes."""

    name, planes = "f32", (Plane("", _F32),)

    def decode(self, x: Any) -> Any:  # noqa: D102
        return x

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x,)


class F64(F32):
    """float64: 8 bytes."""

    name, planes, computes = "f64", (Plane("", _F64),), _F64


class BF16(Storage):
    """bfloat16, the upper half of a float32, rounded to nearest, ties to even: 2 bytes."""

    name, planes = "bf16", (Plane("", _U16, "bfloat16"),)

    def decode(self, word: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        return (np.where(x != x, 0x7FC0, (u + (0x7FFF + ((u >> 16) & 1))) >> 16),)


class BF16SR(BF16):
    """bfloat16 with stochastic rounding: up with a probability that makes the mean exact. 2 bytes."""

    name, random, holds = "bf16_sr", True, ("p", "state")

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (np.where(x != x, 0x7FC0, (x.view(np.uint32) + (bits >> 16)) >> 16),)


class BF16Kahan(Storage):
    """bfloat16 and, as another bfloat16, what rounding took away (compensated summation): 4 bytes, 16 or 17 bits.

    From half a step beyond bfloat16's largest number on it is ±∞; −0 becomes 0.
    """

    name, planes = "bf16_kahan", (Plane("", _U16, "bfloat16"), Plane("error", _U16, "bfloat16"))
    holds = ("p",)

    def decode(self, word: Any, error: Any) -> Any:  # noqa: D102
        return (word << 16).view(np.float32) + (error << 16).view(np.float32) + 0.0  # no −0 of two

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        (word,) = STORAGES["bf16"].encode(x, bits)
        rest = x - (word << 16).view(np.float32)
        (error,) = STORAGES["bf16"].encode(np.where(np.abs(rest) < np.inf, rest, 0.0), bits)
        return word, error


class F16(Storage):
    """float16, rounded to nearest, ties to even; from 65,520 on it is ∞: 2 bytes."""

    name, planes = "f16", (Plane("", _U16, "float16"),)

    def decode(self, word: Any) -> Any:  # noqa: D102
        size = word & 0x7FFF
        u = np.where(size >= 0x7C00, (size << 13) | 0x7F800000, (size << 13) + 0x38000000)
        # A denormal counts steps of 2⁻²⁴, as do the floats from 0.5 on. Products with float32 denormals are slow.
        small = ((size + 0x3F000000).view(np.float32) - 0.5).view(np.uint32)
        return (np.where(size < 0x0400, small, u) | ((word & 0x8000) << 16)).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        normal = (size - 0x38000000 + (0x0FFF + ((size >> 13) & 1))) >> 13
        small = (size.view(np.float32) + 0.5).view(np.uint32) - 0x3F000000  # 0.5 has float16's smallest step
        return (self._finish(x, u, size, np.where(size < 0x38800000, small, normal)),)

    def _finish(self, x: Any, u: Any, size: Any, finite: Any) -> Any:
        return np.where(x != x, 0x7E00, np.where(size >= 0x477FF000, 0x7C00, finite) | ((u >> 16) & 0x8000))


class F16SR(F16):
    """float16 with stochastic rounding: 2 bytes."""

    name, random, holds = "f16_sr", True, ("p", "state")

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        chance = bits >> 19  # 13 bits, as many as are dropped
        normal = (size - 0x38000000 + chance) >> 13
        steps = np.floor(size.view(np.float32) * 2.0**24 + chance.astype(np.float32) * 2.0**-13)  # of the smallest
        small = (steps + 2.0**23).view(np.uint32) - 0x4B000000
        return (self._finish(x, u, size, np.where(size < 0x38800000, small, normal)),)


class Split(Storage):
    """A float32, exactly: the nearest bfloat16, which a forward pass reads, and the float32's low 16 bits. 4 bytes.

    A tie goes away from zero in the bfloat16; where the low bits begin with a one, it was rounded up.
    """

    name, planes = "split", (Plane("", _U16, "bfloat16"), Plane("low", _U16))
    holds = ("p",)

    def decode(self, word: Any, low: Any) -> Any:  # noqa: D102
        return (((word - (low >> 15)) << 16) | low).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = np.where(x != x, 0x7FC00000, x.view(np.uint32))
        return (u + 0x8000) >> 16, u & 0xFFFF


class Split24(Storage):
    """The upper 24 bits of a float32, to nearest even: a bfloat16, which a forward pass reads, and 8 bits. 3 bytes."""

    name, planes = "split24", (Plane("", _U16, "bfloat16"), Plane("low", _U8))
    holds = ("p",)

    def decode(self, word: Any, low: Any) -> Any:  # noqa: D102
        return (((word - (low >> 7)) << 16) | (low << 8)).view(np.float32)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        u = np.where(x != x, 0x7FC000, (u + (0x7F + ((u >> 8) & 1))) >> 8)
        return (u + 0x80) >> 8, u & 0xFF


class F32WithBF16(F32):
    """float32 with a bfloat16 copy, rounded to nearest even, that each step writes for the forward pass: 6 bytes."""

    name, planes, forward = "f32_bf16", (Plane("", _F32), Plane("copy", _U16, "bfloat16", read=False)), 1
    holds = ("p",)

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x, *STORAGES["bf16"].encode(x, bits))


class F32WithF16(F32WithBF16):
    """float32 with a float16 copy, rounded to nearest even, that each step writes for the forward pass: 6 bytes."""

    name, planes = "f32_f16", (Plane("", _F32), Plane("copy", _U16, "float16", read=False))

    def encode(self, x: Any, bits: Any) -> tuple:  # noqa: D102
        return (x, *STORAGES["f16"].encode(x, bits))


class UF8(Scaled):
    """8 bits for what is never negative, and a scale for each tile; rounded randomly.

    The codes 1 to 254 are floats of 3 bits of mantissa in 31.75 powers of two, the highest of which the tile's largest
    finite value decides. What is smaller becomes the smallest of them; only zero is 0. 255 is NaN, as which are kept
    too ∞, what is beyond 2.98e38 and what is negative. The scale is the bits of the float32 that code 0 would be.
    """

    name, planes, random = "uf8", (Plane("", _U8), Plane("scale", _U32, tiled=True)), True
    holds = ("state",)

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        u = np.where(code == 0, 0, (code << 20) + scale)
        return np.where(code == 255, 0x7FC00000, u).view(np.float32)

    def peak(self, x: Any) -> Any:  # noqa: D102
        u = x.view(np.uint32)
        return np.where(u < 0x7F800000, u, 0)

    def scale(self, peak: Any) -> Any:  # noqa: D102
        peak, room = np.where(peak < 0x7F600000, peak, 0x7F600000), 254 << 20
        return (np.where(peak > room, peak - room, 0) + 0x7FFFFF) & 0x7F800000

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        u, least = x.view(np.uint32), scale + 0x100000
        code = (((np.where(u < least, least, u) - scale) >> 4) + (bits >> 16)) >> 16  # with room for any u
        return (np.where(x == 0.0, 0, np.where(code > 255, 255, code)),)


class F8(Scaled):
    """8 bits, one of them the sign, and a scale b for each tile; rounded randomly.

    The codes 0 to 126 are |x| + b as floats of 3 bits of mantissa in the 15.75 powers of two from b on: evenly spaced
    about zero, in proportion to |x| above b. 127 is NaN, as which ∞ is kept too, and what is beyond 2.98e38. b is a
    power of two that the tile's largest finite |x| decides, and the scale its float32 bits.
    """

    name, planes, random = "f8", (Plane("", _U8), Plane("scale", _U32, tiled=True)), True
    holds = ("state",)

    def decode(self, code: Any, scale: Any) -> Any:  # noqa: D102
        size = code & 0x7F
        u = (((size << 20) + scale).view(np.float32) - scale.view(np.float32)).view(np.uint32)
        return np.where(size == 127, 0x7FC00000, u | ((code & 0x80) << 24)).view(np.float32)

    def peak(self, x: Any) -> Any:  # noqa: D102
        size = x.view(np.uint32) & 0x7FFFFFFF
        return np.where(size < 0x7F800000, size, 0)

    def scale(self, peak: Any) -> Any:  # noqa: D102
        # The power of two above whose 6/8 the peak, or b more than it, would round to 127; b/8 is never denormal.
        top = (np.where(peak < 0x7F5FFF00, peak, 0x7F5FFF00) + 0x2000FF) & 0x7F800000
        return np.where(top > 19 << 23, top - (15 << 23), 4 << 23)

    def other_scales(self, scale: np.ndarray) -> Sequence[np.ndarray]:
        """Give the next scale, for a largest value that was rounded down, and the last, for one that became NaN."""
        return scale + (1 << 23), np.full_like(scale, 239 << 23)

    def encode(self, x: Any, bits: Any, scale: Any = None) -> tuple:  # noqa: D102
        u = x.view(np.uint32)
        size = u & 0x7FFFFFFF
        code = ((size.view(np.float32) + scale.view(np.float32)).view(np.uint32) - scale + (bits >> 12)) >> 20
        return (np.where(code >= 127, 127, code | ((u >> 24) & 0x80)),)


STORAGES: dict[str, Storage] = {
    s.name: s
    for s in (
        F32(), F64(), BF16(), BF16SR(), BF16Kahan(), F16(), F16SR(), Split(), Split24(), F32WithBF16(), F32WithF16(),
        F8(), UF8(),
    )
}  # fmt: skip
"""The formats a buffer can have, by the name that appears in kernel names."""


class Preset(NamedTuple):
    """Formats for a whole optimizer: of the parameter, of the gradient, of state with a sign and of state without.

    State of which a rule takes differences (its `exact`) stays in the computing precision.
    """

    p: str
    g: str
    signed: str
    unsigned: str

    def formats(self, rule: Any, buffers: Sequence[str]) -> dict[str, str]:
        """Give the format of each buffer of a rule."""
        unsigned, exact = _state_names(rule, "unsigned", buffers), _state_names(rule, "exact", buffers)
        kinds = {b: self.unsigned if b in unsigned else self.signed for b in buffers}
        full = NAMES[STORAGES[self.p].computes]
        return kinds | dict.fromkeys(exact, full) | {"p": self.p, "g": self.g}


def _state_names(rule: Any, attribute: str, buffers: Sequence[str]) -> tuple[str, ...]:
    """Give the state that a rule names in `unsigned` or `exact`, or raise a RuleError where there is no such state."""
    names = getattr(rule, attribute, ())
    state = [b for b in buffers if b not in ("p", "g")]
    if not isinstance(names, tuple | list) or any(name not in state for name in names):
        where, what = f"{type(rule).__name__}.{attribute}", "this is not a tuple of names of state buffers."
        raise RuleError(explain(where, what, got=repr(names)[:60], expected=f"some of {', '.join(state) or '(none)'}"))
    return tuple(names)


PRESETS: dict[str, Preset] = {
    "f32": Preset("f32", "f32", "f32", "f32"),
    "f64": Preset("f64", "f64", "f64", "f64"),
    "bf16": Preset("bf16_sr", "bf16", "bf16_sr", "bf16_sr"),  # rounded to nearest throughout, training stalls
    "bf16_kahan": Preset("bf16_kahan", "bf16", "bf16", "bf16_sr"),
    "mixed_bf16": Preset("f32_bf16", "bf16", "f32", "f32"),
    "mixed_f16": Preset("f32_f16", "f16", "f32", "f32"),
    "split": Preset("split", "bf16", "f32", "f32"),
    "8bit": Preset("f32", "f32", "f8", "uf8"),
    "split_8bit": Preset("split", "bf16", "f8", "uf8"),
    "bf16_8bit": Preset("bf16_sr", "bf16", "f8", "uf8"),
}
"""Formats that go well together, by name; docs/storage.md says what each costs, in bytes and in quality."""

NAMES: dict[np.dtype, str] = {_F32: "f32", _F64: "f64"}
"""The format of a buffer that is kept in the computing precision."""


def unpack(storage: Storage, planes: Sequence[np.ndarray]) -> np.ndarray:
    """Decode flat arrays, one for each plane that is read, to their values (new memory)."""
    n = planes[0].size
    given = []
    for plane, array in zip([p for p in storage.planes if p.read], planes, strict=True):
        wide = array.copy() if plane.dtype.kind == "f" else array.astype(np.uint32)
        given.append(np.repeat(wide, TILE)[:n] if plane.tiled else wide)
    with np.errstate(all="ignore"):
        return storage.decode(*given)


def pack(storage: Storage, values: np.ndarray, bits: Any = NEAREST) -> list[np.ndarray]:
    """Encode flat values to one array for each plane; `bits` are as many random words as there are values."""
    with np.errstate(all="ignore"):
        if not isinstance(storage, Scaled):
            encoded = storage.encode(values, bits)
        else:
            tiles = -(-values.size // TILE)
            peaks = np.zeros(tiles * TILE, np.uint32)
            peaks[: values.size] = storage.peak(values)
            scale = storage.scale(peaks.reshape(tiles, TILE).max(axis=1))
            if bits is NEAREST:
                scale = _former_scale(storage, values, scale)
            encoded = (*storage.encode(values, bits, np.repeat(scale, TILE)[: values.size]), scale)
    return [x.astype(plane.dtype) for plane, x in zip(storage.planes, encoded, strict=True)]


def _former_scale(storage: Scaled, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Give each tile the scale at which its values were once encoded, where it is not the one they ask for.

    Rounding can carry a tile's largest value below what its scale was chosen by. Packed again as they are, the values
    must come back as they were.
    """

    def kept(scale: np.ndarray) -> Any:
        each = np.repeat(scale, TILE)[: values.size]
        same = np.ones(scale.size * TILE, bool)
        back = storage.decode(*storage.encode(values, NEAREST, each), each)
        same[: values.size] = (back == values) | (values != values)
        return np.all(same.reshape(-1, TILE), axis=1)

    for other in storage.other_scales(scale):
        scale = np.where(~kept(scale) & kept(other), other, scale)
    return scale

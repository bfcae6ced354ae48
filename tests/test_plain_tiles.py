"""A tile with scales is stepped in one of two ways, which give the same bits; the plain one is taken where it may."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from cases import CASES
from values import assert_same_bits, step

import fastopt
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu.printer import function_name, print_source
from fastopt.kernels.formats import NEAREST, STORAGES, TILE, Scaled, pack

SCALED = [form for form in STORAGES.values() if isinstance(form, Scaled)]
CODES = np.arange(256, dtype=np.uint32)
RANDOM = (np.uint32(0), np.uint32(0xFFFFFFFF), NEAREST, np.uint32(0x12345678))


def is_plain(form: Scaled, codes: np.ndarray) -> np.ndarray:
    """Whether the format treats these codes like others."""
    return (codes & 127) != 127 if form.name == "f8" else (codes != 0) & (codes != 255)


@pytest.mark.parametrize("form", SCALED, ids=lambda form: form.name)
def test_every_plain_code_is_decoded_alike_with_every_scale(form):
    codes = CODES[is_plain(form, CODES)]
    rng = np.random.default_rng(0)
    for scale in (*range(0, 1 << 32, 1 << 23), *rng.integers(0, 1 << 32, 300)):
        scales = np.full(codes.size, scale, np.uint32)
        with np.errstate(all="ignore"):
            assert_same_bits(form.plain_decode(codes, scales), form.decode(codes, scales))


@pytest.mark.parametrize("form", SCALED, ids=lambda form: form.name)
def test_codes_that_are_not_plain_are_told_by_bounds(form):
    mask, least, most = form.plain_codes
    bits = CODES & mask
    assert np.array_equal((bits >= least) & (bits <= most), is_plain(form, CODES))


@pytest.mark.parametrize("form", SCALED, ids=lambda form: form.name)
def test_plain_values_are_encoded_alike_and_others_are_seen(form):
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0xFF00, 0xFFFF):
        x = (upper | np.uint32(low)).view(np.float32)
        with np.errstate(all="ignore"):
            plain = form.plain_peak(x) < form.plain_limit
            size = np.abs(x)
            apart = (x != x) | (size == np.inf) | (size > 3.0e38)
            assert not plain[apart | ((x <= 0) & (form.name == "uf8"))].any()
            assert plain[~apart & (size < 2.9e38) & ((x > 0) | (form.name == "f8"))].all()
            x = x[plain]
            scale = form.plain_scale(form.plain_peak(x))  # each the largest of a tile
            assert np.array_equal(scale, form.scale(form.peak(x)))
            for bits in RANDOM:
                for largest in (scale, np.maximum(scale, 100 << 23), np.maximum(scale, 200 << 23)):
                    (expected,) = form.encode(x, bits, largest)
                    found = form.plain_encode(x, bits, largest).view(np.int32) >> 20
                    found = np.maximum(found, form.plain_codes[1]).astype(np.uint32)
                    assert np.array_equal(found & 255, expected & 255)


PRESETS = ("8bit", "split_8bit", "bf16_8bit")
RULES = {name: CASES[name] for name in ("adam", "lion", "rmsprop-centered-momentum", "noise-adam")}
APART = (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 3e38, 1e-45)


def tiles(program: Any, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return a program's arrays of so many tiles, in all of which everything is plain."""
    rng, made = np.random.default_rng(seed), {}
    for b, form in program.formats.items():
        x = (rng.uniform(0.5, 1.5, count * TILE) * 1e-2).astype(np.float32)
        if b not in getattr(program.specialization, "unsigned", ()):
            x *= rng.choice(np.array([-1, 1], np.float32), x.size)
        if b in ("v", "vmax"):
            x *= np.float32(0.01)
        for (name, _), array in zip(form.plane_names(b).items(), pack(form, x), strict=True):
            made[name] = array
    return [made[b.name].copy() for b in program.buffers]


def with_apart(program: Any, value: float, buffer: str) -> list[np.ndarray]:
    """Return 256 tiles of which number k has a value that is not plain at place k of one buffer."""
    arrays = tiles(program, TILE)
    form = program.formats[buffer]
    names = list(form.plane_names(buffer))
    places = np.arange(TILE) * (TILE + 1)
    own = {b.name: a for b, a in zip(program.buffers, arrays, strict=True)}
    single = [x[0] for x in pack(form, np.array([value], np.float32))]
    for name, word in zip(names, single, strict=True):
        if own[name].size > TILE:
            own[name][places] = word
    return arrays


def taken(backend: str, program: Any, rule: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    arrays = [a.copy() for a in arrays]
    keys = (*noise_keys(3, 2), 0) if program.noise else ()
    step(backend, program, arrays, keys, host_scalars(program, rule)(2))
    return arrays


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", RULES)
def test_one_value_apart_at_each_place_of_a_tile_gives_the_bits_of_the_reference(name, preset):
    rule, program = RULES[name], trace(RULES[name], preset)
    for buffer in program.formats:
        for value in APART:
            if value == -1.0 and buffer in ("v", "vmax"):
                continue
            arrays = with_apart(program, value, buffer)
            for found, expected in zip(
                taken("cpu", program, rule, arrays), taken("reference", program, rule, arrays), strict=True
            ):
                assert_same_bits(found, expected, f"{value} in {buffer}")


@pytest.mark.parametrize("preset", [*PRESETS, "bf16", "bf16_kahan", "split", "mixed_bf16"])
@pytest.mark.parametrize("name", ["adam", "adam-amsgrad", "lion", "momentum", "rmsprop-centered-momentum", "adagrad"])
def test_any_bits_in_memory_give_the_bits_of_the_reference(name, preset):
    rule, program = CASES[name], trace(CASES[name], preset)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, a.nbytes, np.uint8).view(a.dtype) for a in tiles(program, 40)]
    with np.errstate(all="ignore"):
        expected = taken("reference", program, rule, arrays)
    for found, truth in zip(taken("cpu", program, rule, arrays), expected, strict=True):
        assert_same_bits(found, truth)


@pytest.mark.parametrize("preset", ["bf16", "bf16_kahan", "split"])
@pytest.mark.parametrize("name", ["adam", "adam-amsgrad", "momentum", "lion", "ema-adam"])
def test_nan_in_one_buffer_alone_becomes_the_canonical_one_wherever_it_goes(name, preset):
    rule, program = CASES[name], trace(CASES[name], preset)
    for b in program.buffers:
        if b.dtype != np.uint16 or b.name == "p.low":
            continue
        for word in (0x7FC0, 0xFFC0, 0x7F81, 0xFFFF):
            arrays = tiles(program, 2)
            arrays[program.buffers.index(b)][[0, 7, 300]] = word
            expected = taken("reference", program, rule, arrays)
            for found, truth in zip(taken("cpu", program, rule, arrays), expected, strict=True):
                assert_same_bits(found, truth, f"{word:#x} in {b.name}")


def _compiled(program: Any, source: str, folder: Any) -> Any:
    path = folder / f"kernel_{abs(hash(source))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, function_name(program))
    function.compile(module.SIGNATURE)
    return function


def _run(function: Any, program: Any, rule: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    arrays = [a.copy() for a in arrays]
    n = next(a.size for a, b in zip(arrays, program.buffers, strict=True) if not b.tiled)
    keys = (*noise_keys(3, 2), 0) if program.noise else ()
    function(0, n, n, 0, *(a.ctypes.data for a in arrays), *keys, *map(float, host_scalars(program, rule)(2)))
    return arrays


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["adam", "lion"])
def test_plain_tiles_are_stepped_the_plain_way_and_the_other_way_gives_the_same_bits(name, preset, tmp_path):
    rule, program = RULES[name], trace(RULES[name], preset)
    source, arrays = print_source(program), tiles(program, 20)
    expected = taken("reference", program, rule, arrays)
    never = source.replace(f"plain = count == {TILE}", "plain = count == -1")
    start, end = source.index("            else:\n"), source.index("        first = claim(job, first, chunk)")
    always = source[:start] + source[end:]
    assert never != source
    for text in (never, always):
        for found, truth in zip(_run(_compiled(program, text, tmp_path), program, rule, arrays), expected, strict=True):
            assert_same_bits(found, truth)


def test_a_zero_stays_exactly_zero_whatever_its_tile():
    opt = fastopt.Optimizer(fastopt.Adam(lr=0.1), {"w": np.ones(4 * TILE, np.float32)}, storage="8bit")
    gradient = np.random.default_rng(0).standard_normal(4 * TILE).astype(np.float32)
    gradient[TILE : 2 * TILE] = 0  # a whole tile
    gradient[2 * TILE + 7] = 0  # one element of a tile
    for _ in range(20):
        opt.step({"w": gradient})
    for state in ("m", "v"):
        assert np.array_equal(opt.state(state)["w"] == 0, gradient == 0)
    assert np.array_equal(opt.params["w"] == 1, gradient == 0)


@dataclass(frozen=True)
class Named:
    """A rule whose buffers and scalar are called like what a kernel makes of others' names."""

    lr: Any = 0.1

    unsigned: ClassVar = ("m_codes",)

    def scalars(self, t):
        return {"x9_2": self.lr, "step_1": 0.5, "unusual": 0.25}

    def update(self, p, g, m, m_codes, *, x9_2, step_1, unusual):
        m = step_1 * m + unusual * g
        m_codes = step_1 * m_codes + unusual * (g * g)
        return p - x9_2 * m / (np.sqrt(m_codes) + unusual), m, m_codes


@dataclass(frozen=True)
class ReadOnly:
    """A rule that reads a state and leaves it as it is."""

    lr: Any = 0.1
    root: bool = False

    def scalars(self, t):
        return {"lr": self.lr}

    def update(self, p, g, m, *, lr):
        return p - lr * g * (np.sqrt(m * m) if self.root else m), m


@pytest.mark.parametrize("storage", [{"p": "bf16_sr", "g": "bf16"}, {"p": "f32", "g": "f32"}], ids=["pairs", "wide"])
@pytest.mark.parametrize("rule", [Named(), ReadOnly(), ReadOnly(root=True)], ids=["Named", "ReadOnly", "with a root"])
def test_odd_rules_are_stepped_alike(rule, storage):
    state = {"m": "f8", "m_codes": "uf8"} if isinstance(rule, Named) else {"m": "f8"}
    program = trace(rule, {**storage, **state})
    arrays = tiles(program, 3)
    for n in (3 * TILE, 2 * TILE + 1, 5):
        part = [a[: b.size(n)].copy() for a, b in zip(arrays, program.buffers, strict=True)]
        for found, expected in zip(
            taken("cpu", program, rule, part), taken("reference", program, rule, part), strict=True
        ):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("scale", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8001, 0x7F800001, 0x80000000, 0x12345678])
def test_a_scale_that_no_encoder_writes_makes_no_nan_with_low_bits(scale):
    rule = fastopt.Adam(lr=0.1)
    program = trace(rule, "bf16_8bit")
    for codes in (0, 5, 0x80, 0xFF):
        arrays = tiles(program, 2)
        for array, b in zip(arrays, program.buffers, strict=True):
            if b.tiled:
                array[:] = scale
            elif b.name in ("m", "v"):
                array[:] = codes
        for found, expected in zip(
            taken("cpu", program, rule, arrays), taken("reference", program, rule, arrays), strict=True
        ):
            assert_same_bits(found, expected)


@dataclass(frozen=True)
class Many:
    """A rule of seven states, more than a function that Numba inlines can have as arguments with their scales."""

    lr: Any = 0.1

    def scalars(self, t):
        return {"lr": self.lr}

    def update(self, p, g, a, b, c, d, e, f, h, *, lr):
        root = np.sqrt(np.abs(a))
        return (p - lr * g, root, c, b, a + d, e - f * root, g + f, np.sqrt(np.abs(p * lr)) + h)


def test_a_rule_of_many_states_is_compiled():
    program = trace(Many(), "split_8bit")
    arrays = tiles(program, 2)
    for found, expected in zip(
        taken("cpu", program, Many(), arrays), taken("reference", program, Many(), arrays), strict=True
    ):
        assert_same_bits(found, expected)

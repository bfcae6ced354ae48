"""The format of each buffer of a rule: what presets choose, what a dict may name, and what is refused."""

import numpy as np
import pytest
from cases import CASES, fresh_buffers
from values import step

import fastopt
from fastopt import SettingError
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import FULL, PRESETS, STORAGES
from fastopt.kernels.rules import RULES
from fastopt.kernels.rules.rule import signature


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", [*RULES, *CASES])
def test_a_preset_gives_each_buffer_of_each_rule_a_format_that_can_store_it(preset, case):
    rule = CASES[case] if case in CASES else RULES[case]()
    formats = layout(rule, preset)
    assert layout(rule, formats) == formats
    program = trace(rule, formats)
    for b in getattr(rule, "exact", ()):
        assert formats[b] == FULL[program.dtype]
    for b in set(program.state) - set(getattr(rule, "exact", ())):
        signed = b not in getattr(rule, "unsigned", ())
        assert formats[b] == (PRESETS[preset].signed if signed else PRESETS[preset].unsigned)


@pytest.mark.parametrize("case", [*RULES, *CASES])
def test_unsigned_and_exact_name_state_of_the_rule(case):
    rule = CASES[case] if case in CASES else RULES[case]()
    named = {*getattr(rule, "unsigned", ()), *getattr(rule, "exact", ())}
    assert named <= set(signature(rule).buffers[2:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_unsigned_state_is_never_negative(case, dtype):
    rule, rng = CASES[case], np.random.default_rng(6)
    program = trace(rule, dtype)
    unsigned = set(getattr(rule, "unsigned", ())) & set(program.state)
    buffers = fresh_buffers(rule, rng.standard_normal(2000).astype(dtype))
    arrays = [buffers[b.name] for b in program.buffers]
    scalars = host_scalars(program, rule)
    for t in range(1, 21):
        buffers["g"][...] = rng.standard_normal(2000) * 10.0 ** rng.integers(-12, 12, 2000) * (rng.random(2000) < 0.9)
        step("reference", program, arrays, (*noise_keys(0, t), 0) if program.noise else (), scalars(t))
        for b in unsigned:
            assert np.all(buffers[b] >= 0)
            assert not np.any(np.signbit(buffers[b]))


# Bytes read and written per parameter and step. A scale, read and written, is 8 bytes per 256 parameters.
BYTES = [
    ("adam", "f32", 28), ("adam", "bf16", 14), ("adam", "8bit", 16 + 16 / 256), ("adam", "split_8bit", 14 + 16 / 256),
    ("adam", "bf16_8bit", 10 + 16 / 256), ("sgd", "f32", 12), ("momentum", "f32", 20), ("lion", "f32", 20),
    ("sgd", "mixed_bf16", 12), ("sgd", "bf16_kahan", 10),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "preset", "expected"), BYTES)
def test_bytes_per_parameter_of_a_step(rule, preset, expected):
    chosen = RULES[rule]()
    assert trace(chosen, layout(chosen, preset)).bytes_per_parameter == expected


REFUSED = {
    "unknown buffer": ({"w": "bf16"}, "there is no buffer 'w'"),
    "unknown buffer like a known one": ({"vmaxx": "bf16"}, "there is no buffer 'vmaxx'.*vmax"),
    "unknown format": ({"m": "bf17"}, "'m': there is no such format.*bf16"),
    "plane as a buffer": ({"p.low": "bf16"}, "there is no buffer 'p.low'"),
    "dtype as a format": ({"m": np.float32}, "'m': there is no such format"),
    **{
        f"{name} for a state": ({"m": name}, f"'m', a state buffer, is not stored in the format {name}.*bf16, bf16_sr")
        for name, s in STORAGES.items()
        if "state" not in s.holds
    },
    **{
        f"{name} for a gradient": (
            {"g": name},
            f"'g', the gradient, .*, is not stored in the format {name}.*f32, bf16, f16",
        )
        for name, s in STORAGES.items()
        if "g" not in s.holds
    },
    "f8 for a parameter": ({"p": "f8"}, "'p', the parameter, is not stored in the format f8"),
    "uf8 for a parameter": ({"p": "uf8"}, "'p', the parameter, is not stored in the format uf8"),
    **{
        f"float64 with {name}": ({"p": "f64", "m": name}, f"'m' is stored as {name}, of float32.* float64.*f64")
        for name, s in STORAGES.items()
        if "state" in s.holds and name != "f64"
    },
    "float64 gradient of a split parameter": ({"p": "split", "g": "f64"}, "'g' is stored as f64, of float64.* float32"),
    "float64 state, parameter not named": (
        {"v": "f64"},
        "'v' is stored as f64, of float64, but the step computes in float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_formats_are_refused_and_valid_ones_listed(case):
    storage, message = REFUSED[case]
    with pytest.raises(SettingError, match=f"(?s){message}"):
        layout(fastopt.Adam(), storage)


def test_buffers_that_are_not_named_are_stored_in_the_computing_precision():
    assert layout(fastopt.Adam(), {"m": "f8"}) == {"p": "f32", "g": "f32", "m": "f8", "v": "f32", "vmax": "f32"}
    assert layout(fastopt.SGD(), {"p": "f64"}) == {"p": "f64", "g": "f64"}
    assert layout(fastopt.SGD(), np.float64) == {"p": "f64", "g": "f64"}

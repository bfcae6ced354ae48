"""docs/storage.md says what was measured, and each part that measures works at a tiny size."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "storage.md"


@pytest.fixture
def quality() -> Any:
    """The measurements."""
    return importlib.import_module("fastopt.bench.quality")


def kept(quality) -> Any:
    found = re.search(r"\]\((\.\./bench/results/quality-.*?)\)", DOCUMENT.read_text())
    assert found
    return quality.results((DOCUMENT.parent / found[1]).resolve())


def test_tables_are_those_of_the_results(quality):
    run, text = kept(quality), DOCUMENT.read_text()
    marks = re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert dict(marks) == {name: f"{made}\n" for name, made in quality.tables(run).items()}
    assert len(marks) == text.count("<!-- end -->")
    for picture in re.findall(r"\((pictures/.*?\.png)\)", text):
        assert (DOCUMENT.parent / picture).is_file()


def test_second_moments_in_8_bits_keep_what_they_promise(quality):
    claims = quality.claims(kept(quality))
    assert len(claims) == 3
    assert all(claims.values()), claims


def test_every_preset_and_format_has_a_row():
    text = DOCUMENT.read_text()
    rows = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert set(fastopt.PRESETS) | set(fastopt.STORAGES) == rows


def test_every_part_runs_at_a_tiny_size_without_peers(quality, monkeypatch):
    for module in ("bitsandbytes.functional", "torchao.optim.quant_utils"):
        monkeypatch.setitem(sys.modules, module, None)
    few = {
        "SHOWN": ["f32", quality.NEAREST],
        "PUSHED": ["f32", "bf16"],
        "DECAYED": ["f32", "uf8"],
        "KEPT": ["bf16", quality.NEAREST],
    }
    for name, values in few.items():
        monkeypatch.setattr(quality, name, values)
    monkeypatch.setattr(quality, "KEEPERS", quality.KEEPERS[:1])
    ticks: list[None] = []

    def tick():
        ticks.append(None)

    rows = quality.moments(8, tick, tiles=1)
    assert {r["code"] for r in rows} == {"f8 and uf8", "bf16", "bf16_sr"}
    found = quality.rounding(4, tick, n=300)
    assert found["pushed"]["bf16"][-1][1] == 1.0
    assert quality.rules(3, tick, n=300)
    losses = quality.training(2, lambda *a: quality.train_digits(1, *a), tick)
    assert len(ticks) == 4 * 8 + 4 * (2 + 3 * 2) + 3 + 2 * 3
    cost = quality.against_f32(losses, "validation")
    assert cost["f32"]["difference"] == 0
    assert all(np.isfinite(of["mean"]) for of in cost.values())

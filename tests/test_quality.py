"""The tables in docs/storage.md match the stored results, and each measurement of storages runs at a tiny size."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality import __main__ as command
from fastopt.bench.quality import moments, rounding, storages, tables, training

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "storage.md"


def documented_results() -> Any:
    """Return the results that the document links to."""
    found = re.search(r"\]\((\.\./bench/results/quality-.*?)\)", DOCUMENT.read_text())
    assert found
    return command.results((DOCUMENT.parent / found[1]).resolve())


def test_the_document_has_the_tables_of_the_results():
    run, text = documented_results(), DOCUMENT.read_text()
    marks = re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert dict(marks) == {name: f"{made}\n" for name, made in tables.tables(run).items()}
    assert len(marks) == text.count("<!-- end -->")
    for picture in re.findall(r"\((pictures/.*?\.png)\)", text):
        assert (DOCUMENT.parent / picture).is_file()


def test_the_claims_about_8_bit_second_moments_hold():
    claims = tables.claims(documented_results())
    assert len(claims) == 3
    assert all(claims.values()), claims


def test_every_preset_and_format_has_a_row_in_the_document():
    text = DOCUMENT.read_text()
    rows = {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    known = set(fastopt.PRESETS) | set(fastopt.STORAGES)
    assert known == rows, f"rows to add to docs/storage.md: {known - rows}; rows of nothing: {rows - known}"


def test_every_measurement_runs_at_a_tiny_size_without_peers(monkeypatch):
    for module in ("bitsandbytes.functional", "torchao.optim.quant_utils"):
        monkeypatch.setitem(sys.modules, module, None)
    for module, name, values in (
        (storages, "SHOWN", ["f32", storages.NEAREST]),
        (rounding, "PUSHED", ["f32", "bf16"]),
        (rounding, "DECAYED", ["f32", "uf8"]),
        (rounding, "COMPARED", ["bf16", storages.NEAREST]),
        (rounding, "UNSIGNED", rounding.UNSIGNED[:1]),
    ):
        monkeypatch.setattr(module, name, values)
    ticks: list[None] = []

    def tick():
        ticks.append(None)

    rows = moments.moments(8, tick, tiles=1)
    assert {r["code"] for r in rows} == {"f8 and uf8", "bf16", "bf16_sr"}
    found = rounding.rounding(4, tick, n=300)
    assert found["pushed"]["bf16"][-1][1] == 1.0
    assert rounding.rules(3, tick, n=300)
    losses = training.training(2, lambda *a: training.train_digits(1, *a), tick)
    assert len(ticks) == 4 * 8 + 4 * (2 + 3 * 2) + 3 + 2 * 3
    cost = training.against_f32(losses, "validation")
    assert cost["f32"]["difference"] == 0
    assert all(np.isfinite(of["mean"]) for of in cost.values())

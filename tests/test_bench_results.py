"""What becomes of measurements: records, tables, pictures, README, comparisons, and the command `fastopt bench`.

Over 300 lines: a run is made into everything that is shown of it.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fastopt
from fastopt.bench import (
    cases,
    compare,
    goals,
    pictures,
    readme,
    record,
    report,
    run,
)
from fastopt.bench.cases import PARTS, Case, Entry
from fastopt.demo.bench import narrowed
from fastopt.demo.commands import app
from fastopt.errors import SettingError
from fastopt.kernels.rules.cases import CASES

pytestmark = pytest.mark.usefixtures("fast")


def bench(*arguments: str) -> Any:
    """Run `fastopt bench` in this process."""
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "250"})


# ---------------------------------------------------------------- results


def conditions(**change: Any) -> dict[str, Any]:
    return {**record.conditions(), "repeats": 1, "quick": False, "threads": 2, **change}


def made(
    part: str = "rules", share: float = 1.0, versus: float = 2.0, seconds: float = 0.05, **case: Any
) -> dict[str, Any]:
    """Make a record, with a spread of 1 % each way."""
    one = Case(**{"threads": 2, **case})

    def spread(x: float) -> list[float]:
        return [0.99 * x, x, 1.01 * x]

    return {
        "key": Entry(part, one).key, "part": part, "case": one.as_dict(), "traffic": one.traffic,
        "seconds": {n: spread(seconds * k) for n, k in (("fastopt", 1), ("ceiling", share), ("torch fused", versus))},
        "versus": {"torch fused": spread(versus)}, "share": spread(share), "cannot": {}, "notes": {},
    }  # fmt: skip


def save(folder: Path, *records: dict[str, Any], **change: Any) -> Path:
    writer = record.Writer(folder, conditions(**change))
    for one in records:
        writer.add(one)
    return folder


def test_results_are_saved_and_read(tmp_path):
    save(tmp_path / "new" / "folder", made())
    results = record.read(tmp_path / "new" / "folder")
    assert results.records == [made()]
    assert results.machine["cores"] >= 1
    assert results.runs[0]["versions"]["numpy"] == np.__version__


def test_a_killed_run_is_resumed(tmp_path):
    save(tmp_path, made(), made(rule="sgd"))
    file = tmp_path / record.FILE
    with file.open("a") as text:
        text.write('{"part": "rules", "ke')
    assert len(record.read(tmp_path).records) == 2
    writer = record.Writer(tmp_path, conditions())
    assert writer.done == {made()["key"], made(rule="sgd")["key"]}
    writer.add(made(rule="lion"))
    assert len(record.read(tmp_path).records) == 3


@pytest.mark.parametrize(
    "change", [{"source": "another"}, {"repeats": 7}, {"quick": True}, {"machine": {"cpu": "other"}}]
)
def test_what_was_measured_otherwise_is_not_mixed(tmp_path, change):
    save(tmp_path, made())
    with pytest.raises(SettingError, match=f"different {next(iter(change))}"):
        record.Writer(tmp_path, conditions(**change))


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no results"), ("\n", "line 1 is not"), ('{"run": {}}\n', "contains no results"), ("[1]\n", "line 1 is not"),
     ('{"run": {}}\n{"part": "x"}\n', "line 2 is not")],
)  # fmt: skip
def test_damaged_results_are_refused(text, words, tmp_path):
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(SettingError, match=words):
        record.read(tmp_path)


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    save(tmp_path, made())
    before = (tmp_path / record.FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.append(tmp_path / record.FILE, made(rule="sgd"))
    assert (tmp_path / record.FILE).read_bytes() == before


def test_losses_come_first_and_are_marked():
    records = [made(), made(rule="sgd", share=0.9), made(rule="lion", versus=0.8), made(rule="adam", versus=0.7)]
    rows = report.timings("rules", records).rows
    assert [row[1] for row in rows] == ["adam", "lion", "sgd", "adam-decoupled"]
    assert [row[0] for row in rows] == ["▼", "▼", "▼", ""]
    assert rows[0][-1] == "▼0.70"


@pytest.mark.parametrize("width", [30, 50, 80, 300])
def test_a_wide_table_is_divided_by_its_columns(width):
    table = report.timings("rules", [made(), made(rule="sgd", size="1Mi")])
    parts = list(narrowed(table, width))
    assert [h for headings, _ in parts for h in headings[table.left :]] == list(table.headings[table.left :])
    for headings, rows in parts:
        assert headings[: table.left] == table.headings[: table.left]
        lines = [[line for cell in column for line in cell.split("\n")] for column in zip(headings, *rows, strict=True)]
        assert sum(3 + max(map(len, of)) for of in lines) <= width or len(headings) == table.left + 1
    assert (len(parts) == 1) == (width >= 80)
    assert "(f32, 2 threads)" in table.title


def test_goals_are_held_to_numbers():
    records = [
        made(rule="sgd", share=0.9), made(rule="rmsprop"), made(rule="lion", versus=0.8),
        made("sizes", size="1000", versus=12.0), made("tensors", size=cases.SMALL, versus=40.0),
    ]  # fmt: skip
    records[1]["versus"] = {"torch foreach": [4.9, 5, 5.1], "torch for-loop": [5.9, 6, 6.1]}
    found = {goal.words: (goal.met, goal.found) for goal in goals.evaluate(records)}
    assert len(found) == 5
    by = {words.split(" ")[2] if words.startswith("a step") else words.split(" ")[0]: v for words, v in found.items()}
    assert by["RMSprop"] == (True, "5.0 ×")
    assert [met for met, _ in found.values()].count(True) == 2
    assert "sgd 90%" in " ".join(text for _, text in found.values())
    assert "lion: torch fused 1.25 ×" in " ".join(text for _, text in found.values())


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    save(
        tmp_path, *(made(rule=r) for r in cases.MAIN), *(made("storages", storage=s) for s in ("bf16", "8bit")),
        *(made("sizes", size=n) for n in ("1", "1Mi", "64Mi")), *(made("tensors", size=f"{n}x10-1000") for n in (1, 9)),
    )  # fmt: skip
    drawn = pictures.draw(record.read(tmp_path), tmp_path)
    assert [path.name for path in drawn] == ["bytes.png", "sizes.png", "tensors.png", "shares.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)
    save(tmp_path / "few", made("calls", size="1000"))
    assert pictures.draw(record.read(tmp_path / "few"), tmp_path) == []


# ---------------------------------------------------------------- docs/benchmark.md and README


@pytest.mark.parametrize(("document", "make"), [(readme.PAGE, readme.text), (readme.README, readme.summary)])
def test_documents_are_what_the_command_makes_of_the_newest_runs(document, make):
    text, generated = document.read_text(), make(record.newest(), record.newest(device=True))
    assert readme.written(text, generated) == text
    found = re.findall(r"\]\(([^)]*bench/results/[^)]*)\)", generated)
    assert found
    for linked in found:
        assert (document.parent / linked).is_file()


def test_readme_has_one_table_and_one_picture_of_both_runs(tmp_path):
    save(
        tmp_path / "cpu", made("sizes", versus=0.8), made("storages", storage="8bit", share=0.6),
        made("sizes", size="1000"), made("tensors", size=cases.SMALL, versus=12.0), made("sizes", size="1Mi"),
        made("storages", rule="lion"), threads=2,
    )  # fmt: skip
    pictures.draw(record.read(tmp_path / "cpu"), tmp_path / "cpu")
    device = {"device": {"name": "GPU"}}
    save(tmp_path / "gpu", *({**made("sizes", size=size, backend="cuda"), **device} for size in ("64Mi", "1000")))
    text = readme.summary(tmp_path / "cpu", tmp_path / "gpu")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    cpu = record.conditions()["machine"]["cpu"]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| {cpu}, 2 threads: 64Mi parameters, float32",
        f"| {cpu}, 2 threads: 64Mi, float32 with 8-bit state",
        f"| {cpu}, 2 threads: 100 tensors of 10 to 1,000, float32",
        f"| {cpu}, 2 threads: one tensor of 1,000, float32",
        "| GPU: 64Mi parameters, float32",
        "| GPU: one tensor of 1,000, float32",
    ]
    assert "| 50.0 ms | 100% | – | 0.80 | 0.80 (torch fused) |" in rows[0]
    assert "| 60% |" in rows[1]
    assert text.count(".png)") == 1
    assert "in 1 of 8 cases a peer is faster" in text


def test_a_run_becomes_tables_with_its_losses_first(tmp_path):
    save(
        tmp_path, *(made(rule=r) for r in ("sgd", "adam-l2", "nadam")), made(rule="lion", versus=0.8),
        made(rule="adamax", share=0.7), *(made("storages", storage=s) for s in ("f32", "bf16")),
        made("storages", storage="8bit", share=0.6), made("storages", storage="bf16", size=cases.IN_CACHE),
        made("sizes", size="1000", versus=12.0),
        made("tensors", size=cases.SMALL), made("groups", size="64x1000", groups=4), made("threads"),
        {"key": "m", "part": "memory", "case": Case().as_dict(), "bytes": {"NumPy": {"resident": 16.0, "peak": 30.5}}},
        {"key": "f", "part": "first", "name": "fastopt adam", "kind": "cold", "seconds": {"import": [1, 2, 3]}},
    )  # fmt: skip
    text = readme.text(tmp_path)
    for words in (
        "falls short", "adamax 70%", "of the memory ceiling: `8bit` 60%",
        "lion, f32, 64Mi, 2 threads: torch fused 0.80 ×", "| `lion` |", "**0.80**",
        "The other 3 rules and settings: 70% to 100%", "below 95 %: `adamax` 70%", "one tensor of 1,000",
        "100 tensors of", "| `bf16` | 14 |",
        "4: 50.0 ms", "| fastopt adam | 2.00 s | – |", "| NumPy | 16.0 | 30.5 |", record.conditions()["date"][:10],
    ):  # fmt: skip
        assert words in text, words
    assert text.index("falls short") < text.index("| `lion` |") < text.index("| `sgd` |")
    assert readme.written(f"# x\n{readme.BEGIN}old\n{readme.END}rest\n", text).endswith(f"{text}\n{readme.END}rest\n")
    with pytest.raises(SystemExit, match="does not contain the marks"):
        readme.written("# x\n", text)


def test_documents_say_so_if_there_are_no_results():
    assert readme.text(None) == readme.summary(None) == readme.NO_RUN


# ---------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("share", "seconds", "verdict"),
    [(1.0, 0.05, "same"), (0.97, 0.05, "same"), (0.8, 0.0625, "slower"), (1.2, 0.042, "faster"), (0.8, 0.05, "same")],
)
def test_a_change_beyond_noise(share, seconds, verdict, tmp_path):
    old = record.read(save(tmp_path / "old", made()))
    new = record.read(save(tmp_path / "new", made(share=share, seconds=seconds)))
    assert [change.verdict for change in compare.compare(old, new).changes] == [verdict]


def test_another_machine_is_compared_by_shares_alone(tmp_path):
    old = record.read(save(tmp_path / "old", made(), made("sizes", size="1000")))
    new = save(tmp_path / "new", made(seconds=0.5), made("sizes", size="1000", seconds=9.0), machine={"cpu": "slow"})
    found = compare.compare(old, record.read(new))
    assert not found.same_machine
    assert [change.verdict for change in found.changes] == ["same"]


def test_compare_exits_1_on_a_regression(tmp_path):
    save(tmp_path / "old", made(), made(rule="sgd"))
    save(tmp_path / "new", made(share=0.8, seconds=0.07), made(rule="lion"))
    result = bench("--compare", str(tmp_path / "old"), str(tmp_path / "new"))
    assert result.exit_code == 1
    assert "1 slower, 0 faster, 0 the same" in result.output
    assert "1 only in the old run: sgd" in result.output
    assert bench("--compare", str(tmp_path / "old"), str(tmp_path / "old")).exit_code == 0


# ---------------------------------------------------------------- the command


def test_the_command_measures_shows_saves_and_resumes(tmp_path, alone, monkeypatch):
    asked = ["--rule=adam*ed", "--storage=f32", "--storage=bf16", "--size=600", "--size=3x50", "--repeats=1"]
    result = bench(*asked, "--out", str(tmp_path / "r"))
    assert result.exit_code == 0, result.output
    for words in ("adam-decoupled", "600", "3x50", "bf16", "p20–p80", "NumPy", "torch fused: not installed: torch"):
        assert words in result.output, words
    results = record.read(tmp_path / "r")
    assert len(results.records) == 4 * len([name for name in CASES if name.startswith("adam") and name.endswith("ed")])
    monkeypatch.setattr("fastopt.demo.bench.measure", lambda *_: pytest.fail("it was measured already"))
    again = bench(*asked, "--out", str(tmp_path / "r"))
    assert again.exit_code == 0, again.output
    assert "measurements are in" in again.output


def test_an_interrupted_run_shows_and_saves_what_it_has(tmp_path, alone, monkeypatch):
    measured, measure = [], run.measure

    def interrupted(entry, *rest):
        if measured:
            raise KeyboardInterrupt
        measured.append(entry)
        return measure(entry, *rest)

    monkeypatch.setattr("fastopt.demo.bench.measure", interrupted)
    result = bench("--size=500", "--size=600", "--threads=2", "--repeats=1", "--out", str(tmp_path))
    assert result.exit_code != 0
    assert "(f32, 500, 2 threads)" in result.output
    assert len(record.read(tmp_path).records) == 1


def test_the_reference_can_be_timed(alone):
    result = bench("--backend", "reference", "--size", "500", "--repeats", "1", "--peer", "none")
    assert result.exit_code == 0, result.output
    assert "reference" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("rulez", "did you mean 'rules'?"),
        ("--rule adm", "did you mean 'adam'?"),
        ("--rule nothing*", "no rule matches"),
        ("--storage 9bit", "did you mean '8bit'?"),
        ("--size 64M", "this is not a size"),
        ("--peer torhc", "there is no peer 'torhc'"),
        ("--backend cpuu", "did you mean 'cpu'?"),
        ("rules --size 5", "a part has fixed rules"),
        ("rules --backend reference", "parts are timed on the backend cpu"),
        ("--threads 2 --backend cuda", "--threads does not apply"),
        ("--compare a b --quick", "--compare measures nothing"),
        ("--compare a b", "there are no results"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_timed(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastopt.demo.bench.measure", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(fastopt.FastoptError) as error:
        CliRunner().invoke(app, ["bench", *arguments.split()], catch_exceptions=False)
    assert words in str(error.value)
    assert not os.listdir(tmp_path)


def test_help_teaches():
    text = bench("--help").output
    assert all(word in text for word in [*PARTS, "--compare", "--quick", "100x10-1000", "median", "checked", "Try:"])

"""Every benchmark runs once at a tiny size, so that none can rot. What it times is of no concern here."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SUITES = ["large", "small", "storage", "threads"]


@pytest.fixture
def bench(monkeypatch) -> Any:
    """The benchmarks' command, which lies in the repository and is not installed, made fast."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    module = importlib.import_module("bench.__main__")
    monkeypatch.setattr(module.clock, "SHORTEST", 0.0)
    monkeypatch.setattr(module.clock, "PAUSE", 0.0)
    return module


def run(bench, path: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a suite with two tiny rounds; gives the run that was kept, and its results by case."""
    bench.main(["--out", str(path), "--repeats", "2", *arguments])
    kept = json.loads(path.read_text().splitlines()[-1])
    return kept, {result["case"]: result for result in kept["results"]}


def test_every_case_of_torch_runs(bench, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    _, results = run(bench, tmp_path / "r.jsonl", "torch", "--elements", "300")
    assert len(results) == 6
    assert all(seconds is not None for result in results.values() for seconds in result["seconds"].values())


@pytest.mark.parametrize("suite", SUITES)
def test_every_case_runs_without_torch(bench, suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    kept, results = run(bench, tmp_path / "r.jsonl", suite, "--elements", "5000")
    assert set(bench.work(suite, 5000)) == set(results)
    assert kept["machine"]["cpu"]
    assert kept["machine"]["cores"] >= 1
    assert kept["versions"]["numpy"] == np.__version__
    for result in results.values():
        for name, seconds in result["seconds"].items():
            peer = name.startswith(("torch", "bitsandbytes"))
            assert seconds is None if peer else 0 < seconds[0] <= seconds[1] <= seconds[2]
        assert all(c["speed"][1] > 0 for c in result["compared"])
    text = capsys.readouterr().out
    assert ("not installed" in text) == (suite != "threads")
    assert all(case in text for case in results)


def test_every_kernel_is_timed_once(bench):
    from cases import CASES

    from fastopt.kernels.program import trace

    timed = [trace(CASES[name], np.float32).name for name in bench.work("large", 10)]
    assert sorted(timed) == sorted({trace(rule, np.float32).name for rule in CASES.values()})


def test_a_second_process_compiles_nothing(bench, tmp_path):
    _, results = run(bench, tmp_path / "r.jsonl", "first", "--only", "adam", "--repeats", "1")
    assert all(results["adam, cold"]["claims"].values())
    assert all(results["adam, warm"]["claims"].values())


def test_results_are_added_to_what_is_there(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "new folder" / "r.jsonl"
    for _ in range(2):
        run(bench, path, "large", "--elements", "10", "--only", "sgd")
    assert [json.loads(line)["suite"] for line in path.read_text().splitlines()] == ["large", "large"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("small --only nothing", "fits no case of small: 1 tensor of 1,000"),
        ("small --repeats 0", "count from 1: got 0"),
        ("large --elements 0", "count from 1"),
        ("large --repeats -1", "count from 1"),
    ],
)
def test_a_run_of_nothing_is_refused(arguments, words, bench, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--out", str(tmp_path / "r.jsonl"), *arguments.split()])
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_teaches(bench, capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in [*SUITES, "first", "examples", "results", "median"])


def test_contestants_take_turns_from_another_one_each_round(bench):
    turns = []
    bench.clock.race({name: lambda name=name: turns.append(name) for name in "abc"}, 3)
    assert "".join(turns[-9:]) == "abcbcacab"


def test_speed_is_the_ratio_of_times_within_a_round(bench):
    claim = bench.clock.Comparison("ours", "theirs", 2.0)
    found = bench.clock.compare(claim, {"ours": [1.0, 2.0, 10.0], "theirs": [3.0, 6.0, 10.0]})
    assert (found["speed"][1], found["of_medians"], found["met"]) == (3.0, 3.0, True)


def test_torch_beside_every_rule_that_has_it(bench, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: nothing to stand beside")
    for name in bench.large.BESIDE_TORCH:
        _, results = run(bench, tmp_path / "r.jsonl", "large", "--elements", "1000", "--only", name)
        assert results[name]["seconds"]["torch"]
    _, results = run(bench, tmp_path / "r.jsonl", "small")
    assert all(r["seconds"]["torch"] for r in results.values())


def test_a_peer_that_computes_something_else_is_refused(bench):
    pytest.importorskip("torch", reason="torch is not installed: nothing to stand beside")
    ours = bench.large.peers.check_rule("adam")
    bench.large.peers.check_torch("adam", ours)
    with pytest.raises(AssertionError, match="torch adam-l2"):
        bench.large.peers.check_torch("adam-l2", ours)

"""Every benchmark runs once at a tiny size, so that none breaks unnoticed. Its timings are not checked.

Over 300 lines: each benchmark part is tried once.
"""

import json
import sys
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest

from fastopt.bench import (
    cases,
    check,
    clock,
    device,
    first,
    problem,
    process,
    report,
    run,
    threads,
)
from fastopt.bench.cases import PARTS, Case, Entry, plan
from fastopt.bench.peers import DROP_INS, PEERS
from fastopt.bench.peers.adapter import Contestant, Peer
from fastopt.errors import SettingError
from fastopt.kernels import cache
from fastopt.kernels.cuda import nvrtc
from fastopt.kernels.rules.cases import CASES

pytestmark = pytest.mark.usefixtures("fast")


def tiny(entry: Entry) -> Entry:
    """Shrink an entry's case, but for its number of tensors."""
    count = len(entry.case.tensors)
    return entry._replace(
        case=replace(entry.case, size=f"{max(min(count, 5), entry.case.groups)}x300" if count > 1 else "700")
    )


# ---------------------------------------------------------------- what is timed


def tried(entries: list[Entry]) -> list[Entry]:
    """Return the entries of a part that have a value that none before them has: AdamW's first, then those of others.

    So each rule and each storage is tried, but not each pair.
    """
    kept: list[Entry] = []
    seen: set[tuple[str, object]] = set()
    for entry in sorted(entries, key=lambda entry: entry.case.rule != Case.rule):
        new = {("peers", entry.peers), *entry.case.as_dict().items()}
        if not new <= seen:
            kept.append(entry)
        seen |= new
    return kept


TIMED = [part for part in PARTS if part not in ("first", "memory")]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("part", TIMED)
def test_every_case_runs_without_other_libraries(part, quick, alone, monkeypatch):
    entries = {tiny(entry).key: tiny(entry) for entry in tried(plan(part, 2, quick))}
    assert entries
    for entry in entries.values():
        found = run.measure(entry, 1, list(PEERS))
        ours = found["seconds"]["fastopt"]
        assert 0 < ours[0] <= ours[1] <= ours[2]
        assert found["share"][1] > 0
        assert all(speed[1] > 0 for speed in found["versus"].values())
        absent = {name for name, why in found["cannot"].items() if why.startswith("not installed")}
        peers = run.peers_for(entry, list(PEERS))
        assert absent == {name for name, peer in peers.items() if {*peer.packages} - {"numpy"}}
        assert not any(why.startswith("failed") for why in found["cannot"].values())
        json.dumps(found)


def test_the_plan_has_every_kernel_once_and_every_axis():
    from fastopt.kernels.compiler.trace import trace

    timed = [trace(CASES[entry.case.rule], np.float32).name for entry in plan("rules", 2, False)]
    assert sorted(timed) == sorted({trace(rule, np.float32).name for rule in CASES.values()})
    assert {entry.case.storage for entry in plan("storages", 2, False)} >= {"f32", "bf16", "split", "8bit", "bf16_8bit"}
    sizes = [entry.case.elements for entry in plan("sizes", 2, False)]
    assert (min(sizes), max(sizes)) == (1, 256 << 20)
    assert [len(entry.case.tensors) for entry in plan("tensors", 2, False)] == [1, 10, 100, 1000]
    assert {entry.case.threads for entry in plan("threads", 3, False)} == {1, 2, 3}
    assert len({entry.key for part in PARTS for entry in plan(part, 2, False)}) == sum(
        len(plan(part, 2, False)) for part in PARTS
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [("7", (7,)), ("2Ki", (2048,)), ("3x10", (10, 10, 10)), ("2x1Mi", (1 << 20, 1 << 20)), ("1Gi", (1 << 30,))],
)
def test_sizes(size, expected):
    assert cases.tensor_sizes(size) == expected


def test_sizes_at_random_are_the_same_every_time():
    found = cases.tensor_sizes("100x10-1000")
    assert found == cases.tensor_sizes("100x10-1000")
    assert len(found) == 100
    assert 10 <= min(found) < max(found) <= 1000


@pytest.mark.parametrize("size", ["0", "-1", "64M", "1e6", "x10", "3x", "10-5", "100x10-", "", "999999x10", "9999Gi"])
def test_what_is_not_a_size_is_refused(size):
    with pytest.raises(SettingError, match="not a size"):
        cases.tensor_sizes(size)


# ---------------------------------------------------------------- the clock


def test_contestants_take_turns_from_another_one_each_round(monkeypatch):
    turns = []

    def contestant(name):
        return lambda calls: turns.append(name) or 1e-3

    clock.race({name: contestant(name) for name in "abc"}, 3)
    assert "".join(turns[-15:]) == "abcbbccaaccaabb"  # once beforehand, because it is quick
    turns.clear()
    monkeypatch.setattr(clock, "WARM_BELOW", 0.0)
    clock.race({name: contestant(name) for name in "abc"}, 3)
    assert "".join(turns[-9:]) == "abcbcacab"


def test_a_sample_lasts_long_enough(monkeypatch):
    monkeypatch.setattr(clock, "MIN_SAMPLE", 5e-3)
    asked = []
    clock.race({"a": lambda calls: asked.append(calls) or calls * 1e-6}, 2)
    assert asked[-1] * 1e-6 >= 5e-3
    assert asked[-3:] == [asked[-1], 1, asked[-1]]


def test_who_is_slow_sits_rounds_out():
    samples = clock.race({"slow": lambda calls: 10.0 * calls, "quick": lambda calls: 1e-3 * calls}, 6)
    assert (len(samples["slow"]), len(samples["quick"])) == (clock.MIN_ROUNDS, 6)
    assert clock.speed(samples["quick"], samples["slow"])[1] == 10_000


def test_speed_is_the_ratio_of_times_within_a_round():
    assert clock.speed([1.0, 2.0, 10.0], [3.0, 6.0, 10.0])[1] == 3.0


# ---------------------------------------------------------------- peers


class Stranger(Peer):
    """A peer that computes a different result, or does not start."""

    name, own_process, light = "stranger", False, True

    def __init__(self, fails: bool = False):
        self.fails = fails

    def cannot(self, case):
        return None

    def load(self, threads):
        if self.fails:
            raise OSError("no such library\nand more")

    def make(self, case, problem):
        def step():
            for p in problem.params.values():
                p += 1

        return Contestant(step, lambda: problem.params)


@pytest.mark.parametrize(
    ("fails", "words"), [(False, "stranger computes a different result"), (True, "OSError: no such library")]
)
def test_a_peer_that_fails_is_named_and_not_timed(fails, words, monkeypatch):
    monkeypatch.setitem(PEERS, "stranger", Stranger(fails))
    found = run.measure(Entry("chosen", Case(size="500")), 1, ["stranger", "NumPy"])
    assert words in found["cannot"]["stranger"]
    assert "stranger" not in found["seconds"]
    assert found["seconds"]["NumPy"]


def test_ours_is_checked_before_it_is_timed(monkeypatch):
    stepped, step = [], check._step

    def wrong(made, case):
        step(made, case)
        stepped.append(made)
        if len(stepped) == 1:
            made.flat_params[1] += 1e-7

    monkeypatch.setattr(check, "_step", wrong)
    with pytest.raises(check.WrongResultError, match="differs from the reference"):
        run.measure(Entry("chosen", Case(size="500")), 1, [])


@pytest.mark.parametrize("rule", ["adam-l2", "rmsprop-centered-momentum", "lion", "adam-amsgrad", "momentum"])
def test_numpy_computes_every_rule(rule):
    check.check_peer(Case(rule=rule), PEERS["NumPy"])


def test_eight_bits_are_held_to_the_direction_of_steps():
    case = check.small(Case(storage="8bit"))
    begin = check.start(case)["p"]["g0.w0"]
    expected = check.reference(case)["g0.w0"]
    assert check.difference(case, begin, expected, expected) is None
    noise = np.random.default_rng(1).standard_normal(expected.size).astype(np.float32)
    assert "correlate" in str(check.difference(case, begin, begin + noise * (expected - begin), expected))


@pytest.mark.parametrize("name", ["torch for-loop", "torch foreach", "torch fused"])
def test_torch_is_timed_for_every_rule_that_it_has(name):
    pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    for rule in cases.MAIN:
        case = Case(rule=rule, size="3x100")
        if PEERS[name].cannot(case) is None:
            found = run.measure(Entry("chosen", case), 1, [name])
            assert not found["cannot"]
            assert found["versus"][name][1] > 0
    grouped = run.measure(Entry("groups", Case(size="6x100", groups=3)), 1, [name])
    assert grouped["versus"][name]


@pytest.mark.parametrize("name", ["torch for-loop", "torch foreach", "torch fused"])
def test_torch_computes_every_rule_that_it_has(name):
    pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    held = [Case(rule=rule) for rule in cases.TIMED if PEERS[name].cannot(Case(rule=rule)) is None]
    assert len(held) >= 10
    for case in held:
        check.check_peer(case, PEERS[name])


@pytest.mark.parametrize("name", DROP_INS)
def test_fastopt_torch_is_timed_on_its_own_tensors_and_on_flat_buffers(name):
    pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    for rule in ("adam-decoupled", "rmsprop"):
        check.check_peer(Case(rule=rule, size="3x100"), DROP_INS[name])


def test_torch_in_bfloat16_steps_on_the_same_words():
    pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    found = run.measure(Entry("chosen", Case(storage="bf16", size="900")), 1, ["torch fused"])
    assert not found["cannot"]
    case = Case(storage="bf16", size="900")
    own = problem.of_optimizer(problem.optimizer(case))
    before = own.params["g0.w0"].copy()
    PEERS["torch fused"].make(case, own).step()
    assert not np.array_equal(own.params["g0.w0"], before)


def test_every_peer_says_why_it_cannot_or_can():
    asked = [
        Case(rule=rule, storage=s, size=n) for rule in CASES for s in ("f32", "bf16", "8bit") for n in ("64", "8Ki")
    ]
    for peer in PEERS.values():
        said = [peer.cannot(case) for case in asked]
        assert all(why is None or why for why in said)
        assert any(why for why in said)
    able = {name for name, peer in PEERS.items() if any(peer.cannot(case) is None for case in asked)}
    assert able == set(PEERS) - {"FlashOptim", "Apex"}


def test_a_process_answers_takes_turns_and_ends():
    with process.Process("NumPy", 1) as worker:
        case = Case(size="500")
        assert worker.prepare(case) == "1 thread"
        assert worker.seconds(3) > 0
        with pytest.raises(process.PeerError, match="KeyError"):
            worker.prepare(Case(rule="nothing"))
        assert worker.ask("memory", case=case.as_dict())["peak"] > 0
        assert set(worker.ask("first", case=case.as_dict())) == {"import", "make", "first step", "second step"}
    assert not worker.alive


def test_a_process_that_dies_or_hangs_is_an_answer_too():
    with process.Process("NumPy", 1) as worker, pytest.raises(process.PeerError, match="no answer in 0 s"):
        worker.ask("first", seconds=0.0, case=Case(size="500").as_dict())
    with process.Process("no such peer", 1) as worker:
        with pytest.raises(process.PeerError, match="KeyError"):
            worker.prepare(Case(size="500"))
        worker._process.kill()
        with pytest.raises(process.PeerError, match="ended with code -9"):
            worker.prepare(Case(size="500"))


def test_a_case_that_memory_does_not_hold_is_named(monkeypatch):
    monkeypatch.setattr(problem, "memory_free", lambda: 1e9)
    found = run.measure(Entry("chosen", Case(size="1Gi")), 1, [])
    assert "GiB of memory" in found["cannot"]["fastopt"]
    assert "GiB of memory" in " ".join(report.timings("chosen", [found]).notes)


@pytest.mark.parametrize("storage", ["f32", "8bit", "split_8bit", "bf16"])
def test_the_ceiling_moves_the_bytes_of_the_step(storage, monkeypatch):
    moved = []
    monkeypatch.setattr(
        problem.ceiling, "bind", lambda w, r: moved.append(sum(a.nbytes for a in (*w, *w, *r))) or (lambda: None)
    )
    case = Case(storage=storage, size="1Mi")
    problem.ceiling_pass(case, problem.of_optimizer(problem.optimizer(case)))
    assert moved[0] == pytest.approx(case.traffic, rel=1e-4)  # whole elements


# ---------------------------------------------------------------- other measurements


def test_a_second_process_compiles_nothing():
    cold, warm = first.run("adam", 1, 1)
    assert all(cold["claims"].values())
    assert all(warm["claims"].values())
    assert (first.total(cold) or 0.0) > (first.total(warm) or 0.0) > 0.0


def test_first_steps_of_a_peer_that_is_not_there(alone):
    records = first.run("torch compile", 1, 1)
    assert [r["kind"] for r in records] == ["cold", "warm"]
    assert all(r["cannot"] == "not installed: torch" for r in records)


def test_memory_of_a_step_is_the_rules_own(alone):
    from fastopt.bench import memory

    found = memory.measure(Case(size="8Mi"), list(PEERS), ["f32", "bf16"])
    size = found["bytes"]  # of p, g, m and v; everything else that a process needs is less than two bytes each
    assert size["fastopt f32"]["resident"] == pytest.approx(16, abs=2)
    assert size["fastopt bf16"]["resident"] == pytest.approx(8, abs=2)
    assert size["NumPy"]["peak"] > size["fastopt f32"]["peak"]
    assert found["cannot"]["torch fused"] == "not installed: torch"


def test_threads_and_chunks():
    found = threads.measure("adam", 5000, 1)
    assert set(found) == {"serial", "chunk 2048"}


@pytest.mark.parametrize("storage", ["f32", "8bit"])
def test_a_case_on_a_device(storage, monkeypatch, tmp_path):
    """The engine around a device, on the stand-in for CuPy: events, copies and CuPy's own kernels are replaced."""
    cupy = fake_cupy.install()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cache, "folder", lambda kind: tmp_path)
    nvrtc.function.cache_clear()
    monkeypatch.setattr(fake_cupy.Device, "mem_info", (1 << 40, 1 << 40), raising=False)
    monkeypatch.setattr(device, "CAPTURED", 0)
    monkeypatch.setattr(device, "describe", lambda: {"name": "a stand-in"})
    for name in ("_stream", "_free_memory", "_require_same_steps"):
        monkeypatch.setattr(device, name, lambda *_: None)
    monkeypatch.setattr(device, "_copy", lambda *_: lambda: None)
    monkeypatch.setattr(device, "_timer", lambda _: lambda call, calls: clock.timed(call)(calls))
    monkeypatch.setattr(device.elementwise, "bind", lambda *_: lambda scalars: None)
    monkeypatch.setattr(PEERS["torch fused"], "absent", lambda: "not installed: torch")
    (entry,) = device.entries(None, ["adam"], [storage], ["3000"], False)
    found = device.measure(entry, 1, ["torch fused", "optax jit"])
    assert found["seconds"]["fastopt"][1] > 0
    assert found["share"]
    assert found["cannot"]["torch fused"] == "not installed: torch"
    assert found["cannot"]["optax jit"]  # not installed, or set up for the CPU only
    assert set(found["versus"]) == ({"elementwise"} if storage == "f32" else set())
    assert report.tables([{"key": entry.key, **found}])[0].rows
    for quick in (True, False):
        planned = device.entries(None, None, None, None, quick)
        assert {e.part for e in planned} == set(device.PARTS)
        assert {e.case.backend for e in planned} == {"cuda"}
    assert {e.part for e in device.entries(["sizes"], None, None, None, True)} == {"sizes"}
    with pytest.raises(SettingError, match="not measured on CUDA devices"):
        device.entries(["memory"], None, None, None, False)
    nvrtc.function.cache_clear()


def test_peak_memory_is_measured_in_a_process_of_its_own():
    pytest.importorskip("torch", reason="torch is not installed")
    from fastopt.bench import peak_memory

    for make in peak_memory.VARIANTS.values():
        compile(make, "variant", "eval")
    ordinary, within = (
        peak_memory.measure(peak_memory.VARIANTS[name], layers=8, width=2000)
        for name in ("fastopt.torch.AdamW, 8bit", "in_backward, AdamW, 8bit")
    )
    assert 2 < ordinary - within < 4  # the gradients of seven layers of eight, 4 bytes per parameter

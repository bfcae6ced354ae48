"""Threads, forks, processes that start together, unwritable folders, full disks, interrupts: ordinary events."""

import errno
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from values import assert_same_bits

import fastopt
from fastopt.kernels import cache, cpu, threads
from fastopt.kernels.program import trace

N = 700_001  # large enough that a step is shared among threads
ADAM = CASES["adam"]


def run(code: str, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a Python process with its kernel cache in a folder of its own."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def steps(count: int, seed: int, backend: str = "cpu") -> np.ndarray:
    """Take some steps on parameters that depend on the seed and give the result."""
    rng = np.random.default_rng(seed)
    opt = fastopt.Optimizer(ADAM, {"w": rng.standard_normal(N).astype(np.float32)}, backend=backend)
    opt.grads["w"][...] = rng.standard_normal(N)
    for _ in range(count):
        opt.step()
    return opt.params["w"]


@pytest.fixture(scope="module")
def expected() -> dict[int, np.ndarray]:
    return {seed: steps(5, seed, "reference") for seed in range(4)}


@pytest.fixture
def eight_threads():
    before = fastopt.get_threads()
    fastopt.set_threads(8)
    yield
    fastopt.set_threads(before)


@pytest.mark.usefixtures("eight_threads")
def test_python_threads_may_step_at_once(expected):
    found: dict[int, np.ndarray] = {}
    workers = [threading.Thread(target=lambda s=s: found.update({s: steps(5, s)})) for s in expected]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for seed, truth in expected.items():
        assert_same_bits(found[seed], truth, f"thread {seed}")


FORK = """
import multiprocessing, sys, warnings
import numpy as np
sys.path.insert(0, {tests!r})
from test_safety import assert_same_bits, steps
import fastopt
from fastopt.kernels import threads

def child(seed, connection):
    connection.send_bytes(steps(5, seed).tobytes())

fastopt.set_threads(8)
steps(1, 0)
assert threads._workers > 0
for seed in (1, 2):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(seed, theirs))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it is what is tested
        process.start()
    assert ours.poll(120), "the child hangs"
    found = np.frombuffer(ours.recv_bytes(), np.float32)
    assert_same_bits(found, steps(5, seed, "reference"), f"child {{seed}}")
    process.join(60)
    assert process.exitcode == 0
assert_same_bits(steps(5, 0), steps(5, 0, "reference"), "the parent afterwards")
print("right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_may_step_after_its_parent_has(tmp_path):
    # In a process of its own: libraries that other tests import (JAX) must not be forked.
    assert output(run(FORK.format(tests=str(Path(__file__).parent)), tmp_path)) == "right\n"


LAYERS = """
import numba, numpy as np
numba.config.THREADING_LAYER = {layer!r}
@numba.njit(parallel=True)
def touch(x):
    for i in numba.prange(x.size):
        x[i] += 1
touch(np.zeros(1000))
print(numba.threading_layer())
import os, sys, threading
sys.path.insert(0, {tests!r})
from test_safety import steps, assert_same_bits
truth = steps(3, 0, "reference")
found = [None] * 4
def work(k): found[k] = steps(3, 0)
workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
[w.start() for w in workers]; [w.join() for w in workers]
for result in found: assert_same_bits(result, truth)
child = os.fork()
if child == 0:
    assert_same_bits(steps(3, 0), truth)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_it_works_beside_a_started_numba_threading_layer(layer, tmp_path):
    # "omp" needs a system library, which Numba says when it is missing: then there is no such layer to be hurt by.
    process = run(LAYERS.format(layer=layer, tests=str(Path(__file__).parent)), tmp_path)
    out, err = process.communicate(timeout=300)
    if process.returncode and "No threading layer could be loaded" in err:
        assert layer == "omp"
        return
    assert process.returncode == 0, err
    assert out.split() == [layer, "right"]


ONE_STEP = """
import numpy as np, fastopt, time
p, m, v = np.ones(10), np.zeros(10), np.zeros(10)
fastopt.update(fastopt.Adam(lr=0.1), 1, {"p": p, "g": np.ones(10), "m": m, "v": v})
from fastopt.kernels import cpu; from fastopt.kernels.program import trace
stats = cpu.compiled(trace(fastopt.Adam(), p.dtype)).stats
print(p[0].round(6), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_processes_that_start_together_on_an_empty_cache_work_and_later_ones_compile_nothing(tmp_path):
    together = [run(ONE_STEP, tmp_path) for _ in range(4)]
    assert {output(process).split()[0] for process in together} == {"0.9"}
    assert output(run(ONE_STEP, tmp_path)).split() == ["0.9", "1", "0"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("place", ["a file stands in the way", "a file system that is not writable"])
def test_a_cache_folder_that_cannot_be_written_is_reported_and_survived(place, tmp_path):
    folder = tmp_path / "file"
    folder.write_text("")
    if place != "a file stands in the way":
        folder = Path("/proc/self")  # nobody can make a folder there, the superuser included
        if not folder.exists():
            pytest.skip("this system has no /proc")
    process = run(ONE_STEP, folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("0.9")
    assert "CacheWarning" in err
    assert "compiled kernels cannot be kept on disk" in err
    assert str(folder) in err


def fresh_rule(name: str):
    """Make a rule that no earlier test has compiled or written."""
    from test_program import rule

    constant = float(np.random.default_rng().random())
    return rule(lambda self, p, g: p - constant * g, name=name)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["the module", "the compiled code"])
def test_a_full_disk_is_reported_and_survived(what, monkeypatch, tmp_path):
    mine = fresh_rule("FullDisk" + what.split()[-1].title())
    if what == "the module":
        real = os.replace
        calls = []

        def once(a, b):
            calls.append(a)
            return full_disk() if len(calls) == 1 else real(a, b)

        monkeypatch.setattr(os, "replace", once)
    else:
        from numba.core.caching import FunctionCache

        monkeypatch.setattr(FunctionCache, "save_overload", full_disk)
    p = np.ones(4)
    with pytest.warns(fastopt.CacheWarning, match="No space left"):
        fastopt.update(mine, 1, {"p": p, "g": np.ones(4)})
    assert np.all(p < 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastopt.update(mine, 2, {"p": p, "g": np.ones(4)})


def test_compiled_code_that_was_cut_short_is_reported_and_survived(tmp_path):
    output(run(ONE_STEP, tmp_path))
    for path in tmp_path.rglob("adam*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    process = run(ONE_STEP, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("0.9")


def test_an_unfinished_module_is_never_imported(tmp_path):
    folder = tmp_path / "kind"
    folder.mkdir()
    path = folder / "m.py"
    cache._write(path, "x = 1\n")
    stamp = path.stat().st_mtime
    cache._write(path, "x = 1\n")
    assert path.stat().st_mtime == stamp
    path.write_text("x =")  # left by a crash of some other program
    cache._write(path, "x = 1\n")
    assert path.read_text() == "x = 1\n"


def test_two_steps_with_a_changing_learning_rate_compile_nothing():
    from numba.core import event

    opt = fastopt.Optimizer(fastopt.Adam(lr=fastopt.schedules.Cosine(0.1, steps=10)), {"w": np.ones(10)})
    opt.step()
    buffers = {name: np.ones(10) for name in "pgmv"}
    fastopt.update(fastopt.Adam(lr=0.1), 1, buffers)
    with event.install_recorder("numba:compile") as recorder:
        opt.step()
        opt.step()
        for t in range(2, 5):
            fastopt.update(fastopt.Adam(lr=0.1 / t), t, buffers)
    assert not recorder.buffer


def test_an_interrupt_does_not_leave_a_step_half_done(monkeypatch):
    real = cpu.compiled(trace(fastopt.SGD(), np.dtype(np.float32)))

    def interrupted(*arguments):
        real(*arguments)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    p, g = np.ones(N, np.float32), np.ones(N, np.float32)
    at = tuple(a.ctypes.data for a in (p, g))
    from fastopt.kernels import intrinsics

    with pytest.raises(KeyboardInterrupt):
        threads.share(interrupted, intrinsics.wait, N, 1024, (*at, 1.0, 0.0), (p, g))
    assert not p.any()


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "2"])
def test_a_number_of_threads_is_a_positive_integer(count):
    before = fastopt.get_threads()
    with pytest.raises(fastopt.SettingError, match="not a number of threads"):
        fastopt.set_threads(count)
    assert fastopt.get_threads() == before


def test_many_small_optimizers_in_many_threads_do_not_disturb_each_other():
    def work(k: int) -> None:
        opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"w": np.zeros(10)})
        opt.grads["w"][...] = k
        for _ in range(200):
            opt.step()
        results[k] = opt.params["w"].tolist() == [-200.0 * k] * 10

    results: dict[int, bool] = {}
    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert results == dict.fromkeys(range(8), True)

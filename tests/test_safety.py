"""Steps under threads, forks, concurrent processes, unwritable folders, full disks and interrupts.

Over 300 lines: each is a program that is run by itself and written out here.
"""

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from values import assert_same_bits

import fastopt
from fastopt.kernels import cache
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu.launch import compiled

N = 700_001  # so large that a step uses several threads
ADAM = CASES["adam"]


def run(code: str, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a Python process whose kernel cache is in `folder`."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output(process: subprocess.Popen) -> str:
    """Wait for a process, assert that it succeeds, and return its standard output."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def steps(count: int, seed: int, backend: str = "cpu") -> np.ndarray:
    """Take some steps on parameters and gradients that depend on the seed; return the parameters."""
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
def test_python_threads_may_step_concurrently(expected):
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
from fastopt.kernels.threads import WORKERS

def child(seed, connection):
    connection.send_bytes(steps(5, seed).tobytes())

fastopt.set_threads(8)
steps(1, 0)
assert WORKERS._started > 0
for seed in (1, 2):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(seed, theirs))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # this fork is what is tested
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
def test_a_forked_child_can_step_after_its_parent_has_stepped(tmp_path):
    # In a process of its own: libraries that other tests import (JAX) must not be forked.
    assert output(run(FORK.format(tests=str(Path(__file__).parent)), tmp_path)) == "right\n"


FORK_WHILE_COMPILING = """
import os, signal, sys, threading
import numpy as np
import fastopt
from numba.core import event
compiling = threading.Event()

class Listener(event.Listener):
    def on_start(self, event):
        compiling.set()
    def on_end(self, event):
        pass

event.register("numba:compile", Listener())

def step(rule):
    opt = fastopt.Optimizer(rule, {"w": np.ones(10)}, backend="cpu")
    opt.step({"w": np.ones(10)})
    return opt.params["w"].tolist()

thread = threading.Thread(target=step, args=(fastopt.Adam(),))
thread.start()
assert compiling.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if step(fastopt.SGD(lr=0.5)) == [0.5] * 10 else 1)
thread.join()
assert os.waitpid(child, 0)[1] == 0, "the child hangs"
print("right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_another_thread_compiles_can_step(tmp_path):
    assert output(run(FORK_WHILE_COMPILING, tmp_path)) == "right\n"


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
@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_it_works_beside_a_running_numba_threading_layer(layer, tmp_path):
    process = run(LAYERS.format(layer=layer, tests=str(Path(__file__).parent)), tmp_path)
    out, err = process.communicate(timeout=300)
    if layer != "workqueue" and process.returncode and "No threading layer could be loaded" in err:
        pytest.skip(f"Numba cannot load the library of its threading layer {layer}")
    assert process.returncode == 0, err
    assert out.split() == [layer, "right"]


ONE_STEP = """
import numpy as np, fastopt, time
p, m, v = np.ones(10), np.zeros(10), np.zeros(10)
fastopt.update(fastopt.Adam(lr=0.1), 1, {"p": p, "g": np.ones(10), "m": m, "v": v})
from fastopt.kernels.cpu.launch import compiled; from fastopt.kernels.compiler.trace import trace
stats = compiled(trace(fastopt.Adam(), p.dtype)).stats
print(p[0].round(6), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_concurrent_processes_can_fill_an_empty_cache_and_later_ones_compile_nothing(tmp_path):
    together = [run(ONE_STEP, tmp_path) for _ in range(4)]
    assert {output(process).split()[0] for process in together} == {"0.9"}
    assert output(run(ONE_STEP, tmp_path)).split() == ["0.9", "1", "0"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("obstacle", ["a file has its name", "the file system is read-only"])
def test_an_unwritable_cache_folder_is_a_warning(obstacle, tmp_path):
    folder = tmp_path / "file"
    folder.write_text("")
    if obstacle != "a file has its name":
        folder = Path("/proc/self")  # not even root can create a folder there
        if not folder.exists():
            pytest.skip("this system has no /proc")
    process = run(ONE_STEP, folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("0.9")
    assert "CacheWarning" in err
    assert "compiled kernels cannot be stored on disk" in err
    assert str(folder) in err


def fresh_rule(name: str):
    """Make a rule with a random constant, so that its kernel is not in any cache."""
    from test_program import rule

    constant = float(np.random.default_rng().random())
    return rule(lambda self, p, g: p - constant * g, name=name)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["the module", "the compiled code"])
def test_a_full_disk_is_a_warning(what, monkeypatch, tmp_path):
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


DAMAGE = {
    "code cut short": ("nbc", lambda data: data[:100]),
    "code of zeros": ("nbc", lambda data: bytes(len(data))),
    "index cut short": ("nbi", lambda data: data[:10]),
    "index of zeros": ("nbi", lambda data: bytes(len(data))),
    "index empty": ("nbi", lambda data: b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_compiled_code_is_reported_once_and_replaced(damage, tmp_path):
    output(run(ONE_STEP, tmp_path))
    suffix, spoil = DAMAGE[damage]
    (path,) = tmp_path.rglob(f"adam*.{suffix}")
    path.write_bytes(spoil(path.read_bytes()))
    process = run(ONE_STEP, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("0.9")
    assert "CacheWarning" in err
    assert "compiled again and replaced" in err
    process = run(ONE_STEP, tmp_path)
    out, err = process.communicate(timeout=300)
    assert (out.split(), err) == (["0.9", "1", "0"], "")


def test_an_unwritable_package_and_home_are_a_warning(tmp_path):
    root = Path(fastopt.__file__).parent.parent
    unwritable = Path("/proc/self")  # not even root can create a folder there
    if not unwritable.exists():
        pytest.skip("this system has no /proc")
    for name, target in (("fastopt", "fastopt"), ("kernels", "fastopt/kernels")):
        ignore = shutil.ignore_patterns("__pycache__", "kernels", "demo")
        shutil.copytree(root / name, tmp_path / target, ignore=ignore)
    for folder in ("fastopt", "fastopt/kernels", "fastopt/kernels/rules"):
        (tmp_path / folder / "__pycache__").write_text("")  # a file of that name has the effect of a read-only folder
    process = run(ONE_STEP, unwritable, HOME=str(unwritable), PYTHONPATH=str(tmp_path))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.startswith("0.9")
    assert "compiled kernels cannot be stored on disk" in err


@pytest.mark.parametrize("length", [120, 260])
def test_a_kernel_with_a_long_name_is_cached(length):
    from numba.core import event

    mine = fresh_rule("Long" * (length // 4))
    buffers = {"p": np.ones(4), "g": np.ones(4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastopt.update(mine, 1, buffers)
    program = trace(mine, np.dtype(np.float64))
    folder = Path(compiled(program).stats.cache_path)
    assert list(folder.glob(f"{cache.short(program.name)}_*.nbc"))
    with event.install_recorder("numba:compile") as recorder:
        fastopt.update(mine, 2, buffers)
    assert not recorder.buffer


def test_a_truncated_module_is_rewritten(tmp_path):
    folder = tmp_path / "kind"
    folder.mkdir()
    path = folder / "m.py"
    cache._write(path, b"x = 1\n")
    stamp = path.stat().st_mtime
    cache._write(path, b"x = 1\n")
    assert path.stat().st_mtime == stamp
    path.write_text("x =")  # as a crash while writing would leave it
    cache._write(path, b"x = 1\n")
    assert path.read_text() == "x = 1\n"


def test_steps_with_a_changing_learning_rate_compile_nothing():
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


INTERRUPTS = 300


@pytest.fixture
def interrupt():
    """Return a function that raises a KeyboardInterrupt after so many seconds."""

    def raised(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raised)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("n", "backend"), [(1000, "cpu"), (N, "cpu"), (1000, "reference")])
def test_an_interrupted_step_is_complete_or_has_not_begun(n, backend, groups, interrupt):
    lrs = {"a": 1.0, "b": 2.0} if groups == 2 else {"a": 1.0}
    grads = {name: np.ones(n) for name in lrs}
    zero = {name: np.zeros(n) for name in lrs}
    changes = {name: {"lr": lr} for name, lr in lrs.items()}
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), zero, groups=changes, backend=backend)
    opt.step(grads)
    start = time.perf_counter()
    opt.step()
    one = time.perf_counter() - start
    rng = np.random.default_rng(0)
    for k in range(INTERRUPTS):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 — it may be raised at any point in the block
            interrupt(1e-4 + 3 * one * rng.random())
            while True:
                opt.step(grads if k % 3 == 0 else None)
        for name, lr in lrs.items():
            assert np.all(opt.params[name] == -lr * opt.t), (k, name, opt.t)
    assert opt.t > 2


def test_an_interrupted_update_is_complete_or_has_not_begun(interrupt):
    p, g, t = np.zeros(N), np.ones(N), 0
    rng = np.random.default_rng(0)
    for k in range(INTERRUPTS // 3):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            interrupt(1e-4 + 5e-3 * rng.random())
            for _ in range(1_000_000):
                fastopt.update(fastopt.SGD(lr=1.0), 1, {"p": p, "g": g})
        t = int(p[0])
        assert np.all(p == t), k
    assert t < 0


def test_if_one_group_fails_no_group_is_written():
    @dataclass(frozen=True)
    class Wrong:
        lr: float = 1.0

        def scalars(self, t):
            return {"lr": self.lr}

        def update(self, p, g, *, lr):
            if isinstance(p, np.ndarray):
                return np.zeros(3)
            return p - lr * g

    opt = fastopt.Optimizer(
        fastopt.SGD(lr=1.0), {"a": np.ones(4), "b": np.ones(4)}, groups={"b": Wrong()}, backend="reference"
    )
    with pytest.raises(fastopt.RuleError, match="not an array like the old one"):
        opt.step({"a": np.ones(4), "b": np.ones(4)})
    assert opt.t == 0
    assert np.all(opt.params["a"] == 1)


def test_a_failing_schedule_does_not_change_the_gradients():
    def fails(t: int) -> float:
        return math.nan if t == 2 else 1.0

    opt = fastopt.Optimizer(fastopt.SGD(lr=fails), {"a": np.zeros(3)})
    opt.step({"a": np.full(3, 1.0)})
    with pytest.raises(fastopt.SettingError):
        opt.step({"a": np.full(3, 2.0)})
    assert opt.grads["a"].tolist() == [1.0] * 3
    assert opt.t == 1


def test_gradients_that_overlap_the_gradient_buffers_are_copied_before_they_are_overwritten():
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"a": np.zeros(3), "b": np.zeros(3)})
    opt.grads["a"][...], opt.grads["b"][...] = 1.0, 2.0
    opt.step({"a": opt.grads["b"], "b": opt.grads["a"][::-1]})
    assert (opt.params["a"].tolist(), opt.params["b"].tolist()) == ([-2.0] * 3, [-1.0] * 3)
    opt.step(opt.grads)
    assert (opt.params["a"].tolist(), opt.params["b"].tolist()) == ([-4.0] * 3, [-2.0] * 3)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "2"])
def test_a_number_of_threads_is_a_positive_integer(count):
    before = fastopt.get_threads()
    with pytest.raises(fastopt.SettingError, match="count is out of its range"):
        fastopt.set_threads(count)
    assert fastopt.get_threads() == before


def test_a_number_of_threads_may_be_any_kind_of_integer():
    before = fastopt.get_threads()
    fastopt.set_threads(np.int64(2))
    assert (fastopt.get_threads(), type(fastopt.get_threads())) == (2, int)
    fastopt.set_threads(before)


def test_many_small_optimizers_in_threads_are_independent():
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

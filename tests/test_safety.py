"""Steps under threads, forks and interrupts.

Over 300 lines: each is a program that is run by itself and written out here.
"""

import array
import gc
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from processes import output, run
from values import assert_same_bits

import fastopt
from fastopt.kernels.threads import available

N = 700_001  # so large that a step uses several threads
ADAM = CASES["adam"]


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
    gc.disable()  # what is raised while one of gc.callbacks runs, and hypothesis has one, is printed and gone
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    gc.enable()
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
            if type(p).__name__ != "Symbol":
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


GROUPS = {
    "none": ({}, None),
    "no limit": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "half a core": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    "a core and a half": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "of a group above": (
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "1 1"},
        1,
    ),
    "seen from within a container": ({"proc/self/cgroup": "0::/../x", "sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu,cpuacct:/a",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
        },
        1,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "?"}, None),
}


@pytest.mark.parametrize("group", GROUPS)
def test_there_are_no_more_threads_than_a_container_may_run(group, tmp_path, monkeypatch):
    files, expected = GROUPS[group]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available(tmp_path) == (expected or 64)


def test_memory_is_not_held_after_the_step():
    """By workers that wake up late: it can be resized at once, and a mapped file closed."""
    before, n = fastopt.get_threads(), 1_500_000
    fastopt.set_threads(8)
    try:
        g = np.ones(n, np.float32)
        for _ in range(60):
            memory = array.array("f", bytes(4 * n))
            fastopt.update(fastopt.SGD(lr=1.0), 1, {"p": memory, "g": g})
            memory.append(1.0)
    finally:
        fastopt.set_threads(before)

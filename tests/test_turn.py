"""One optimizer in several threads, with values that are views of its own memory, and interrupted while it loads."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastopt
from fastopt.kernels.launch import run
from fastopt.turn import Turn, is_taken

STORAGES = ["f32", "bf16", "split", "8bit"]


def made(storage: str = "f32", backend: str = "cpu") -> fastopt.Optimizer:
    rng = np.random.default_rng(0)
    w = {name: rng.standard_normal(n).astype(np.float32) for name, n in (("a", 300), ("b", 300), ("c", 70))}
    groups = {"c": {"lr": 0.5}}
    return fastopt.Optimizer(fastopt.Adam(lr=0.01), w, groups=groups, storage=storage, backend=backend)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(x, other[name]) for name, x in one.items())


@pytest.fixture
def switching():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*jobs) -> None:
    """Run functions in threads at once, and raise what one of them raised."""
    errors, ready = [], threading.Barrier(len(jobs))

    def work(job):
        try:
            ready.wait()
            job()
        except BaseException as error:  # raised in this thread below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("storage", STORAGES)
def test_steps_of_several_threads_are_taken_one_after_the_other(storage, backend, switching):
    count = 100 if backend == "cpu" else 10
    opt, alone = made(storage, backend), made(storage)
    for o in (opt, alone):
        for view in o.grads.values():
            view[...] = 0.25
    together(*[lambda: [opt.step() for _ in range(count)]] * 4)
    for _ in range(4 * count):
        alone.step()
    assert equal(opt.state_dict(), alone.state_dict())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_that_are_passed_belong_to_their_step(backend, switching):
    """Each thread's gradient is constant, so a step with a mixture would move parameters differently."""
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"w": np.zeros(5000)}, backend=backend)
    together(*[lambda k=k: [opt.step({"w": np.full(5000, 2.0**k)}) for _ in range(50)] for k in range(4)])
    assert opt.t == 200
    assert set(opt.params["w"]) == {-50.0 * 15}


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_saved_while_another_thread_steps_is_of_one_moment(storage, switching):
    opt, alone, saved = made(storage), made(storage), []
    for o in (opt, alone):
        for view in o.grads.values():
            view[...] = 0.25
    together(
        lambda: [opt.step() for _ in range(300)],
        lambda: saved.extend(opt.state_dict() for _ in range(20)),
        lambda: [opt.master() for _ in range(20)],
    )
    assert len(saved) == 20
    for state in sorted(saved, key=lambda state: state["t"]):
        while alone.t < state["t"]:
            alone.step()
        assert equal(state, alone.state_dict())


def test_what_is_loaded_while_another_thread_steps_is_loaded_whole(switching):
    opt = fastopt.Optimizer(fastopt.SGD(lr=1.0), {"a": np.zeros(300), "b": np.zeros(300)})
    opt.flat_grads[:] = 1.0
    loads = [opt.state_dict() for _ in range(2)]
    loads[1] |= {"p/a": np.full(300, 7.5), "p/b": np.full(300, 7.5), "t": 1000}
    seen = []
    together(
        lambda: [opt.step() for _ in range(300)],
        lambda: [opt.load_state_dict(state) for state in loads * 20],
        lambda: seen.extend(opt.state_dict() for _ in range(50)),
    )
    for state in seen:
        assert len({*state["p/a"], *state["p/b"]}) == 1
        assert state["p/a"][0] % 1 == (0.5 if state["t"] >= 1000 else 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_values_may_be_views_of_the_memory_that_they_are_written_to(storage):
    opt = made(storage)
    opt.step({name: np.full_like(view, 0.5) for name, view in opt.grads.items()})
    opt.step()
    before = opt.master()
    views = before if storage != "f32" else opt.params
    opt.assign({"a": views["b"], "b": views["a"]})
    after = opt.master()
    assert np.array_equal(after["a"], before["b"])
    assert np.array_equal(after["b"], before["a"])
    if storage == "f32":
        opt.assign({"a": opt.params["a"][::-1]})
        assert np.array_equal(opt.params["a"], before["b"][::-1])
        views = {f"p/{name}": view for name, view in opt.params.items()}
        swapped = {**opt.state_dict(), **views, "p/a": views["p/b"], "p/b": views["p/a"]}
        expected = {key: np.array(value) for key, value in swapped.items()}
        opt.load_state_dict(swapped)
        assert all(np.array_equal(x, expected[key]) for key, x in opt.state_dict().items())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("what", ["load_state_dict", "assign"])
def test_an_interrupted_load_has_loaded_all_or_nothing(what, storage):
    rng, found = np.random.default_rng(0), {"old": 0, "new": 0}
    params = {f"w{k}": np.ones(30_000, np.float32) for k in range(8)}
    opt = fastopt.Optimizer(fastopt.Adam(lr=0.01), params, storage=storage)
    old = opt.state_dict()
    opt.flat_grads[:] = 0.3
    opt.step()
    new = opt.state_dict()

    def load(state):
        if what == "assign":
            opt.assign({name: state[f"p/{name}"] for name in params})
        else:
            opt.load_state_dict(state)

    parameters = {key: value for key, value in new.items() if key.startswith("p/")}
    ends = {"old": old, "new": new if what == "load_state_dict" else {**old, **parameters}}
    start = time.perf_counter()
    opt.load_state_dict(old)
    load(new)
    took = time.perf_counter() - start

    def raised(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raised)
    gc.disable()  # what is raised while one of gc.callbacks runs, and hypothesis has one, is printed and gone
    try:
        for _ in range(30):
            opt.load_state_dict(old)
            try:
                signal.setitimer(signal.ITIMER_REAL, took * rng.uniform(0.02, 1.0))
                load(new)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            now = opt.state_dict()
            (name,) = [name for name, state in ends.items() if equal(now, state)]
            found[name] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert found["old"] or what == "assign"  # which has little to prepare


def test_who_was_interrupted_while_it_held_the_turn_has_it_again():
    turn = Turn(3)
    run([(turn.begin, 3), (setattr, turn, "_holder", (threading.get_ident(), 3))])  # as in `held`, before its end
    assert turn.now() == 3
    with turn.held() as t:
        assert t == 3
    assert turn.now() == 3


def test_an_error_in_the_middle_gives_the_turn_back():
    turn = Turn(3)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(error=error):
            raise error

        with pytest.raises(error):
            turn.take(lambda t, fail=fail: [(fail,), (turn.end, t + 1)])
        assert turn.now() == 3
    turn.take(lambda t: [(turn.end, t + 1)])
    assert turn.now() == 4
    with pytest.raises(ValueError, match=r"list\.remove") as refused:
        turn.begin(3)
    assert is_taken(refused.value)
    assert not is_taken(ValueError("another"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_another_thread_steps_is_told():
    code = """
import os, signal, threading, numpy as np, fastopt
opt = fastopt.Optimizer(fastopt.SGD(), {"w": np.ones(3)})
held, done = threading.Event(), threading.Event()
def hold():
    with opt._turn.held():
        held.set()
        done.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        opt.step()
    except fastopt.BackendError as error:
        os._exit(0 if "forked while another thread" in str(error) else 1)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
opt.step()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_waiting_thread_waits_no_longer_than_the_step():
    turn = Turn(0)
    seen = []
    with turn.held():
        thread = threading.Thread(target=lambda: seen.append(turn.now()))
        thread.start()
        time.sleep(0.05)
        assert not seen
    thread.join(10)
    assert seen == [0]

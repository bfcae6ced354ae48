"""Steps of fastopt.torch beside other threads, in inference mode, and without a Python loop over tensors."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_guards import flatten_or_not, new_gradient, parameter  # noqa: E402

import fastopt.torch  # noqa: E402


def test_concurrent_steps_of_several_optimizers(kind):
    """Each thread steps its own optimizer, and frees and allocates its gradients in every step."""
    params = [[parameter(40) for _ in range(30)] for _ in range(4)]
    failed: list[BaseException] = []

    def train(own, opt):
        try:
            for k in range(40):
                for p in own:
                    p.grad = new_gradient(p, k)
                opt.step()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(own, fastopt.torch.AdamW(own))) for own in params]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    alone = [parameter(40) for _ in range(30)]
    train(alone, fastopt.torch.AdamW(alone))
    for own in params:
        assert all(torch.equal(p, q) for p, q in zip(own, alone, strict=True))


def test_one_optimizer_may_be_stepped_by_several_threads(kind):
    params = [parameter(40) for _ in range(30)]
    opt = fastopt.torch.AdamW(params, lr=0.001)
    threads = [threading.Thread(target=lambda: [opt.step() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [parameter(40) for _ in range(30)]
    opt_alone = fastopt.torch.AdamW(alone, lr=0.001)
    for _ in range(800):
        opt_alone.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


@flatten_or_not
@pytest.mark.parametrize("made_in", [True, False])
def test_steps_in_inference_mode_continue_outside_of_it(made_in, flatten):
    with torch.inference_mode(made_in):
        p, q = parameter(3), parameter(3)
        ours, theirs = fastopt.torch.AdamW([p], lr=0.1, flatten=flatten), torch.optim.AdamW([q], lr=0.1)
    with torch.inference_mode():
        for _ in range(2):
            ours.step()
            theirs.step()
    torch.testing.assert_close(p.detach(), q.detach())
    if not made_in:  # tensors made in inference mode cannot be written outside of it
        ours.step()
        assert float(ours.state[p]["step"]) == 3


@flatten_or_not
def test_gradients_dropped_by_another_thread_live_until_the_step_ends(flatten, kind, monkeypatch):
    """The GIL is released between the check and the end of the step, which must keep references to its gradients."""
    from fastopt.torch import adapter

    params = [parameter(50_000) for _ in range(4)]
    expected = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, theirs = fastopt.torch.SGD(params, lr=0.5, flatten=flatten), torch.optim.SGD(expected, lr=0.5)
    run = adapter.run

    def drop_and_run(calls):
        for p in params:
            p.grad = None
        junk = [torch.full((50_000,), 1e9) for _ in range(64)]  # would reuse freed memory
        run(calls)
        del junk

    monkeypatch.setattr(adapter, "run", drop_and_run)
    for step in range(3):
        for p, q in zip(params, expected, strict=True):
            p.grad, q.grad = torch.full_like(p, step + 1.0), torch.full_like(q, step + 1.0)
        ours.step()
        theirs.step()
        for p, q in zip(params, expected, strict=True):
            assert torch.equal(p, q), step
        dropped = [weakref.ref(p.grad) for p in params if p.grad is not None]
        for p in params:
            p.grad = None
        assert [gradient() for gradient in dropped] == [None] * len(dropped)  # fastopt keeps no references


@flatten_or_not
def test_the_number_of_python_instructions_does_not_depend_on_the_number_of_tensors(flatten, kind):
    """Loops over tensors are in compiled code or in C functions of the interpreter. The test counts bytecodes."""

    def instructions(count):
        params = [parameter(3) for _ in range(count)]
        opt = fastopt.torch.AdamW(params, flatten=flatten)
        found = 0

        def trace(frame, event, argument):
            nonlocal found
            frame.f_trace_opcodes = True
            found += event == "opcode"
            return trace

        for _ in range(3):
            opt.step()
        before = sys.gettrace()
        gc.disable()  # or a collection in between calls what is in gc.callbacks, where hypothesis has a function
        sys.settrace(trace)
        try:
            opt.step()
        finally:
            sys.settrace(before)
            gc.enable()
        return found

    few = instructions(10)
    assert few > 100  # they were counted
    assert instructions(1000) == few

"""Guards: every change of a tensor between steps is seen, by the compiled guard and by the one in Python alike."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

import fastopt.torch  # noqa: E402
from fastopt import LayoutError  # noqa: E402
from fastopt.torch import c_abi  # noqa: E402
from fastopt.torch.guards import CompiledGuard, Outcome, PythonGuard, make_guard  # noqa: E402

KINDS = [CompiledGuard.kind, PythonGuard.kind]
FLATTEN = {"table": False, "flatten": True}
compiled_only = pytest.mark.skipif(c_abi.functions() is None, reason="torch's C functions are not to be had here")


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    if request.param == PythonGuard.kind:
        monkeypatch.setattr(c_abi, "functions", lambda: None)
    elif c_abi.functions() is None:
        pytest.skip("torch's C functions are not to be had here")
    return request.param


def parameter(*shape, g: float | None = 0.5):
    p = torch.nn.Parameter(torch.arange(1.0, 1 + int(np.prod(shape))).reshape(shape))
    p.grad = None if g is None else torch.full(shape, g)
    return p


def test_the_repr_names_the_kind_of_guard(kind):
    assert f"guards: {kind}" in repr(fastopt.torch.AdamW([parameter(2)]))
    with torch.inference_mode():
        frozen = torch.ones(2)  # has no version counter, for which torch's function would end the process
    assert f"guards: {PythonGuard.kind}" in repr(fastopt.torch.AdamW([parameter(2), frozen]))

    elsewhere = torch.ones(2)

    class Own(torch.nn.Parameter):
        grad = property(lambda self: elsewhere)

    ours = Own(torch.ones(2))
    opt = fastopt.torch.SGD([ours], lr=0.25)
    assert f"guards: {PythonGuard.kind}" in repr(opt)
    for expected in (0.75, 0.5):
        opt.step()
        assert ours.tolist() == [expected] * 2


# ---------------------------------------------------------------- what torch.optim follows, so does the step

HELD: list[Any] = []


def hold(x):
    """Keep what is replaced alive, so that nothing else takes its place in memory."""
    HELD.append(x)
    return x


def new(p, k):
    return torch.cos(torch.arange(float(p.numel())) + k).reshape(p.shape)


def with_gradient(change):
    def changed(p, k):
        if p.grad is not None:
            change(p, k)

    changed.__name__ = change.__name__
    return changed


def gradient_replaced(p, k):
    p.grad = new(p, k)


def gradient_replaced_and_held(p, k):
    hold(p.grad)
    p.grad = new(p, k)


def gradient_gone(p, k):
    p.grad = None


@with_gradient
def gradient_written(p, k):
    p.grad.copy_(new(p, k))


@with_gradient
def gradients_data_replaced(p, k):
    p.grad.data = new(p, k)


@with_gradient
def gradients_data_replaced_and_held(p, k):
    hold(p.grad.data)
    p.grad.data = new(p, k)


@with_gradient
def gradient_set(p, k):
    p.grad.set_(hold(new(p, k)))


@with_gradient
def gradients_storage_grown(p, k):
    p.grad = p.grad.clone()  # of a storage of its own
    p.grad.untyped_storage().resize_(4096)


@with_gradient
def gradient_within_another(p, k):
    whole = torch.zeros(3, *p.shape)
    whole[1] = p.grad
    p.grad = whole[1]


def parameters_data_replaced(p, k):
    p.data = p.data * 0.5


def parameters_data_replaced_and_held(p, k):
    hold(p.data)
    p.data = p.data * 0.5


def parameter_set(p, k):
    with torch.no_grad():
        p.set_(hold(p.detach() * 0.75))


def parameter_swapped(p, k):
    """Give the very object another tensor inside, with its gradient, as Module.to may."""
    if p.grad is not None and p.grad_fn is None:
        other = torch.nn.Parameter(p.detach() * 0.5)
        other.grad = new(p, k)
        torch.utils.swap_tensors(p, other)


FOLLOWED = [
    gradient_replaced, gradient_replaced_and_held, gradient_gone, gradient_written, gradients_data_replaced,
    gradients_data_replaced_and_held, gradient_set, gradients_storage_grown, gradient_within_another,
    parameters_data_replaced, parameters_data_replaced_and_held, parameter_set, parameter_swapped,
]  # fmt: skip
SHAPES = [(3,), (2, 4), (1,), (0,), (5,), (), (3, 3)]


def twins(flatten):
    params = [[parameter(*shape) for shape in SHAPES] for _ in range(2)]
    return params, (torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=flatten))


def assert_same(params, message):
    for i, (p, q) in enumerate(zip(*params, strict=True)):
        np.testing.assert_allclose(
            q.detach().numpy(), p.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=f"{message}, parameter {i}"
        )  # a dozen steps of 0.1 with some 16 roundings each, of values up to 9


@pytest.mark.parametrize("memory", FLATTEN)
@pytest.mark.parametrize("change", FOLLOWED, ids=lambda change: change.__name__)
def test_the_step_follows_where_torch_does(change, memory, kind):
    params, optimizers = twins(FLATTEN[memory])
    for k, which in enumerate([[], [0], [], [3, 4], [1, 6], [], range(7), []]):
        for own, opt in zip(params, optimizers, strict=True):
            for p in own:
                if p.grad is None:
                    p.grad = new(p, k)
            for i in which:
                change(own[i], 10 * k + i)
            opt.step()
        assert_same(params, f"step {k}")
    HELD.clear()


def compare(opt):
    arranged = opt._buckets.groups[0][0].arranged
    return arranged.guard.check(arranged.gradients_at).outcome


EVENTS = st.lists(
    st.lists(st.tuples(st.sampled_from(FOLLOWED), st.integers(0, len(SHAPES) - 1)), max_size=4), min_size=2, max_size=10
)


@compiled_only
@pytest.mark.parametrize("memory", FLATTEN)
@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
def test_any_sequence_of_changes_is_followed_by_both_guards(memory, events):
    """Beside torch.optim, step by step; and both find the same outcome, wherever the same may be found."""
    params = [[parameter(*shape) for shape in SHAPES] for _ in range(3)]
    optimizers = [
        torch.optim.AdamW(params[0], lr=0.1),
        *(fastopt.torch.AdamW(own, lr=0.1, flatten=FLATTEN[memory]) for own in params[1:]),
    ]
    functions = c_abi.functions
    for k, changes in enumerate([[], *events, []]):
        said = []
        for which, (own, opt) in enumerate(zip(params, optimizers, strict=True)):
            with pytest.MonkeyPatch.context() as patch:
                if which == 2:
                    patch.setattr(c_abi, "functions", lambda: None)
                for change, i in changes:
                    change(own[i], 100 * k + i)
                if which and k:
                    said.append(compare(opt))
                opt.step()
                if which:
                    assert opt._buckets.groups[0][0].arranged.guard.kind == KINDS[which - 1]
        assert c_abi.functions is functions
        assert_same([params[0], params[1]], f"step {k}, compiled")
        assert_same([params[0], params[2]], f"step {k}, Python")
        # Memory that is freed and allocated anew may or may not come to lie where it was.
        reused = any(change is parameters_data_replaced for change, _ in changes)
        assert not said or reused or said[0] == said[1] or set(said) == {Outcome.SAME, Outcome.MOVED}
        if not changes and said:
            assert said == [Outcome.SAME, Outcome.SAME]
    HELD.clear()


# ---------------------------------------------------------------- what no step can follow is refused, whole


def transposed_in_place(p):
    p.grad.t_()


def transposed_by_dimensions(p):
    p.grad.transpose_(0, 1)


def made_smaller(p):
    p.grad.resize_(2, 3)


def made_larger(p):
    p.grad.resize_(4, 3)


def of_another_type(p):
    p.grad.data = p.grad.data.double()


def of_another_type_where_it_was(p):
    p.grad.data = p.grad.data.view(torch.int32)


def sparse(p):
    p.grad = torch.eye(3).to_sparse()


def negative_where_it_was(p):
    p.grad = torch._neg_view(p.grad)


def gradients_storage_emptied(p):
    p.grad = p.grad.clone()
    p.grad.untyped_storage().resize_(0)


def gradients_storage_cut(p):
    p.grad = p.grad.clone()
    p.grad.untyped_storage().resize_(16)


def gradient_of_a_class_that_keeps_it_elsewhere(p):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    p.grad = AsyncCollectiveTensor(p.grad)


def gradient_of_zeros_that_are_nowhere(p):
    p.grad = torch._efficientzerotensor(p.shape)


def gradient_that_is_fake(p):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p.grad = torch.ones(3, 3)


def parameter_transposed_where_it_was(p):
    p.data = p.data.t()


def parameter_cut_where_it_was(p):
    p.data = p.data[:2]


def parameter_of_another_type_where_it_was(p):
    p.data = p.data.view(torch.float16).as_strided(p.shape, p.stride())


def parameters_storage_emptied(p):
    p.data = p.data.clone()
    p.untyped_storage().resize_(0)


def gradient_of_the_parameters_memory(p):
    p.grad = p.detach()


REFUSED = [
    transposed_in_place, transposed_by_dimensions, made_smaller, made_larger, of_another_type,
    of_another_type_where_it_was, sparse, negative_where_it_was, gradients_storage_emptied, gradients_storage_cut,
    gradient_of_a_class_that_keeps_it_elsewhere, gradient_of_zeros_that_are_nowhere, gradient_that_is_fake,
    parameter_transposed_where_it_was, parameter_cut_where_it_was, parameter_of_another_type_where_it_was,
    parameters_storage_emptied, gradient_of_the_parameters_memory,
]  # fmt: skip


@pytest.mark.parametrize("memory", FLATTEN)
@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_no_step_can_follow_is_refused_and_nothing_written(change, memory, kind):
    first, p, last = parameter(4), parameter(3, 3), parameter(2)
    opt = fastopt.torch.AdamW([first, p, last], lr=0.1, flatten=FLATTEN[memory])
    for _ in range(2):
        opt.step()
    before, data, grad = [x.detach().clone() for x in (first, last)], p.data, p.grad.clone()
    values, versions = data.clone(), [x._version for x in (first, p, last)]
    change(p)
    if p.shape == data.shape:
        versions[1] = p._version
    for _ in range(2):  # again, and it is still wrong
        with pytest.raises(LayoutError, match="group 0"):
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, (first, last), strict=True))
    assert all(float(x["step"]) == 2 for x in opt.state.values())
    assert [x._version for x in (first, last)] == [versions[0], versions[2]]
    p.data, p.grad = data, grad
    assert torch.equal(p, values)
    opt.step()
    assert not torch.equal(first, before[0])
    assert not torch.equal(p, values)


# ---------------------------------------------------------------- state that is moved in place, which no dict tells


def states_data_replaced(x):
    x.data = x.data * 2


def states_data_replaced_and_held(x):
    hold(x.data)
    x.data = x.data * 2


def state_set(x):
    x.set_(hold(x * 2))


def state_swapped(x):
    torch.utils.swap_tensors(x, x * 2)


def state_in_another_order(x):
    x.data = x.data.t().contiguous().t()


def state_shared(x):
    x.share_memory_()


def states_storage_grown(x):
    x.untyped_storage().resize_(8192)


STATES = [
    states_data_replaced, states_data_replaced_and_held, state_set, state_swapped, state_in_another_order,
    state_shared, states_storage_grown,
]  # fmt: skip


@pytest.mark.parametrize("memory", FLATTEN)
@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_state_that_is_moved_in_place_is_followed(change, memory, kind):
    params = [[parameter(*shape) for shape in ((3,), (2, 4), (40, 30))] for _ in range(2)]
    optimizers = torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=FLATTEN[memory])
    for k, which in enumerate([[], [1], [], [0, 2], []]):
        for own, opt in zip(params, optimizers, strict=True):
            for i, p in enumerate(own):
                p.grad.copy_(new(p, k))
                if i in which:
                    change(opt.state[p]["exp_avg"])
                    change(opt.state[p]["exp_avg_sq"])
            opt.step()
        assert_same(params, f"step {k}")
    for p, q in zip(*params, strict=True):
        np.testing.assert_allclose(
            optimizers[1].state[q]["exp_avg"], optimizers[0].state[p]["exp_avg"], rtol=1e-5, atol=1e-7
        )
    HELD.clear()


@pytest.mark.parametrize("memory", FLATTEN)
def test_state_that_is_made_another_in_place_is_refused(memory, kind):
    for change in (lambda x: x.resize_(2), lambda x: x.untyped_storage().resize_(0), lambda x: x.t_()):
        first, p = parameter(4), parameter(3, 2)
        opt = fastopt.torch.AdamW([first, p], lr=0.1, flatten=FLATTEN[memory])
        opt.step()
        moved = opt.state[p]["exp_avg"]
        moved.data = moved.data.clone()
        change(moved)
        values = first.tolist(), p.tolist()
        with pytest.raises(LayoutError, match=r"of parameter 1 of group 0 was made another"):
            opt.step()
        assert (first.tolist(), p.tolist()) == values
        opt.state[p]["exp_avg"] = torch.zeros(3, 2)
        opt.step()
        assert first.tolist() != values[0]


@pytest.mark.parametrize("memory", FLATTEN)
def test_counts_of_steps_may_be_shared_between_processes(memory, kind):
    """As asynchronous training does with all state; it moves the memory in which steps are counted."""
    params = [[parameter(3), parameter(2, 4)] for _ in range(2)]
    optimizers = torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=FLATTEN[memory])
    for k in range(4):
        for own, opt in zip(params, optimizers, strict=True):
            for p in own:
                p.grad = new(p, k)
            opt.step()
            for p in own if k == 1 else ():
                opt.state[p]["step"].share_memory_()
        assert_same(params, f"step {k}")
        assert [float(x["step"]) for x in optimizers[1].state.values()] == [k + 1] * 2


# ---------------------------------------------------------------- what a check finds


def test_what_a_check_finds(kind):
    active, idle = [parameter(3), parameter(2, 2), parameter(0)], [parameter(2, g=None)]
    state = [torch.zeros(3), torch.zeros(4)]
    there = state[1].data
    guard = make_guard(active, idle, state)
    assert guard.kind == kind

    def outcome():
        return guard.check(guard.g_at).outcome

    assert outcome() is Outcome.SAME
    held = active[1].grad
    active[1].grad = torch.ones(2, 2)
    moved = guard.check(guard.g_at)
    assert moved.outcome is Outcome.MOVED
    assert moved.addresses.tolist() == [p.grad.data_ptr() for p in active]
    assert all(g is p.grad for g, p in zip(moved.gradients, active, strict=True))
    assert guard.check(moved.addresses).outcome is Outcome.SAME
    active[1].grad = held
    assert guard.check(moved.addresses).outcome is Outcome.MOVED
    assert outcome() is Outcome.SAME
    idle[0].grad = torch.ones(2)
    assert outcome() is Outcome.CHANGED
    idle[0].grad = None
    assert outcome() is Outcome.SAME
    data = active[0].data
    active[0].data = torch.ones(3)
    assert outcome() is Outcome.CHANGED
    active[0].data = data
    assert outcome() is Outcome.SAME
    state[1].data = torch.ones(4)
    assert outcome() is Outcome.CHANGED
    state[1].data = there
    assert outcome() is Outcome.SAME


@pytest.mark.parametrize("memory", FLATTEN)
def test_a_step_counts_a_version_of_what_it_wrote_alone(memory, kind):
    active, idle = [parameter(3), parameter(2, 2), parameter(0)], [parameter(2, g=None)]
    opt = fastopt.torch.AdamW([*active, *idle], flatten=FLATTEN[memory])
    opt.step()
    versions = [p._version for p in (*active, *idle)]
    opt.step()
    assert [p._version for p in (*active, *idle)] == [v + 1 for v in versions[:3]] + versions[3:]


@compiled_only
def test_the_compiled_guard_sees_a_shape_that_changes_in_place_alone():
    """Through Python only the number of elements is compared where all is contiguous: the step would be the same."""
    p = parameter(3, 3)
    guard = make_guard([p], [])
    p.grad.unsqueeze_(2)
    assert guard.check(guard.g_at).outcome is Outcome.CHANGED
    p.grad.squeeze_(2)
    assert guard.check(guard.g_at).outcome is Outcome.SAME
    p.data = p.data.unsqueeze(2)
    assert guard.check(guard.g_at).outcome is Outcome.CHANGED


@pytest.mark.parametrize("memory", FLATTEN)
def test_a_backward_after_the_step_through_what_it_wrote_fails_as_in_torch(memory, kind):
    for module in (torch.optim, fastopt.torch):
        p = parameter(3)
        opt = module.AdamW([p], **({} if module is torch.optim else {"flatten": FLATTEN[memory]}))
        for _ in range(2):
            loss = (p * p).sum()
            opt.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        (p * p).sum().backward()


@pytest.mark.parametrize("memory", FLATTEN)
def test_what_is_exchanged_in_a_groups_list_is_seen(memory, kind):
    """Also for a tensor that is equal, so that lists of them compare as equal."""
    for make in (list, tuple):
        a, b = parameter(1), parameter(3)
        opt = fastopt.torch.SGD([a, b], lr=1.0, flatten=FLATTEN[memory])
        opt.param_groups[0]["params"] = make([a, b])
        opt.step()
        other = torch.nn.Parameter(a.detach().clone())
        other.grad = torch.ones(1)
        opt.param_groups[0]["params"] = make([other, b])
        opt.step()
        assert (a.item(), other.item(), b[0].item()) == (0.5, -0.5, 0.0)
        opt.param_groups[0]["params"] = make([other])
        opt.step()
        assert (a.item(), other.item(), b[0].item()) == (0.5, -1.5, 0.0)


def test_gradients_come_in_any_order(kind):
    params = [[parameter(2, g=None) for _ in range(5)] for _ in range(2)]
    optimizers = torch.optim.Adam(params[0], lr=0.1), fastopt.torch.Adam(params[1], lr=0.1)
    for k, having in enumerate(([4], [4, 0], [2], [2, 1, 0], [3], [3], [0, 1, 2, 3, 4], [])):
        for own, opt in zip(params, optimizers, strict=True):
            for i, p in enumerate(own):
                p.grad = new(p, k + i) if i in having else None
            opt.step()
        assert_same(params, f"step {k}")


def test_steps_in_threads_at_once_check_their_own(kind):
    """Each thread's gradients are freed and made anew all the time."""
    params = [[parameter(40) for _ in range(30)] for _ in range(4)]
    failed: list[BaseException] = []

    def train(own, opt):
        try:
            for k in range(40):
                for p in own:
                    p.grad = new(p, k)
                opt.step()
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=train, args=(own, fastopt.torch.AdamW(own))) for own in params]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failed
    alone = [parameter(40) for _ in range(30)]
    train(alone, fastopt.torch.AdamW(alone))
    for own in params:
        assert all(torch.equal(p, q) for p, q in zip(own, alone, strict=True))


def test_one_optimizer_may_be_stepped_in_threads_at_once(kind):
    params = [parameter(40) for _ in range(30)]
    opt = fastopt.torch.AdamW(params, lr=0.001)
    running = [threading.Thread(target=lambda: [opt.step() for _ in range(200)]) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    alone = [parameter(40) for _ in range(30)]
    opt_alone = fastopt.torch.AdamW(alone, lr=0.001)
    for _ in range(800):
        opt_alone.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


@pytest.mark.parametrize("memory", FLATTEN)
@pytest.mark.parametrize("made_in", [True, False])
def test_steps_in_inference_mode_go_on_outside_of_it(made_in, memory):
    with torch.inference_mode(made_in):
        p, q = parameter(3), parameter(3)
        ours, theirs = fastopt.torch.AdamW([p], lr=0.1, flatten=FLATTEN[memory]), torch.optim.AdamW([q], lr=0.1)
    with torch.inference_mode():
        for _ in range(2):
            ours.step()
            theirs.step()
    torch.testing.assert_close(p.detach(), q.detach())
    if not made_in:  # where torch makes state that cannot be written to outside
        ours.step()
        assert float(ours.state[p]["step"]) == 3


@pytest.mark.parametrize("memory", FLATTEN)
def test_gradients_that_another_thread_drops_live_until_the_step_is_done(memory, kind, monkeypatch):
    """Between the check and the last byte the interpreter's lock is let go of; torch's step holds its gradients too."""
    from fastopt.torch import adapter

    params = [parameter(50_000) for _ in range(4)]
    expected = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours, theirs = fastopt.torch.SGD(params, lr=0.5, flatten=FLATTEN[memory]), torch.optim.SGD(expected, lr=0.5)
    run = adapter.run

    def drop_and_run(calls):
        for p in params:
            p.grad = None
        junk = [torch.full((50_000,), 1e9) for _ in range(64)]  # where freed memory would have been
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
        assert [gradient() for gradient in dropped] == [None] * len(dropped)  # nothing of ours keeps them


@pytest.mark.parametrize("memory", FLATTEN)
def test_python_does_the_same_for_any_number_of_tensors(memory, kind):
    """What is done for each of them is compiled, or a loop of the interpreter's own; counted in instructions."""

    def instructions(count):
        params = [parameter(3) for _ in range(count)]
        opt = fastopt.torch.AdamW(params, flatten=FLATTEN[memory])
        found = 0

        def trace(frame, event, argument):
            nonlocal found
            frame.f_trace_opcodes = True
            found += event == "opcode"
            return trace

        for _ in range(3):
            opt.step()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            opt.step()
        finally:
            sys.settrace(before)
        return found

    few = instructions(10)
    assert few > 100  # they were counted
    assert instructions(1000) == few

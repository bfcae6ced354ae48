"""Guards: every change of a tensor between steps is detected, by the compiled guard and by the Python guard.

Over 300 lines: each change of a tensor is a function that a table names.
"""

from __future__ import annotations

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
flatten_or_not = pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flattened"])
compiled_only = pytest.mark.skipif(c_abi.functions() is None, reason="torch's C functions are not available here")


def parameter(*shape, g: float | None = 0.5):
    p = torch.nn.Parameter(torch.arange(1.0, 1 + int(np.prod(shape))).reshape(shape))
    p.grad = None if g is None else torch.full(shape, g)
    return p


def test_the_repr_names_the_kind_of_guard(kind):
    assert f"guards: {kind}" in repr(fastopt.torch.AdamW([parameter(2)]))
    with torch.inference_mode():
        frozen = torch.ones(2)  # has no version counter: torch's C function for it would abort the process
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


# ---------------------------------------------------------------- changes that torch.optim supports

KEPT_ALIVE: list[Any] = []


def keep_alive(x):
    """Keep a replaced tensor alive, so that its memory is not reused."""
    KEPT_ALIVE.append(x)
    return x


def new_gradient(p, k):
    return torch.cos(torch.arange(float(p.numel())) + k).reshape(p.shape)


def if_it_has_a_gradient(change):
    """Make `change` do nothing to parameters without gradient."""

    def changed(p, k):
        if p.grad is not None:
            change(p, k)

    changed.__name__ = change.__name__
    return changed


def gradient_replaced(p, k):
    p.grad = new_gradient(p, k)


def gradient_replaced_old_alive(p, k):
    keep_alive(p.grad)
    p.grad = new_gradient(p, k)


def gradient_removed(p, k):
    p.grad = None


@if_it_has_a_gradient
def gradient_written_in_place(p, k):
    p.grad.copy_(new_gradient(p, k))


@if_it_has_a_gradient
def gradient_data_replaced(p, k):
    p.grad.data = new_gradient(p, k)


@if_it_has_a_gradient
def gradient_data_replaced_old_alive(p, k):
    keep_alive(p.grad.data)
    p.grad.data = new_gradient(p, k)


@if_it_has_a_gradient
def gradient_set_to_other_storage(p, k):
    p.grad.set_(keep_alive(new_gradient(p, k)))


@if_it_has_a_gradient
def gradient_storage_grown(p, k):
    p.grad = p.grad.clone()  # with its own storage
    p.grad.untyped_storage().resize_(4096)


@if_it_has_a_gradient
def gradient_is_a_slice_of_another_tensor(p, k):
    whole = torch.zeros(3, *p.shape)
    whole[1] = p.grad
    p.grad = whole[1]


def parameter_data_replaced(p, k):
    p.data = p.data * 0.5


def parameter_data_replaced_old_alive(p, k):
    keep_alive(p.data)
    p.data = p.data * 0.5


def parameter_set_to_other_storage(p, k):
    with torch.no_grad():
        p.set_(keep_alive(p.detach() * 0.75))


def parameter_swapped(p, k):
    """Swap the tensor inside the same Python object, and its gradient, as Module.to may do."""
    if p.grad is not None and p.grad_fn is None:
        other = torch.nn.Parameter(p.detach() * 0.5)
        other.grad = new_gradient(p, k)
        torch.utils.swap_tensors(p, other)


SUPPORTED_CHANGES = [
    gradient_replaced, gradient_replaced_old_alive, gradient_removed, gradient_written_in_place,
    gradient_data_replaced, gradient_data_replaced_old_alive, gradient_set_to_other_storage,
    gradient_storage_grown, gradient_is_a_slice_of_another_tensor, parameter_data_replaced,
    parameter_data_replaced_old_alive, parameter_set_to_other_storage, parameter_swapped,
]  # fmt: skip
SHAPES = [(3,), (2, 4), (1,), (0,), (5,), (), (3, 3)]


def twins(flatten):
    params = [[parameter(*shape) for shape in SHAPES] for _ in range(2)]
    return params, (torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=flatten))


def assert_same(params, message):
    for i, (p, q) in enumerate(zip(*params, strict=True)):
        np.testing.assert_allclose(
            q.detach().numpy(), p.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=f"{message}, parameter {i}"
        )  # a dozen steps of 0.1, each with about 16 roundings of values up to 9


@flatten_or_not
@pytest.mark.parametrize("change", SUPPORTED_CHANGES, ids=lambda change: change.__name__)
def test_supported_changes_give_the_same_step_as_torch(change, flatten, kind):
    params, optimizers = twins(flatten)
    for k, which in enumerate([[], [0], [], [3, 4], [1, 6], [], range(7), []]):
        for own, opt in zip(params, optimizers, strict=True):
            for p in own:
                if p.grad is None:
                    p.grad = new_gradient(p, k)
            for i in which:
                change(own[i], 10 * k + i)
            opt.step()
        assert_same(params, f"step {k}")
    KEPT_ALIVE.clear()


def check_guard(opt):
    arranged = opt._buckets.groups[0][0].arranged
    return arranged.guard.check(arranged.gradients_at).outcome


EVENTS = st.lists(
    st.lists(st.tuples(st.sampled_from(SUPPORTED_CHANGES), st.integers(0, len(SHAPES) - 1)), max_size=4),
    min_size=2,
    max_size=10,
)


@compiled_only
@flatten_or_not
@settings(max_examples=60, deadline=None)
@given(events=EVENTS)
def test_any_sequence_of_changes_gives_torchs_steps_with_both_guards(flatten, events):
    """Compared with torch.optim step by step. Both guards find the same outcome, where it is determined."""
    params = [[parameter(*shape) for shape in SHAPES] for _ in range(3)]
    optimizers = [
        torch.optim.AdamW(params[0], lr=0.1),
        *(fastopt.torch.AdamW(own, lr=0.1, flatten=flatten) for own in params[1:]),
    ]
    functions = c_abi.functions
    for k, changes in enumerate([[], *events, []]):
        outcomes = []
        for which, (own, opt) in enumerate(zip(params, optimizers, strict=True)):
            with pytest.MonkeyPatch.context() as patch:
                if which == 2:
                    patch.setattr(c_abi, "functions", lambda: None)
                for change, i in changes:
                    change(own[i], 100 * k + i)
                if which and k:
                    outcomes.append(check_guard(opt))
                opt.step()
                if which:
                    assert opt._buckets.groups[0][0].arranged.guard.kind == KINDS[which - 1]
        assert c_abi.functions is functions
        assert_same([params[0], params[1]], f"step {k}, compiled")
        assert_same([params[0], params[2]], f"step {k}, Python")
        # Memory that is freed and allocated again may or may not get the same address.
        reused = any(change is parameter_data_replaced for change, _ in changes)
        assert not outcomes or reused or outcomes[0] == outcomes[1] or set(outcomes) == {Outcome.SAME, Outcome.MOVED}
        if not changes and outcomes:
            assert outcomes == [Outcome.SAME, Outcome.SAME]
    KEPT_ALIVE.clear()


# ---------------------------------------------------------------- changes that are refused


def gradient_transposed_in_place(p):
    p.grad.t_()


def gradient_dimensions_swapped_in_place(p):
    p.grad.transpose_(0, 1)


def gradient_resized_smaller(p):
    p.grad.resize_(2, 3)


def gradient_resized_larger(p):
    p.grad.resize_(4, 3)


def gradient_of_another_dtype(p):
    p.grad.data = p.grad.data.double()


def gradient_of_another_dtype_in_the_same_memory(p):
    p.grad.data = p.grad.data.view(torch.int32)


def sparse_gradient(p):
    p.grad = torch.eye(3).to_sparse()


def negative_view_as_gradient(p):
    p.grad = torch._neg_view(p.grad)


def gradient_storage_emptied(p):
    p.grad = p.grad.clone()
    p.grad.untyped_storage().resize_(0)


def gradient_storage_truncated(p):
    p.grad = p.grad.clone()
    p.grad.untyped_storage().resize_(16)


def gradient_of_a_class_with_its_own_memory(p):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    p.grad = AsyncCollectiveTensor(p.grad)


def gradient_of_zeros_without_memory(p):
    p.grad = torch._efficientzerotensor(p.shape)


def fake_gradient(p):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        p.grad = torch.ones(3, 3)


def parameter_transposed_in_the_same_memory(p):
    p.data = p.data.t()


def parameter_truncated_in_the_same_memory(p):
    p.data = p.data[:2]


def parameter_of_another_dtype_in_the_same_memory(p):
    p.data = p.data.view(torch.float16).as_strided(p.shape, p.stride())


def parameter_storage_emptied(p):
    p.data = p.data.clone()
    p.untyped_storage().resize_(0)


def gradient_in_the_memory_of_the_parameter(p):
    p.grad = p.detach()


REFUSED_CHANGES = [
    gradient_transposed_in_place, gradient_dimensions_swapped_in_place, gradient_resized_smaller,
    gradient_resized_larger, gradient_of_another_dtype, gradient_of_another_dtype_in_the_same_memory,
    sparse_gradient, negative_view_as_gradient, gradient_storage_emptied, gradient_storage_truncated,
    gradient_of_a_class_with_its_own_memory, gradient_of_zeros_without_memory, fake_gradient,
    parameter_transposed_in_the_same_memory, parameter_truncated_in_the_same_memory,
    parameter_of_another_dtype_in_the_same_memory, parameter_storage_emptied,
    gradient_in_the_memory_of_the_parameter,
]  # fmt: skip


@flatten_or_not
@pytest.mark.parametrize("change", REFUSED_CHANGES, ids=lambda change: change.__name__)
def test_unsupported_changes_are_refused_and_nothing_is_written(change, flatten, kind):
    first, p, last = parameter(4), parameter(3, 3), parameter(2)
    opt = fastopt.torch.AdamW([first, p, last], lr=0.1, flatten=flatten)
    for _ in range(2):
        opt.step()
    before, data, grad = [x.detach().clone() for x in (first, last)], p.data, p.grad.clone()
    values, versions = data.clone(), [x._version for x in (first, p, last)]
    if flatten and change is gradient_resized_larger:  # what is in a flat buffer
        with pytest.raises(RuntimeError, match="not resizable"):
            change(p)
        return
    change(p)
    if p.shape == data.shape:
        versions[1] = p._version
    for _ in range(2):  # it is refused again
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


# ---------------------------------------------------------------- state that changes without a change of its dict


def state_data_replaced(x):
    x.data = x.data * 2


def state_data_replaced_old_alive(x):
    keep_alive(x.data)
    x.data = x.data * 2


def state_set_to_other_storage(x):
    x.set_(keep_alive(x * 2))


def state_swapped(x):
    torch.utils.swap_tensors(x, x * 2)


def state_in_another_memory_order(x):
    x.data = x.data.t().contiguous().t()


def state_moved_to_shared_memory(x):
    x.share_memory_()


def state_storage_grown(x):
    x.untyped_storage().resize_(8192)


STATE_CHANGES = [
    state_data_replaced, state_data_replaced_old_alive, state_set_to_other_storage, state_swapped,
    state_in_another_memory_order, state_moved_to_shared_memory, state_storage_grown,
]  # fmt: skip


@flatten_or_not
@pytest.mark.parametrize("change", STATE_CHANGES, ids=lambda change: change.__name__)
def test_state_that_moves_in_memory_is_found(change, flatten, kind):
    params = [[parameter(*shape) for shape in ((3,), (2, 4), (40, 30))] for _ in range(2)]
    optimizers = torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=flatten)
    if flatten and change is state_storage_grown:  # what is in a flat buffer
        optimizers[1].step()
        with pytest.raises(RuntimeError, match="not resizable"):
            change(optimizers[1].state[params[1][0]]["exp_avg"])
        return
    for k, which in enumerate([[], [1], [], [0, 2], []]):
        for own, opt in zip(params, optimizers, strict=True):
            for i, p in enumerate(own):
                p.grad.copy_(new_gradient(p, k))
                if i in which:
                    change(opt.state[p]["exp_avg"])
                    change(opt.state[p]["exp_avg_sq"])
            opt.step()
        assert_same(params, f"step {k}")
    for p, q in zip(*params, strict=True):
        np.testing.assert_allclose(
            optimizers[1].state[q]["exp_avg"], optimizers[0].state[p]["exp_avg"], rtol=1e-5, atol=1e-7
        )
    KEPT_ALIVE.clear()


@flatten_or_not
def test_state_whose_layout_changed_in_place_is_refused(flatten, kind):
    for change in (lambda x: x.resize_(2), lambda x: x.untyped_storage().resize_(0), lambda x: x.t_()):
        first, p = parameter(4), parameter(3, 2)
        opt = fastopt.torch.AdamW([first, p], lr=0.1, flatten=flatten)
        opt.step()
        moved = opt.state[p]["exp_avg"]
        moved.data = moved.data.clone()
        change(moved)
        values = first.tolist(), p.tolist()
        with pytest.raises(LayoutError, match=r"of parameter 1 of group 0 was changed in place"):
            opt.step()
        assert (first.tolist(), p.tolist()) == values
        opt.state[p]["exp_avg"] = torch.zeros(3, 2)
        opt.step()
        assert first.tolist() != values[0]


@flatten_or_not
def test_step_counts_may_move_to_shared_memory(flatten, kind):
    """As asynchronous training does with all state: it moves the memory of the step counts."""
    params = [[parameter(3), parameter(2, 4)] for _ in range(2)]
    optimizers = torch.optim.AdamW(params[0], lr=0.1), fastopt.torch.AdamW(params[1], lr=0.1, flatten=flatten)
    for k in range(4):
        for own, opt in zip(params, optimizers, strict=True):
            for p in own:
                p.grad = new_gradient(p, k)
            opt.step()
            for p in own if k == 1 else ():
                opt.state[p]["step"].share_memory_()
        assert_same(params, f"step {k}")
        assert [float(x["step"]) for x in optimizers[1].state.values()] == [k + 1] * 2


# ---------------------------------------------------------------- checks


def test_the_outcome_of_a_check(kind):
    active, idle = [parameter(3), parameter(2, 2), parameter(0)], [parameter(2, g=None)]
    state = [torch.zeros(3), torch.zeros(4)]
    old_state_data = state[1].data
    guard = make_guard(active, idle, state)
    assert guard.kind == kind

    def outcome():
        return guard.check(guard.g_at).outcome

    assert outcome() is Outcome.SAME
    old_grad = active[1].grad
    active[1].grad = torch.ones(2, 2)
    moved = guard.check(guard.g_at)
    assert moved.outcome is Outcome.MOVED
    assert moved.addresses.tolist() == [p.grad.data_ptr() for p in active]
    assert all(g is p.grad for g, p in zip(moved.gradients, active, strict=True))
    assert guard.check(moved.addresses).outcome is Outcome.SAME
    active[1].grad = old_grad
    assert guard.check(moved.addresses).outcome is Outcome.MOVED
    assert outcome() is Outcome.SAME
    idle[0].grad = torch.ones(2)
    assert outcome() is Outcome.CHANGED
    idle[0].grad = None
    assert outcome() is Outcome.SAME
    old_data = active[0].data
    active[0].data = torch.ones(3)
    assert outcome() is Outcome.CHANGED
    active[0].data = old_data
    assert outcome() is Outcome.SAME
    state[1].data = torch.ones(4)
    assert outcome() is Outcome.CHANGED
    state[1].data = old_state_data
    assert outcome() is Outcome.SAME


@flatten_or_not
def test_a_step_increments_only_the_version_of_what_it_wrote(flatten, kind):
    active, idle = [parameter(3), parameter(2, 2), parameter(0)], [parameter(2, g=None)]
    opt = fastopt.torch.AdamW([*active, *idle], flatten=flatten)
    opt.step()
    versions = [p._version for p in (*active, *idle)]
    opt.step()
    assert [p._version for p in (*active, *idle)] == [v + 1 for v in versions[:3]] + versions[3:]


@compiled_only
def test_the_compiled_guard_detects_a_change_of_shape_alone():
    """The Python guard compares only the number of elements of contiguous tensors, because the step is the same."""
    p = parameter(3, 3)
    guard = make_guard([p], [])
    p.grad.unsqueeze_(2)
    assert guard.check(guard.g_at).outcome is Outcome.CHANGED
    p.grad.squeeze_(2)
    assert guard.check(guard.g_at).outcome is Outcome.SAME
    p.data = p.data.unsqueeze(2)
    assert guard.check(guard.g_at).outcome is Outcome.CHANGED


@flatten_or_not
def test_backward_through_a_parameter_that_a_step_changed_fails_as_in_torch(flatten, kind):
    for module in (torch.optim, fastopt.torch):
        p = parameter(3)
        opt = module.AdamW([p], **({} if module is torch.optim else {"flatten": flatten}))
        for _ in range(2):
            loss = (p * p).sum()
            opt.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        (p * p).sum().backward()


@flatten_or_not
def test_a_parameter_replaced_in_a_groups_list_is_detected(flatten, kind):
    """Also by a tensor with equal values, so that the lists compare as equal."""
    for make in (list, tuple):
        a, b = parameter(1), parameter(3)
        opt = fastopt.torch.SGD([a, b], lr=1.0, flatten=flatten)
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


def test_any_subset_of_parameters_may_have_gradients(kind):
    params = [[parameter(2, g=None) for _ in range(5)] for _ in range(2)]
    optimizers = torch.optim.Adam(params[0], lr=0.1), fastopt.torch.Adam(params[1], lr=0.1)
    for k, with_gradients in enumerate(([4], [4, 0], [2], [2, 1, 0], [3], [3], [0, 1, 2, 3, 4], [])):
        for own, opt in zip(params, optimizers, strict=True):
            for i, p in enumerate(own):
                p.grad = new_gradient(p, k + i) if i in with_gradients else None
            opt.step()
        assert_same(params, f"step {k}")

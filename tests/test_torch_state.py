"""State of fastopt.torch as others see it: torch's names and values in every storage, saved, loaded, extended.

Over 300 lines: whatever others do with state is tried in every storage.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

import fastopt.torch  # noqa: E402
from fastopt import LayoutError  # noqa: E402
from fastopt.store import Store  # noqa: E402

STORAGES = {
    "plain": (torch.float32, None),
    "8bit": (torch.float32, "8bit"),
    "half": (torch.bfloat16, "bf16"),
    "split": (torch.bfloat16, "split"),
    "split_8bit": (torch.bfloat16, "split_8bit"),
    "kahan": (torch.bfloat16, "bf16_kahan"),
    "mixed": (torch.bfloat16, "mixed_bf16"),
    "bf16_8bit": (torch.bfloat16, "bf16_8bit"),
}
every_storage = pytest.mark.parametrize(("dtype", "storage"), STORAGES.values(), ids=STORAGES)
flatten_or_not = pytest.mark.parametrize("flatten", [False, True], ids=["separate", "flattened"])
MOVABLE = {torch.float32, torch.float64, torch.bfloat16, torch.float16}  # by every process group


def made(dtype: Any = torch.float32, storage: Any = None, *, steps: int = 3, **own: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)).to(dtype)
    opt = fastopt.torch.AdamW(net.parameters(), lr=0.01, storage=storage, **own)
    train(net, opt, range(steps))
    return net, opt


def train(net: Any, opt: Any, steps: range) -> None:
    for step in steps:
        opt.zero_grad()
        x = torch.randn(8, 30, generator=torch.Generator().manual_seed(step))
        net(x.to(net[0].weight.dtype)).float().square().mean().backward()
        opt.step()


def bits(net: Any, opt: Any) -> bytes:
    file = io.BytesIO()
    values = [p.detach() for p in net.parameters()]
    for entries in opt.state_dict()["state"].values():
        values += [entries[name] for name in sorted(entries)]
    for x in values:
        file.write(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return file.getvalue()


# ---------------------------------------------------------------- as torch shows it


@every_storage
@flatten_or_not
def test_live_state_has_the_names_shapes_and_values_of_saved_state(dtype, storage, flatten):
    net, opt = made(dtype, storage, flatten=flatten)
    saved = opt.state_dict()["state"]
    for k, p in enumerate(net.parameters()):
        live = opt.state[p]
        assert list(live) == list(saved[k])
        assert {"step", "exp_avg", "exp_avg_sq"} <= live.keys()
        for name, x in saved[k].items():
            assert torch.equal(live[name], x)
            assert x.shape == (() if name == "step" else p.shape)
            assert x.dtype in MOVABLE


@every_storage
def test_every_way_to_read_a_dict_gives_tensors(dtype, storage):
    net, opt = made(dtype, storage)
    p = net[0].weight
    live, saved = opt.state[p], opt.state_dict()["state"][0]
    readings = [
        dict(live), {**live}, {} | live, live | {}, live.copy(), copy.copy(live), copy.deepcopy(live),
        pickle.loads(pickle.dumps(live)), dict(zip(live, live.values(), strict=True)), dict(live.items()),
        {name: live.get(name) for name in live}, dict(opt.state)[p], copy.copy(opt.state)[p],
        {name: live.setdefault(name) for name in live},
    ]  # fmt: skip
    for k, found in enumerate(readings):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], x) for name, x in saved.items()), k
    assert "Encoded" not in repr(live) + repr(opt.state) + str(opt.state_dict())


@every_storage
def test_reading_the_state_at_each_step_changes_nothing(dtype, storage):
    net, opt = made(dtype, storage, steps=0)
    twin, other = made(dtype, storage, steps=0)
    for step in range(6):
        train(net, opt, range(step, step + 1))
        for p in net.parameters():
            assert all(torch.isfinite(x).all() for x in opt.state[p].values())
        train(twin, other, range(step, step + 1))
    assert bits(net, opt) == bits(twin, other)


@every_storage
@flatten_or_not
def test_values_written_in_place_are_stored(dtype, storage, flatten):
    """By any means: some do not increment the tensor's version."""
    net, opt = made(dtype, storage, flatten=flatten)
    twin, other = made(dtype, storage, flatten=flatten)
    for k, p in enumerate(net.parameters()):
        live = opt.state[p]
        if k % 2:
            live["exp_avg"].mul_(0.5)
        else:
            live["exp_avg"].data.mul_(0.5)
        live["exp_avg_sq"].zero_()
        live["exp_avg_sq"].add_(1.0)  # the same tensor again
    for q in twin.parameters():
        live = other.state[q]
        live["exp_avg"] = live["exp_avg"] * 0.5
        live["exp_avg_sq"] = torch.ones_like(live["exp_avg_sq"])
    train(net, opt, range(3, 5))
    train(twin, other, range(3, 5))
    assert bits(net, opt) == bits(twin, other)


@every_storage
def test_what_was_written_in_place_is_saved_too(dtype, storage):
    net, opt = made(dtype, storage)
    live = opt.state[net[0].weight]
    live["exp_avg"].fill_(0.25)
    assert torch.equal(opt.state_dict()["state"][0]["exp_avg"].float(), torch.full((20, 30), 0.25))
    assert torch.equal(copy.deepcopy(opt).state_dict()["state"][0]["exp_avg"].float(), torch.full((20, 30), 0.25))


@every_storage
def test_state_moved_entry_by_entry_goes_on(dtype, storage):
    """As trainers do that move an optimizer to a device after they have loaded it."""
    net, opt = made(dtype, storage)
    twin, other = made(dtype, storage)
    for p, entries in opt.state.items():
        opt.state[p] = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in entries.items()}
    train(net, opt, range(3, 6))
    train(twin, other, range(3, 6))
    assert bits(net, opt) == bits(twin, other)


# ---------------------------------------------------------------- checkpoints


@every_storage
@pytest.mark.parametrize("nested", [False, True])
@flatten_or_not
def test_distributed_checkpoints_of_one_process_go_on_bit_for_bit(dtype, storage, nested, flatten):
    """With names in a flat dict too, for which torch reads the live state's names."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=not nested)
    net, opt = made(dtype, storage, flatten=flatten)
    model, optim = copy.deepcopy(get_state_dict(net, opt, options=options))
    again, other = made(dtype, storage, steps=0, flatten=flatten)
    get_state_dict(again, other, options=options)  # as a load begins: it makes the state
    set_state_dict(again, other, model_state_dict=model, optim_state_dict=optim, options=options)
    assert bits(net, opt) == bits(again, other)
    train(net, opt, range(3, 9))
    train(again, other, range(3, 9))
    assert bits(net, opt) == bits(again, other)


@every_storage
@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_the_order_in_which_model_and_optimizer_are_loaded_does_not_matter(dtype, storage, first):
    net, opt = made(dtype, storage)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict()))
    again, other = made(dtype, storage, steps=1)
    loads = [lambda: again.load_state_dict(saved[0]), lambda: other.load_state_dict(saved[1])]
    for load in loads if first == "model" else reversed(loads):
        load()
    train(net, opt, range(3, 6))
    train(again, other, range(3, 6))
    assert bits(net, opt) == bits(again, other)


def wrong(name: str, change: Any) -> Any:
    return lambda state: state.update({name: change(state.get(name))})


CORRUPTIONS = {
    "shape": wrong("exp_avg", lambda x: x[:2]),
    "one element": wrong("exp_avg", lambda x: x.flatten()[:1]),
    "integers": wrong("exp_avg_sq", lambda x: x.to(torch.int32)),
    "no tensor": wrong("exp_avg", lambda x: 3.0),
    "more precision": wrong("exp_avg", lambda x: x.double()),
    "negative count": wrong("step", lambda x: torch.tensor(-1.0)),
    "NaN count": wrong("step", lambda x: torch.tensor(float("nan"))),
    "no count": wrong("step", lambda x: "three"),
    "two counts": wrong("step", lambda x: torch.ones(2)),
    "another master": wrong("master", lambda x: torch.ones(2)),
    "another rest": wrong("param.error", lambda x: torch.ones(2, dtype=torch.bfloat16)),
    "a rest of floats": wrong("param.error", lambda x: torch.full((3,), 0.4)),
}


@pytest.mark.parametrize(("dtype", "storage"), [STORAGES["plain"], STORAGES["split_8bit"], STORAGES["kahan"]])
@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_a_wrong_checkpoint_is_refused_whole(dtype, storage, corrupt, request):
    """The last parameter's entry is wrong: nothing of the others' is taken either."""
    net, opt = made(dtype, storage)
    saved = copy.deepcopy(opt.state_dict())
    corrupt(saved["state"][3])
    if "rest" in request.node.callspec.id and storage != "bf16_kahan":
        pytest.skip("a part of another storage's parameters is not read")
    for entries in saved["state"].values():
        entries["exp_avg"] = entries["exp_avg"] * 0 if isinstance(entries["exp_avg"], torch.Tensor) else 0
    saved["param_groups"][0]["lr"] = 0.5
    before = bits(net, opt)
    with pytest.raises(LayoutError, match="of group 0"):
        opt.load_state_dict(saved)
    assert bits(net, opt) == before
    assert opt.param_groups[0]["lr"] == 0.01
    train(net, opt, range(3, 5))


@every_storage
@flatten_or_not
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_load_that_fails_midway_changes_nothing(dtype, storage, flatten, after, monkeypatch):
    """As when memory is exhausted, or the load is interrupted."""
    net, opt = made(dtype, storage, flatten=flatten)
    twin, other = made(dtype, storage, flatten=flatten)
    saved = copy.deepcopy(other.state_dict())
    for entries in saved["state"].values():
        entries["exp_avg"].zero_()
        entries["step"].fill_(77.0)
    saved["param_groups"][0]["lr"] = 0.5
    calls, allocate = [], Store.allocate

    def failing(self: Any, row: int, name: str) -> Any:
        calls.append(name)
        if len(calls) > after:
            raise KeyboardInterrupt
        return allocate(self, row, name)

    monkeypatch.setattr(Store, "allocate", failing)
    with pytest.raises(KeyboardInterrupt):
        opt.load_state_dict(saved)
    monkeypatch.undo()
    assert bits(net, opt) == bits(twin, other)
    assert opt.param_groups[0]["lr"] == 0.01
    train(net, opt, range(3, 5))
    train(twin, other, range(3, 5))
    assert bits(net, opt) == bits(twin, other)


# ---------------------------------------------------------------- what others keep there


@every_storage
def test_entries_of_others_are_saved_loaded_and_left_alone(dtype, storage):
    net, opt = made(dtype, storage)
    for k, p in enumerate(net.parameters()):
        opt.state[p]["slow"] = torch.full_like(p, float(k))
        opt.state[p]["note"] = {"k": k}
    opt.state["all"] = {"seen": 5}
    train(net, opt, range(3, 5))
    saved = copy.deepcopy(opt.state_dict())
    again, other = made(dtype, storage, steps=1)
    other.load_state_dict(saved)
    for found in (opt, other, pickle.loads(pickle.dumps(opt))):
        entries = list(found.state.items())
        assert found.state["all"] == {"seen": 5}
        for k, (_, x) in enumerate([e for e in entries if isinstance(e[0], torch.Tensor)]):
            assert x["note"] == {"k": k}
            assert (x["slow"] == k).all()
    other.state[again[0].weight]["slow"].zero_()
    train(again, other, range(5, 7))
    assert not other.state[again[0].weight]["slow"].any()


def test_state_of_another_optimizer_is_still_refused():
    net, opt = made()
    other = torch.optim.RMSprop(net.parameters())
    train(net, other, range(1))
    with pytest.raises(LayoutError, match=r"square_avg.*fits nothing"):
        opt.load_state_dict(other.state_dict())


def test_what_another_storage_has_beside_values_is_not_carried_along():
    """A later run with that storage would take it for the parameters of then."""
    _, opt = made(torch.bfloat16, "split_8bit")
    net, other = made(torch.float32, None, steps=0)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert list(other.state[net[0].weight]) == ["step", "exp_avg", "exp_avg_sq"]
    assert list(other.state_dict()["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    plain = fastopt.torch.SGD(net.parameters(), lr=0.1, momentum=0.9)
    buffers = {k: {"momentum_buffer": torch.ones_like(p)} for k, p in enumerate(net.parameters())}
    plain.load_state_dict({**plain.state_dict(), "state": {k: {**x, "step": 3.0} for k, x in buffers.items()}})
    assert list(plain.state[net[0].weight]) == ["momentum_buffer"]  # torch.optim.SGD counts no steps


def test_what_a_hook_writes_to_the_state_stays():
    net, opt = made(storage="8bit")
    p = net[0].weight
    seen = []

    def before(optimizer: Any) -> None:
        optimizer.state[p]["saved at"] = 7

    def after(optimizer: Any, state: Any) -> None:
        seen.append(type(state["state"][0]["exp_avg"]))

    opt.register_state_dict_pre_hook(before)
    opt.register_state_dict_post_hook(after)
    assert opt.state_dict()["state"][0]["saved at"] == 7
    train(net, opt, range(3, 5))
    assert opt.state[p]["saved at"] == 7
    assert seen == [torch.Tensor]


def test_options_of_others_are_carried_along():
    """As wrappers and trainers add them to `defaults` and to groups."""
    base: Any
    for base in (torch.optim.AdamW, fastopt.torch.AdamW):

        class Extended(base):
            def __init__(self, params: Any, scale: float = 2.0, **own: Any):
                super().__init__(params, **own)
                self.defaults["scale"] = scale
                for group in self.param_groups:
                    group.setdefault("scale", scale)

        p = torch.nn.Parameter(torch.ones(3))
        opt = Extended([p], lr=0.1)
        opt.defaults["lr_scale"] = 1.0
        q = torch.nn.Parameter(torch.ones(2))
        opt.add_param_group({"params": [q], "name": "head"})
        for _ in range(2):
            p.grad, q.grad = torch.ones(3), torch.ones(2)
            opt.step()
            opt.load_state_dict(opt.state_dict())
            opt = copy.deepcopy(opt)
            p, q = (group["params"][0] for group in opt.param_groups)
        assert [group["scale"] for group in opt.param_groups] == [2.0, 2.0]
        assert opt.param_groups[1]["name"] == "head"
        assert opt.param_groups[1]["lr_scale"] == 1.0


@pytest.mark.parametrize("initial", [1e-3, 1.0, 0.3])
def test_learning_rates_a_rounding_below_zero(initial):
    """At one of which torch's LinearLR ends."""
    ends, rates = [], []
    for module in (torch.optim, fastopt.torch):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        opt = module.AdamW([p], lr=initial)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1 / 3, end_factor=0.0, total_iters=7)
        for step in range(10):
            p.grad = torch.cos(p.detach() * step)
            opt.step()
            schedule.step()
        ends.append(p.detach())
        rates.append(opt.param_groups[0]["lr"])
    assert rates[0] == rates[1] < 0
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)  # ten steps, each of a few roundings


# ---------------------------------------------------------------- threads


@every_storage
def test_saving_in_another_thread_does_not_disturb_the_steps(dtype, storage):
    net, opt = made(dtype, storage, steps=0)
    twin, other = made(dtype, storage, steps=0)
    stop, errors, saved = threading.Event(), [], []

    def save() -> None:
        while not stop.is_set():
            try:
                saved.append(opt.state_dict()["state"])
            except BaseException as error:  # shown by the test
                errors.append(error)
                return

    thread = threading.Thread(target=save)
    thread.start()
    try:
        train(net, opt, range(60))
    finally:
        stop.set()
        thread.join()
    train(twin, other, range(60))
    assert not errors
    assert bits(net, opt) == bits(twin, other)
    for state in saved:  # each is of one moment: all parameters have taken equally many steps
        assert len({float(entries["step"]) for entries in state.values()}) <= 1


@every_storage
def test_reading_state_in_another_thread_does_not_disturb_the_steps(dtype, storage):
    """What is decoded while a step runs would be half of it, and must not be stored by the next."""
    net, opt = made(dtype, storage, steps=1)
    twin, other = made(dtype, storage, steps=1)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for p in net.parameters():
                # A copy, because isfinite reads a tensor twice, and a step may write to it in between.
                assert all(torch.isfinite(x.clone()).all() for x in opt.state[p].values())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        train(net, opt, range(1, 80))
    finally:
        stop.set()
        thread.join()
    train(twin, other, range(1, 80))
    assert bits(net, opt) == bits(twin, other)

"""What fastopt does around a CUDA kernel, tested with a fake CuPy that runs kernels on the host (see fake_cupy).

Over 300 lines: all that surrounds a kernel is tried on one stand-in.
"""

import copy
import pickle
import re
import sys
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cases import CASES, fresh_buffers
from cuda_host import COMPILER
from values import assert_same_bits

import fastopt
from fastopt import BackendError, LayoutError, SettingError
from fastopt.demo import machine
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cuda import nvrtc

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels for the host")


def on_device(cupy, array, device=0):
    with cupy.cuda.Device(device):
        made = cupy.empty(array.shape, array.dtype)
        made.set(array)
        return made


ADAM = fastopt.Adam(lr=0.01, weight_decay=0.1)


def buffers(n=1000, seed=0):
    rng = np.random.default_rng(seed)
    made = fresh_buffers(ADAM, rng.standard_normal(n).astype(np.float32))
    made["g"][...] = rng.standard_normal(n)
    return made


@pytest.mark.parametrize("backend", ["auto", "cuda"])
@pytest.mark.parametrize("case", ["adam", "noise-adam", "rmsprop-centered-momentum"])
def test_update_on_a_device_equals_the_reference(case, backend, cupy):
    rng, rule = np.random.default_rng(0), CASES[case]
    truth = fresh_buffers(rule, rng.standard_normal((10, 100)).astype(np.float32))
    truth["g"][...] = rng.standard_normal((10, 100))
    ours = {name: on_device(cupy, a) for name, a in truth.items()}
    for t in (1, 2, 3):
        fastopt.update(rule, t, ours, backend=backend, seed=3, offset=256)
        fastopt.update(rule, t, truth, backend="reference", seed=3, offset=256)
    for name, array in ours.items():
        assert_same_bits(array.get(), truth[name], name)


@pytest.mark.parametrize("preset", ["bf16", "split_8bit", "mixed_f16"])
def test_storages_on_a_device_equal_the_reference(preset, cupy):
    rng = np.random.default_rng(1)
    values = {"w": rng.standard_normal((30, 20)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    ours = fastopt.Optimizer(ADAM, values, storage=preset, backend="cuda", seed=2)
    truth = fastopt.Optimizer(ADAM, values, storage=preset, backend="reference", seed=2)
    ours.capturable(3)
    for t in range(3):
        for name, value in values.items():
            truth.grads[name][...] = rng.standard_normal(value.shape)
            ours.grads[name].set(truth.grads[name])
        if t == 1:
            new = rng.standard_normal(7).astype(np.float32)
            ours.assign({"b": new})
            truth.assign({"b": new})
        ours.step()
        truth.step()
    state = ours.state_dict()
    assert state.keys() == truth.state_dict().keys()
    for key, value in truth.state_dict().items():
        assert np.array_equal(state[key], value), key
    master: Any = ours.master()
    v: Any = ours.state("v")
    for name in values:
        assert ours.params[name].get().tobytes() == truth.params[name].tobytes()
        assert_same_bits(master[name].get(), truth.master()[name])
        assert_same_bits(v[name].get(), truth.state("v")[name])


def test_a_step_runs_on_the_device_of_the_arrays_and_the_current_stream(cupy):
    ours = {name: on_device(cupy, a, device=1) for name, a in buffers().items()}
    with cupy.cuda.Device(1):  # each device has a current stream of its own
        stream = cupy.cuda.Stream("mine").use()
    fastopt.update(ADAM, 1, ours)
    ((name, grid, device, used),) = cupy.state.launches
    assert (name, grid, device, used) == (trace(ADAM, np.float32).name, (1,), 1, stream)
    assert cupy.state.device == 0


@pytest.mark.parametrize("kind", ["cupy", "protocol", "torch", "address"])
def test_a_step_runs_on_a_stream_that_is_passed_in(kind, cupy):
    mine = cupy.cuda.Stream("mine")
    stream = {
        "cupy": mine,
        "protocol": SimpleNamespace(__cuda_stream__=lambda: (0, 1234)),
        "torch": SimpleNamespace(cuda_stream=1234),
        "address": 1234,
    }[kind]
    fastopt.update(ADAM, 1, {name: on_device(cupy, a) for name, a in buffers().items()}, stream=stream)
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"])})
    opt.step(stream=stream)
    opt.step({"w": on_device(cupy, buffers()["g"])}, stream=stream)
    assert {used.name for *_, used in cupy.state.launches} == {"mine" if kind == "cupy" else "external 1234"}
    assert not cupy.state.streams


def test_the_current_stream_of_the_caller_stays_current(cupy):
    """With CuPy's own `with stream` the default stream would be current afterwards."""
    ours = {name: on_device(cupy, a) for name, a in buffers().items()}
    mine = cupy.cuda.Stream("mine").use()
    fastopt.update(ADAM, 1, ours, stream=SimpleNamespace(cuda_stream=1234))
    assert cupy.cuda.get_current_stream() is mine
    fastopt.update(ADAM, 2, ours)
    assert cupy.state.launches[-1][3] is mine


def test_an_invalid_stream_is_refused(cupy):
    ours = {name: on_device(cupy, a) for name, a in buffers().items()}
    for stream in ("mine", True, 1.5):
        with pytest.raises(SettingError, match="not a CUDA stream"):
            fastopt.update(ADAM, 1, ours, stream=stream)
    with pytest.raises(BackendError, match="CPU's memory"):
        fastopt.update(ADAM, 1, buffers(), stream=cupy.cuda.Stream())
    assert_same_bits(ours["p"].get(), buffers()["p"])


@pytest.mark.parametrize("dlpack", [False, True])
def test_device_memory_of_another_library_is_updated_in_place(dlpack, cupy):
    host, truth = buffers(), buffers()
    fastopt.update(ADAM, 1, {name: fake_cupy.foreign_array(a, dlpack=dlpack) for name, a in host.items()})
    fastopt.update(ADAM, 1, truth, backend="reference")
    assert len(cupy.state.launches) == 1
    for name, array in host.items():
        assert_same_bits(array, truth[name], name)


class Jax:
    """An array of JAX, whose arrays are immutable."""


Jax.__module__ = "jaxlib.something"


def jax_array(host):
    made = Jax()
    made.__dict__.update(vars(fake_cupy.foreign_array(host)))
    return made


def strided(cupy, array):
    return on_device(cupy, np.repeat(array, 2))[::2]


def misaligned(cupy, array):
    raw = np.zeros(array.nbytes + 128, np.uint8)
    raw = raw[-raw.ctypes.data % 64 + 2 :][: array.nbytes]
    return cupy.ndarray(raw.view(array.dtype))


REFUSED = {
    "on two devices": (lambda cupy, b: {**b, "m": on_device(cupy, np.zeros(1000, np.float32), 1)}, "on cuda:1"),
    "on a device and on the CPU": (lambda cupy, b: {**b, "v": np.zeros(1000, np.float32)}, "'v' is on another device"),
    "strided": (lambda cupy, b: {**b, "g": strided(cupy, buffers()["g"])}, "contiguous"),
    "misaligned": (lambda cupy, b: {**b, "g": misaligned(cupy, buffers()["g"])}, "misaligned"),
    "overlapping": (lambda cupy, b: {**b, "v": b["m"]}, "overlap"),
    "ints": (lambda cupy, b: {**b, "p": on_device(cupy, np.zeros(1000, np.int32))}, "cannot be updated in place"),
    "read-only": (lambda cupy, b: {**b, "p": fake_cupy.foreign_array(buffers()["p"], read_only=True)}, "read-only"),
    "jax": (lambda cupy, b: {**b, "p": jax_array(buffers()["p"])}, "read-only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_buffers_are_refused_and_nothing_is_launched(case, cupy):
    make, message = REFUSED[case]
    with pytest.raises(LayoutError, match=message):
        fastopt.update(ADAM, 1, make(cupy, {name: on_device(cupy, a) for name, a in buffers().items()}))
    assert not cupy.state.launches


def test_a_backend_for_another_device_is_refused(cupy):
    ours = {name: on_device(cupy, a) for name, a in buffers().items()}
    for backend in ("cpu", "reference"):
        with pytest.raises(BackendError, match="not for arrays that live there"):
            fastopt.update(ADAM, 1, ours, backend=backend)
        with pytest.raises(BackendError, match="not for arrays that live there"):
            fastopt.Optimizer(ADAM, {"w": ours["p"]}, backend=backend)
    with pytest.raises(BackendError, match="not for arrays that live there"):
        fastopt.update(ADAM, 1, buffers(), backend="cuda")


def device_and_reference(cupy, *, device=0, memory="device", **options):
    """Make an optimizer on a device, from values in `memory` "device" or "cpu", the same on the CPU, and gradients."""
    rng = np.random.default_rng(1)
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    rule = fastopt.GradientNoise(fastopt.Adam(lr=lambda t: 0.1 / t, weight_decay=0.1))
    groups = {"*.bias": {"weight_decay": 0.0}}
    with cupy.cuda.Device(device):
        given = {n: on_device(cupy, v, device) for n, v in values.items()} if memory == "device" else values
        ours = fastopt.Optimizer(rule, given, groups=groups, seed=9, backend="cuda", **options)
    truth = fastopt.Optimizer(rule, values, groups=groups, seed=9, backend="reference")
    grads = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(6)]
    return ours, truth, grads


SHAPES = {"a.weight": (30, 11), "a.bias": (30,), "b.weight": (7,), "b.bias": (), "none": (0, 3)}


def assert_equal(ours, truth):
    assert ours.t == truth.t
    for name, expected in truth.params.items():
        assert_same_bits(ours.params[name].get(), expected, name)
        assert_same_bits(ours.state("m")[name].get(), truth.state("m")[name], name)
        assert_same_bits(ours.master()[name].get(), expected, name)


@pytest.mark.parametrize("memory", ["device", "cpu"])
def test_an_optimizer_on_a_device_equals_the_reference(memory, cupy):
    ours, truth, grads = device_and_reference(cupy, device=1, memory=memory)
    cupy.state.launches.clear()
    for k, g in enumerate(grads):
        if k % 2:
            ours.step({name: on_device(cupy, value, 1) for name, value in g.items()})
        else:
            for name, value in g.items():
                ours.grads[name].set(value)
            ours.step()
        truth.step(g)
    assert_equal(ours, truth)
    assert len(cupy.state.launches) == 2 * len(grads), "one launch a group"
    assert {device for _, _, device, _ in cupy.state.launches} == {1}
    assert cupy.state.device == 0


def test_gradients_must_be_on_the_device(cupy):
    ours, _, grads = device_and_reference(cupy)
    before = ours.master()
    for wrong in (grads[0], {name: on_device(cupy, value, 1) for name, value in grads[0].items()}):
        with pytest.raises(LayoutError, match=r"has the wrong shape|is on another device"):
            ours.step(wrong)
    assert ours.t == 0
    for name, value in before.items():
        assert_same_bits(ours.params[name].get(), value.get())


def test_parameters_on_two_devices_are_refused(cupy):
    values = {"a": np.ones(3, np.float32), "b": on_device(cupy, np.ones(3, np.float32))}
    with pytest.raises(LayoutError, match="different devices"):
        fastopt.Optimizer(ADAM, values)


def test_a_checkpoint_moves_between_a_device_and_the_cpu(cupy):
    ours, truth, grads = device_and_reference(cupy)
    for g in grads[:3]:
        ours.step({name: on_device(cupy, value) for name, value in g.items()})
        truth.step(g)
    state, state_truth = ours.state_dict(), truth.state_dict()
    assert all(not isinstance(x, cupy.ndarray) for x in state.values())
    assert state.keys() == state_truth.keys()
    other, other_truth, _ = device_and_reference(cupy)
    other.load_state_dict(state_truth)
    other_truth.load_state_dict(state)
    assert_equal(other, truth)
    for g in grads[3:]:
        other.step({name: on_device(cupy, value) for name, value in g.items()})
        other_truth.step(g)
    assert_equal(other, other_truth)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_stay_on_the_device(how, cupy):
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"])})
    truth = fastopt.Optimizer(ADAM, {"w": buffers()["p"]})
    g = buffers()["g"]
    opt.step({"w": on_device(cupy, g)})
    truth.step({"w": g})
    twin = how(opt)
    assert isinstance(twin.params["w"], cupy.ndarray)
    assert twin.params["w"].data.ptr != opt.params["w"].data.ptr
    twin.step()
    truth.step()
    assert_same_bits(twin.params["w"].get(), truth.params["w"])
    assert twin.t == 2


def test_a_captured_step_replays_with_the_next_t_and_learning_rate(cupy):
    ours, truth, grads = device_and_reference(cupy)
    ours.step({name: on_device(cupy, value) for name, value in grads[0].items()})
    truth.step(grads[0])
    ours.capturable(4)
    stream = cupy.cuda.Stream("captured")
    with stream:
        stream.begin_capture()
        ours.step()
        graph = stream.end_capture()
    assert ours.t == 1, "capturing takes no step"
    for _ in range(3):
        graph.launch()
        truth.step()
    assert_equal(ours, truth)
    ours.step()  # a step without a graph also counts on the device
    truth.step()
    assert_equal(ours, truth)
    assert_same_bits(ours.state_dict()["p/a.weight"], truth.state_dict()["p/a.weight"])


def test_replays_beyond_the_prepared_steps_change_nothing_and_are_reported(cupy):
    ours, truth, _ = device_and_reference(cupy)
    ours.capturable(2)
    for _ in range(5):
        ours.step()
    truth.step()
    truth.step()
    before = {name: array.get() for name, array in ours.params.items()}
    for name, value in before.items():
        assert_same_bits(value, truth.params[name])
    for use in (lambda: ours.t, ours.state_dict):
        with pytest.raises(BackendError, match="3 steps were not taken"):
            use()
    ours.capturable(2)
    ours.step()
    truth.step()
    assert_equal(ours, truth)
    assert ours.t == 3


def test_a_captured_graph_continues_with_newly_prepared_steps_of_the_same_number(cupy):
    ours, truth, _ = device_and_reference(cupy)
    ours.capturable(2)
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        ours.step()
        graph = stream.end_capture()
    for _ in range(2):
        graph.launch()
    with pytest.raises(SettingError, match="fixed"):
        ours.capturable(3)
    ours.capturable(2)
    for _ in range(2):
        graph.launch()
    for _ in range(4):
        truth.step()
    assert_equal(ours, truth)


def test_a_failed_preparation_leaves_the_optimizer_unchanged(cupy):
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"])})
    cupy.state.broken = "out of order"
    with pytest.raises(BackendError, match="out of order"):
        opt.capturable(3)
    cupy.state.broken = None
    opt.step()
    assert opt.t == 1
    opt.capturable(3)
    opt.step()
    assert opt.t == 2


def test_loading_a_state_prepares_the_steps_again(cupy):
    ours, truth, _ = device_and_reference(cupy)
    for _ in range(3):
        truth.step()
    ours.capturable(2)
    ours.step()
    ours.load_state_dict(truth.state_dict())
    ours.step()
    truth.step()
    assert_equal(ours, truth)


def test_an_unprepared_step_cannot_be_captured(cupy):
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"])})
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        with pytest.raises(BackendError, match="capturable"):
            opt.step()
        with pytest.raises(BackendError, match="capturable"):
            fastopt.update(ADAM, 1, {name: on_device(cupy, a) for name, a in buffers().items()})
        stream.end_capture()
    assert opt.t == 0
    assert not cupy.state.launches


def test_capturable_needs_a_device_and_a_positive_number_of_steps(cupy):
    with pytest.raises(BackendError, match="CUDA"):
        fastopt.Optimizer(ADAM, {"w": np.ones(3)}).capturable(10)
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"])})
    wrong: list[Any] = [0, -1, 1.5, True, "many"]
    for steps in wrong:
        with pytest.raises(SettingError, match="steps"):
            opt.capturable(steps)


def test_a_schedule_that_fails_at_a_later_step_is_reported_by_capturable(cupy):
    rule = fastopt.SGD(lr=lambda t: 0.1 if t < 5 else -1.0)
    opt = fastopt.Optimizer(rule, {"w": on_device(cupy, buffers()["p"])})
    with pytest.raises(SettingError, match="lr"):
        opt.capturable(10)
    opt.capturable(4)


def test_a_missing_device_compiler_or_cupy_is_a_clear_error(cupy, monkeypatch):
    cupy.state.count = 0
    with pytest.raises(BackendError, match=r"no GPU that it can use.*\n.*cudaErrorNoDevice(.*\n)+.*install the driver"):
        fastopt.Optimizer(ADAM, {"w": np.ones(3, np.float32)}, backend="cuda")
    cupy.state.count, cupy.state.broken = 1, "libnvrtc.so.13: cannot open shared object file"
    with pytest.raises(BackendError, match=r"cannot be compiled(.*\n)+.*libnvrtc(.*\n)+.*cupy-cuda13x\[ctk\]"):
        fastopt.Optimizer(ADAM, {"w": on_device(cupy, np.ones(3, np.float32))})
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"needs CuPy(.*\n)+.*cupy-cuda13x\[ctk\]"):
        fastopt.Optimizer(ADAM, {"w": np.ones(3, np.float32)}, backend="cuda")


def test_info_names_the_device_and_the_compile_time_or_what_is_missing(cupy):
    assert re.fullmatch(
        r"a stand-in, sm_90, 80 GiB; CuPy 0 \(a stand-in\); float32 Adam compiled, .* in \d\.\d\d s", machine.cuda()
    )
    cupy.state.count = 0
    assert machine.cuda().startswith("CUDA finds no GPU that it can use; got cudaErrorNoDevice")


def test_a_second_process_compiles_nothing_and_damaged_code_is_replaced(cupy, tmp_path):
    ours = {name: on_device(cupy, a) for name, a in buffers().items()}
    fastopt.update(ADAM, 1, ours)
    assert cupy.state.compiled == 1
    nvrtc.function.cache_clear()
    fastopt.update(ADAM, 2, ours)
    assert cupy.state.compiled == 1
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(cached.read_bytes()[:-1])
    nvrtc.function.cache_clear()
    with pytest.warns(fastopt.CacheWarning, match="compiled again"):
        fastopt.update(ADAM, 3, ours)
    truth = buffers()
    for t in (1, 2, 3):
        fastopt.update(ADAM, t, truth, backend="reference")
    assert_same_bits(ours["p"].get(), truth["p"])


def test_a_newer_device_than_the_compiler_gets_ptx_and_a_too_old_one_an_error(cupy, tmp_path):
    cupy.state.capability = 103
    fastopt.update(ADAM, 1, {name: on_device(cupy, a) for name, a in buffers().items()})
    assert [path.suffix for path in tmp_path.iterdir()] == [".ptx"]
    cupy.state.capability = 70
    nvrtc.function.cache_clear()
    with pytest.raises(BackendError, match=r"compute capability 7\.0 is below 7\.5"):
        fastopt.update(ADAM, 1, {name: on_device(cupy, a) for name, a in buffers().items()})


def test_calls_that_synchronize_are_refused_during_a_capture(cupy):
    ours, truth, _ = device_and_reference(cupy)
    ours.capturable(3)
    state = ours.state_dict()
    stream = cupy.cuda.Stream()
    for use in (lambda: ours.t, ours.state_dict, lambda: ours.load_state_dict(state), lambda: ours.capturable(3)):
        with stream:
            stream.begin_capture()
            with pytest.raises(BackendError, match="captured into a CUDA graph, and this waits"):
                use()
            stream.end_capture()
    assert_equal(ours, truth)


def test_a_copy_stays_on_its_device(cupy):
    opt = fastopt.Optimizer(ADAM, {"w": on_device(cupy, buffers()["p"], 1)})
    assert copy.deepcopy(opt).params["w"].device.id == 1


def test_a_stream_of_another_device_is_refused(cupy):
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream()
    with pytest.raises(SettingError, match="another device"):
        fastopt.update(ADAM, 1, {name: on_device(cupy, a) for name, a in buffers().items()}, stream=stream)


def test_every_attribute_of_the_fake_exists_in_cupy(cupy, monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy")
    real = pytest.importorskip("cupy")
    pairs = [
        (cupy, real), (cupy.cuda, real.cuda), (cupy.cuda.runtime, real.cuda.runtime), (cupy.ndarray, real.ndarray),
        (cupy.cuda.nvrtc, real.cuda.nvrtc), (cupy.cuda.Stream, real.cuda.Stream), (cupy.cuda.Device, real.cuda.Device),
        (fake_cupy.Graph, real.cuda.Graph), (cupy.cuda.Module, real.cuda.Module),
        (fake_cupy.Function, real.cuda.Function),
    ]  # fmt: skip
    for ours, theirs in pairs:
        for name in {n for n in dir(ours) if not n.startswith("_")} - {"state", "library", "run_on_host"}:
            assert callable(getattr(ours, name)) == callable(getattr(theirs, name)), f"{theirs}.{name}"


def test_empty_arrays_launch_no_kernel(cupy):
    empty = {name: on_device(cupy, np.zeros(0, np.float32)) for name in ("p", "g", "m", "v")}
    fastopt.update(ADAM, 1, empty)
    opt = fastopt.Optimizer(ADAM, {"w": empty["p"]})
    opt.step()
    opt.capturable(3)
    opt.step()
    assert opt.t == 2
    assert {name for name, *_ in cupy.state.launches} == {"advance_row"}

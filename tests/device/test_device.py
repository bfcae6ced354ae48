"""On a GPU: every rule equals the reference bit for bit, on the caller's stream and device, captured or not.

`pytest -n 0 tests/device --require-cuda` runs all of it. test_the_sanitizer_finds_nothing runs some of the tests again
under compute-sanitizer, if that is installed.

Over 300 lines: one command runs whatever a device is needed for, from the kernel to the graph.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES
from test_vocabulary import OPERATIONS, Operation
from values import SIZES, adversarial_buffers, assert_same_bits, special_values, step

import fastopt
from fastopt import LayoutError
from fastopt.bench import elementwise
from fastopt.kernels.backends import bind
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import PRESETS
from fastopt.kernels.launch import Rows, run

DTYPES = (np.float32, np.float64)
GUARD = 64


class Guarded:
    """A device array between guard bytes, `shift` bytes past an aligned address."""

    def __init__(self, cupy, values, shift=0):
        self._raw = cupy.full(values.nbytes + 4 * GUARD, 0xA5, np.uint8)
        start = GUARD + shift
        self.array = self._raw[start : start + values.nbytes].view(values.dtype)
        self.array.set(values)
        self._ends = (start, start + values.nbytes)

    def intact(self):
        """Whether the guard bytes are unchanged."""
        raw, (start, end) = self._raw.get(), self._ends
        return bool(np.all(raw[:start] == 0xA5) and np.all(raw[end:] == 0xA5))


def assert_steps_equal_the_reference(cupy, rule, dtype, n, steps, shifts=None):
    program, rng = trace(rule, dtype), np.random.default_rng(n)
    values = adversarial_buffers(program, rng, n)
    truth = [a.copy() for a in values.values()]
    shifts = shifts or [0] * len(truth)
    ours = {name: Guarded(cupy, a, shift) for (name, a), shift in zip(values.items(), shifts, strict=True)}
    scalars = host_scalars(program, rule)
    for t in steps:
        fastopt.update(rule, t, {name: g.array for name, g in ours.items()}, seed=5)
        noise = (*noise_keys(5, t), 0) if program.noise else ()
        step("reference", program, truth, noise, scalars(t))
    for (name, guarded), expected in zip(ours.items(), truth, strict=True):
        assert_same_bits(guarded.array.get(), expected, f"{program.name}, n = {n}, {name}")
        assert guarded.intact(), f"{program.name}, n = {n}: wrote beyond {name}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_equals_the_reference(case, dtype, cupy):
    for n in (*SIZES, 1_000_003):
        assert_steps_equal_the_reference(cupy, CASES[case], dtype, n, (1, 2, 100))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", ["momentum", "rmsprop-centered", "adam", "adam-amsgrad", "lion", "noise-adam"])
def test_every_storage_equals_the_reference(case, preset, cupy):
    rng = np.random.default_rng(3)
    values = {"w": rng.standard_normal((300, 70)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    ours = fastopt.Optimizer(CASES[case], values, storage=preset, backend="cuda", seed=2)
    truth = fastopt.Optimizer(CASES[case], values, storage=preset, backend="reference", seed=2)
    for _ in range(4):
        for name, value in values.items():
            truth.grads[name][...] = rng.standard_normal(value.shape)
            ours.grads[name].set(truth.grads[name])
        ours.step()
        truth.step()
    found = ours.state_dict()
    for key, value in truth.state_dict().items():
        assert np.array_equal(found[key], value), key
    for name in values:
        assert ours.params[name].get().tobytes() == truth.params[name].tobytes()


def test_muon_with_cupys_products_is_near_the_reference(cupy):
    """In float64 two libraries differ by roundings of 1e-16, which ten steps of five iterations raise below 1e-11."""
    rng, shapes = (
        np.random.default_rng(3),
        {"a": (30, 70), "b": (70, 30), "c": (30, 70), "conv": (8, 3, 3, 3), "bias": (9,)},
    )
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    rule = fastopt.Muon(lr=0.02, aux=fastopt.Adam(lr=0.01))
    ours, truth = (fastopt.Optimizer(rule, values, backend=name) for name in ("cuda", "reference"))
    for _ in range(10):
        for name, shape in shapes.items():
            truth.grads[name][...] = rng.standard_normal(shape)
            ours.grads[name].set(truth.grads[name])
        ours.step()
        truth.step()
    for name, p in truth.params.items():
        np.testing.assert_allclose(ours.params[name].get(), p, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_may_begin_at_any_element(dtype, cupy):
    size = np.dtype(dtype).itemsize
    for shifts in ([size] * 4, [0, 0, 0, size], [0, size, 2 * size, 3 * size]):
        assert_steps_equal_the_reference(cupy, CASES["adam"], dtype, 1003, (1, 2), shifts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_numpy(name, dtype, cupy):
    x, y = (a.ravel().copy() for a in np.meshgrid(special_values(dtype), special_values(dtype)))
    with np.errstate(all="ignore"):
        expected = np.broadcast_to(OPERATIONS[name](x.copy(), y.copy()), x.shape)
    p = cupy.asarray(x)
    fastopt.update(Operation(name), 1, {"p": p, "g": cupy.asarray(y)})
    assert_same_bits(p.get(), expected, name)


@pytest.mark.parametrize(
    "rule", [fastopt.Momentum(), fastopt.RMSprop(), fastopt.Adam()], ids=lambda r: type(r).__name__
)
def test_hand_written_kernels_give_the_same_bits(rule, cupy):
    program, rng = trace(rule, np.float32), np.random.default_rng(0)
    # Between 0.5 and 1.5 no product is near the denormals, which CuPy's own kernels flush to zero.
    ours = [cupy.asarray(rng.random(70_001).astype(np.float32) + 0.5) for _ in program.buffers]
    theirs = [a.copy() for a in ours]
    for t in (1, 2, 50):
        scalars = host_scalars(program, rule)(t)
        rows = Rows([ours[0].size], [0], [[a.data.ptr for a in ours]], ours)
        run(bind("cuda", program, rows).calls((), scalars))
        elementwise.bind(program, theirs)(scalars)
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a.get(), b.get())


RULE = fastopt.GradientNoise(fastopt.Adam(lr=lambda t: 0.1 / t, weight_decay=0.1))
SHAPES = {"a.weight": (300, 11), "a.bias": (300,), "b.weight": (7000,), "b.bias": (), "none": (0, 3)}


def cuda_and_reference(cupy, seed=1):
    """Make the same optimizer on the device and on the reference backend, with equal gradients in place."""
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    options = {"groups": {"*.bias": {"weight_decay": 0.0}}, "seed": 9}
    ours = fastopt.Optimizer(RULE, {name: cupy.asarray(value) for name, value in values.items()}, **options)
    truth = fastopt.Optimizer(RULE, values, backend="reference", **options)
    for name, shape in SHAPES.items():
        g = rng.standard_normal(shape).astype(np.float32)
        truth.grads[name][...] = g
        ours.grads[name].set(g)
    return ours, truth


def assert_same_state(ours, truth):
    assert ours.t == truth.t
    for key, value in truth.state_dict().items():
        if isinstance(value, np.ndarray):
            assert_same_bits(ours.state_dict()[key], value, key)


def test_an_optimizer_equals_the_reference(cupy):
    ours, truth = cuda_and_reference(cupy)
    for _ in range(10):
        ours.step()
        truth.step()
    grads = {name: cupy.asarray(truth.grads[name]) * 2 for name in SHAPES}
    ours.step(grads)
    truth.step({name: g.get() for name, g in grads.items()})
    assert_same_state(ours, truth)


def test_a_captured_step_replays_bit_for_bit(cupy):
    ours, truth = cuda_and_reference(cupy)
    ours.step()
    ours.capturable(50)  # waits for the step before it
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        ours.step()
        graph = stream.end_capture()
        for _ in range(40):
            graph.launch(stream)
    stream.synchronize()
    for _ in range(41):
        truth.step()
    assert_same_state(ours, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_rule_replays_from_a_graph_bit_for_bit(case, dtype, cupy):
    values = np.random.default_rng(0).standard_normal(1003).astype(dtype)
    ours = fastopt.Optimizer(CASES[case], {"w": cupy.asarray(values)})
    truth = fastopt.Optimizer(CASES[case], {"w": values}, backend="reference")
    ours.grads["w"].set(values[::-1].copy())
    truth.grads["w"][...] = values[::-1]
    ours.capturable(5)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        ours.step()
        graph = stream.end_capture()
        for _ in range(5):
            graph.launch(stream)
    for _ in range(5):
        truth.step()
    assert_same_state(ours, truth)


def test_a_step_is_asynchronous_and_ordered_on_its_stream(cupy):
    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(long long cycles, float* g) {'
        " long long start = clock64(); while (clock64() - start < cycles); *g = 1.0f; }",
        "spin",
    )
    p, g = cupy.zeros(1, np.float32), cupy.zeros(1, np.float32)
    fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})  # compiles the kernel
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        spin((1,), (1,), (np.int64(1_000_000_000), g))
        fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
        assert not stream.done, "the step waited for the device"
    stream.synchronize()
    assert float(p.get()[0]) == -0.5, "the step did not wait for the stream"


def test_two_threads_step_on_two_streams(cupy):
    pairs = [cuda_and_reference(cupy, seed) for seed in range(4)]
    cupy.cuda.Device().synchronize()

    def work(ours):
        stream = cupy.cuda.Stream(non_blocking=True)
        for k in range(50):
            ours.step(stream=stream) if k % 2 else _step_on_current_stream(stream, ours)
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(ours,)) for ours, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, truth in pairs:
        for _ in range(50):
            truth.step()
        assert_same_state(ours, truth)


def _step_on_current_stream(stream, opt):
    with stream:
        opt.step()


def test_arrays_on_another_device_than_the_current_one(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")  # also with --require-cuda: most machines have one
    with cupy.cuda.Device(1):
        ours, truth = cuda_and_reference(cupy)
    for _ in range(5):
        ours.step()
        truth.step()
    assert_same_state(ours, truth)
    assert cupy.cuda.Device().id == 0


def test_tensors_of_torch_are_updated_in_place_on_torchs_stream(cupy, missing):
    if importlib.util.find_spec("torch") is None:
        missing("torch is not installed")
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        missing("this torch has no CUDA")
    rng = np.random.default_rng(0)
    host = {name: rng.random(10_000).astype(np.float32) for name in ("p", "g", "m", "v")}
    tensors = {name: torch.from_numpy(value.copy()).cuda() for name, value in host.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensors["g"] *= 2
        fastopt.update(fastopt.Adam(), 1, tensors, stream=side)
        result = tensors["p"].cpu()
    host["g"] *= 2
    fastopt.update(fastopt.Adam(), 1, host, backend="reference")
    assert_same_bits(result.numpy(), host["p"])


def test_bad_buffers_are_refused(cupy):
    x = cupy.zeros(1000, np.float32)
    raw = cupy.zeros(4001, np.uint8)[1:]
    for name, g, message in (
        ("overlapping", x[:100], "overlap"),
        ("strided", cupy.zeros(200, np.float32)[::2], "contiguous"),
        ("misaligned", raw[:400].view(np.float32), "misaligned"),
        ("in host memory", np.zeros(100, np.float32), "does not match"),
        ("ints", cupy.zeros(100, np.int32), "cannot be updated in place"),
    ):
        with pytest.raises(LayoutError, match=message):
            fastopt.update(fastopt.SGD(), 1, {"p": x[:100], "g": g})
        assert not x.any(), name


def test_more_than_two_to_the_31_elements(cupy, missing):
    n = 2**31 + 1003
    cupy.get_default_memory_pool().free_all_blocks()
    if cupy.cuda.Device().mem_info[0] < 8 * n + (4 << 30):
        missing("needs 20 GiB of device memory")
    p, g = cupy.zeros(n, np.float32), cupy.zeros(n, np.float32)
    touched = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, n - 1]
    g[cupy.asarray(touched)] = 1.0
    fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
    assert int(cupy.count_nonzero(p)) == len(touched)
    assert (p[cupy.asarray(touched)] == -0.5).all()


ONE_STEP = """
import cupy, fastopt, numpy as np
p = cupy.zeros(10, np.float32)
fastopt.update(fastopt.SGD(lr=0.25), 1, {"p": p, "g": p + 1})
print(float(p[0]))
"""


def test_a_second_process_compiles_nothing(cupy, tmp_path):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    cubins = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", ONE_STEP], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "-0.25\n"
        cubins.append({path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")})
    assert cubins[0]
    assert cubins[0] == cubins[1]


def test_the_sanitizer_finds_nothing(cupy, missing):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        missing("compute-sanitizer, of the CUDA toolkit, is not installed")
    chosen = "adam-amsgrad-l2 or noise-adam or any_element or captured_step"
    for tool in ("memcheck", "initcheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-n", "0",
                   "-q", "-p", "no:cacheprovider", __file__, "--require-cuda", "-k", chosen]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

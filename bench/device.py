"""On a CUDA device: the three classic rules beside torch, beside CuPy's simple form, and as a share of a device copy.

The ceiling is a copy between two arrays on the device that moves as many bytes as the step reads and writes. All
contestants work on the same parameters and gradients; time is taken by events on one stream, many calls in a row, so
that what a launch costs the host shows only where the device is waiting for it: at small sizes. There a step that was
captured into a CUDA graph stands beside the others.

`python -m bench device` needs a GPU and CuPy (`pip install 'fastopt[cuda13]'`); torch joins in where it is installed.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

import fastopt
from bench import peers
from bench.clock import Case, Clock, Comparison
from fastopt.dispatch import plan
from fastopt.kernels import cuda, elementwise
from fastopt.kernels.nvrtc import require_device
from fastopt.kernels.program import Program, parameters, trace
from fastopt.kernels.storage import PRESETS

DTYPE = np.dtype(np.float32)
RULES = {"momentum": fastopt.Momentum(), "rmsprop": fastopt.RMSprop(), "adam": fastopt.Adam()}
SIZES = (*(1 << k for k in range(10, 31, 2)), 100_003, 10_000_019)

# From 16 Mi parameters up a step has to reach this share of the copy, and no torch is to be faster anywhere.
TARGET, TARGET_FROM = 0.92, 16 << 20

# Every storage at one size has to reach this share.
STORED, STORED_TARGET = 64 << 20, 0.85

PREPARED = 200_000  # steps that a captured graph can be replayed


def describe() -> dict[str, Any]:
    """Describe the device that is used."""
    cupy = require_device("bench device")
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": found["name"].decode(),
        "architecture": f"sm_{found['major']}{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory_gib": round(found["totalGlobalMem"] / 2**30, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def cases(elements: int) -> list[Case]:
    """List a case for each rule and each size up to `elements`; what the device's memory does not hold is named."""
    cupy = require_device("bench device")
    _stream()
    free = cupy.cuda.Device().mem_info[0]
    listed = []
    for name, rule in RULES.items():
        for n in sorted(SIZES):
            if n <= elements and _memory(trace(rule, DTYPE), n) < free:
                listed.append(_case(cupy, name, n))
            elif n <= elements:
                print(
                    f"left out: {name}, {n:,}: needs {_memory(trace(rule, DTYPE), n) / 2**30:.0f} GiB", file=sys.stderr
                )
    rule = RULES["adam"]
    for storage in PRESETS:
        program = trace(rule, PRESETS[storage].formats(rule, parameters(rule).buffers))
        if elements >= STORED and _memory(program, STORED) < free:
            listed.append(_stored_case(cupy, storage, program))
    return listed


def _stored_case(cupy: Any, storage: str, program: Program) -> Case:
    """Make the case of Adam with a storage: the step, host and all, beside a copy of as many bytes."""

    def contestants() -> Mapping[str, Callable[[], object]]:
        _give_back(cupy)
        values = np.random.default_rng(0).standard_normal(STORED, DTYPE)
        made = [
            fastopt.Optimizer(RULES["adam"], {"w": values[:n]}, storage=storage, backend="cuda") for n in (1003, STORED)
        ]
        truth = fastopt.Optimizer(RULES["adam"], {"w": values[:1003]}, storage=storage, backend="reference")
        for opt in (*made, truth):
            for _ in range(peers.STEPS):
                opt.step()
        for name, value in truth.master().items():
            peers.assert_same_bits(made[0].state_dict()[f"p/{name}"], value, storage)
        return {"fastopt": made[1].step, "copy": _copy(cupy, program, STORED)}

    traffic = STORED * program.bytes_per_parameter
    target = (Comparison("fastopt", "copy", STORED_TARGET),)
    return Case(f"adam in {storage}, {STORED:,}", contestants, target, traffic, _timer(cupy))


def _copy(cupy: Any, program: Program, n: int) -> Callable[[], object]:
    """Make a copy on the device that moves as many bytes as a step."""
    half = int(n * program.bytes_per_parameter) // 2
    source, target = cupy.zeros(half, np.uint8), cupy.zeros(half, np.uint8)
    return lambda: cupy.copyto(target, source)


def _memory(program: Program, n: int) -> float:
    """Count the bytes of a case: the step's buffers, the two arrays of the copy, and two torch optimizers' state."""
    state = 2 * len(program.state) + (program.rule == "RMSprop")  # and torch's foreach makes a temporary
    return n * (DTYPE.itemsize * (len(program.buffers) + state + 1) + program.bytes_per_parameter) + (1 << 30)


def _case(cupy: Any, name: str, n: int) -> Case:
    comparisons = (
        Comparison("fastopt", "copy", TARGET if n >= TARGET_FROM else None),
        Comparison("fastopt", "torch fused", 1.0 if n >= TARGET_FROM else None),
        Comparison("fastopt", "torch foreach", 1.0 if n >= TARGET_FROM else None),
        Comparison("fastopt", "elementwise"),
        Comparison("step", "torch fused", 1.0),
        Comparison("step", "torch foreach", 1.0),
        Comparison("captured", "torch fused"),
    )
    traffic = n * trace(RULES[name], DTYPE).bytes_per_parameter
    return Case(f"{name}, {n:,}", lambda: _contestants(cupy, name, n), comparisons, traffic, _timer(cupy))


@cache
def _stream() -> Any:
    """Make the one stream of all contestants, torch's current one too; it lives as long as the process."""
    cupy = require_device("bench device")
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    torch: Any = peers.torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.ExternalStream(stream.ptr))
        if torch.cuda.current_stream().cuda_stream != stream.ptr:
            raise RuntimeError("torch does not work on CuPy's stream: their times could not be compared")
    return stream


def _timer(cupy: Any) -> Clock:
    """Make the clock of a device: seconds between two events around the calls."""
    first, last = cupy.cuda.Event(), cupy.cuda.Event()

    def seconds(call: Callable[[], object], calls: int) -> float:
        cupy.cuda.Device().synchronize()
        first.record()
        for _ in range(calls):
            call()
        last.record()
        last.synchronize()
        return cupy.cuda.get_elapsed_time(first, last) / 1e3

    return seconds


def _give_back(cupy: Any) -> None:
    """Give the memory of earlier cases back: neither library can use what the other keeps."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    torch: Any = peers.torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _contestants(cupy: Any, name: str, n: int) -> Mapping[str, Callable[[], object] | None]:
    rule = RULES[name]
    _give_back(cupy)
    rng = np.random.default_rng(0)
    opt = fastopt.Optimizer(rule, {"w": np.ones(n, DTYPE)}, backend="cuda")
    for start in range(0, n, 1 << 20):
        count = min(1 << 20, n - start)
        opt.grads["w"][start : start + count].set(1e-3 * (0.5 + rng.random(count, DTYPE)))
    (group,) = opt._groups
    program, scalars = group.program, group.scalars(10)
    arrays = [opt.flat_params[:n], opt.flat_grads[:n], *(group.packed[b].forward[:n] for b in program.state)]
    _require_same_steps(cupy, rule)
    launch, by_hand = cuda.bind(program, arrays), elementwise.bind(program, arrays)
    contestants: dict[str, Callable[[], object] | None] = {
        "copy": _copy(cupy, program, n),
        "fastopt": lambda: launch((), scalars),
        "elementwise": lambda: by_hand(scalars),
        "step": opt.step,
        "captured": _captured(rule, arrays[0]) if n <= 1 << 24 else None,
    }
    for form in ("fused", "foreach"):
        if (name, form) != ("rmsprop", "fused"):  # torch does not fuse it
            contestants[f"torch {form}"] = _torch(name, form, arrays)
    return contestants


def _require_same_steps(cupy: Any, rule: Any) -> None:
    """Take steps on a small problem and raise unless the kernel and the simple form have the reference's bits."""
    rng = np.random.default_rng(1)
    program = trace(rule, DTYPE)
    truth = {b.name: rng.random(peers.CHECKED).astype(DTYPE) for b in program.buffers}
    ours = [{name: cupy.asarray(a) for name, a in truth.items()} for _ in range(2)]
    scalars = plan(rule, DTYPE)[1]
    by_hand = elementwise.bind(program, list(ours[1].values()))
    for t in range(1, peers.STEPS + 1):
        fastopt.update(rule, t, truth, backend="reference")
        fastopt.update(rule, t, ours[0])
        by_hand(scalars(t))
    for found in ours:
        for name, array in found.items():
            peers.assert_same_bits(array.get(), truth[name], name)


def _captured(rule: Any, p: Any) -> Callable[[], object]:
    """Capture a step of an optimizer of its own into a graph, and give its replay."""
    opt = fastopt.Optimizer(rule, {"w": p})
    opt.capturable(PREPARED)
    stream = _stream()
    stream.begin_capture()
    opt.step()
    graph = stream.end_capture()

    left = itertools.repeat(opt, PREPARED)  # which also keeps it alive

    def replay() -> None:
        next(left)  # raises before a replay would do nothing
        graph.launch(stream)

    return replay


def _torch(name: str, form: str, arrays: list[Any]) -> Callable[[], object] | None:
    """Make torch's optimizer on the same parameters and gradients; None without a torch that sees the device."""
    torch: Any = peers.torch()
    if torch is None or not torch.cuda.is_available():
        return None
    p = torch.nn.Parameter(torch.from_dlpack(arrays[0]))
    p.grad = torch.from_dlpack(arrays[1])
    how = {form: True}
    return {
        "momentum": lambda: torch.optim.SGD([p], lr=1e-3, momentum=0.9, dampening=0.1, **how),
        "rmsprop": lambda: torch.optim.RMSprop([p], lr=1e-3, **how),
        "adam": lambda: torch.optim.Adam([p], lr=1e-3, **how),
    }[name]().step

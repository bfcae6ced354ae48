"""On a CUDA device: the three classic rules beside torch, beside CuPy's simple form, and as a share of a device copy.

The ceiling is a copy between two arrays on the device that moves as many bytes as the step reads and writes. All
contestants work on the same parameters and gradients; time is taken by events on one stream, many calls in a row, so
that what a launch costs the host shows only where the device is waiting for it: at small sizes. There a step that was
captured into a CUDA graph stands beside the others.

`python -m bench device` needs a GPU and CuPy (`pip install 'fastopt[cuda13]'`); torch joins in where it is installed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import fastopt
from bench import peers
from bench.clock import Case, Clock, Comparison
from fastopt.dispatch import plan
from fastopt.kernels import cuda, elementwise
from fastopt.kernels.program import trace

DTYPE = np.dtype(np.float32)
RULES = {"momentum": fastopt.Momentum(), "rmsprop": fastopt.RMSprop(), "adam": fastopt.Adam()}
SIZES = (*(1 << k for k in range(10, 31, 2)), 100_003, 10_000_019)

# From 16 Mi parameters up a step has to reach this share of the copy, and no torch is to be faster anywhere.
TARGET, TARGET_FROM = 0.92, 16 << 20

PREPARED = 1_000_000  # steps that a captured graph can be replayed


def describe() -> dict[str, Any]:
    """Describe the device that is used."""
    cupy = cuda.require_device("bench device")
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
    """List a case for each rule and each size up to `elements` that fits into the device's memory."""
    cupy = cuda.require_device("bench device")
    free = cupy.cuda.Device().mem_info[0]
    return [
        _case(cupy, name, n)
        for name, rule in RULES.items()
        for n in sorted(SIZES)
        if n <= elements and n * 3 * trace(rule, DTYPE).bytes_per_parameter < free
    ]


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


def _contestants(cupy: Any, name: str, n: int) -> Mapping[str, Callable[[], object] | None]:
    rule = RULES[name]
    rng = np.random.default_rng(0)
    start = rng.standard_normal(min(n, 1 << 20)).astype(DTYPE)
    opt = fastopt.Optimizer(rule, {"w": cupy.asarray(np.resize(start, n))})
    opt.grads["w"][...] = cupy.asarray(np.resize(1e-3 * (0.5 + rng.random(start.size, DTYPE)), n))
    (group,) = opt._groups
    program, scalars = group.program, group.scalars(10)
    arrays = [opt.flat_params[:n], opt.flat_grads[:n], *(state[:n] for state in group.state.values())]
    _require_same_steps(cupy, rule)
    launch, by_hand = cuda.bind(program, arrays), elementwise.bind(program, arrays)
    half = n * program.bytes_per_parameter // 2
    source, target = cupy.zeros(half, np.uint8), cupy.zeros(half, np.uint8)
    contestants: dict[str, Callable[[], object] | None] = {
        "copy": lambda: cupy.copyto(target, source),
        "fastopt": lambda: launch((), scalars),
        "elementwise": lambda: by_hand(scalars),
        "step": opt.step,
        "captured": _captured(cupy, rule, arrays[0]) if n <= 1 << 24 else None,
    }
    for form in ("fused", "foreach"):
        if (name, form) != ("rmsprop", "fused"):  # torch does not fuse it
            contestants[f"torch {form}"] = _torch(cupy, name, form, arrays)
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


def _captured(cupy: Any, rule: Any, p: Any) -> Callable[[], object]:
    """Capture a step of an optimizer of its own into a graph, and give its replay."""
    opt = fastopt.Optimizer(rule, {"w": p})
    opt.capturable(PREPARED)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        opt.step()
        graph = stream.end_capture()

    left = itertools.repeat(opt, PREPARED)  # which also keeps it alive

    def replay() -> None:
        next(left)  # raises before a replay would do nothing
        graph.launch()

    return replay


def _torch(cupy: Any, name: str, form: str, arrays: list[Any]) -> Callable[[], object] | None:
    """Make torch's optimizer on the same parameters and gradients; None without a torch that sees the device."""
    torch: Any = peers.torch()
    if torch is None or not torch.cuda.is_available():
        return None
    p = torch.nn.Parameter(torch.from_dlpack(arrays[0]))
    p.grad = torch.from_dlpack(arrays[1])
    how = {form: True}
    made = {
        "momentum": lambda: torch.optim.SGD([p], lr=1e-3, momentum=0.9, dampening=0.1, **how),
        "rmsprop": lambda: torch.optim.RMSprop([p], lr=1e-3, **how),
        "adam": lambda: torch.optim.Adam([p], lr=1e-3, **how),
    }[name]()
    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)

    def step() -> None:
        with torch.cuda.stream(stream):
            made.step()

    return step

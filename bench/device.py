"""On a CUDA device: steps beside torch, beside CuPy's simple form, and as a share of a device copy.

The ceiling is a copy between two arrays on the device that moves as many bytes as the step reads and writes. All
contestants work on the same parameters and gradients; time is taken by events on one stream, many calls in a row, so
that what a launch costs the host shows only where the device is waiting for it: at small sizes. There a step that was
captured into a CUDA graph stands beside the others.

`fastopt bench --backend cuda` needs a GPU and CuPy (`pip install 'fastopt[cuda13]'`); torch joins in where it is
installed.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastopt
from fastopt.bench import check, clock
from fastopt.bench.cases import WHERE, Case, Entry, chosen
from fastopt.bench.forms import CASES
from fastopt.bench.peers import PEERS
from fastopt.errors import SettingError, explain, suggest
from fastopt.kernels import cuda, elementwise
from fastopt.kernels.nvrtc import require_device
from fastopt.kernels.program import Program, plan, trace
from fastopt.kernels.storage import PRESETS

DTYPE = np.dtype(np.float32)
RULES = ("momentum", "rmsprop", "adam")
SIZES = (*(f"{1 << k}Ki" for k in range(0, 10, 2)), "1Mi", "4Mi", "16Mi", "64Mi", "256Mi", "1Gi", "100003", "10000019")
STORED = "64Mi"  # the size at which every storage stands beside the others
TORCH = ("torch fused", "torch foreach")
PREPARED = 200_000  # steps that a captured graph can be replayed
CAPTURED = 1 << 24  # parameters up to which a captured step stands beside the others


def describe() -> dict[str, Any]:
    """Describe the device that is used."""
    cupy = require_device(WHERE)
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "name": found["name"].decode(),
        "architecture": f"sm_{found['major']}{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory_gib": round(found["totalGlobalMem"] / 2**30, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def entries(
    rules: Sequence[str] | None, storages: Sequence[str] | None, sizes: Sequence[str] | None, quick: bool
) -> list[Entry]:
    """List what is timed on a device: what was chosen, or the classic rules over sizes and Adam in every storage."""
    require_device(WHERE)
    for name in rules or ():
        if name not in RULES:
            what = f"the rule {name!r} is not timed on a device."
            raise SettingError(explain(WHERE, what, do=suggest(name, list(RULES))))
    if rules or storages or sizes:
        made = chosen(rules or RULES, storages or ["f32"], sizes or [STORED], [1], "cuda")
    else:
        over = SIZES[::4] if quick else SIZES
        made = chosen(RULES, ["f32"], over, [1], "cuda")
        if not quick:
            made += chosen(["adam"], [name for name in PRESETS if name not in ("f32", "f64")], [STORED], [1], "cuda")
    return [Entry("device", entry.case) for entry in made]


def measure(entry: Entry, repeats: int, peers: Sequence[str]) -> dict[str, Any]:
    """Time one case on the device and give its record; a case that its memory does not hold is named."""
    cupy = require_device(WHERE)
    _stream()
    case = entry.case
    record: dict[str, Any] = {
        "part": entry.part, "case": case.as_dict(), "traffic": case.traffic, "seconds": {}, "versus": {}, "share": None,
        "cannot": {}, "notes": {}, "device": describe(),
    }  # fmt: skip
    _give_back(cupy)
    need, free = _memory(case.program, case.elements), cupy.cuda.Device().mem_info[0]
    if need > free:
        record["cannot"]["fastopt"] = f"it needs {need / 2**30:.0f} GiB of the device's memory"
        return record
    for name in peers:
        why = _cannot(name, case)
        if why:
            record["cannot"][name] = why
    check.check_ours(case)
    calls = _contestants(cupy, case, [name for name in peers if name not in record["cannot"]])
    seconds = _timer(cupy)
    samples = clock.race({name: partial(seconds, call) for name, call in calls.items()}, repeats)
    record["seconds"] = {name: clock.percentiles(taken) for name, taken in samples.items()}
    record["share"] = clock.speed(samples["fastopt"], samples["ceiling"])
    others = [name for name in samples if name not in ("fastopt", "ceiling")]
    record["versus"] = {name: clock.speed(samples["fastopt"], samples[name]) for name in others}
    return record


def _cannot(name: str, case: Case) -> str | None:
    """Say why a peer does not stand beside fastopt on a device; None if it does."""
    if name not in TORCH:
        return PEERS[name].absent() or "not set up for devices"
    if case.storage != "f32" or len(case.tensors) > 1:
        return "set up for one float32 tensor"
    if (case.rule, name) == ("rmsprop", "torch fused"):
        return "torch does not fuse RMSprop"
    if find_spec("torch") is None:
        return "not installed: torch"
    return None if import_module("torch").cuda.is_available() else "this torch sees no device"


def _copy(cupy: Any, program: Program, n: int) -> Callable[[], object]:
    """Make a copy on the device that moves as many bytes as a step."""
    half = int(n * program.bytes_per_parameter) // 2
    source, target = cupy.zeros(half, np.uint8), cupy.zeros(half, np.uint8)
    return lambda: cupy.copyto(target, source)


def _memory(program: Program, n: int) -> float:
    """Count the bytes of a case: the step's buffers, the two arrays of the copy, and two torch optimizers' state."""
    state = 2 * len(program.state) + (program.rule == "RMSprop")  # and torch's foreach makes a temporary
    return n * (DTYPE.itemsize * (len(program.buffers) + state + 1) + program.bytes_per_parameter) + (1 << 30)


@cache
def _stream() -> Any:
    """Make the one stream of all contestants, torch's current one too; it lives as long as the process."""
    cupy = require_device(WHERE)
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    torch: Any = import_module("torch") if find_spec("torch") else None
    if torch is not None and torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.ExternalStream(stream.ptr))
        if torch.cuda.current_stream().cuda_stream != stream.ptr:
            raise RuntimeError("torch does not work on CuPy's stream: their times could not be compared")
    return stream


def _timer(cupy: Any) -> Callable[[Callable[[], object], int], float]:
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
    torch: Any = import_module("torch") if find_spec("torch") else None
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _contestants(cupy: Any, case: Case, peers: Sequence[str]) -> dict[str, Callable[[], object]]:
    rule, n = CASES[case.rule], case.elements
    rng = np.random.default_rng(0)
    ones = {name: np.broadcast_to(DTYPE.type(1), count) for name, count in case.tensors.items()}
    opt = fastopt.Optimizer(rule, ones, storage=case.storage, backend="cuda")
    if case.storage == "f32":
        for start in range(0, n, 1 << 20):
            count = min(1 << 20, n - start)
            opt.flat_grads[start : start + count].set(1e-3 * (0.5 + rng.random(count, DTYPE)))
    calls: dict[str, Callable[[], object]] = {"ceiling": _copy(cupy, case.program, n), "fastopt": opt.step}
    if case.storage != "f32":
        return calls
    (group,) = opt._groups
    program, scalars = group.program, group.scalars(10)
    arrays = [opt.flat_params[:n], opt.flat_grads[:n], *(group.packed[b].forward[:n] for b in program.state)]
    _require_same_steps(cupy, rule)
    launch, by_hand = cuda.bind(program, arrays), elementwise.bind(program, arrays)
    calls |= {"kernel alone": lambda: launch((), scalars), "elementwise": lambda: by_hand(scalars)}
    if n <= CAPTURED:
        calls["captured"] = _captured(rule, arrays[0])
    for name in peers:
        calls[name] = _torch(case.rule, name.partition(" ")[2], arrays)
    return calls


def _require_same_steps(cupy: Any, rule: Any) -> None:
    """Take steps on a small problem and raise unless the simple form has the kernel's bits."""
    rng = np.random.default_rng(1)
    program = trace(rule, DTYPE)
    begin = {b.name: rng.random(1003).astype(DTYPE) for b in program.buffers}
    ours, by_hand = ({name: cupy.asarray(a) for name, a in begin.items()} for _ in range(2))
    scalars, simple = plan(rule, DTYPE)[1], elementwise.bind(program, list(by_hand.values()))
    for t in range(1, check.STEPS + 1):
        fastopt.update(rule, t, ours)
        simple(scalars(t))
    for name, array in ours.items():
        if array.get().tobytes() != by_hand[name].get().tobytes():
            raise check.WrongResultError(f"the simple form of {program.rule} computes another {name}")


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


def _torch(rule: str, form: str, arrays: list[Any]) -> Callable[[], object]:
    """Make torch's optimizer on the same parameters and gradients, with the same settings."""
    torch: Any = import_module("torch")
    p = torch.nn.Parameter(torch.from_dlpack(arrays[0]))
    p.grad = torch.from_dlpack(arrays[1])
    how = {form: True}
    return {
        "momentum": lambda: torch.optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.1, **how),
        "rmsprop": lambda: torch.optim.RMSprop([p], lr=0.01, eps=1e-3, **how),
        "adam": lambda: torch.optim.Adam([p], lr=0.01, eps=1e-3, **how),
    }[rule]().step

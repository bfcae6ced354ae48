"""Measurements on a CUDA device: shares of the speed of a device copy, and comparisons with other libraries.

The ceiling is a copy between two arrays on the device that moves as many bytes as the step reads and writes. All
contestants update the same parameters with the same gradients. CUDA events on one stream time many calls in a row, so
the host's launch overhead shows only at small sizes, where the device waits for the host. At small sizes a step
replayed from a CUDA graph and the kernel alone are timed as well.

`fastopt bench --backend cuda` needs a GPU and CuPy (`pip install 'fastopt[cuda13]'`). Peers that are not installed are
skipped.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastopt
from fastopt.bench import check, clock, elementwise, problem
from fastopt.bench.cases import Case, Entry, chosen, plan
from fastopt.bench.peers import Peer
from fastopt.bench.run import add_samples, peers_for, prepare_peer
from fastopt.errors import SettingError, suggest
from fastopt.kernels.compiler.plan import plan as planned
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.devices import require_device
from fastopt.kernels.rules.cases import CASES

PARTS = ("rules", "storages", "sizes", "tensors", "torch")
"""The parts of a run that can be measured on a device."""

BY_HAND = ("momentum", "rmsprop", "adam")  # the rules that are also timed as ElementwiseKernels (elementwise.py)
LARGEST = "1Gi"
MAX_REPLAYS = 200_000  # how many steps a captured graph can be replayed
CAPTURED = 1 << 24  # up to this number of parameters a step in a CUDA graph and the kernel alone are timed too


def describe() -> dict[str, Any]:
    """Return the properties of the current device."""
    cupy = require_device()
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
    parts: Sequence[str] | None,
    rules: Sequence[str] | None,
    storages: Sequence[str] | None,
    sizes: Sequence[str] | None,
    quick: bool,
) -> list[Entry]:
    """Return what to time on a device: the chosen combinations, or the chosen parts (all of PARTS by default)."""
    require_device()
    if rules or storages or sizes:
        return chosen(rules or ["adam-decoupled"], storages or ["f32"], sizes or ["64Mi"], [1], "cuda")
    for name in parts or ():
        if name not in PARTS:
            what = f"the part {name!r} is not measured on CUDA devices."
            raise SettingError(what, do=suggest(name, list(PARTS)))
    made = [entry for part in dict.fromkeys(parts or PARTS) for entry in plan(part, 1, quick)]
    if not quick and "sizes" in (parts or PARTS):
        made.append(Entry("sizes", Case(size=LARGEST)))
    # The small cases of "storages" measure the CPU's cache; on a device they would measure launch overhead.
    made = [e for e in made if e.part != "storages" or e.case.elements >= CAPTURED]
    return [e._replace(case=replace(e.case, backend="cuda")) for e in made]


def measure(
    entry: Entry, repeats: int, peers: Sequence[str], on_progress: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Time one case on the device and return its record, which says so if the device has too little memory."""
    cupy = require_device()
    _stream()
    case = entry.case
    record: dict[str, Any] = {
        "part": entry.part, "case": case.as_dict(), "traffic": case.traffic, "seconds": {}, "versus": {}, "share": None,
        "cannot": {}, "notes": {}, "device": describe(),
    }  # fmt: skip
    _free_memory(cupy)
    need, free = _memory_needed(case.program, case.elements), cupy.cuda.Device().mem_info[0]
    if need > free:
        record["cannot"]["fastopt"] = f"it needs {need / 2**30:.0f} GiB of the device's memory"
        return record
    able: dict[str, Peer] = {}
    for name, peer in peers_for(entry, peers).items():
        if (
            why := peer.absent()
            or (None if peer.supports_cuda else "the benchmark sets it up for the CPU only")
            or peer.cannot(case)
        ):
            record["cannot"][name] = why
        else:
            able[name] = peer
    on_progress("fastopt")
    check.check_ours(case)
    made = problem.optimizer(case)
    own = problem.of_optimizer(made)
    calls: dict[str, Callable[[], object]] = {"fastopt": made.step, "ceiling": _copy(cupy, case.program, case.elements)}
    calls |= _variants(case, made)
    for name, peer in able.items():
        on_progress(name)
        if contestant := prepare_peer(case, peer, own, record):
            calls[name] = contestant.step
    on_progress("timing")
    seconds = _timer(cupy)
    contestants = {name: partial(seconds, call) for name, call in calls.items()}
    add_samples(record, clock.race(contestants, repeats, pause=0.0))
    return record


def _copy(cupy: Any, program: Program, n: int) -> Callable[[], object]:
    """Return a copy on the device that moves as many bytes as a step."""
    half = int(n * program.bytes_per_parameter) // 2
    source, target = cupy.zeros(half, np.uint8), cupy.zeros(half, np.uint8)
    return lambda: cupy.copyto(target, source)


def _memory_needed(program: Program, n: int) -> float:
    """Estimate the bytes of a case: buffers of fastopt and peers, the two arrays of the copy, torch's temporaries."""
    buffers = sum(b.dtype.itemsize * (1 / 256 if b.tiled else 1) for b in program.buffers)
    return n * (3 * buffers + program.bytes_per_parameter + 4 * 4) + (1 << 30)


@cache
def _stream() -> Any:
    """Make the stream that all contestants use, and make it torch's current one; it lives as long as the process."""
    cupy = require_device()
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.use()
    torch: Any = import_module("torch") if find_spec("torch") else None
    if torch is not None and torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.ExternalStream(stream.ptr))
        if torch.cuda.current_stream().cuda_stream != stream.ptr:
            raise RuntimeError("torch does not use CuPy's stream, so their times cannot be compared")
    return stream


def _timer(cupy: Any) -> Callable[[Callable[[], object], int], float]:
    """Return a timer: the seconds between two CUDA events around the calls."""
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


def _free_memory(cupy: Any) -> None:
    """Empty the memory pools of CuPy and torch: neither can use memory in the pool of the other."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    torch: Any = import_module("torch") if find_spec("torch") else None
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _variants(case: Case, made: fastopt.Optimizer) -> dict[str, Callable[[], object]]:
    """Return other ways to run the step: as an ElementwiseKernel, the kernel alone, and in a CUDA graph."""
    calls: dict[str, Callable[[], object]] = {}
    if case.storage != "f32" or len(case.tensors) > 1:
        return calls
    (group,), n = made._groups, case.elements
    program, scalars = group.plan.program, group.plan.scalars(10)
    arrays = [group.store.planes[0][b.name][:n] for b in program.buffers]
    if case.rule in BY_HAND:
        _require_same_steps(case)
        by_hand = elementwise.bind(program, arrays)
        calls["elementwise"] = lambda: by_hand(scalars)
    if n <= CAPTURED:
        ((launch, *arguments),) = group.launch.calls((1, 2) if program.noise else (), scalars)
        calls["kernel alone"] = lambda: launch(*arguments)
        calls["captured"] = _captured(CASES[case.rule], arrays[0])
    return calls


def _require_same_steps(case: Case) -> None:
    """Raise unless the ElementwiseKernel has the same bits as the generated kernel on a small problem."""
    cupy, rule, rng = require_device(), CASES[case.rule], np.random.default_rng(1)
    begin = {b.name: rng.random(1003).astype(np.float32) for b in case.program.buffers}
    ours, by_hand = ({name: cupy.asarray(a) for name, a in begin.items()} for _ in range(2))
    scalars = planned(rule, np.dtype(np.float32)).scalars
    launch = elementwise.bind(case.program, list(by_hand.values()))
    for t in range(1, check.STEPS + 1):
        fastopt.update(rule, t, ours)
        launch(scalars(t))
    for name, array in ours.items():
        if array.get().tobytes() != by_hand[name].get().tobytes():
            raise check.WrongResultError(f"the ElementwiseKernel of {case.rule} computes a different {name}")


def _captured(rule: Any, p: Any) -> Callable[[], object]:
    """Capture a step of a new optimizer into a CUDA graph and return its replay."""
    opt = fastopt.Optimizer(rule, {"w": p})
    opt.capturable(MAX_REPLAYS)
    stream = _stream()
    stream.begin_capture()
    opt.step()
    graph = stream.end_capture()

    left = itertools.repeat(opt, MAX_REPLAYS)  # this reference also keeps the optimizer alive

    def replay() -> None:
        next(left)  # raises after MAX_REPLAYS, from which on replays would have no effect
        graph.launch(stream)

    return replay

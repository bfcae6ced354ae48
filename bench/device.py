"""On a CUDA device: the parts of a run that make sense there, as a share of a device copy and beside other libraries.

The ceiling is a copy between two arrays on the device that moves as many bytes as the step reads and writes. All
contestants work on the same parameters and gradients; time is taken by events on one stream, many calls in a row, so
that what a launch costs the host shows only where the device is waiting for it: at small sizes. There a step that was
captured into a CUDA graph, and the kernel alone, stand beside the others.

`fastopt bench --backend cuda` needs a GPU and CuPy (`pip install 'fastopt[cuda13]'`); peers join in where they are
installed.
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
from fastopt.bench.run import beside, here, keep
from fastopt.errors import SettingError, suggest
from fastopt.kernels.compiler.plan import plan as planned
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.devices import require_device
from fastopt.kernels.rules.cases import CASES

PARTS = ("rules", "storages", "sizes", "tensors", "torch")
"""The parts of a run that there are on a device."""

BY_HAND = ("momentum", "rmsprop", "adam")  # the rules whose simple form CuPy's own kernels are given too
LARGEST = "1Gi"
PREPARED = 200_000  # steps that a captured graph can be replayed
CAPTURED = 1 << 24  # parameters up to which a captured step stands beside the others


def describe() -> dict[str, Any]:
    """Describe the device that is used."""
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
    """List what is timed on a device: what was chosen, or the parts that there are."""
    require_device()
    if rules or storages or sizes:
        return chosen(rules or ["adam-decoupled"], storages or ["f32"], sizes or ["64Mi"], [1], "cuda")
    for name in parts or ():
        if name not in PARTS:
            what = f"the part {name!r} is not measured on a device."
            raise SettingError(what, do=suggest(name, list(PARTS)))
    made = [entry for part in dict.fromkeys(parts or PARTS) for entry in plan(part, 1, quick)]
    if not quick and "sizes" in (parts or PARTS):
        made.append(Entry("sizes", Case(size=LARGEST)))
    # A few thousand parameters are a matter of launches there, not of caches.
    made = [e for e in made if e.part != "storages" or e.case.elements >= CAPTURED]
    return [e._replace(case=replace(e.case, backend="cuda")) for e in made]


def measure(
    entry: Entry, repeats: int, peers: Sequence[str], say: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Time one case on the device and give its record; a case that its memory does not hold is named."""
    cupy = require_device()
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
    able: dict[str, Peer] = {}
    for name, peer in beside(entry, peers).items():
        if why := peer.absent() or (None if peer.devices else "not set up for devices") or peer.cannot(case):
            record["cannot"][name] = why
        else:
            able[name] = peer
    say("fastopt")
    check.check_ours(case)
    made = problem.optimizer(case)
    own = problem.shared(made)
    calls: dict[str, Callable[[], object]] = {"fastopt": made.step, "ceiling": _copy(cupy, case.program, case.elements)}
    calls |= _forms(case, made)
    for name, peer in able.items():
        say(name)
        if contestant := here(case, peer, own, record):
            calls[name] = contestant.step
    say("racing")
    seconds = _timer(cupy)
    keep(record, clock.race({name: partial(seconds, call) for name, call in calls.items()}, repeats, pause=0.0))
    return record


def _copy(cupy: Any, program: Program, n: int) -> Callable[[], object]:
    """Make a copy on the device that moves as many bytes as a step."""
    half = int(n * program.bytes_per_parameter) // 2
    source, target = cupy.zeros(half, np.uint8), cupy.zeros(half, np.uint8)
    return lambda: cupy.copyto(target, source)


def _memory(program: Program, n: int) -> float:
    """Count the bytes of a case: the step's buffers, the two arrays of the copy, and what torch's foreach makes."""
    kept = sum(b.dtype.itemsize * (1 / 256 if b.tiled else 1) for b in program.buffers)
    return n * (3 * kept + program.bytes_per_parameter + 4 * 4) + (1 << 30)


@cache
def _stream() -> Any:
    """Make the one stream of all contestants, torch's current one too; it lives as long as the process."""
    cupy = require_device()
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


def _forms(case: Case, made: fastopt.Optimizer) -> dict[str, Callable[[], object]]:
    """Give fastopt's own forms of a step that tell where its time goes, in the parts that are about that."""
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
    """Take steps on a small problem and raise unless the simple form has the kernel's bits."""
    cupy, rule, rng = require_device(), CASES[case.rule], np.random.default_rng(1)
    begin = {b.name: rng.random(1003).astype(np.float32) for b in case.program.buffers}
    ours, by_hand = ({name: cupy.asarray(a) for name, a in begin.items()} for _ in range(2))
    scalars, simple = (
        planned(rule, np.dtype(np.float32)).scalars,
        elementwise.bind(case.program, list(by_hand.values())),
    )
    for t in range(1, check.STEPS + 1):
        fastopt.update(rule, t, ours)
        simple(scalars(t))
    for name, array in ours.items():
        if array.get().tobytes() != by_hand[name].get().tobytes():
            raise check.WrongResultError(f"the simple form of {case.rule} computes another {name}")


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

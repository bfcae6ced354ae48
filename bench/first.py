"""The time to the first step: imports, compiling a kernel (cold cache), or loading it from disk (warm cache).

Each sample is a fresh process. In a `cold` one the cache folder is empty, a `warm` one finds the files of the cold one.
A warm process must not compile: Numba reports every compilation as an event, and no file in the cache may change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fastopt.bench import check, peers
from fastopt.bench.cases import Case
from fastopt.bench.clock import percentiles
from fastopt.bench.process import PeerError, Process

RULES = ("adam", "noise-adam")
PEERS = ("torch fused", "torch compile", "DeepSpeed", "optax jit")
SLOW = ("torch compile", "DeepSpeed")
PHASES = ("import numpy", "import fastopt", "import numba", "Optimizer()", "first step", "second step", "process")

# Optimizer() imports Numba. Here it is imported before, to listen to its events and to time the import by itself.
CHILD = """
import json, sys, time
clock, times, compiled = time.perf_counter, {}, []
def lap(name, start):
    times[name] = clock() - start
    return clock()
start = clock()
import numpy
start = lap("import numpy", start)
import fastopt
start = lap("import fastopt", start)
heavy = sorted({"numba", "llvmlite", "torch", "jax", "cupy"} & set(sys.modules))
import numba.core.event as event
start = lap("import numba", start)
class Listener(event.Listener):
    def on_start(self, event):
        compiled.append(str(event.data["dispatcher"].py_func.__name__))
    def on_end(self, event):
        pass
event.register("numba:compile", Listener())
from fastopt.kernels.rules.cases import CASES
start = clock()
opt = fastopt.Optimizer(CASES[sys.argv[1]], {"w": numpy.ones(1000, numpy.float32)})
start = lap("Optimizer()", start)
opt.step()
start = lap("first step", start)
opt.step()
lap("second step", start)
print(json.dumps({"times": times, "compiled": compiled, "heavy": heavy}))
"""


def names(chosen: list[str], quick: bool) -> list[str]:
    """Return what to measure: two of fastopt's rules, and the chosen peers that compile or import much."""
    return [*RULES[: 1 if quick else None], *(n for n in PEERS if n in chosen and not (quick and n in SLOW))]


def run(name: str, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Time cold and warm processes in turns; return the two records."""
    samples: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    unchanged = True
    if name not in RULES:
        return _peer(name, threads)
    check.check_ours(Case(rule=name))
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="fastopt-bench-") as cache:
            samples["cold"].append(_process(name, cache))
            left = _files(cache)
            samples["warm"].append(_process(name, cache))
            unchanged = unchanged and left == _files(cache)
    return [_record(name, kind, found, unchanged) for kind, found in samples.items()]


def _peer(name: str, threads: int) -> list[dict[str, Any]]:
    """Time a peer's process with empty compiler caches, and a second one with the caches of the first."""
    case, records = Case(size="1000", threads=threads), []
    why = peers.PEERS[name].absent()
    with tempfile.TemporaryDirectory(prefix="fastopt-bench-") as cache:
        variables = dict.fromkeys(("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), cache)
        for kind in ("cold", "warm"):
            record: dict[str, Any] = {"part": "first", "name": name, "kind": kind, "seconds": {}, "cannot": why}
            if not why:
                try:
                    with Process(name, threads, **variables) as process:
                        found = process.ask("first", case=case.as_dict())
                    record["seconds"] = {phase: percentiles([value]) for phase, value in found.items()}
                except PeerError as error:
                    record["cannot"] = f"failed: {error}"
            records.append(record)
    return records


def total(record: dict[str, Any]) -> float | None:
    """Return the sum of the medians of all phases up to the first step; None if nothing was measured."""
    phases = [phase for phase in record["seconds"] if phase not in ("second step", "process")]
    return sum(record["seconds"][phase][1] for phase in phases) if phases else None


def _record(name: str, kind: str, samples: list[dict[str, Any]], unchanged: bool) -> dict[str, Any]:
    seconds = {phase: percentiles([s["times"][phase] for s in samples]) for phase in PHASES}
    compiled = sorted({name for s in samples for name in s["compiled"]})
    heavy = sorted({name for s in samples for name in s["heavy"]})
    claims = {"import fastopt imports nothing heavy": not heavy}
    if kind == "warm":
        claims |= {"it compiles nothing": not compiled, "it writes nothing": unchanged}
    else:
        claims |= {"it compiles": bool(compiled)}  # shows that the events work
    found = {"seconds": seconds, "compiled": compiled, "heavy": heavy, "claims": claims, "cannot": None}
    return {"part": "first", "name": f"fastopt {name}", "kind": kind, **found}


def _process(name: str, cache: str) -> dict[str, Any]:
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "NUMBA_CACHE_DIR": str(Path(cache) / "numba")}
    command = [sys.executable, "-P", "-c", CHILD, name]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a first step of {name} failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    found["times"]["process"] = time.perf_counter() - start
    return found


def _files(folder: str) -> dict[str, tuple[int, int]]:
    """Return the files of a cache with their sizes and modification times."""
    stats = {str(path): path.stat() for path in Path(folder).rglob("*") if path.is_file()}
    return {path: (s.st_size, s.st_mtime_ns) for path, s in stats.items()}

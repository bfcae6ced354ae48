"""First steps: what importing fastopt costs, compiling a kernel for the first time, and the next process finding it.

Each sample is a fresh process. `cold` finds the cache folder empty, `warm` finds what the cold process left in it. A
warm process must compile nothing: Numba reports every compilation as an event, and no file of the cache may change.
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

from bench import peers
from bench.clock import percentiles

RULES = ("adam", "noise-adam")
PHASES = ("import numpy", "import fastopt", "import numba", "Optimizer()", "first step", "second step", "process")

# Making the optimizer imports Numba; here that is on a line of its own, for Numba's events and to tell its share.
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
from tests.cases import CASES
start = clock()
opt = fastopt.Optimizer(CASES[sys.argv[1]], {"w": numpy.ones(1000, numpy.float32)})
start = lap("Optimizer()", start)
opt.step()
start = lap("first step", start)
opt.step()
lap("second step", start)
print(json.dumps({"times": times, "compiled": compiled, "heavy": heavy}))
"""


def run(name: str, repeats: int) -> list[dict[str, Any]]:
    """Time cold and warm first processes of one rule in turns; gives the two records."""
    peers.check_rule(name)
    samples: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    unchanged = True
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="fastopt-bench-") as cache:
            samples["cold"].append(_process(name, cache))
            left = _files(cache)
            samples["warm"].append(_process(name, cache))
            unchanged = unchanged and left == _files(cache)
    return [_record(f"{name}, {kind}", found, kind == "warm", unchanged) for kind, found in samples.items()]


def _record(case: str, samples: list[dict[str, Any]], warm: bool, unchanged: bool) -> dict[str, Any]:
    seconds = {phase: percentiles([s["times"][phase] for s in samples]) for phase in PHASES}
    compiled = sorted({name for s in samples for name in s["compiled"]})
    heavy = sorted({name for s in samples for name in s["heavy"]})
    claims = {"import fastopt imports nothing heavy": not heavy}
    if warm:
        claims |= {"it compiles nothing": not compiled, "it writes nothing": unchanged}
    else:
        claims |= {"it compiles": bool(compiled)}  # or the events are no witness
    return {"case": case, "seconds": seconds, "compiled": compiled, "heavy": heavy, "claims": claims}


def _process(name: str, cache: str) -> dict[str, Any]:
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": cache,
        "NUMBA_CACHE_DIR": str(Path(cache) / "numba"),
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-c", CHILD, name]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a first step of {name} failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    found["times"]["process"] = time.perf_counter() - start
    return found


def _files(folder: str) -> dict[str, tuple[int, int]]:
    """List the files of a cache with their sizes and the times of their last change."""
    stats = {str(path): path.stat() for path in Path(folder).rglob("*") if path.is_file()}
    return {path: (s.st_size, s.st_mtime_ns) for path, s in stats.items()}

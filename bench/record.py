"""Results files: a folder with results.jsonl, which has a line for each run and a line for each of its measurements.

A line is written as soon as its measurement is done, so an interrupted run loses only the current one. The same command
with the same folder resumes an interrupted run if fastopt's code, the machine and the versions are the same.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding
from numba.core import config

import fastopt
from fastopt.errors import SettingError

FILE = "results.jsonl"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "bench" / "results"
PACKAGES = (
    "fastopt", "numpy", "numba", "llvmlite", "cupy-cuda13x", "cupy-cuda12x", "torch", "deepspeed", "jax", "optax",
    "bitsandbytes", "torchao", "flashoptim", "apex",
)  # fmt: skip
_VECTORS = {"avx512f": 512, "avx2": 256, "avx": 256, "sse2": 128, "neon": 128}

MUST_MATCH = ("source", "machine", "versions", "repeats", "quick")
"""The conditions that must be equal in all runs of one results file."""


class Results(NamedTuple):
    """The contents of a results file: the conditions of its runs, in order, and the records of all measurements."""

    runs: list[dict[str, Any]]
    records: list[dict[str, Any]]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine of the measurements."""
        return self.runs[0]["machine"]

    @property
    def device(self) -> dict[str, Any] | None:
        """The CUDA device of the measurements; None if they were made on the CPU."""
        return next((r["device"] for r in self.records if "device" in r), None)

    def of_part(self, part: str) -> list[dict[str, Any]]:
        """Return the records of a part."""
        return [record for record in self.records if record["part"] == part]


def read(path: Path) -> Results:
    """Read the results in a folder or file.

    Raises:
        SettingError: there are none, or a line is damaged. An incomplete last line, of a killed run, is ignored.

    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise SettingError("there are no results.", got=str(file), do="fastopt bench --out FOLDER")
    runs: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    lines = file.read_bytes().split(b"\n")[:-1]  # the last item is empty or an incomplete line
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if "run" in found:
                runs.append(found["run"])
            else:
                records.append({"part": found["part"], "key": found["key"], **found})
        except (ValueError, KeyError, TypeError):
            what = f"line {number} is not a line of results."
            raise SettingError(what, got=f"{file}: {line[:60]!r}") from None
    if not runs or not records:
        raise SettingError("the file contains no results.", got=str(file), do="fastopt bench --out FOLDER")
    return Results(runs, records)


def newest_by_vectors(part: str) -> dict[str, tuple[Path, Results]]:
    """Return the newest results on a CPU that have a part, and their folder, by vectors, the widest first."""
    found: dict[str, tuple[Path, Results]] = {}
    for file in FOLDER.glob(f"*/{FILE}"):
        results = read(file)
        width = results.machine.get("vectors")
        if width and results.of_part(part) and not results.device:
            known = found.get(width)
            if known is None or known[1].runs[0]["date"] < results.runs[0]["date"]:
                found[width] = file.parent, results
    return {width: found[width] for width in sorted(found, reverse=True)}


def newest(part: str = "rules", *, device: bool = False) -> Path | None:
    """Return the newest folder in bench/results/ with records of a part, for the CPU or a CUDA device; None if none."""
    found = {file.parent: read(file) for file in FOLDER.glob(f"*/{FILE}")}
    having = [folder for folder, results in found.items() if results.of_part(part) and bool(results.device) is device]
    return max(having, key=lambda folder: found[folder].runs[0]["date"], default=None)


class Writer:
    """Adds records to a folder of results; `done` are the keys of the records that are there."""

    def __init__(self, folder: Path, conditions: dict[str, Any]):
        self._file = folder / FILE
        self.records: list[dict[str, Any]] = []
        if folder.exists() and not folder.is_dir():
            raise SettingError("this is a file, not a folder.", got=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            self._truncate()
            if self._file.stat().st_size and len(self._file.read_bytes().splitlines()) > 1:
                results = read(self._file)
                self.records = results.records
                differ = [name for name in MUST_MATCH if results.runs[0].get(name) != conditions[name]]
                if differ:
                    what = f"the results in this folder were measured with a different {', '.join(differ)}."
                    raise SettingError(what, got=str(folder), do="choose a new folder")
        append(self._file, {"run": conditions})

    @property
    def done(self) -> set[str]:
        """The keys of the records in the folder."""
        return {record["key"] for record in self.records}

    def add(self, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns. An OSError (a full disk) leaves the file unchanged."""
        append(self._file, record)
        self.records.append(record)

    def _truncate(self) -> None:
        """Remove an incomplete last line."""
        text = self._file.read_bytes()
        if text and not text.endswith(b"\n"):
            os.truncate(self._file, text.rfind(b"\n") + 1)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a results file; it is on disk when this returns. An OSError leaves the file unchanged."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def conditions() -> dict[str, Any]:
    """Return the conditions of a run that begins now: date, commit, machine, versions and load."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "source": source(),
        "machine": machine(),
        "versions": versions(),
        "load": load(),
    }


def machine() -> dict[str, Any]:
    """Return the processor, the number of cores this process may use, the memory and the operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _proc("cpuinfo", r"model name\s*: (.*)") or platform.processor() or platform.machine(),
        "vectors": vectors(),
        "cores": cores,
        "memory_gib": round(int(_proc("meminfo", r"MemTotal:\s*(\d+)") or 0) / 2**20, 1),
        "os": platform.platform(),
    }


def vectors() -> str:
    """Return the width of the widest vectors that LLVM may use: the processor's, or those of which Numba is told."""
    told = getattr(config, "CPU_FEATURES", None)
    features = binding.get_host_cpu_features() if told is None else {f[1:]: f[0] == "+" for f in told.split(",") if f}
    why = "" if told is None else ", as NUMBA_CPU_FEATURES says"
    return next((f"{bits} bits ({name}{why})" for name, bits in _VECTORS.items() if features.get(name)), "unknown")


def _proc(name: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path("/proc", name).read_text())
    except OSError:
        return ""
    return " ".join(found[1].split()) if found else ""


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of all contestants' packages; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Return the commit of the checkout, with -dirty if files were changed; None without a repository or git.

    The environment variable FASTOPT_COMMIT names the commit of a copy of the files without a repository.
    """
    if named := os.environ.get("FASTOPT_COMMIT"):
        return named
    if not (ROOT / ".git").exists():  # an installed package may lie in another project's repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def source() -> str:
    """Return a hash of fastopt's source code, to tell whether two runs measured the same code."""
    package = Path(fastopt.__file__).parent
    files: dict[Path, Iterable[Path]] = {package: package.rglob("*.py")}
    for link in ("kernels", "bench"):  # symbolic links, which rglob does not follow
        folder = (package / link).resolve()
        files[folder] = [*folder.rglob("*.py"), *folder.rglob("*.cuh")]
    listed = sorted(
        (f"{folder.name}/{path.relative_to(folder)}", path.read_bytes())
        for folder, paths in files.items()
        for path in paths
        if path.name != "test_bench.py"
    )
    return hashlib.sha256(repr(sorted(dict(listed).items())).encode()).hexdigest()[:12]


def load() -> float | None:
    """Return the load average of the last minute; None if the system does not report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None

"""Results: a folder with results.jsonl, a line for each run that added to it and a line for each thing it measured.

A line is written when its measurement is done, so an interrupted run loses only what it was at. The same command in the
same folder goes on where it was left, if fastopt, the machine and the versions are the same.
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

import fastopt
from fastopt.errors import SettingError

FILE = "results.jsonl"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "bench" / "results"
PACKAGES = (
    "fastopt", "numpy", "numba", "llvmlite", "cupy-cuda13x", "cupy-cuda12x", "torch", "deepspeed", "jax", "optax",
    "bitsandbytes", "torchao", "flashoptim", "apex",
)  # fmt: skip
SAME = ("source", "machine", "versions", "repeats", "quick")
"""What two runs must share for their results to stand in one file."""


class Kept(NamedTuple):
    """What a file of results holds: the conditions of its runs, the first first, and its records."""

    runs: list[dict[str, Any]]
    records: list[dict[str, Any]]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine that it was measured on."""
        return self.runs[0]["machine"]

    @property
    def device(self) -> dict[str, Any] | None:
        """The CUDA device that it was measured on; None where that was the machine itself."""
        return next((r["device"] for r in self.records if "device" in r), None)

    def part(self, *names: str) -> list[dict[str, Any]]:
        """Give the records of some parts."""
        return [record for record in self.records if record["part"] in names]


def read(path: Path) -> Kept:
    """Read results, from a folder or a file.

    Raises:
        SettingError: there are none, or a line is damaged. (The last line may be incomplete: a run was killed.)

    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise SettingError("there are no results.", got=str(file), do="fastopt bench --out FOLDER")
    runs: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last end of line is incomplete
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if "run" in found:
                runs.append(found["run"])
            else:
                records.append({"part": found["part"], "key": found["key"], **found})
        except (ValueError, KeyError, TypeError):
            what = f"line {number} is not one of results."
            raise SettingError(what, got=f"{file}: {line[:60]!r}") from None
    if not runs or not records:
        raise SettingError("the file holds no results.", got=str(file), do="fastopt bench --out FOLDER")
    return Kept(runs, records)


def newest(part: str = "rules", *, device: bool = False) -> Path | None:
    """Give the folder of the run that was begun last, of those that have this part; None where none is kept."""
    folders = {file.parent: read(file) for file in FOLDER.glob(f"*/{FILE}")}
    having = [folder for folder, kept in folders.items() if kept.part(part) and bool(kept.device) is device]
    return max(having, key=lambda folder: folders[folder].runs[0]["date"], default=None)


class Writer:
    """Adds records to a folder of results; `done` holds the keys of what stands there already."""

    def __init__(self, folder: Path, conditions: dict[str, Any]):
        self._file = folder / FILE
        self.records: list[dict[str, Any]] = []
        if folder.exists() and not folder.is_dir():
            raise SettingError("this is a file, not a folder.", got=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            self._cut()
            if self._file.stat().st_size and len(self._file.read_bytes().splitlines()) > 1:
                kept = read(self._file)
                self.records = kept.records
                differ = [name for name in SAME if kept.runs[0].get(name) != conditions[name]]
                if differ:
                    what = f"the results there were measured with another {', '.join(differ)}."
                    raise SettingError(what, got=str(folder), do="choose a new folder")
        append(self._file, {"run": conditions})

    @property
    def done(self) -> set[str]:
        """The keys of what is there."""
        return {record["key"] for record in self.records}

    def add(self, record: dict[str, Any]) -> None:
        """Add a record: it is on disk when this returns. An OSError (a full disk) leaves the file as it was."""
        append(self._file, record)
        self.records.append(record)

    def _cut(self) -> None:
        """Cut an incomplete last line off."""
        text = self._file.read_bytes()
        if text and not text.endswith(b"\n"):
            os.truncate(self._file, text.rfind(b"\n") + 1)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file of results: it is on disk when this returns. An OSError leaves the file as it was."""
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
    """Describe a run that begins now: the machine, the versions, the commit and the load."""
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
    """Describe this machine: processor, cores this process may use, memory, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _proc("cpuinfo", r"model name\s*: (.*)") or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(int(_proc("meminfo", r"MemTotal:\s*(\d+)") or 0) / 2**20, 1),
        "os": platform.platform(),
    }


def _proc(name: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path("/proc", name).read_text())
    except OSError:
        return ""
    return " ".join(found[1].split()) if found else ""


def versions() -> dict[str, str | None]:
    """Give the versions of Python and of all contestants; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Give the commit of the checkout, with -dirty where files differ from it; None where there is none or no git.

    A copy of the files is told by the variable FASTOPT_COMMIT which commit it is of.
    """
    if told := os.environ.get("FASTOPT_COMMIT"):
        return told
    if not (ROOT / ".git").exists():  # installed: a repository around it is not fastopt's
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def source() -> str:
    """Give a hash of fastopt's own code: what decides whether two runs measured the same thing."""
    package = Path(fastopt.__file__).parent
    files: dict[Path, Iterable[Path]] = {package: package.rglob("*.py")}
    for link in ("kernels", "bench"):  # links into the checkout, which rglob does not follow
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
    """Give the average number of processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None

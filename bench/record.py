"""Results: one line of JSON for each run, holding all it takes to judge it, and the same as a table in the terminal."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("fastopt", "numpy", "numba", "llvmlite", "cupy-cuda13x", "cupy-cuda12x", "torch")


def conditions() -> dict[str, Any]:
    """Describe the machine, the versions and the commit of a run that begins now."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": _versions(),
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


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _commit() -> str | None:
    """Give the commit of the working tree, with -dirty where files differ from it; None where git does not say."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def load() -> float | None:
    """Give the average number of processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def default_path() -> Path:
    """Name the file of this day and machine."""
    found = machine()
    words = re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(.*?\)", "", found["cpu"].lower())).strip("-")
    return FOLDER / f"{datetime.date.today().isoformat()}-{words}-{found['cores']}-cores.jsonl"


def append(path: Path, run: dict[str, Any]) -> None:
    """Add one run to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run, ensure_ascii=False) + "\n")


def table(results: list[dict[str, Any]]) -> str:
    """Show results as text: each contestant's median, 20th and 80th percentiles, and what was claimed of it."""
    width = max((len(name) for r in results for name in r["seconds"]), default=0)
    lines = []
    for result in results:
        lines += ["", result["case"]]
        for name, seconds in result["seconds"].items():
            if seconds is None:
                lines.append(f"  {name:{width}}  not installed")
                continue
            traffic = f"{result['traffic'] / seconds[1] / 1e9:7.1f} GB/s" if result.get("traffic") else ""
            lines.append(f"  {name:{width}}  {_time(seconds)}  {traffic}".rstrip())
            lines += [f"  {'':{width}}  {_compared(c)}" for c in result.get("compared", []) if c["subject"] == name]
        lines += [f"  {claim}: {'yes' if holds else 'NO'}" for claim, holds in result.get("claims", {}).items()]
    return "\n".join([*lines, "", summary(results)])


def _time(seconds: list[float]) -> str:
    unit, scale = next(u for u in (("s ", 1.0), ("ms", 1e3), ("µs", 1e6)) if seconds[1] * u[1] >= 1 or u[1] == 1e6)
    low, median, high = (x * scale for x in seconds)
    return f"{median:8.2f} {unit}  ({low:.2f} to {high:.2f})"


def _compared(c: dict[str, Any]) -> str:
    low, median, high = c["speed"]
    spread = f"{low:.3f} to {high:.3f}; of medians {c['of_medians']:.3f}"
    target = "" if c["target"] is None else f", target {c['target']:g}: {'met' if c['met'] else 'MISSED'}"
    return f"{median:8.3f} × the speed of {c['versus']}  ({spread}){target}"


def summary(results: list[dict[str, Any]]) -> str:
    """Count the targets and claims, and name the ones that were missed."""
    verdicts = {
        f"{r['case']}: {c['subject']} / {c['versus']}": c["met"] for r in results for c in r.get("compared", [])
    }
    verdicts |= {f"{r['case']}: {claim}": holds for r in results for claim, holds in r.get("claims", {}).items()}
    asked = {what: met for what, met in verdicts.items() if met is not None}
    missed = [what for what, met in asked.items() if not met]
    return f"{len(asked) - len(missed)} of {len(asked)} targets met" + (
        f"; missed: {', '.join(missed)}" if missed else ""
    )

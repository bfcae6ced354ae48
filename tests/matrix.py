"""Try the Pythons of this machine with the oldest and the newest NumPy and Numba that pyproject admits.

    python tests/matrix.py                  # writes docs/versions.md; minutes for each line of its table

It looks for Python 3.11 to 3.14 and the free-threaded 3.14t in PATH, in pyenv and in uv. Each combination is installed
from wheels into an environment of its own, with an empty kernel cache, and runs the tests in TESTS.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "versions.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.14t")
TESTS = ("update", "optimizer", "vocabulary", "same_bits", "turn", "schedules", "averages", "batches", "files")
FEWER = (
    "not same_bits or adam-decoupled or lion or rmsprop-centered-momentum"  # equal bits of a few rules, in all formats
)
TOOLS = ("hypothesis", "ml_dtypes", "pytest", "pytest-benchmark", "pytest-xdist", "safetensors")
_ASK = """
import sys, sysconfig
print("%d.%d" % sys.version_info[:2] + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
"""
_BEGIN, _END = "<!-- matrix: written by `python tests/matrix.py`, do not edit -->", "<!-- end of matrix -->"


class Outcome(NamedTuple):
    """A line of the table."""

    python: str
    asked: str
    numpy: str = "–"
    numba: str = "–"
    tests: str = ""


def interpreters() -> dict[str, str]:
    """Return the path of the first interpreter found of each version in PYTHONS."""
    found: dict[str, str] = {}
    candidates = [shutil.which(f"python{version}") for version in PYTHONS]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/*/bin/python"))]
    if uv := shutil.which("uv"):
        asked = [
            subprocess.run([uv, "python", "find", v], capture_output=True, text=True, check=False) for v in PYTHONS
        ]
        candidates += [done.stdout.strip() for done in asked if done.returncode == 0]
    for path in filter(None, candidates):
        done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), path)
    return {version: found[version] for version in PYTHONS if version in found}


def requirements() -> dict[str, list[str]]:
    """Return what to install for the oldest and for the newest versions that pyproject admits."""
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pairs = [re.fullmatch(r"([a-z]+)>=([\d.]+)", name) for name in names]
    if not all(pairs):
        raise SystemExit(f"not all of the form name>=version: {names}")
    bounds = [pair.groups() for pair in pairs if pair]
    return {"oldest": [f"{name}=={low}" for name, low in bounds], "newest": [name for name, _ in bounds]}


def attempt(version: str, interpreter: str, asked: str, wanted: list[str]) -> Outcome:
    """Install one combination and run the tests."""
    with tempfile.TemporaryDirectory(prefix="fastopt-matrix-") as name:
        folder = Path(name)
        python = str(folder / "venv" / "bin" / "python")
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        env["XDG_CACHE_HOME"] = str(folder / "cache")
        subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True, env=env)
        install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *wanted, *TOOLS]
        done = subprocess.run(install, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return Outcome(version, asked, tests=f"not tried: {(errors or ['ERROR: pip failed'])[-1][7:]}")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", str(ROOT)], check=True, env=env)
        show = "import numpy, numba; print(numpy.__version__, numba.__version__)"
        shown = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True, env=env).stdout.split()
        files = [str(ROOT / "tests" / f"test_{test}.py") for test in TESTS]
        command = [python, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-k", FEWER, *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
        (summary,) = done.stdout.strip().splitlines()[-1:] or ["no output"]
        if done.returncode:
            print(done.stdout[-5000:], done.stderr[-2000:], file=sys.stderr)
        numpy, numba = shown
        return Outcome(version, asked, numpy, numba, re.sub(r" in [\d.:()s ]+$", "", summary.strip("= ")))


def written(page: str, outcomes: list[Outcome]) -> str:
    """Return the page with a new table between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise SystemExit(f"{PAGE} does not contain the marks {_BEGIN!r} and {_END!r}")
    lines = ["| Python | of what is admitted, the | NumPy | Numba | tests |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(outcome)} |" for outcome in outcomes]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    system, state = f"{platform.system()} {platform.machine()}", commit.stdout.strip() or "unknown"
    where = f"{system}, {datetime.date.today()}, commit {state}"
    return f"{before}{_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{where}.\n\n{_END}{after}"


def main() -> int:
    """Try every combination, and write the page; the exit status is 1 if tests failed."""
    found, outcomes = interpreters(), []
    for version in PYTHONS:
        if version not in found:
            outcomes.append(Outcome(version, "–", tests="not tried: there is no such Python on this machine"))
            continue
        for asked, wanted in requirements().items():
            outcomes.append(attempt(version, found[version], asked, wanted))
            print(*outcomes[-1], flush=True)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), outcomes), encoding="utf-8")
    return int(any("failed" in one.tests or "error" in one.tests for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())

"""Python processes of their own, for what a test cannot do in its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, folder: Path, **environment: str | None) -> subprocess.Popen:
    """Start a Python process whose kernel cache is in `folder`; None removes a variable from its environment."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), **environment}
    env = {name: value for name, value in env.items() if value is not None}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen) -> str:
    """Wait for a process, assert that it succeeds, and return its standard output."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out

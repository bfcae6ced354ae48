"""A run that is killed while it saves goes on from its last whole checkpoint, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")


def killed(how: str, storage: str, folder: Path, kills: int) -> None:
    script = Path(__file__).parent / "torch_killed.py"
    command = [sys.executable, str(script), how, storage, str(folder), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@forks
@pytest.mark.parametrize("how", ["file", "distributed"])
def test_a_run_killed_while_it_saves_goes_on_from_its_last_checkpoint(how, tmp_path):
    """By torch.save to another name, and by torch.distributed.checkpoint to another folder."""
    killed(how, "split_8bit", tmp_path, kills=12)


@pytest.mark.slow
@forks
@pytest.mark.parametrize("storage", ["plain", "8bit", "split_8bit"])
@pytest.mark.parametrize("how", ["file", "distributed"])
def test_a_run_killed_a_hundred_times_goes_on(how, storage, tmp_path):
    killed(how, storage, tmp_path, kills=100)

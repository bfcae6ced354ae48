"""Training goes on in another process as if it had not been interrupted, bit for bit, with every trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")


@pytest.mark.parametrize("trainer", ["torch", "ddp", "accelerate", "lightning", "transformers"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(trainer, tmp_path):
    """By table, in flat buffers, with split parameters and with state in 8 bits; FSDP is in test_torch_distributed."""
    if trainer not in ("torch", "ddp"):
        pytest.importorskip(trainer, reason=f"{trainer} is not installed")
    script = Path(__file__).parent / "torch_resume.py"
    for phase in ("save", "resume"):
        command = [sys.executable, "-W", "ignore", str(script), trainer, phase, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

"""fastopt.torch in several processes: DDP, FSDP, tensor parallelism, and checkpoints that move between them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

TESTS = Path(__file__).parent
shards_on_cpus = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 shards on GPUs alone"
)


def spawned(processes: int, script: str, *arguments: str) -> None:
    """Run a script of torch_processes.py in processes that talk by gloo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = subprocess.run(
            [sys.executable, str(TESTS / "torch_processes.py"), str(processes), script, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("flatten", ["False", "True"])
def test_distributed_data_parallel(flatten):
    spawned(2, "ddp", flatten)


@shards_on_cpus
def test_fully_sharded(tmp_path):
    spawned(2, "fsdp", str(tmp_path))


@shards_on_cpus
def test_sharded_checkpoints_of_every_storage_load_into_more_and_fewer_processes(tmp_path):
    """Saved by two: loaded by one, two and three with equal values, and by torch.optim without sharding."""
    spawned(2, "save", str(tmp_path))
    for processes in (2, 1, 3):
        spawned(processes, "load", str(tmp_path))
    spawned(1, "plain", str(tmp_path))


def test_fully_sharded_data_parallel_gathers_and_scatters_every_storage(tmp_path):
    spawned(2, "fsdp1", str(tmp_path))


@shards_on_cpus
def test_gradients_that_are_not_reduced_yet_are_reduced_as_by_torch(tmp_path):
    spawned(2, "partial", str(tmp_path))


def test_zero_redundancy_optimizer(tmp_path):
    spawned(2, "zero", str(tmp_path))


@shards_on_cpus
def test_sharded_parameters_are_stepped_in_the_backward_pass(tmp_path):
    spawned(2, "in_backward", str(tmp_path))

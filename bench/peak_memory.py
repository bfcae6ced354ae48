"""Peak memory of a training loop: torch.optim, fastopt.torch, and fastopt.torch with steps in the backward pass.

    python -m fastopt.bench.peak_memory [--layers 32] [--width 2048] [--out FILE]

Each variant trains a stack of linear layers for three iterations in a process of its own, whose largest resident set is
read from the operating system; what the process has before the model is made is subtracted. `bytes per parameter` is
that divided by the number of parameters: the parameter itself, its gradient, its state, and activations, which are few.
The GNU C library is told to return large blocks to the system when they are freed; left alone, it holds on to some,
which adds up to 2 bytes per parameter.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

VARIANTS = {
    "torch.optim.AdamW": "torch.optim.AdamW(net.parameters())",
    "fastopt.torch.AdamW": "fastopt.torch.AdamW(net.parameters())",
    "fastopt.torch.AdamW, 8bit": "fastopt.torch.AdamW(net.parameters(), storage='8bit')",
    "in_backward, AdamW": "fastopt.torch.in_backward(net, fastopt.torch.AdamW)",
    "in_backward, AdamW, 8bit": "fastopt.torch.in_backward(net, fastopt.torch.AdamW, storage='8bit')",
}

SCRIPT = """
import json, resource, sys
import torch, fastopt.torch
layers, width, make = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def peak():
    if sys.platform == "linux":  # whose getrusage counts what the process was forked from
        return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
def train(net, steps=3):
    opt = eval(make)
    for _ in range(steps):
        opt.zero_grad()
        net(torch.ones(1, net[0].in_features)).square().mean().backward()
        opt.step()
train(torch.nn.Sequential(torch.nn.Linear(300, 300)))  # compiles, or loads what is compiled
before = peak()
net = torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(layers)])
train(net)
print(json.dumps((peak() - before) / sum(p.numel() for p in net.parameters())))
"""


def measure(make: str, layers: int, width: int) -> float:
    """Return the bytes per parameter of one variant."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    def run(layers: int, width: int) -> float:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(layers), str(width), make]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    run(1, 8)  # a first process compiles, which takes more memory than a small model
    return run(layers, width)


def main(
    layers: Annotated[int, typer.Option(help="number of layers, each of width² parameters")] = 32,
    width: Annotated[int, typer.Option(help="of a layer")] = 2048,
    out: Annotated[Path | None, typer.Option(help="a CSV file to write")] = None,
) -> None:
    """Print the peak memory of each variant in bytes per parameter."""
    rows = []
    for name, make in VARIANTS.items():
        rows.append((name, round(measure(make, layers, width), 2)))
        print(f"{name:<28} {rows[-1][1]:6.2f} bytes per parameter", flush=True)
    if out is not None:
        with out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("variant", "bytes per parameter"), *rows])


if __name__ == "__main__":
    typer.run(main)

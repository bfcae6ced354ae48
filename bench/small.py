"""Small steps, where a call costs more than the work: one short tensor, or a hundred, beside torch's fused AdamW.

torch is timed with as many threads as fastopt has and, in cases of their own, with one. Judge by the faster: threads
wait for each other in every call, which takes milliseconds as soon as other work wants the cores.

Gradients lie where each library wants them before the clock starts, in `opt.grads` and in `.grad`. Besides the whole
step, the kernel alone and a stateless `update` are timed: what the surface around the kernel costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import fastopt
from bench import peers
from bench.clock import Case, Comparison
from fastopt.kernels import cpu
from fastopt.kernels.program import host_scalars, trace

DTYPE = np.dtype(np.float32)
DECAY = 0.01  # torch.optim.AdamW's default; the other settings have the same defaults in both
RULE = fastopt.Adam(weight_decay=DECAY)
PERIOD = 1_000_000
SCHEDULED = fastopt.Adam(lr=fastopt.schedules.Cosine(1e-3, PERIOD).delayed(1), weight_decay=DECAY)

TENSORS = {
    "1 tensor of 1,000": [1000],
    "100 tensors of 10 to 1,000": np.random.default_rng(0).integers(10, 1001, 100).tolist(),
}
TARGETS = {"1 tensor of 1,000": 5.0, "100 tensors of 10 to 1,000": 50.0}


def cases(elements: int) -> list[Case]:
    """List the cases, each also with torch on one thread, which suits small tensors; none is longer than `elements`."""
    return [
        _case(name, [min(size, elements) for size in sizes], threads)
        for name, sizes in TENSORS.items()
        for threads in (None, 1)
    ]


def _case(name: str, sizes: list[int], torch_threads: int | None) -> Case:
    comparisons = [
        Comparison("step", "torch", TARGETS[name]),
        Comparison("step(grads)", "torch"),
        Comparison("step, lr scheduled", "torch, lr scheduled"),
        Comparison("update", "torch"),
        Comparison("kernel", "torch"),
    ]
    full = f"{name}, torch on 1 thread" if torch_threads else name
    return Case(full, lambda: _contestants(sizes, torch_threads), tuple(comparisons))


def _contestants(sizes: list[int], torch_threads: int | None) -> Mapping[str, Callable[[], object] | None]:
    torch = peers.torch(torch_threads)
    peers.check_rule("adam-decoupled")  # RULE's kernel
    rng = np.random.default_rng(1)
    values = {f"layer{k}.weight": rng.standard_normal(size).astype(DTYPE) for k, size in enumerate(sizes)}
    grads = {name: rng.standard_normal(value.size).astype(DTYPE) for name, value in values.items()}
    plain, taking, scheduled = (fastopt.Optimizer(rule, values) for rule in (RULE, RULE, SCHEDULED))
    for opt in (plain, scheduled):
        for name, g in grads.items():
            opt.grads[name][...] = g
    total = sum(sizes)
    program = trace(RULE, DTYPE)
    arrays = {b.name: np.zeros(total, DTYPE) for b in program.buffers}
    launch = cpu.bind(program, list(arrays.values()))
    return {
        "step": plain.step,
        "step(grads)": partial(taking.step, grads),
        "step, lr scheduled": scheduled.step,
        "update": lambda: fastopt.update(RULE, 10, arrays),
        "kernel": partial(launch, (), host_scalars(program, RULE)(10)),
        "torch": _torch(torch, values, grads, plain, scheduled=False),
        "torch, lr scheduled": _torch(torch, values, grads, scheduled, scheduled=True),
    }


def _torch(
    torch: Any, values: dict[str, np.ndarray], grads: dict[str, np.ndarray], ours: Any, *, scheduled: bool
) -> Callable[[], object] | None:
    """Make torch's step for the same parameters, and raise unless a few steps of it lead where ours do."""
    if torch is None:
        return None
    ps = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in values.items()}
    for name, p in ps.items():
        p.grad = torch.from_numpy(grads[name].copy())
    optimizer = torch.optim.AdamW(ps.values(), weight_decay=DECAY, fused=True)
    step: Callable[[], object] = _scheduled(torch, optimizer) if scheduled else optimizer.step
    for _ in range(peers.STEPS):
        step()
        ours.step()
    for name, p in ps.items():
        peers.require_close(p.detach().numpy(), ours.params[name], f"torch AdamW, {name}")
    return step


def _scheduled(torch: Any, optimizer: Any) -> Callable[[], None]:
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PERIOD)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return step

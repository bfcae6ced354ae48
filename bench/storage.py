"""Storages: Adam with each preset beside float32 Adam, from memory and in cache, and beside peers' bfloat16 and 8 bits.

From memory all contestants have buffers of their own, in turns. In cache the kernel alone is timed, on one thread: what
a core can do where memory does not matter, because compressed steps are bound by arithmetic sooner than by bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import fastopt
from bench import peers
from bench.clock import Case, Comparison, Limit
from fastopt.kernels import cpu
from fastopt.kernels.noise import noise_keys
from fastopt.kernels.program import host_scalars
from fastopt.kernels.storage import PRESETS

RULE = fastopt.Adam(weight_decay=0.01)  # torch.optim.AdamW's default; the other settings have the same defaults
SHOWN = [name for name in PRESETS if name != "f64"]

# The share of float32's time that a step from memory may take, and nanoseconds a parameter in cache.
FROM_MEMORY = {"bf16": 0.70, "8bit": 0.90, "split_8bit": 0.90}
IN_CACHE = {"bf16": 0.7, "8bit": 1.3, "split_8bit": 1.3, "bf16_8bit": 1.3}
CACHED = 20_480  # parameters: 560 KiB in float32

# How many times as fast as the peer's 8-bit AdamW on the CPU, and as torch's fused AdamW in bfloat16.
EIGHT_BITS, TORCH_BF16 = 20.0, 1.4
PEERS = {"torchao": "8bit", "bitsandbytes": "8bit"}


def cases(elements: int) -> list[Case]:
    """List the cases; from memory with `elements` parameters, the peers' 8 bits with a quarter of them."""
    memory = [
        Comparison(name, "f32", round(1 / FROM_MEMORY[name], 3) if name in FROM_MEMORY else None) for name in SHOWN
    ]
    memory.append(Comparison("bf16", "torch bf16", TORCH_BF16))
    nanoseconds = {name: f"{name} in cache takes at most {ns} ns a parameter" for name, ns in IN_CACHE.items()}
    limits = tuple(Limit(name, IN_CACHE[name] * 1e-9 * CACHED, text) for name, text in nanoseconds.items())
    few = max(elements // 4, 1)
    return [
        Case(f"adam, {elements}", partial(_memory, elements), tuple(memory[1:])),
        Case(
            f"adam in cache, one thread, {CACHED}",
            _cached,
            tuple(Comparison(n, "f32") for n in SHOWN[1:]),
            limits=limits,
        ),
        *(
            Case(f"8-bit adam beside {peer}, {few}", partial(_beside, peer, few), (Comparison(ours, peer, EIGHT_BITS),))
            for peer, ours in PEERS.items()
        ),
    ]


def _values(elements: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(elements, np.float32), 1e-3 * rng.standard_normal(elements, np.float32)


def _optimizer(storage: Any, elements: int) -> fastopt.Optimizer:
    p, g = _values(elements)
    opt = fastopt.Optimizer(RULE, {"w": p}, storage=storage)
    opt.grads["w"][...] = g
    return opt


def check(storage: str) -> None:
    """Raise unless a few steps of the kernel give the reference's bits."""
    ours, truth = (
        fastopt.Optimizer(RULE, {"w": _values(1003)[0]}, storage=storage, backend=b) for b in ("cpu", "reference")
    )
    for opt in (ours, truth):
        opt.grads["w"][...] = _values(1003)[1]
        for _ in range(peers.STEPS):
            opt.step()
    for name, array in ours.state_dict().items():
        assert np.array_equal(array, truth.state_dict()[name]), f"{storage}: {name} differs from the reference"


def _memory(elements: int) -> Mapping[str, Callable[[], object] | None]:
    contestants: dict[str, Callable[[], object] | None] = {}
    for name in SHOWN:
        check(name)
        contestants[name] = _optimizer(name, elements).step
    contestants["torch bf16"] = torch_bf16(elements)
    return contestants


def _cached() -> Mapping[str, Callable[[], object] | None]:
    return {name: _kernel(name) for name in SHOWN}


def _kernel(storage: str) -> Callable[[], object]:
    check(storage)
    opt = _optimizer(storage, CACHED)
    for _ in range(peers.STEPS):  # so that the state is one that occurs
        opt.step()
    (group,) = opt._groups
    program, launch = group.program, group.launch
    noise = (*noise_keys(0, 10), 0) if program.noise else ()
    ((kernel, *arguments),) = launch.calls(noise, host_scalars(program, RULE)(10))
    assert cpu.CHUNK * program.bytes_per_parameter < cpu.PARALLEL_FROM, "one call, on one thread"
    return lambda opt=opt: kernel(*arguments)  # the optimizer owns the memory


def torch_bf16(elements: int) -> Callable[[], object] | None:
    """Make torch's fused AdamW on bfloat16, and raise unless a few steps lead where ours do."""
    torch = peers.torch()
    if torch is None:
        return None

    def make(n: int) -> tuple[Any, Any]:
        p, g = (torch.from_numpy(x).bfloat16() for x in _values(n))
        p = torch.nn.Parameter(p)
        p.grad = g
        return p, torch.optim.AdamW([p], weight_decay=RULE.weight_decay, fused=True)

    p, optimizer = make(peers.CHECKED)
    ours = _optimizer(dict.fromkeys("pgmv", "bf16"), peers.CHECKED)  # to nearest, as torch rounds
    for _ in range(peers.STEPS):
        optimizer.step()
        ours.step()
    # A step moves by some 1e-3 and is rounded to 2⁻⁸ of the value: one rounding the other way is that far off.
    difference = np.abs(p.detach().float().numpy() - ours.master()["w"])
    assert np.all(difference <= 2.0**-7 * np.abs(ours.master()["w"]) + 1e-4), "torch bf16 computes something else"
    return make(elements)[1].step


def _beside(peer: str, elements: int) -> Mapping[str, Callable[[], object] | None]:
    ours = _optimizer(PEERS[peer], elements)
    return {PEERS[peer]: ours.step, peer: _eight_bits(peer, elements)}


def _eight_bits(peer: str, elements: int) -> Callable[[], object] | None:
    """Make a peer's 8-bit AdamW, and raise unless a few steps lead near where float32's do."""
    torch = peers.torch()
    if torch is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if peer == "torchao":
                from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
            else:
                from bitsandbytes.optim.adamw import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None

    def make(n: int) -> tuple[Any, Any]:
        p, g = (torch.from_numpy(x) for x in _values(n))
        p = torch.nn.Parameter(p)
        p.grad = g
        return p, AdamW8bit([p], lr=RULE.lr, weight_decay=RULE.weight_decay)

    p, optimizer = make(1 << 16)
    ours = _optimizer("f32", 1 << 16)
    for _ in range(peers.STEPS):
        optimizer.step()
        ours.step()
    moved = ours.master()["w"] - _values(1 << 16)[0]
    found = p.detach().numpy() - _values(1 << 16)[0]
    assert np.corrcoef(moved, found)[0, 1] > 0.95, f"{peer} computes something else"
    return make(elements)[1].step

"""fastopt.torch beside torch.optim: 1,000 tensors of mixed sizes, and one large one.

torch is timed with as many threads as fastopt has and with one: threads wait for each other at each of its tensors, so
for small ones the second is the faster, and the one to judge by. Gradients stay where they are from step to step; where
they are new at each step is a case of its own, in which both sides also pay for handing them over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench import peers
from bench.clock import Case, Comparison

MANY = np.random.default_rng(0).integers(10, 1001, 1000).tolist()
FEW = MANY[:10]
WAYS = {"table": False, "flatten": True, "sealed": "sealed"}
BYTES = {"AdamW": 28, "RMSprop": 20}


def cases(elements: int) -> list[Case]:
    """List the cases; no tensor is longer than `elements`."""
    many, few = ([min(size, elements) for size in sizes] for sizes in (MANY, FEW))
    fused, one = "torch fused, 1 thread", "torch foreach, 1 thread"
    against = (
        Comparison("table", fused, 8.0),
        Comparison("flatten", fused, 20.0),
        Comparison("sealed", fused, 20.0),
        Comparison("table", one),
        Comparison("flatten", one),
    )
    return [
        Case("AdamW, 1,000 tensors of 10 to 1,000", lambda: _contestants("AdamW", many), against),
        Case(
            "AdamW, 1,000 tensors, new gradients at each step",
            lambda: _contestants("AdamW", many, new_gradients=True),
            (Comparison("table", fused), Comparison("flatten", fused)),
        ),
        Case(
            "AdamW, 10 tensors of 10 to 1,000",
            lambda: _contestants("AdamW", few),
            tuple(Comparison(way, fused) for way in WAYS),
        ),
        Case(
            "RMSprop, 1,000 tensors of 10 to 1,000",
            lambda: _contestants("RMSprop", many),
            tuple(Comparison(way, "torch foreach, 1 thread", 4.0) for way in WAYS),
        ),
        Case(
            "AdamW, one tensor",
            lambda: _contestants("AdamW", [elements]),
            (Comparison("table", "torch fused", 1.0), Comparison("flatten", "torch fused", 1.0)),
            traffic=28 * elements,
        ),
        Case(
            "RMSprop, one tensor",
            lambda: _contestants("RMSprop", [elements]),
            (Comparison("table", "torch", 4.0), Comparison("flatten", "torch", 4.0)),
            traffic=20 * elements,
        ),
    ]


def _contestants(
    name: str, sizes: list[int], *, new_gradients: bool = False
) -> Mapping[str, Callable[[], object] | None]:
    torch = peers.torch()
    if torch is None:
        return dict.fromkeys([*WAYS, "torch"])
    import fastopt.torch

    many = len(sizes) > 1
    rng = np.random.default_rng(1)
    start = [torch.from_numpy(rng.standard_normal(n, np.float32)) for n in sizes]
    grads = [torch.from_numpy(rng.standard_normal(n, np.float32)) for n in sizes]
    ways = {} if not many else {"sealed": WAYS["sealed"]}
    made = {
        way: _optimizer(getattr(fastopt.torch, name), start, grads, flatten=flatten)
        for way, flatten in {"table": False, "flatten": True, **ways}.items()
    }
    theirs = getattr(torch.optim, name)
    if name == "AdamW":
        made["torch fused"] = _optimizer(theirs, start, grads, fused=True)
    if many or name != "AdamW":
        made["torch foreach" if many else "torch"] = _optimizer(theirs, start, grads, foreach=many)
    _check(made, many)
    calls: dict[str, Callable[[], object]] = {}
    for way, opt in made.items():
        step = _handing_over(torch, opt, grads) if new_gradients else opt.step
        calls[way] = step
        if way.startswith("torch") and many:
            calls[way] = _on(torch, fastopt.get_threads(), step)
            calls[f"{way}, 1 thread"] = _on(torch, 1, step)
    return calls


def _optimizer(kind: Any, start: list[Any], grads: list[Any], **own: Any) -> Any:
    from torch.nn import Parameter  # pyright: ignore[reportMissingImports]

    params: list[Any] = [Parameter(x.clone()) for x in start]
    opt = kind(params, **own)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    opt.step()
    if own.get("flatten"):
        opt.zero_grad()  # gradients move to where the next are added up
        for p, g in zip(params, grads, strict=True):
            p.grad.copy_(g)
    return opt


def _on(torch: Any, threads: int, step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(threads)
        step()

    return run


def _handing_over(torch: Any, opt: Any, grads: list[Any]) -> Callable[[], object]:
    """Make a step before which every parameter gets another gradient than it had, as after zero_grad and backward."""
    params = [p for group in opt.param_groups for p in group["params"]]
    turns = [[g.clone() for g in grads] for _ in range(2)]

    def step() -> None:
        turns.reverse()
        for p, g in zip(params, turns[0], strict=True):
            p.grad = g
        opt.step()

    return step


def _check(made: dict[str, Any], many: bool) -> None:
    """Raise unless a few steps of all lead to the same place."""
    for _ in range(peers.STEPS):
        for opt in made.values():
            opt.step()
    (first, reference), *others = made.items()
    for way, opt in others:
        for p, q in zip(reference.param_groups[0]["params"], opt.param_groups[0]["params"], strict=True):
            found, expected = (x.detach().numpy()[: peers.CHECKED] for x in (q, p))
            peers.require_close(found, expected, f"{way} and {first}")

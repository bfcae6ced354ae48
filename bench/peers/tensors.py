"""Functions for adapters of libraries based on torch: tensors on a problem's arrays, and the number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from fastopt.bench.cases import Case
from fastopt.bench.peers.adapter import Contestant
from fastopt.bench.problem import Problem

WARM = 3  # warm-up steps, in which libraries compile and allocate
FEW = 1 << 20  # up to this number of parameters one thread may be faster than several


def tensor(array: Any) -> Any:
    """Return a tensor that shares an array's memory; bfloat16 by way of int16, because torch cannot read NumPy's."""
    torch: Any = import_module("torch")
    convert = torch.from_dlpack
    if isinstance(array, np.ndarray):
        convert, array = torch.from_numpy, array if array.flags.writeable else array.copy()
    if array.dtype.itemsize == 2:
        return convert(array.view(np.int16)).view(torch.bfloat16)
    return convert(array)


def parameters(problem: Problem) -> list[Any]:
    """Return torch parameters that share a problem's arrays, with their gradients."""
    torch: Any = import_module("torch")
    made = []
    for name, array in problem.params.items():
        p = torch.nn.Parameter(tensor(array))
        p.grad = tensor(problem.grads[name])
        made.append(p)
    return made


def values(params: list[Any], problem: Problem) -> Mapping[str, np.ndarray]:
    """Return the parameters' values as float32 arrays, by name."""
    return {name: p.detach().float().cpu().numpy() for name, p in zip(problem.params, params, strict=True)}


def use_state(optimizer: Any, params: list[Any], problem: Problem, names: Mapping[str, str]) -> None:
    """Make an optimizer use the problem's arrays as its state; `names` maps our buffers to its keys.

    The optimizer takes one step to create its state; parameters, state and step count are then reset. If `names` is
    empty, the state is cleared and the optimizer creates it again in its next step.
    """
    torch: Any = import_module("torch")
    start = [p.detach().clone() for p in params]
    optimizer.step()
    with torch.no_grad():
        for p, value in zip(params, start, strict=True):
            p.copy_(value)
    for name, p in zip(problem.params, params, strict=True):
        state = optimizer.state[p]
        for ours, theirs in names.items():
            state[theirs] = tensor(problem.state[ours][name])
        if "step" in state:
            state["step"] *= 0  # a tensor or, in DeepSpeed, an int
        # NAdam's product of momenta, and the learning rate that ASGD takes in its next step.
        for key, first in (("mu_product", 1.0), ("eta", optimizer.param_groups[0]["lr"])):
            if key in state:
                state[key] = torch.full_like(state[key], first)
        if not names:
            state.clear()


def grouped(params: list[Any], case: Case) -> list[Any]:
    """Divide parameters into the groups of a case, each with its own learning rate."""
    if case.settings is None:
        return params
    named = list(zip(params, case.tensors, strict=True))
    return [
        {"params": [p for p, name in named if name.startswith(f"g{k}.")], **change}
        for k, change in enumerate(case.settings.values())
    ]


def faster(step: Callable[[], object], threads: int, elements: int) -> int:
    """Return 1 or `threads`, whichever makes the step faster; 1 is tried for small steps only."""
    if threads == 1 or elements > FEW:
        return threads
    medians = {}
    for count in (threads, 1):
        set_threads(count)
        step()
        rounds = []
        for _ in range(7):
            start = time.perf_counter()
            step()
            rounds.append(time.perf_counter() - start)
        medians[count] = float(np.median(rounds))
    return min(medians, key=lambda count: medians[count])


def set_threads(threads: int) -> None:
    """Set the number of threads of torch and of every OpenMP library in this process."""
    import_module("torch").set_num_threads(threads)
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(threads)


def tuned(contestant: Contestant, case: Case) -> Contestant:
    """Set the faster number of threads for a contestant that has its own process."""
    count = faster(contestant.step, case.threads, case.elements)
    set_threads(count)
    return contestant._replace(note=thread_count(count))


def thread_count(count: int) -> str:
    """Return "1 thread", "2 threads" and so on."""
    return f"{count} thread{'s' * (count > 1)}"

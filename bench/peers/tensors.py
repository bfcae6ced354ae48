"""What adapters of libraries on top of torch share: tensors on a problem's memory, and the faster number of threads."""

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

WARM = 3  # steps before a contestant is ready: what is compiled or allocated at first is there then
FEW = 1 << 20  # parameters up to which one thread may be the faster setting


def tensor(array: Any) -> Any:
    """View an array's memory as a tensor; bfloat16, which their exchange does not know, by way of its words."""
    torch: Any = import_module("torch")
    lend = torch.from_dlpack
    if isinstance(array, np.ndarray):
        lend, array = torch.from_numpy, array if array.flags.writeable else array.copy()
    if array.dtype.itemsize == 2:
        return lend(array.view(np.int16)).view(torch.bfloat16)
    return lend(array)


def parameters(problem: Problem) -> list[Any]:
    """Make torch's parameters on a problem's memory, with their gradients."""
    torch: Any = import_module("torch")
    made = []
    for name, array in problem.params.items():
        p = torch.nn.Parameter(tensor(array))
        p.grad = tensor(problem.grads[name])
        made.append(p)
    return made


def values(params: list[Any], problem: Problem) -> Mapping[str, np.ndarray]:
    """Give the parameters' values as float32, by name."""
    return {name: p.detach().float().cpu().numpy() for name, p in zip(problem.params, params, strict=True)}


def begin(optimizer: Any, params: list[Any], problem: Problem, names: Mapping[str, str]) -> None:
    """Let the optimizer keep its state on the problem's memory: the buffers by `names`, what they are called there.

    It takes one step, which makes its state. Parameters, state and count are then those before that step again. Without
    `names` the state is its own, and made again.
    """
    torch: Any = import_module("torch")
    before = [p.detach().clone() for p in params]
    optimizer.step()
    with torch.no_grad():
        for p, kept in zip(params, before, strict=True):
            p.copy_(kept)
    for name, p in zip(problem.params, params, strict=True):
        state = optimizer.state[p]
        for ours, theirs in names.items():
            state[theirs] = tensor(problem.state[ours][name])
        for counted, start in (("step", 0.0), ("mu_product", 1.0)):  # the second is NAdam's product of momenta
            if counted in state:
                state[counted] = state[counted] * 0 + start
        if not names:
            state.clear()


def grouped(params: list[Any], case: Case) -> list[Any]:
    """Divide parameters into the groups of a case, each with its learning rate."""
    if case.settings is None:
        return params
    named = list(zip(params, case.tensors, strict=True))
    return [
        {"params": [p for p, name in named if name.startswith(f"g{k}.")], **change}
        for k, change in enumerate(case.settings.values())
    ]


def faster(step: Callable[[], object], threads: int, elements: int) -> int:
    """Give the number of threads, 1 or `threads`, with which this step is faster; 1 only where it is small."""
    if threads == 1 or elements > FEW:
        return threads
    took = {}
    for count in (threads, 1):
        use(count)
        step()
        rounds = []
        for _ in range(7):
            start = time.perf_counter()
            step()
            rounds.append(time.perf_counter() - start)
        took[count] = float(np.median(rounds))
    return min(took, key=lambda count: took[count])


def use(threads: int) -> None:
    """Let torch, and whatever else in this process has OpenMP, use so many threads."""
    import_module("torch").set_num_threads(threads)
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(threads)


def tuned(contestant: Contestant, case: Case) -> Contestant:
    """Let a contestant that is alone in its process have the faster number of threads from now on."""
    count = faster(contestant.step, case.threads, case.elements)
    use(count)
    return contestant._replace(note=several(count))


def several(count: int) -> str:
    """Say a number of threads."""
    return f"{count} thread{'s' * (count > 1)}"

"""How the groups of an Optimizer become launches: which tensors are a group, and which groups are one launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

from fastopt.arrays.library import CPU, Device
from fastopt.kernels.backends import bind, require_together, steps
from fastopt.kernels.compiler.plan import plan
from fastopt.kernels.launch import Rows
from fastopt.parameters import Group


def tensor_by_tensor(members: list, formats: list) -> tuple[list, list]:
    """Make each parameter a group of its own whose rule takes totals of each tensor, or functions of matrices."""
    found: list[tuple] = []
    for (own, names), chosen in zip(members, formats, strict=True):
        program = plan(own, tuple(chosen.items())).program
        apart = program.matrices or any(node.value[0] == "tensor" for node in program.totals)
        parts = [[name] for name in names] if apart else [names]
        found += [((own, part), chosen) for part in parts]
    return [member for member, _ in found], [chosen for _, chosen in found]


def bound(backend: str, parts: list[tuple], device: Device) -> list[Group]:
    """Bind groups to launches: those of the tensors of one rule to one, on a device only if it takes matrices.

    On a device steps of single rows can be prepared there: see `capture`.
    """
    made: list[Group] = []
    for _, found in groupby(parts, lambda part: id(part[0])):
        alike = list(found)
        program = alike[0][0].program
        several = [alike] if device == CPU or program.matrices else [[part] for part in alike]
        for own in several:
            shapes = [shape for _, named, _, _ in own for shape in named.values()]
            rows = Rows(
                [sum(map(math.prod, named.values())) for _, named, _, _ in own],
                [offset for _, _, offset, _ in own],
                [store.addresses(0, program) for *_, store in own],
                [store for *_, store in own],
                device.number,
                shapes=shapes if program.matrices else None,
            )
            launch = bind(backend, program, rows)
            made += [Group(planned, named, offset, store, launch) for planned, named, offset, store in own]
    return made


def joined(backend: str, groups: list[Group]) -> Callable[[list], list[tuple]] | None:
    """Return what prepares a step of several groups at once, if their rules have totals over all parameters."""
    programs = [group.plan.program for group in groups]
    require_together(programs)
    if len(groups) == 1 or not programs[0].over_all:
        return None
    launches = [group.launch for group in groups]
    return lambda numbers: steps(backend, [(own, *rest) for own, rest in zip(launches, numbers, strict=True)])

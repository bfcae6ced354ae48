"""What is compiled to look at all tensors of a step at once: loops that call torch's functions by their addresses.

None of them lets go of the interpreter's lock: nobody can replace a gradient, and so free it, while it is looked at.
"""

from __future__ import annotations

from functools import cache
from operator import is_
from typing import Any

import numpy as np

from fastopt.torch import native

SAME, MOVED, CHANGED = range(3)
"""What a look finds: all is as before, nothing but gradients lies elsewhere, or anything else."""

_AHEAD = 4  # tensors by which the look asks for memory ahead: after a step 38 µs for 1,000 instead of 43


@cache
def look() -> Any:
    """Compile what compares tensors with how they were: see `before.Compiled`."""
    return _loaded("look", _LOOK)


@cache
def bump() -> Any:
    """Compile `bump(functions, handles)`, which raises the version counter of each tensor."""
    return _loaded("bump", _BUMP)


def holds(given: Any, kept: list[Any], objects: np.ndarray) -> bool:
    """Whether a list holds the very objects that another does, whose addresses are given too."""
    if type(given) is list and native.functions() is not None:
        return _holds()(id(given) + object.__basicsize__, objects)
    return len(given) == len(kept) and all(map(is_, given, kept))


@cache
def _holds() -> Any:
    return _loaded("holds", _HOLDS)


def _loaded(name: str, text: str) -> Any:
    from fastopt.kernels import cpu

    return cpu.entry(cpu.load(name, text))


# `p` and `g` are addresses of an at::Tensor. `expected` has of each parameter its dimensions and sizes, its strides and
# those of its gradient. `held`, if any, is where a Python list has its length: of the gradients that the caller holds.
_LOOK = f'''"""Compare tensors with how they were before. Printed by fastopt; do not edit."""

from numba import int32, int64, intp, njit, types

from fastopt.kernels.intrinsics import call_for_address, call_for_flag, call_for_status, expect, peek, scratch

WORDS = types.Array(int64, 1, "C")
SIGNATURE = intp(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, intp, intp)
SAME, MOVED, CHANGED = {SAME}, {MOVED}, {CHANGED}


@njit(cache=True, inline="always", error_model="numpy")
def answered(function, tensor, answer, expected):
    return call_for_status(function, tensor, answer) == 0 and peek(answer, int64) == expected


@njit(cache=True, inline="always", error_model="numpy")
def named(function, tensor, answer, expected):
    return call_for_status(function, tensor, answer) == 0 and peek(answer, int32) == expected


@njit(cache=True, inline="always", error_model="numpy")
def listed(function, tensor, answer, expected, first, count):
    if call_for_status(function, tensor, answer) != 0:
        return False
    numbers = peek(answer, int64)
    for k in range(count):
        if peek(numbers + 8 * k, int64) != expected[first + k]:
            return False
    return True


@njit(cache=True, error_model="numpy")
def look(functions, common, active, idle, state, p_at, g_at, s_at, expected, now, held, payload):
    data_ptr, dim, sizes, strides, dtype = functions[0], functions[1], functions[2], functions[3], functions[4]
    layout, device_type, device_index = functions[5], functions[6], functions[7]
    storage_size, storage_offset, grad, is_neg = functions[8], functions[9], functions[10], functions[11]
    undefined, strided, p_type, g_type = common[0], common[1], common[2], common[3]
    answer, found, first = scratch(int64), SAME, 0
    objects = peek(held + 8, int64) if held else 0
    for i in range(active.size):
        if i + {2 * _AHEAD} < active.size:
            expect(active[i + {2 * _AHEAD}])
            expect(peek(active[i + {_AHEAD}], int64))
        p, count = active[i], expected[first]
        if not (
            answered(data_ptr, p, answer, p_at[i])
            and named(dtype, p, answer, p_type)
            and answered(dim, p, answer, count)
            and listed(sizes, p, answer, expected, first + 1, count)
            and listed(strides, p, answer, expected, first + 1 + count, count)
        ):
            return CHANGED
        g = call_for_address(grad, peek(p, int64))
        own = peek(g, int64)
        if own == undefined or (objects and peek(peek(objects + 8 * i, int64) + payload, int64) != own):
            return CHANGED
        if not (
            named(layout, g, answer, strided)
            and named(dtype, g, answer, g_type)
            and answered(dim, g, answer, count)
            and listed(sizes, g, answer, expected, first + 1, count)
            and listed(strides, g, answer, expected, first + 1 + 2 * count, count)
            and call_for_flag(is_neg, g) == 0
            and call_for_status(data_ptr, g, answer) == 0
        ):
            return CHANGED
        now[i] = peek(answer, int64)
        if now[i] != g_at[i]:
            found = MOVED
            if not (
                named(device_type, g, answer, common[4])
                and named(device_index, g, answer, common[5])
                and call_for_status(storage_offset, g, answer) == 0
            ):
                return CHANGED
            begin, size = common[6] * peek(answer, int64), expected[first + 1 + 3 * count]
            if size > 0 and now[i] == begin:  # a storage that is nowhere
                return CHANGED
            if call_for_status(storage_size, g, answer) != 0 or peek(answer, int64) < begin + size:
                return CHANGED
        first += 2 + 3 * count
    for i in range(state.size):
        if i + {2 * _AHEAD} < state.size:
            expect(state[i + {2 * _AHEAD}])
            expect(peek(state[i + {_AHEAD}], int64))
        if not answered(data_ptr, state[i], answer, s_at[i]):
            return CHANGED
    for i in range(idle.size):
        if peek(call_for_address(grad, peek(idle[i], int64)), int64) != undefined:
            return CHANGED
    return found
'''

_BUMP = '''"""Raise the version counters of tensors. Printed by fastopt; do not edit."""

from numba import int64, njit, types

from fastopt.kernels.intrinsics import call_for_nothing

WORDS = types.Array(int64, 1, "C")
SIGNATURE = types.void(WORDS, WORDS)


@njit(cache=True, error_model="numpy")
def bump(functions, tensors):
    for i in range(tensors.size):
        call_for_nothing(functions[12], tensors[i])
'''

_HOLDS = '''"""Say whether a list holds the objects at these addresses. Printed by fastopt; do not edit."""

from numba import boolean, int64, intp, njit, types

from fastopt.kernels.intrinsics import peek

SIGNATURE = boolean(intp, types.Array(int64, 1, "C"))


@njit(cache=True, error_model="numpy")
def holds(given, objects):
    if peek(given, int64) != objects.size:
        return False
    at = peek(given + 8, int64)
    for i in range(objects.size):
        if peek(at + 8 * i, int64) != objects[i]:
            return False
    return True
'''

"""torch's own C functions, called from compiled code by their addresses, so that a look at a tensor costs no Python.

Through Python a look costs some 0.2 µs a tensor, which is more than half of a step of small tensors; here it is a third
of that (docs/decisions/0011). What is called is exported by torch's libraries: the C functions of AOTInductor, made for
compiled models, and three of C++ for what those do not have. They are looked up by name and tried on small tensors
once. Where anything is missing or not as expected `functions` gives None, and tensors are looked at through Python.

All take the address of an at::Tensor. A Python tensor holds one, so its own address and a distance, found by trying,
make one, which holds as long as the Python object lives, whatever is done to it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.torch.tensors import FORMATS, is_wrapped

SAME, MOVED, CHANGED = range(3)
"""What a look finds: all is as before, nothing but gradients lies elsewhere, or anything else."""

_C = {
    "data_ptr": ctypes.c_int64,
    "dim": ctypes.c_int64,
    "sizes": ctypes.c_int64,
    "strides": ctypes.c_int64,
    "dtype": ctypes.c_int32,
    "layout": ctypes.c_int32,
    "device_type": ctypes.c_int32,
    "device_index": ctypes.c_int32,
    "storage_size": ctypes.c_int64,
    "storage_offset": ctypes.c_int64,
}  # aoti_torch_get_… → what it writes; it returns 0, or an error
_CPP = {
    "grad": ("_ZNK3c1010TensorImpl4gradEv", ctypes.c_void_p),  # const at::Tensor& c10::TensorImpl::grad() const
    "is_neg": ("_ZN2at6native6is_negERKNS_6TensorE", ctypes.c_bool),  # bool at::native::is_neg(const at::Tensor&)
    "bump": ("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", None),  # void bump_version(const at::Tensor&)
}

_AHEAD = 4  # tensors by which the look asks for memory ahead: after a step 38 µs for 1,000 instead of 43


class Functions(NamedTuple):
    """What was found: addresses of functions, and what they say of the things that a look compares."""

    at: np.ndarray  # in the order of _C and _CPP
    payload: int  # how far into a Python tensor its at::Tensor lies
    undefined: int  # what a tensor without a gradient has for one
    strided: int
    types: dict[torch.dtype, int]
    say: Callable[[str, int], int]  # call one of _C for the address of an at::Tensor


def suits(tensors: Sequence[Any]) -> bool:
    """Whether these can be looked at in compiled code: torch's own tensors, whose memory is theirs."""
    return functions() is not None and not any(
        is_wrapped(x) or x.is_inference() or type(x).grad is not torch.Tensor.grad for x in tensors
    )


def handles(tensors: Sequence[Any]) -> np.ndarray:
    """Give the address of the at::Tensor of each of these, for as long as they are kept."""
    found = functions()
    assert found is not None
    return np.fromiter(map(id, tensors), np.int64, len(tensors)) + found.payload


@cache
def functions() -> Functions | None:
    """Find torch's functions and try them; None where tensors must be looked at through Python."""
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()  # the lock holds off who would free a gradient meanwhile
    if sys.implementation.name != "cpython" or not locked or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    try:
        library = ctypes.CDLL(torch._C.__file__)  # and all that it depends on
        calls = {name: getattr(library, f"aoti_torch_get_{name}") for name in _C}
        calls |= {name: getattr(library, mangled) for name, (mangled, _) in _CPP.items()}
        with torch.inference_mode(mode=False):
            return _tried(calls)
    except (OSError, AttributeError):
        return None


def _tried(calls: dict[str, Any]) -> Functions | None:
    """Give the functions if they say of small tensors what Python says."""
    for name, call in calls.items():
        call.argtypes = [ctypes.c_void_p] * (2 if name in _C else 1)
        call.restype = ctypes.c_int32 if name in _C else _CPP[name][1]

    def say(name: str, handle: int) -> int:
        answer = _C[name](0)
        return answer.value if calls[name](handle, ctypes.addressof(answer)) == 0 else -1

    def described(handle: int) -> dict[str, Any]:
        numbers = {name: say(name, handle) for name in _C if name not in ("dtype", "layout", "device_index")}
        lists = {
            name: tuple((ctypes.c_int64 * numbers["dim"]).from_address(numbers[name])) for name in ("sizes", "strides")
        }
        return {**numbers, **lists, "is_neg": calls["is_neg"](handle)}

    first, second = torch.nn.Parameter(_zeros(2, 3)), torch.nn.Parameter(_zeros(4))
    plain = [
        first,
        second,
        _zeros(5, 4, 3)[1:, :, 1].t(),
        _zeros(0, 2),
        torch.view_as_complex(_zeros(3, 2)).conj().imag,
    ]
    payload = _payload(plain)
    if payload is None or not _lists_hold(plain):
        return None
    undefined = _word(calls["grad"](_word(id(first) + payload)))
    for x in plain:
        at, version = id(x) + payload, x._version
        calls["bump"](at)
        if described(at) != _described(x) or x._version != version + 1 or _word(calls["grad"](_word(at))) != undefined:
            return None
    first.grad = _zeros(2, 3)
    gradient = calls["grad"](_word(id(first) + payload))
    if _word(gradient) != first.grad._cdata or described(gradient) != _described(first.grad):
        return None
    first.grad = None
    torch.utils.swap_tensors(first, second)
    if first.shape != (4,) or described(id(first) + payload) != _described(first):
        return None
    sparse = _zeros(3).to_sparse()
    strided = say("layout", id(first) + payload)
    typed = {kind: _zeros(1, dtype=kind) for kind in FORMATS}
    types = {kind: say("dtype", id(x) + payload) for kind, x in typed.items()}
    if say("layout", id(sparse) + payload) == strided or len(set(types.values())) < len(types):
        return None
    at = [ctypes.cast(call, ctypes.c_void_p).value for call in calls.values()]
    return Functions(np.array(at, np.int64), payload, undefined, strided, types, say)


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="cpu")


def _described(x: torch.Tensor) -> dict[str, Any]:
    """Say of a tensor on the CPU through Python what torch's functions are to say."""
    return {
        "data_ptr": x.data_ptr(),
        "dim": x.dim(),
        "storage_size": x.untyped_storage().nbytes(),
        "storage_offset": x.storage_offset(),
        "sizes": tuple(x.shape),
        "strides": x.stride(),
        "device_type": 0,
        "is_neg": x.is_neg(),
    }


def _word(at: int) -> int:
    return ctypes.c_int64.from_address(at).value


def _payload(tensors: Sequence[Any]) -> int | None:
    """Find how far into a Python tensor its at::Tensor lies: one word, which Python shows as _cdata."""
    places = range(object.__basicsize__, torch.Tensor.__basicsize__, 8)
    found = [place for place in places if all(_word(id(x) + place) == x._cdata for x in tensors)]
    return found[0] if len(found) == 1 else None


def _lists_hold(things: list[Any]) -> bool:
    """Whether a Python list begins with its length and the address of the addresses of what it holds."""
    at = id(things) + object.__basicsize__
    return _word(at) == len(things) and [_word(_word(at + 8) + 8 * k) for k in range(len(things))] == list(
        map(id, things)
    )


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
    if type(given) is list and functions() is not None:
        return _holds()(id(given) + object.__basicsize__, objects)
    return len(given) == len(kept) and all(map(is_, given, kept))


@cache
def _holds() -> Any:
    return _loaded("holds", _HOLDS)


def _loaded(name: str, text: str) -> Any:
    from fastopt.kernels import cpu

    return cpu.entry(cpu.load(name, text))


# None of these lets go of the interpreter's lock: nobody can replace a gradient, and so free it, while it is looked at.
# `p` and `g` are addresses of an at::Tensor. `expected` has of each parameter its dimensions and sizes, its strides and
# those of its gradient.
_LOOK = f'''"""Compare tensors with how they were before. Printed by fastopt; do not edit."""

from numba import int32, int64, intp, njit, types

from fastopt.kernels.intrinsics import call_for_address, call_for_flag, call_for_status, expect, peek, scratch

WORDS = types.Array(int64, 1, "C")
SIGNATURE = intp(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS)
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
def look(functions, common, active, idle, p_at, g_at, expected, now):
    data_ptr, dim, sizes, strides, dtype = functions[0], functions[1], functions[2], functions[3], functions[4]
    layout, device_type, device_index = functions[5], functions[6], functions[7]
    storage_size, storage_offset, grad, is_neg = functions[8], functions[9], functions[10], functions[11]
    undefined, strided, p_type, g_type = common[0], common[1], common[2], common[3]
    answer, found, first = scratch(int64), SAME, 0
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
        if peek(g, int64) == undefined or not (
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
            end = common[6] * peek(answer, int64) + expected[first + 1 + 3 * count]
            if call_for_status(storage_size, g, answer) != 0 or peek(answer, int64) < end:
                return CHANGED
        first += 2 + 3 * count
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

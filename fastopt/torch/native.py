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
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportMissingImports]

from fastopt.torch.tensors import FORMATS, is_wrapped

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
        with torch.inference_mode(mode=False), _disable_current_modes():  # so that the tensors are what they seem
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

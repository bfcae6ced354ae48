"""torch's stable C functions, found by name and tried before use, to be called from compiled code by their addresses.

Through Python a check of 1,000 tensors takes three times as long, as long as a whole step of small ones
(docs/decisions/0011). The functions are AOTInductor's, a C interface made for compiled models. They take the
address of an at::Tensor. A Python tensor contains one, at a distance that is found by comparing with `_cdata`, which is
the word an at::Tensor consists of; `are_where_expected` compares it for every tensor before its address is used. Where
anything is missing or not as expected, tensors are checked through Python.
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

from fastopt.arrays.torch import FORMATS

FUNCTIONS = {
    "data_ptr": ctypes.c_int64,
    "dim": ctypes.c_int64,
    "sizes": ctypes.c_int64,
    "strides": ctypes.c_int64,
    "dtype": ctypes.c_int32,
    "device_type": ctypes.c_int32,
    "device_index": ctypes.c_int32,
    "storage_size": ctypes.c_int64,
    "storage_offset": ctypes.c_int64,
}
"""aoti_torch_get_<name>(tensor, answer) → what it writes to `answer`; it returns 0, or an error."""


class Found(NamedTuple):
    """What was found: the addresses of the functions, and what they answer about the things that are compared."""

    addresses: np.ndarray  # in the order of FUNCTIONS
    distance: int  # from a Python tensor's address to that of its at::Tensor
    dtypes: dict[torch.dtype, int]
    ask: Callable[[str, int], int]  # call one of FUNCTIONS for the address of an at::Tensor


def are_where_expected(tensors: Sequence[Any], found: Found) -> bool:
    """Whether the at::Tensor of each of these lies where `handles` takes it to be."""
    at = handles(tensors, found).tolist()
    return all(_word(address) == tensor._cdata for address, tensor in zip(at, tensors, strict=True))


def handles(tensors: Sequence[Any], found: Found) -> np.ndarray:
    """Return the address of the at::Tensor of each of these, valid while they live."""
    return pointers(tensors) + found.distance


def pointers(objects: Sequence[Any]) -> np.ndarray:
    """Return the addresses of Python objects, which an array of objects consists of; `id` takes four times as long."""
    return np.frombuffer(np.fromiter(objects, object, len(objects)), np.int64)


@cache
def functions() -> Found | None:
    """Find torch's functions and try them; None where tensors must be checked through Python."""
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()  # the lock keeps others from freeing a tensor meanwhile
    if sys.implementation.name != "cpython" or not locked or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    try:
        library = ctypes.CDLL(torch._C.__file__)  # and all that it depends on
        calls = {name: getattr(library, f"aoti_torch_get_{name}") for name in FUNCTIONS}
        with torch.inference_mode(mode=False), _disable_current_modes():  # so that the tensors are what they seem
            return _tried(calls)
    except (OSError, AttributeError):
        return None


def _tried(calls: dict[str, Any]) -> Found | None:
    """Return the functions if they answer about small tensors what Python does."""
    for call in calls.values():
        call.argtypes, call.restype = [ctypes.c_void_p] * 2, ctypes.c_int32

    def ask(name: str, handle: int) -> int:
        answer = FUNCTIONS[name](0)
        return answer.value if calls[name](handle, ctypes.addressof(answer)) == 0 else -1

    def answers(handle: int) -> dict[str, Any]:
        numbers = {name: ask(name, handle) for name in FUNCTIONS if name not in ("dtype", "device_index")}
        lists = {
            name: tuple((ctypes.c_int64 * numbers["dim"]).from_address(numbers[name])) for name in ("sizes", "strides")
        }
        return {**numbers, **lists}

    first, second = torch.nn.Parameter(_zeros(2, 3)), torch.nn.Parameter(_zeros(4))
    tensors = [first, second, _zeros(5, 4, 3)[1:, :, 1].t(), _zeros(0, 2)]
    distance = _distance(tensors)
    if distance is None or any(answers(id(x) + distance) != _expected(x) for x in tensors):
        return None
    torch.utils.swap_tensors(first, second)
    if first.shape != (4,) or answers(id(first) + distance) != _expected(first):
        return None
    by_type = {dtype: _zeros(1, dtype=dtype) for dtype in FORMATS}
    dtypes = {dtype: ask("dtype", id(x) + distance) for dtype, x in by_type.items()}
    if len(set(dtypes.values())) < len(dtypes):
        return None
    addresses = [ctypes.cast(call, ctypes.c_void_p).value for call in calls.values()]
    return Found(np.array(addresses, np.int64), distance, dtypes, ask)


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="cpu")


def _expected(x: torch.Tensor) -> dict[str, Any]:
    """Return what the functions are to answer about a tensor on the CPU."""
    return {
        "data_ptr": x.data_ptr(),
        "dim": x.dim(),
        "storage_size": x.untyped_storage().nbytes(),
        "storage_offset": x.storage_offset(),
        "sizes": tuple(x.shape),
        "strides": x.stride(),
        "device_type": 0,
    }


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _distance(tensors: Sequence[Any]) -> int | None:
    """Find how far into a Python tensor its at::Tensor lies: the one word that Python shows as _cdata."""
    offsets = range(object.__basicsize__, torch.Tensor.__basicsize__, 8)
    found = [offset for offset in offsets if all(_word(id(x) + offset) == x._cdata for x in tensors)]
    return found[0] if len(found) == 1 else None

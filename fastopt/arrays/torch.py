"""PyTorch's tensors, for `fastopt.torch`: their memory, and what a step has to know of how it lies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.cupy import CuPy
from fastopt.arrays.library import Device
from fastopt.kernels.formats import Plane

FORMATS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The format of a buffer of a type, where no storage says otherwise."""

CPU = torch.device("cpu")

_CUPY = CuPy()


class Torch:
    """Tensors; see `Memory` for what the methods mean. Of a distributed tensor the memory is its local tensor's."""

    def address(self, array: Any) -> int:  # noqa: D102
        return local(array).data_ptr()

    def read(self, array: Any, part: slice, dtype: np.dtype) -> np.ndarray:  # noqa: D102
        return flat(local(array))[part].cpu().view(getattr(torch, dtype.name)).numpy()

    def write(self, array: Any, part: slice, values: np.ndarray) -> None:  # noqa: D102
        target = flat(local(array))[part]
        target.copy_(torch.from_numpy(values).view(target.dtype))


def running(device: torch.device) -> AbstractContextManager[None]:
    """Make torch's current stream on a CUDA device the one that CuPy works on."""
    if device == CPU:
        return nullcontext()
    on = Device("cuda", device.index)
    return _CUPY.running(on, _stream(torch.cuda.current_stream(device).cuda_stream, on))


@lru_cache(maxsize=64)
def _stream(address: int, device: Device) -> Any:
    return _CUPY.stream(address, device)


@cache
def element_type(plane: Plane) -> torch.dtype:
    """Return torch's type of a plane's elements; of words a signed one, because torch cannot save the others."""
    signed = {"uint16": "int16", "uint32": "int32"}
    return getattr(torch, plane.view or signed.get(plane.dtype.name, plane.dtype.name))


def is_distributed(tensor: Any) -> bool:
    """Whether this is a DTensor, whose memory is that of its local tensor."""
    return hasattr(tensor, "to_local")


def placed_as(tensor: Any, parameter: Any) -> Any:
    """Return a gradient or state distributed as its parameter is, by the communication that torch.optim causes too."""
    if is_distributed(tensor) and is_distributed(parameter) and tensor.placements != parameter.placements:
        return tensor.redistribute(parameter.device_mesh, parameter.placements)
    return tensor


def gradient_type(parameter: Any) -> torch.dtype:
    """Return the type in which autograd makes a parameter's gradient: its own, unless its `grad_dtype` says else."""
    stated = getattr(parameter, "grad_dtype", parameter.dtype)  # torch has it from 2.10 on
    if stated is None:  # any
        stated = None if parameter.grad is None else parameter.grad.dtype
    return stated or parameter.dtype


def local(tensor: Any) -> torch.Tensor:
    """Return the tensor of this process; call it without gradients."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def first_element(tensor: Any) -> int:
    """Return the index, in the whole tensor, of the first element of this process: 0 unless it is distributed."""
    if not is_distributed(tensor):
        return 0
    from torch.distributed.tensor._utils import (  # pyright: ignore[reportMissingImports]
        compute_local_shape_and_global_offset,
    )

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return sum(start * math.prod(tensor.shape[k + 1 :]) for k, start in enumerate(offset))


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """View the elements of a dense tensor in the order of its memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def alone(memory: torch.Tensor, shape: Any, stride: Any) -> torch.Tensor:
    """Return a tensor of flat memory, whose storage is that memory and nothing beside it.

    A view has all the storage of its base: what saves, pickles or shares tensors goes by storages.
    """
    storage = torch.from_dlpack(memory.detach()).untyped_storage()
    return torch.empty(0, dtype=memory.dtype, device=memory.device).set_(storage, 0, shape, stride)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill one run of memory, in whatever order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


class TorchMatrices:
    """Torch as the library of functions of matrices: see `kernels.launch.MatrixLibrary`."""

    def view(self, array: Any) -> torch.Tensor:
        """Return the tensor that is an array of NumPy or CuPy."""
        with torch.inference_mode(mode=False):
            return torch.as_tensor(array)

    def assign(self, batch: torch.Tensor, found: torch.Tensor) -> None:
        """Put values in the place of others, of a copy where both lie in the same memory."""
        shared = found.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr()
        batch.copy_(found.clone() if shared else found)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients, and in the types that there are, in autocast too."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order; strides of a single element are moot."""
    return a.numel() < 2 or all(s == t for s, t, n in zip(a.stride(), b.stride(), a.shape, strict=True) if n != 1)


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a dense tensor lies within its storage, which may have been made smaller, and the storage has memory."""
    storage, end = tensor.untyped_storage(), (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    has_address = storage.device == tensor.device and not is_without_address(tensor)  # a fake tensor's is elsewhere
    return not tensor.numel() or (storage.nbytes() >= end and has_address)


def is_without_address(tensor: torch.Tensor) -> bool:
    """Whether a tensor's storage begins at address 0: wrapper subclasses and autograd's zeros have only a size."""
    return tensor.data_ptr() == tensor.storage_offset() * tensor.element_size()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of float32 or float64 have the same values, bit for bit; of distributed ones here."""
    if type(a) is not type(b) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    words = torch.int32 if a.element_size() == 4 else torch.int64
    with torch.no_grad():
        return torch.equal(local(a).view(words), local(b).view(words))


def separate(value: Any) -> Any:
    """Return a value, but of a tensor without dimensions a copy: it may be an element of another."""
    return value.clone() if isinstance(value, torch.Tensor) and not value.dim() else value


def describe(tensor: Any) -> str:
    """Name a tensor's type, shape, order and, off the CPU, its device."""
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    if tensor.layout != torch.strided:
        return f"{tensor.dtype}{list(tensor.shape)} of layout {tensor.layout}{device}"
    order = "" if tensor.is_contiguous() else f" with strides {list(tensor.stride())}"
    return f"{tensor.dtype}{list(tensor.shape)}{order}{device}"


def values_in_order(value: torch.Tensor, like: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """Copy a tensor's values to the CPU, flat, in the order in which `like` lies in memory."""
    ordered = torch.empty_strided(like.shape, like.stride(), dtype=getattr(torch, dtype.name), device="cpu")
    ordered.copy_(value.detach())
    return flat(ordered).numpy()


def tensor_of_values(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Copy flat values to a new tensor of the shape, order and device of `like`."""
    found = torch.from_numpy(values)
    made = torch.empty_strided(like.shape, like.stride(), dtype=found.dtype, device=like.device)
    flat(made).copy_(found)
    return made

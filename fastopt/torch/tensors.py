"""What fastopt needs to know of a torch tensor: where it lies, how, and in which format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # pyright: ignore[reportMissingImports]

from fastopt import devices
from fastopt.errors import LayoutError, explain
from fastopt.kernels.program import planes
from fastopt.kernels.storage import STORAGES, TILE, Plane, Storage, pack, unpack

FORMATS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The format in which a buffer of a type is kept where no storage says otherwise."""


def torch_type(plane: Plane) -> torch.dtype:
    """Give torch's type of a plane's elements; of words a signed one, because it cannot save the others."""
    return getattr(torch, plane.view or {"uint16": "int16", "uint32": "int32"}.get(plane.dtype.name, plane.dtype.name))


def is_wrapped(tensor: Any) -> bool:
    """Whether this is a DTensor, whose memory is that of its local tensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> torch.Tensor:
    """Give the tensor on this process; call it without gradients."""
    return tensor.to_local() if is_wrapped(tensor) else tensor


@contextmanager
def on_stream(device: torch.device, where: str) -> Iterator[None]:
    """Make torch's current stream on a device the one on which CuPy works."""
    with devices.device(where, device.index):
        stream = _stream(torch.cuda.current_stream(device).cuda_stream, device.index)
        with devices.using(stream, where):
            yield


@lru_cache(maxsize=64)
def _stream(address: int, number: int) -> Any:
    return devices.stream_of(address, devices.device("fastopt.torch", number), "fastopt.torch")


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill one run of memory, in whatever order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def fits(tensor: torch.Tensor) -> bool:
    """Whether the memory of a dense tensor is there: its storage may have been made smaller, or its class keep it."""
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return not tensor.numel() or (tensor.untyped_storage().nbytes() >= end and not _is_nowhere(tensor))


def _is_nowhere(tensor: torch.Tensor) -> bool:
    """Whether a tensor's storage has a size alone, as of classes that wrap others and of torch's zeros for autograd."""
    return tensor.data_ptr() == tensor.storage_offset() * tensor.element_size()


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order; strides of a single element are moot."""
    return a.numel() < 2 or all(s == t for s, t, n in zip(a.stride(), b.stride(), a.shape, strict=True) if n != 1)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """View the elements of a dense tensor in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def describe(tensor: Any) -> str:
    """Name a tensor's type, shape, order and, off the CPU, its place."""
    where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    if tensor.layout != torch.strided:
        return f"{tensor.dtype}{list(tensor.shape)} of layout {tensor.layout}{where}"
    order = "" if tensor.is_contiguous() else f" with strides {list(tensor.stride())}"
    return f"{tensor.dtype}{list(tensor.shape)}{order}{where}"


def require_parameter(p: Any, where: str, name: str) -> None:
    """Raise a LayoutError unless a parameter is memory that a step can walk."""
    do, foreign = None, bool(is_traceable_wrapper_subclass(p)) and not is_wrapped(p)
    if p.layout != torch.strided:
        what, do = f"{name} is not dense.", "keep it dense, or leave it to torch.optim.SparseAdam"
    elif p.is_complex():
        what, do = f"{name} is complex.", "optimize torch.view_as_real of it, or use torch.optim"
    elif p.dtype not in FORMATS:
        what = f"{name} has a type that is not optimized."
    elif foreign:
        what, do = f"{name} is a {type(p).__name__}, whose memory is its own affair.", "use an optimizer that knows it"
    elif p.device.type not in ("cpu", "cuda"):
        what, do = f"{name} is neither in the CPU's memory nor on a CUDA device.", "move the model before"
    else:
        with torch.no_grad():
            if is_dense(own := local(p)) and fits(own):
                return
        what, do = f"{name} does not fill one run of memory.", "make it a tensor of its own: nn.Parameter(p.clone())"
        if is_dense(own):
            what, do = _lacking(own, name)
    expected = "a dense tensor of float32, float64, bfloat16 or float16"
    raise LayoutError(explain(where, what, got=describe(p), expected=expected, do=do))


def require_gradient(g: Any, p: Any, kind: torch.dtype, where: str, name: str) -> None:
    """Raise a LayoutError unless a gradient has the type, the place and the order of its parameter."""
    expected, do = f"{kind}{list(p.shape)}, in the order of the parameter", None
    if g.layout != torch.strided:
        what, do = f"the gradient of {name} is sparse.", "use sparse=False in nn.Embedding, or torch.optim.SparseAdam"
    elif g.is_complex() or g.is_neg():
        what = f"the gradient of {name} is {'complex' if g.is_complex() else 'a negative view, whose memory is not'}."
    elif is_wrapped(g) != is_wrapped(p) or (is_wrapped(g) and g.placements != p.placements):
        what, do = f"the gradient of {name} is not distributed as its parameter is.", "redistribute it"
        raise LayoutError(explain(where, what, got=type(g).__name__, expected=type(p).__name__, do=do))
    elif g.dtype != kind:
        what, do = f"the gradient of {name} has another type.", "say by storage={'g': …} in which type gradients come"
    elif g.device != p.device or g.shape != p.shape:
        what = f"the gradient of {name} does not match it."
    elif not same_order(local(g), local(p)):
        what = f"the gradient of {name} lies in memory in another order."
        expected += f", whose strides are {list(p.stride())}"
        do = "p.grad = torch.empty_like(p).copy_(p.grad)"
    elif not fits(local(g)):
        what, do = _lacking(local(g), f"the gradient of {name}")
    else:
        return
    raise LayoutError(explain(where, what, got=describe(g), expected=expected, do=do))


def _lacking(tensor: torch.Tensor, name: str) -> tuple[str, str | None]:
    """Say of a tensor that does not fit its storage what is wrong, and what to do."""
    if tensor.untyped_storage().nbytes() and _is_nowhere(tensor):
        return f"{name} is a {type(tensor).__name__} without memory of its own.", "give the step a plain tensor"
    return f"the storage of {name} is too small for it.", "resize it back before the step"


def encode(storage: Storage, value: torch.Tensor, like: torch.Tensor) -> list[torch.Tensor]:
    """Pack a tensor's values, in the order in which `like` lies in memory: one flat tensor for each plane."""
    kind = getattr(torch, storage.computes.name)
    ordered = torch.empty_strided(like.shape, like.stride(), dtype=kind, device="cpu")
    ordered.copy_(value.detach())
    packed = pack(storage, flat(ordered).numpy())
    return [torch.from_numpy(x).view(torch_type(p)) for p, x in zip(storage.planes, packed, strict=True)]


def decode(storage: Storage, held: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Unpack planes to a tensor of the computing precision, shaped and ordered as `like`; new memory on its device."""
    words = [
        flat(x).cpu().view(getattr(torch, p.dtype.name)).numpy()
        for p, x in zip(storage.planes, held, strict=True)
        if p.read
    ]
    values = torch.from_numpy(unpack(storage, words))
    made = torch.empty_strided(like.shape, like.stride(), dtype=values.dtype, device=like.device)
    flat(made).copy_(values)
    return made


def plane_size(plane: Plane, n: int) -> int:
    """Give the number of elements that a plane has for n values."""
    return -(-n // TILE) if plane.tiled else n


def planes_of(kept: dict[str, str]) -> dict[str, tuple[str, Plane]]:
    """Give all arrays of these formats by name: the buffer each belongs to, and its plane."""
    return {name: (b, plane) for b, form in kept.items() for name, plane in planes(b, STORAGES[form]).items()}

"""What parameters, gradients and state must be for a step; everything else is refused by name, with what to do."""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn.parameter import is_lazy  # pyright: ignore[reportMissingImports]
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import (
    FORMATS,
    describe,
    element_type,
    has_memory,
    is_dense,
    is_distributed,
    is_without_address,
    local,
    same_order,
)
from fastopt.errors import LayoutError, SettingError, raised_by
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.formats import FULL, STORAGES, Format
from fastopt.kernels.rules.ema import AVERAGE
from fastopt.kernels.rules.matrixwise import matrix_shape
from fastopt.kernels.rules.rule import Rule, signature


def formats_for(rule: Rule, storage: Any, dtype: torch.dtype, gradients: torch.dtype | None = None) -> dict[str, str]:
    """Return the format of each buffer of a rule for parameters of a type, and gradients of the same or another one.

    Raises:
        LayoutError: the storage is for parameters of another type.

    """
    own, theirs = FORMATS[dtype], FORMATS[gradients or dtype]
    if storage is None:
        buffers = signature(rule).buffers
        chosen = dict.fromkeys(buffers, own) | {"g": theirs}
        if AVERAGE in buffers:  # which would stand still: it moves by less than the last bit of 16
            chosen[AVERAGE] = FULL[STORAGES[own].computes]
        return chosen if {*chosen.values()} == {own} else layout(rule, chosen)
    chosen = layout(rule, storage if isinstance(storage, str) else {"p": own, "g": theirs, **storage})
    form = STORAGES[chosen["p"]]
    expected = element_type(form.planes[form.forward])
    if expected != dtype:
        do = f"convert the model, for example model.to({expected}), or choose another storage"
        raise LayoutError(
            "the storage is for parameters of another type.",
            got=str(dtype),
            expected=f"{expected} (p={chosen['p']})",
            do=do,
        )
    return chosen


def may_wait(p: Any) -> bool:
    """Whether a parameter, whatever it is, may be in a group: it is frozen, or will get its memory later."""
    return not p.requires_grad or is_lazy(p) or p.device.type == "meta"


def is_steppable(p: Any) -> bool:
    """Whether `require_parameter` raises nothing."""
    try:
        require_parameter(p, "")
    except LayoutError:
        return False
    return True


def require_rows(p: torch.Tensor, label: str) -> None:
    """Raise a LayoutError unless a parameter is a matrix whose rows lie one after the other.

    Of a tensor of more dimensions the order within a row is that of its memory.
    """
    with raised_by(label):
        matrix_shape(p.shape)
    own = local(p)
    if own.numel() and own.stride(0) != own.numel() // own.shape[0] and own.shape[0] > 1:
        what = f"the rows of {label} do not lie one after the other, as its matrix is to be."
        raise LayoutError(what, got=f"strides {list(own.stride())}", do="make it contiguous, or give it another rule")


def require_parameter(p: Any, name: str) -> None:
    """Raise a LayoutError unless a parameter is memory that a step can read and write as one run."""
    if is_lazy(p):
        raise LayoutError(f"{name} has no shape yet.", got=type(p).__name__, do="run the model once before")
    do, foreign = None, bool(is_traceable_wrapper_subclass(p)) and not is_distributed(p)
    if p.layout != torch.strided:
        what, do = f"{name} is not dense.", "keep it dense, or leave it to torch.optim.SparseAdam"
    elif p.is_complex():
        what, do = f"{name} is complex.", "optimize torch.view_as_real of it, or use torch.optim"
    elif p.dtype not in FORMATS:
        what = f"{name} has an unsupported dtype."
    elif foreign:
        what = f"{name} is a {type(p).__name__}, a subclass that manages its own memory."
        do = "use an optimizer made for it"
    elif p.device.type not in ("cpu", "cuda"):
        what, do = f"{name} is neither in the CPU's memory nor on a CUDA device.", "move the model before"
    else:
        with torch.no_grad():
            if is_dense(own := local(p)) and has_memory(own):
                return
        what, do = f"{name} does not fill one run of memory.", "make it a tensor of its own: nn.Parameter(p.clone())"
        if is_dense(own):
            what, do = _without_memory(own, name)
    expected = "a dense tensor of float32, float64, bfloat16 or float16"
    raise LayoutError(what, got=describe(p), expected=expected, do=do)


def require_gradient(g: Any, p: Any, dtype: torch.dtype, name: str) -> None:
    """Raise a LayoutError unless a gradient has the type, the device and the order of its parameter."""
    expected, do = f"{dtype}{list(p.shape)}, in the order of the parameter", None
    if g.layout != torch.strided:
        what, do = f"the gradient of {name} is sparse.", "use sparse=False in nn.Embedding, or torch.optim.SparseAdam"
    elif g.is_complex() or g.is_neg():
        what = f"the gradient of {name} is {'complex' if g.is_complex() else 'a negative view, whose memory is not'}."
    elif is_distributed(g) != is_distributed(p) or (is_distributed(g) and g.device_mesh != p.device_mesh):
        what, do = f"the gradient of {name} is not on the devices of its parameter.", "distribute it as the parameter"
        raise LayoutError(what, got=type(g).__name__, expected=type(p).__name__, do=do)
    elif g.dtype != dtype:
        expected = str(dtype)
        what, do = f"the gradient of {name} has the wrong dtype.", "convert it, or choose another storage={'g': …}"
    elif g.device != p.device or g.shape != p.shape:
        what = f"the gradient of {name} does not match it."
    elif not same_order(local(g), local(p)):
        what = f"the gradient of {name} lies in memory in another order."
        expected += f", whose strides are {list(p.stride())}"
        do = "p.grad = torch.empty_like(p).copy_(p.grad)"
    elif not has_memory(local(g)):
        what, do = _without_memory(local(g), f"the gradient of {name}")
    else:
        return
    raise LayoutError(what, got=describe(g), expected=expected, do=do)


def _without_memory(tensor: torch.Tensor, name: str) -> tuple[str, str | None]:
    """Say of a tensor that does not lie within its storage what is wrong, and what to do."""
    storage = tensor.untyped_storage()
    if storage.nbytes() and (storage.device != tensor.device or is_without_address(tensor)):
        return f"{name} is a {type(tensor).__name__} without memory of its own.", "give the step a plain tensor"
    return f"the storage of {name} is too small for it.", "resize it back before the step"


def require_unchanged(p: Any, template: torch.Tensor, device: torch.device, name: str) -> None:
    """Raise a LayoutError unless a parameter has the type, device, shape and order that its state was made for."""
    own = local(p)
    same = own.dtype == template.dtype and own.device == device and own.shape == template.shape
    if same and same_order(own, template):
        return
    raise LayoutError(
        f"{name} has changed since the optimizer was made.",
        got=f"{describe(own)}, strides {list(own.stride())}",
        expected=f"{template.dtype}{list(template.shape)} with strides {list(template.stride())} on {device}",
        do="convert the model first, then make it",
    )


def require_plane(tensor: torch.Tensor, shape: Any, dtype: torch.dtype, device: torch.device, text: str) -> None:
    """Raise a LayoutError if a tensor of state is no longer of the type and shape that it was made with."""
    same = tensor.layout == torch.strided and tensor.shape == shape and tensor.dtype == dtype
    if not same or tensor.device != device or not has_memory(tensor):
        raise LayoutError(
            f"{text} was changed in place.",
            got=describe(tensor),
            expected=f"{dtype}{list(shape)} in memory of its own",
            do="assign another tensor to it in optimizer.state",
        )


def require_beside(value: Any, p: Any, dtype: torch.dtype, text: str) -> None:
    """Raise a LayoutError unless this can be saved with a parameter's values, as part of how it is stored."""
    if not isinstance(value, torch.Tensor) or value.shape != p.shape or value.dtype != dtype:
        got = describe(value) if isinstance(value, torch.Tensor) else repr(value)[:60]
        raise LayoutError(f"{text} does not match.", got=got, expected=f"{dtype}{list(p.shape)}")


def require_values(value: Any, p: Any, buffer: str, form: Format, text: str, *, exactly: bool) -> None:
    """Raise a LayoutError unless these are values of a parameter's state that can be stored in a format.

    `exactly` asks that nothing is lost; otherwise a storage may round, as it does at each step.
    """
    computes = getattr(torch, form.computes.name)
    if not isinstance(value, torch.Tensor) or value.shape != p.shape or not value.is_floating_point():
        got = describe(value) if isinstance(value, torch.Tensor) else repr(value)[:60]
        raise LayoutError(f"{text} does not match.", got=got, expected=f"{computes}{list(p.shape)}")
    if is_distributed(value) != is_distributed(p):
        what, do = f"{text} is not distributed as the parameter is.", "load it by torch.distributed.checkpoint"
        raise LayoutError(what, got=type(value).__name__, expected=type(p).__name__, do=do)
    single = len(form.planes) == 1
    stored = element_type(form.planes[0]) if single and (exactly or buffer == "p") else computes
    if torch.promote_types(value.dtype, stored) != stored:
        do = "build the optimizer with the storage that it was saved with" if buffer == "p" else None
        do = do or "say by storage= how to store it, for example storage={'m': 'f32', 'v': 'f32'}"
        what = f"{text} would lose precision."
        raise LayoutError(what, got=str(value.dtype), expected=f"{stored}, as it is stored here", do=do)


def require_step_count(value: Any, text: str) -> None:
    """Raise a LayoutError unless this is a number of steps, or a tensor of one."""
    try:
        is_count = 0 <= float(value) < float("inf")
    except (TypeError, ValueError, RuntimeError):
        is_count = False
    if not is_count:
        raise LayoutError(f"{text} is not a step count.", got=repr(value)[:60], expected="≥ 0", do=LOAD)


LOAD = "load what this optimizer saved, or torch's"


def require_capturable(device: torch.device, *, distributed: bool, apart: bool) -> None:
    """Raise a SettingError if a step of parameters like these cannot be captured into a CUDA graph."""
    if device.type != "cuda":
        what = "capturable=True is for steps on a CUDA device."
        raise SettingError(what, got=f"parameters on {device}", do="leave capturable=False, or move the model before")
    if distributed or apart:
        what = f"capturable=True is not supported {'with distributed parameters' if distributed else 'in backward'}."
        raise SettingError(what, do="leave capturable=False")

"""How a parameter's buffers are kept: their formats, the names of their planes, what may be loaded into them."""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt import dispatch
from fastopt.errors import LayoutError, explain
from fastopt.kernels.program import parameters
from fastopt.kernels.storage import STORAGES
from fastopt.torch.tensors import FORMATS, describe, is_wrapped, torch_type


def formats(rule: Any, storage: Any, dtype: torch.dtype, where: str) -> dict[str, str]:
    """Give the format of each buffer of a rule for parameters of a type.

    Raises:
        LayoutError: the storage keeps parameters of another type.

    """
    own = FORMATS[dtype]
    if storage is None:
        return dict.fromkeys(parameters(rule).buffers, own)
    if not isinstance(storage, str):
        storage = {"p": own, "g": own, **storage}
    (kept,) = dispatch.layout([rule], storage, where)
    held = STORAGES[kept["p"]]
    expected = torch_type(held.planes[held.forward])
    if expected != dtype:
        what = "the storage is for parameters of another type."
        do = f"convert the model, for example model.to({expected}), or choose another storage"
        raise LayoutError(explain(where, what, got=str(dtype), expected=f"{expected} (p={kept['p']})", do=do))
    return kept


def key(plane: str, kept: dict[str, str], names: dict[str, str]) -> str:
    """Give the name under which state shows a plane: torch's, or what says how it is kept."""
    b, _, suffix = plane.partition(".")
    if b == "p":
        return f"param.{suffix or 'master'}"
    name = names.get(b, b)
    if suffix:
        return f"{name}.{suffix}"
    return name if len(STORAGES[kept[b]].planes) == 1 else f"{name}.{kept[b]}"


def forward_plane(b: str, own: dict[str, Any], storage: Any) -> set[str]:
    """Give the name of the plane that the model sees, where the buffer is the parameter's."""
    return {list(own)[storage.forward]} if b == "p" else set()


def require_state(value: Any, p: Any, b: str, storage: Any, where: str, text: str, *, exactly: bool) -> None:
    """Raise a LayoutError unless these are values of a parameter's state that can be kept here.

    `exactly` asks that nothing is lost; otherwise a storage may round, as it does at each step.
    """
    computes = getattr(torch, storage.computes.name)
    if not isinstance(value, torch.Tensor) or value.shape != p.shape or not value.is_floating_point():
        got = describe(value) if isinstance(value, torch.Tensor) else repr(value)[:60]
        raise LayoutError(explain(where, f"{text} does not match.", got=got, expected=f"{computes}{list(p.shape)}"))
    if is_wrapped(value) != is_wrapped(p):
        what, do = f"{text} is not distributed as the parameter is.", "load it by torch.distributed.checkpoint"
        raise LayoutError(explain(where, what, got=type(value).__name__, expected=type(p).__name__, do=do))
    single = len(storage.planes) == 1
    held = torch_type(storage.planes[0]) if single and (exactly or b == "p") else computes
    if torch.promote_types(value.dtype, held) != held:
        do = "build the optimizer with the storage that it was saved with" if b == "p" else None
        do = do or "say by storage= how it is to be kept, for example storage={'m': 'f32', 'v': 'f32'}"
        what = f"{text} would lose precision."
        raise LayoutError(explain(where, what, got=str(value.dtype), expected=f"{held}, as it is kept here", do=do))

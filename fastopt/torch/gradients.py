"""Gradients taken in the backward pass, each as soon as it is complete, and what stands in their place afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import is_distributed, local
from fastopt.errors import LayoutError, SettingError
from fastopt.torch.adapter import Adapter

_ADD = torch.ops.aten.add_.Tensor
_NOTHING_TO_DO = tuple(getattr(torch.ops.aten, name).default for name in ("zero_", "detach"))


class TakenGradient(torch.Tensor):
    """The `grad` of a parameter whose gradient was taken: a tensor without memory, and every use of it raises.

    None would let clipping, or a log of norms, go on without a word. The next backward pass adds its gradient to this
    one, and so hands it over as `next`.
    """

    next: torch.Tensor | None

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> TakenGradient:  # noqa: D102
        size, strides = like.shape, like.stride()
        made = torch.Tensor._make_wrapper_subclass(cls, size, strides=strides, dtype=like.dtype, device=like.device)
        made.next = None
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = args[0]
        if function is _ADD and type(own) is cls and torch._C._current_graph_task_id() != -1:  # within a backward pass
            own.next = args[1]
            return own
        if function in _NOTHING_TO_DO:
            return own
        if function is torch.ops.aten._foreach_zero_.default:
            return None
        what = "this gradient was taken in the backward pass, as soon as it was complete, and has no memory now."
        do = "clip by max_norm= of fastopt.torch.offload; else, and with DistributedDataParallel, step after backward"
        raise SettingError(what, got=f"{function.__name__} on it", do=do)

    def __repr__(self, **_: Any) -> str:
        return f"TakenGradient(shape={tuple(self.shape)}, dtype={self.dtype})"


class GradientHooks:
    """Hooks on parameters that call `take(p)` when `p.grad` is complete, and put a `TakenGradient` in its place.

    They hold a weak reference to the owner of `take`, and are removed with this object.
    """

    def __init__(self, take: Callable[[Any], None]):
        self._take, self._hooks = weakref.WeakMethod(take), []
        self._taken: dict[Any, Any] = {}  # parameter → what replaces its gradients

    def __del__(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def add(self, params: Iterable[Any]) -> None:
        """Hook these parameters, those that want no gradient now excepted."""
        me = weakref.ref(self)
        for p in params:
            if p.requires_grad:
                self._hooks.append(p.register_post_accumulate_grad_hook(lambda p: _call(me, p)))

    def take(self, p: Any) -> None:
        """Take the gradient of a parameter, if it has one that was not taken."""
        if p.grad is None:
            return
        with torch.no_grad():
            grad = local(p.grad)
            if type(grad) is TakenGradient:
                if grad.next is None:
                    return
                p.grad = _like(p.grad, grad.next)
                grad.next = None
            take = self._take()
            if take is not None:
                take(p)
                p.grad = self._replacement(p, p.grad)

    def _replacement(self, p: Any, grad: Any) -> Any:
        known = self._taken.get(p)
        if known is None or known.dtype != grad.dtype or known.shape != grad.shape:
            known = self._taken[p] = _like(grad, TakenGradient(local(grad)))
        return known

    def release(self, params: Iterable[Any]) -> None:
        """Set gradients that were taken to None."""
        for p in params:
            if p.grad is not None and p.grad is self._taken.get(p):
                p.grad = None


def _like(grad: Any, own: torch.Tensor) -> Any:
    """Return the gradient that has this local tensor, distributed as another one is."""
    if not is_distributed(grad):
        return own
    return type(grad)(own, grad._spec, requires_grad=False)  # from_local makes a view, which a TakenGradient has not


def _call(hooks: weakref.ref, p: Any) -> None:
    own = hooks()
    if own is not None:
        own.take(p)


def require_complete(module: Any) -> None:
    """Raise a LayoutError if a module averages gradients between processes after they are complete in this one."""
    if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
        what = "this module averages gradients between processes after they are complete in this one."
        raise LayoutError(what, got=type(module).__name__, do="use fully_shard, or the optimizer by itself")


def require_optimizer_class(given: Any) -> None:
    """Raise a SettingError unless this is a class of fastopt.torch, which can step parameters one by one."""
    if not (isinstance(given, type) and issubclass(given, Adapter)):
        expected = "a class of fastopt.torch, for example fastopt.torch.AdamW"
        raise SettingError("this optimizer cannot step in a backward pass.", got=repr(given), expected=expected)

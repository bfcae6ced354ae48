"""Gradients taken in the backward pass, each as soon as it is complete, and what stands in their place afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn.parameter import is_lazy  # pyright: ignore[reportMissingImports]
from torch.utils._pytree import tree_map_only  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import is_dense, is_distributed, local, same_order
from fastopt.errors import LayoutError, SettingError
from fastopt.torch.adapter import Adapter

_ATEN = torch.ops.aten
_ADDS = (_ATEN.add_.Tensor, _ATEN.add.Tensor)
_ZEROS = (_ATEN.zero_.default, _ATEN._foreach_zero_.default)
_CPU = torch.device("cpu")


class TakenGradient(torch.Tensor):
    """The `grad` of a parameter whose gradient was taken: a tensor without memory.

    None would let clipping, or a log of norms, go on without a word. While the gradient was not used, `unused` returns
    it, and operations on this tensor are made on that one; afterwards they raise. The next backward pass adds its
    gradient to this tensor, and so hands it over as `next`.
    """

    next: torch.Tensor | None
    unused: Callable[[], torch.Tensor | None]
    zeroed: bool

    @staticmethod
    def __new__(cls, like: torch.Tensor, unused: Callable[[], torch.Tensor | None]) -> TakenGradient:  # noqa: D102
        size, strides = like.shape, like.stride()
        made = torch.Tensor._make_wrapper_subclass(cls, size, strides=strides, dtype=like.dtype, device=like.device)
        made.next, made.unused, made.zeroed = None, unused, False
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = args[0]
        if function in _ADDS and type(own) is cls and torch._C._current_graph_task_id() != -1:  # in a backward pass
            own.next = args[1]
            return own
        if function is _ATEN.detach.default:
            return own
        if function in _ZEROS:
            for x in own if isinstance(own, list | tuple) else [own]:
                x.zeroed = True
                if (gradient := x.unused()) is not None:
                    gradient.zero_()
            return own if function is _ZEROS[0] else None
        return _on_unused(function, args, kwargs or {})

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise _taken("its memory was asked for")

    share_memory_ = untyped_storage = storage = data_ptr = numpy = tolist = _refuse

    def __repr__(self, **_: Any) -> str:
        return f"TakenGradient(shape={tuple(self.shape)}, dtype={self.dtype})"


def _taken(got: str) -> SettingError:
    what = "this gradient was taken in the backward pass, as soon as it was complete, and has no memory now."
    do = "use fastopt.torch.offload with accumulate=None, or, as with DistributedDataParallel, step after backward"
    return SettingError(what, got=got, do=do)


def _on_unused(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Make an operation on the gradients themselves, on the CPU, where they are."""
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []  # other tensors that are written, and their copies

    def on_cpu(x: torch.Tensor) -> torch.Tensor:
        if type(x) is TakenGradient:
            found = x.unused()
            if found is None:
                raise _taken(f"{function.__name__} on it")
            return found
        if x.device == _CPU:
            return x
        moved.append((x, x.to(_CPU)))
        return moved[-1][1]

    result = function(*tree_map_only(torch.Tensor, on_cpu, args), **tree_map_only(torch.Tensor, on_cpu, kwargs))
    written = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
    for x, copy in moved if written else ():
        x.copy_(copy)
    return args[0] if written and isinstance(args[0], torch.Tensor) else result


class GradientHook:
    """A hook on a parameter whose gradients are taken; `owner` is a weak reference to its `GradientHooks`."""

    def __init__(self, owner: weakref.ref):
        self.owner = owner

    def __call__(self, p: Any) -> None:
        """Take the gradient of a parameter."""
        hooks = self.owner()
        if hooks is not None:
            hooks.take(p)


class GradientHooks:
    """Hooks on parameters that call `take(p, fresh)` when `p.grad` is complete, and put a `TakenGradient` in its place.

    `fresh` says that this gradient is not to be added to those before, because `p.grad` was set to None since then, or
    to another tensor. `unused(p)` is a gradient that was taken and not used, or None. The owner of these methods is
    referred to weakly; the hooks are removed with this object.
    """

    def __init__(self, take: Callable[[Any, bool], None], unused: Callable[[Any], torch.Tensor | None]):
        self._take, self._unused = weakref.WeakMethod(take), weakref.WeakMethod(unused)
        self._hooks: list[Any] = []
        self._taken: dict[Any, Any] = {}  # parameter → what replaces its gradients

    def __del__(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.release(self._taken)

    def add(self, params: Iterable[Any]) -> None:
        """Hook these parameters, but those that want no gradient now or have no memory yet.

        Raises:
            SettingError: another optimizer takes the gradients of one. Nothing is hooked then.

        """
        trainable = [p for p in params if p.requires_grad and not is_lazy(p)]
        for p in trainable:
            others = (getattr(p, "_post_accumulate_grad_hooks", None) or {}).values()
            if any(isinstance(hook, GradientHook) and hook.owner() is not None for hook in others):
                what = "another optimizer takes the gradients of one of these parameters in the backward pass."
                do = "delete that one and what refers to it, as its scheduler"
                raise SettingError(what, got=f"a parameter of shape {list(p.shape)}", do=do)
        me = weakref.ref(self)
        self._hooks += [p.register_post_accumulate_grad_hook(GradientHook(me)) for p in trainable]

    @torch.no_grad()
    def take(self, p: Any, *, in_step: bool = False) -> None:
        """Take the gradient of a parameter, if it has one that was not taken. In a step an error leaves it there."""
        if p.grad is None:
            return
        grad, fresh = local(p.grad), True
        if type(grad) is TakenGradient:
            if grad.next is None:
                return
            p.grad, grad.next, fresh = _like(p.grad, _in_order(grad.next, local(p))), None, False
        owner = self._take()
        if owner is None:
            return
        try:
            owner(p, fresh)
        except BaseException:
            if not in_step:
                p.grad = self._replacement(p)
            raise
        p.grad = self._replacement(p)

    def _replacement(self, p: Any) -> Any:
        known, grad = self._taken.get(p), p.grad
        if known is None or known.dtype != grad.dtype or known.shape != grad.shape or known.device != grad.device:
            method = self._unused

            def unused() -> torch.Tensor | None:
                found = method()
                return None if found is None else found(p)

            known = self._taken[p] = _like(grad, TakenGradient(local(grad), unused))
        return known

    def is_taken(self, p: Any) -> bool:
        """Whether a gradient of this parameter was taken, and nobody has set `p.grad` to another since then."""
        return p.grad is not None and p.grad is self._taken.get(p)

    def was_zeroed(self, p: Any) -> bool:
        """Whether somebody has set a gradient that was taken to zero, since this was asked last."""
        taken = self._taken.get(p)
        own: Any = None if taken is None else local(taken)
        if own is None or not own.zeroed:
            return False
        own.zeroed = False
        return True

    def release(self, params: Iterable[Any]) -> None:
        """Set gradients that were taken to None."""
        for p in params:
            if self.is_taken(p):
                p.grad = None


def _in_order(grad: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return a gradient in the order of its parameter, as autograd makes the first: one may be a view of a number."""
    if grad.layout != torch.strided or (is_dense(grad) and same_order(grad, p)):
        return grad
    return torch.empty_strided(p.shape, p.stride(), dtype=grad.dtype, device=grad.device).copy_(grad)


def _like(grad: Any, own: torch.Tensor) -> Any:
    """Return the gradient that has this local tensor, distributed as another one is."""
    if not is_distributed(grad):
        return own
    return type(grad)(own, grad._spec, requires_grad=False)  # from_local makes a view, which a TakenGradient has not


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

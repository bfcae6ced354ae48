"""Steps within the backward pass: each parameter as soon as its gradient is complete, which is then freed."""

from __future__ import annotations

import weakref
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import LayoutError, SettingError, raised_by
from fastopt.torch.adapter import Adapter


@raised_by("in_backward")
def in_backward(module: Any, optimizer_class: type[Adapter], **options: Any) -> Adapter:
    """Return an optimizer that steps each parameter in the backward pass and frees its gradient at once.

    So a model trains without memory for its gradients: only those of one layer live at a time. The loop stays as it
    is; `step()` ends an iteration, and steps whatever else has a gradient:

        optimizer = fastopt.torch.in_backward(model, fastopt.torch.AdamW, lr=1e-3, storage="8bit")
        for x, y in batches:
            loss(model(x), y).backward()    # each parameter is stepped here, its gradient is None afterwards
            optimizer.step()
            schedule.step()

    Parameters, state and counts are, bit for bit, what the same optimizer computes after the backward pass.
    `state_dict`, schedulers and groups work as always; a copied or unpickled optimizer is an ordinary one.

    What needs all gradients at once cannot be done: clipping by a global norm finds no gradients, GradScaler refuses to
    step, and gradients cannot be accumulated over several backward passes.

    Args:
        module: the model, or parameters, or groups of them, as for torch's optimizers.
        optimizer_class: one of fastopt.torch's optimizers.
        options: its arguments; flatten=True is refused, because flat gradients would all live at once.

    Raises:
        LayoutError: the module averages gradients between processes after they are complete here (DDP, FSDP1).
        SettingError: the class is another library's, or flatten=True, or max_norm is given. From `backward()`: a
            parameter gets a second gradient before `step()`.

    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Adapter)):
        expected = "a class of fastopt.torch, for example fastopt.torch.AdamW"
        raise SettingError(
            "this optimizer cannot step in a backward pass.", got=repr(optimizer_class), expected=expected
        )
    if options.get("flatten"):
        raise SettingError("flat gradients would all live at once.", got="flatten=True", do="leave flatten=False")
    if "max_norm" in options:
        what = "the norm of all gradients is known only after the backward pass."
        raise SettingError(what, got="max_norm", do="use the optimizer by itself, after clip_grad_norm_")
    if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
        what = "this module averages gradients between processes after they are complete in this one."
        raise LayoutError(what, got=type(module).__name__, do="use fully_shard, or the optimizer by itself")
    params: Any = module.parameters() if isinstance(module, torch.nn.Module) else module
    optimizer = optimizer_class(params, **options)
    optimizer.step_apart(BackwardSteps(optimizer))
    return optimizer


class BackwardSteps:
    """The hooks of an optimizer's parameters, and which of them have been stepped in this iteration."""

    def __init__(self, optimizer: Adapter):
        self._optimizer, self._stepped = weakref.ref(optimizer), set()
        hook = weakref.WeakMethod(self._on_gradient)  # the hooks keep nothing alive
        trainable = [p for p in _params(optimizer) if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(lambda p: _call(hook, p)) for p in trainable]

    def __del__(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _on_gradient(self, p: Any) -> None:
        optimizer = self._optimizer()
        assert optimizer is not None
        with raised_by(f"{type(optimizer).__name__} in the backward pass"):
            self._take(optimizer, p)
        p.grad = None

    def _take(self, optimizer: Adapter, p: Any) -> None:
        if p in self._stepped:
            what = "a parameter got another gradient before step(): gradients cannot be accumulated here."
            raise SettingError(what, do="call step() after each backward pass, or use the optimizer by itself")
        optimizer.step_one(p, same=bool(self._stepped))
        self._stepped.add(p)

    def finish(self) -> None:
        """End an iteration: step what has a gradient still, as parameters that were frozen before."""
        optimizer = self._optimizer()
        assert optimizer is not None
        with raised_by(f"{type(optimizer).__name__}.step"):
            for p in _params(optimizer):
                if p.grad is not None:
                    self._take(optimizer, p)
        self._stepped.clear()


def _call(hook: weakref.WeakMethod, p: Any) -> None:
    method = hook()
    if method is not None:
        method(p)


def _params(optimizer: Adapter) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]

"""Steps within the backward pass: each parameter as soon as its gradient is complete, which is then freed."""

from __future__ import annotations

import weakref
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import SettingError, raised_by
from fastopt.torch.adapter import Adapter
from fastopt.torch.gradients import GradientHooks, require_complete, require_optimizer_class


@raised_by("in_backward")
def in_backward(module: Any, optimizer_class: type[Adapter], **options: Any) -> Adapter:
    """Return an optimizer that steps each parameter in the backward pass and frees its gradient at once.

    So a model trains without memory for its gradients: only those of one layer live at a time. The loop stays as it
    is; `step()` ends an iteration, and steps whatever else has a gradient:

        optimizer = fastopt.torch.in_backward(model, fastopt.torch.AdamW, lr=1e-3, storage="8bit")
        for x, y in batches:
            loss(model(x), y).backward()    # each parameter is stepped here, and its gradient freed
            optimizer.step()
            schedule.step()

    Parameters, state and counts are, bit for bit, what the same optimizer computes after the backward pass.
    `state_dict`, schedulers and groups work as always; a copied or unpickled optimizer is an ordinary one.

    What needs all gradients at once cannot be done: clipping by a global norm, GradScaler, gradients accumulated over
    several backward passes. Until `step()`, `p.grad` is a tensor without memory, and whatever reads it raises a
    SettingError. Options are read when the first gradient is complete. Between that and `step()` some parameters have
    been stepped and others not: save after `step()`.

    Args:
        module: the model, or parameters, or groups of them, as for torch's optimizers.
        optimizer_class: one of fastopt.torch's optimizers.
        options: its arguments; flatten=True is refused, because flat gradients would all live at once.

    Raises:
        LayoutError: the module averages gradients between processes after they are complete here (DDP, FSDP1).
        SettingError: the class is another library's, or flatten=True, max_norm or skip_nonfinite is given. From
            `backward()`: a parameter gets a second gradient before `step()`.

    """
    require_optimizer_class(optimizer_class)
    if options.get("flatten"):
        raise SettingError("flat gradients would all live at once.", got="flatten=True", do="leave flatten=False")
    for name in ("max_norm", "skip_nonfinite"):
        if options.get(name):
            what = "the norm of all gradients is known only after the backward pass."
            raise SettingError(what, got=name, do="use the optimizer by itself")
    require_complete(module)
    params: Any = module
    if isinstance(module, torch.nn.Module):
        params = module.named_parameters() if options.get("aux_for") else module.parameters()
    optimizer = optimizer_class(params, **options)
    optimizer.step_apart(BackwardSteps(optimizer))
    return optimizer


class BackwardSteps:
    """The hooks of an optimizer's parameters, and which of them have been stepped in this iteration."""

    def __init__(self, optimizer: Adapter):
        self._optimizer, self._stepped = weakref.ref(optimizer), set()
        self._hooks = GradientHooks(self._step, self._unused)
        self._hooks.add(_params(optimizer))

    def _step(self, p: Any, _: bool) -> None:
        optimizer = self._optimizer()
        if optimizer is None:
            return
        with raised_by(f"{type(optimizer).__name__} in the backward pass"):
            if p in self._stepped:
                what = "a parameter got another gradient before step(), after it was stepped with the first."
                do = "call step() after each backward pass, also one that failed; to accumulate, use offload, or none"
                raise SettingError(what, do=do)
            optimizer.step_one(p, same=bool(self._stepped))
            self._stepped.add(p)

    def _unused(self, _: Any) -> None:
        """Return None: gradients are gone once they were used."""

    def finish(self) -> None:
        """End an iteration: step what has a gradient still, as parameters that were frozen before."""
        optimizer = self._optimizer()
        assert optimizer is not None
        params = _params(optimizer)
        with raised_by(f"{type(optimizer).__name__}.step"):
            for p in params:
                self._hooks.take(p, in_step=True)
        self._hooks.release(params)
        self._stepped.clear()


def _params(optimizer: Adapter) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]

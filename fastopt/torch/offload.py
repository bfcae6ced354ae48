"""Steps on the CPU for a model on a GPU: complete gradients go there, and what a forward pass reads comes back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import gradient_type, is_distributed
from fastopt.checks import POSITIVE, integer, number
from fastopt.errors import LayoutError, SettingError, raised_by
from fastopt.torch.adapter import Adapter
from fastopt.torch.buckets import labels_of
from fastopt.torch.gradients import GradientHooks, require_complete, require_optimizer_class
from fastopt.torch.guards import same_objects
from fastopt.torch.observed import HostState
from fastopt.torch.requirements import may_wait, require_gradient, require_parameter
from fastopt.torch.transfers import Gradient, Transfers, Worker, empty_on_host


@raised_by("offload")
def offload(
    module: Any,
    optimizer_class: type[Adapter],
    *,
    accumulate: int | None = 1,
    max_norm: float | None = None,
    **options: Any,
) -> OffloadedOptimizer:
    """Return an optimizer that steps on the CPU, where its state and copies of the parameters lie.

    The device holds the parameters alone, in the type in which the forward pass reads them, and the gradients that are
    on their way. The loop stays as it is:

        model = Model().to("cuda", torch.bfloat16)
        optimizer = fastopt.torch.offload(model, fastopt.torch.AdamW, lr=1e-3, storage="split")
        for x, y in batches:
            loss(model(x), y).backward()    # gradients go to the CPU, where each parameter is stepped and sent back
            optimizer.step()                # waits for what is under way
            schedule.step()

    Each gradient is copied when it is complete, and freed on the device. While backward goes on, a worker thread steps
    the parameter by the CPU kernels and copies to the device what the model sees of it. So parameters, state and counts
    are, bit for bit, those of the same optimizer on a CPU.

    `state_dict`, schedulers, groups and torch's distributed checkpoints work as always; state is on the CPU. Parameters
    that others write on the device, as when a model is loaded, are copied to the CPU before the next step. Until
    `step()`, `p.grad` is a tensor without memory, and whatever reads it raises a SettingError.

    Bytes per parameter, Adam with bfloat16 parameters and storage="split": 2 on the device, 12 on the CPU (2 + 2
    parameter, 8 state), and 2 of page-locked memory for each gradient under way.

    Args:
        module: the model, or parameters, or groups of them, as for torch's optimizers.
        optimizer_class: one of fastopt.torch's optimizers.
        accumulate: how many backward passes add their gradients before `step()`; at the last the parameters are
            stepped. None leaves the number open: gradients go to the CPU, and `step()` steps all.
        max_norm: clip gradients to this global 2-norm, as torch.nn.utils.clip_grad_norm_ on a CPU does. It is known
            only when all gradients are there, so `step()` steps all. The norm before is `optimizer.grad_norm`.
        options: arguments of the class. flatten=True is refused: copies would wait for all of a flat buffer.

    Raises:
        LayoutError: a parameter is distributed, without memory, or on a device that is neither CPU nor CUDA, or the
            module averages gradients between processes after they are complete here (DDP, FSDP1). From `backward()`: a
            gradient that cannot be stepped.
        SettingError: the class is another library's; an argument is out of its range. From `backward()`: a parameter
            got more gradients than `accumulate` before `step()`.

    """
    require_optimizer_class(optimizer_class)
    if options.get("flatten"):
        raise SettingError("flat buffers are copied as a whole.", got="flatten=True", do="leave flatten=False")
    if accumulate is not None:
        accumulate = integer("accumulate", accumulate, 1)
    if max_norm is not None:
        max_norm = number("max_norm", max_norm, POSITIVE)
    require_complete(module)
    params: Any = module.parameters() if isinstance(module, torch.nn.Module) else module
    return OffloadedOptimizer(params, optimizer_class, accumulate, max_norm, options)


class OffloadedOptimizer(torch.optim.Optimizer):
    """torch's Optimizer of parameters on a device, around `optimizer`: one of fastopt's, of their copies on the CPU."""

    def __init__(
        self,
        params: Any,
        optimizer_class: type[Adapter],
        accumulate: int | None,
        max_norm: float | None,
        options: dict[str, Any],
    ):
        self._accumulate, self._max_norm = accumulate, max_norm
        self._in_backward = accumulate is not None and max_norm is None  # else `step` steps all
        self._transfers, self._worker = Transfers(), Worker()
        self._hosts: dict[Any, Any] = {}  # parameter → its copy on the CPU
        self._labels: dict[Any, str] = {}  # what errors call it
        self._copied: dict[Any, tuple] = {}  # the version and address that it had when the two were last the same
        self._arrived: dict[Any, int] = {}  # gradients since the last `step`
        self._following = False  # whether the options are known to be those of this step
        self._listed: list[list[Any]] = []  # the parameters of each group
        self.grad_norm: torch.Tensor | None = None
        groups = _as_groups(params)
        self.optimizer = optimizer_class([self._on_host(group, k) for k, group in enumerate(groups)], **options)
        if self._in_backward:
            self.optimizer.step_apart(None)
        self._hooks = GradientHooks(self._on_gradient)
        super().__init__(groups, self.optimizer.defaults)

    # Parameters.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch does."""
        with raised_by("offload"):
            k = len(self.param_groups)
            if k == len(self.optimizer.param_groups):  # else it has been made with it
                (param_group,) = _as_groups([param_group])
                self.optimizer.add_param_group(self._on_host(param_group, k))
            super().add_param_group(param_group)
            params = self.param_groups[k]["params"]
            self._listed.append(list(params))
            self._hooks.add(params)

    def _on_host(self, group: dict[str, Any], k: int) -> dict[str, Any]:
        """Return a group with the parameters' copies in place of them, which have no values yet."""
        named = [p if isinstance(p, tuple) else (None, p) for p in group["params"]]
        names = None if any(name is None for name, _ in named) else [name for name, _ in named]
        labels = labels_of([*[{}] * k, {"params": named, "param_names": names}], k)
        for (_, p), label in zip(named, labels, strict=True):
            if is_distributed(p):
                what, do = f"{label} is distributed.", "use fully_shard(…, offload_policy=CPUOffloadPolicy())"
                raise LayoutError(what, got=type(p).__name__, do=do)
            if p.requires_grad or not may_wait(p):
                require_parameter(p, label)
        hosts = [self._hosts.get(p) for _, p in named]
        for i, (_, p) in enumerate(named):
            if hosts[i] is None:
                hosts[i] = self._hosts[p] = _host_of(p)
                self._labels[p] = labels[i]
        return {**group, "params": hosts if names is None else list(zip(names, hosts, strict=True))}

    def _follow(self) -> None:
        """Take the options as they are now."""
        theirs = self.optimizer.param_groups
        if len(theirs) != len(self.param_groups) or not all(
            same_objects(group["params"], listed) for group, listed in zip(self.param_groups, self._listed, strict=True)
        ):
            raise LayoutError("the groups have other parameters than before.", do="add them by add_param_group")
        for ours, group in zip(self.param_groups, theirs, strict=True):
            group.update({name: value for name, value in ours.items() if name != "params"})

    def _refresh(self, p: Any) -> None:
        """Copy a parameter to the CPU if it was written there, and not by a step."""
        if self._copied.get(p) != (p._version, p.data_ptr()):
            self._transfers.read(p, self._hosts[p])
            self._copied[p] = p._version, p.data_ptr()

    def _send(self, p: Any, gradient: Gradient | None) -> None:
        """Copy what the model sees of a parameter to the device, after the gradient was complete."""
        self._transfers.write(self._hosts[p], p, gradient)
        self._copied[p] = p._version, p.data_ptr()

    # Steps.

    def _on_gradient(self, p: Any) -> None:
        """Send a complete gradient to the CPU."""
        with raised_by(f"{self._kind} in the backward pass"):
            count = self._arrived.get(p, 0) + 1
            if self._in_backward and count > (self._accumulate or 0):
                what = "a parameter got another gradient before step(), after it was stepped."
                do = "call step() after so many backward passes, or pass accumulate=, None for any number"
                expected = f"accumulate={self._accumulate}"
                raise SettingError(what, got=f"gradient {count} of {self._labels[p]}", expected=expected, do=do)
            if p.grad.layout != torch.strided:
                require_gradient(p.grad, p, gradient_type(p), self._labels[p])
            self._arrived[p] = count
            gradient = self._transfers.start(p.grad)
            self._worker.submit(self._add, p, gradient, count)

    @torch.no_grad()
    def _add(self, p: Any, gradient: Gradient, count: int) -> None:
        """Add a gradient to those that came before; after the last, step the parameter. Runs in the worker."""
        host, found = self._hosts[p], gradient.wait()
        host.grad = found if host.grad is None else host.grad.add_(found)
        if self._in_backward and count == self._accumulate:
            self._refresh(p)
            if not self._following:
                self._follow()
            self.optimizer.step_one(host, same=self._following)
            self._following, host.grad = True, None
            self._send(p, gradient)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Wait until all parameters are stepped, and step those that are not yet.

        After an error those that were not stepped keep their gradients, and another `step()` takes them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = list(self._hosts)
        with raised_by(f"{self._kind}.step"), torch.no_grad():
            for p in params:  # gradients of another origin
                self._hooks.take(p)
            self._worker.wait()
            rest = [p for p in params if self._hosts[p].grad is not None]
            self._step_rest(rest)
        self._transfers.finish()
        self._hooks.release(params)
        self._arrived.clear()
        self._following = False
        return loss

    def _step_rest(self, params: list[Any]) -> None:
        if self._max_norm is not None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_([self._hosts[p] for p in params], self._max_norm)
        if not params:
            return
        for p in params:
            self._refresh(p)
        self._follow()
        self.optimizer.step()
        for p in params:
            self._send(p, None)
            self._hosts[p].grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those on the CPU too: zeros would take memory on the device."""
        self._worker.wait()
        for p, host in self._hosts.items():
            if host.grad is not None:
                host.grad = None
                self._arrived.pop(p, None)
        super().zero_grad(set_to_none=True)

    # State.

    @property
    def state(self) -> Any:
        """The state, on the CPU, by the parameters on the device."""
        return HostState(self.optimizer.state, self._hosts)

    @state.setter
    def state(self, given: Mapping) -> None:  # type: ignore[override]
        self.optimizer.state = defaultdict(dict, {self._hosts.get(p, p): x for p, x in given.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes, and that of the same optimizer anywhere else."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        with raised_by(f"{self._kind}.state_dict"):
            self._worker.wait()
            self._follow()
            for p, host in self._hosts.items():
                if host in self.optimizer.state:
                    self._refresh(p)
            found = self.optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, found)
            found = found if changed is None else changed
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, of this optimizer or of the same anywhere else. Errors change nothing."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._worker.wait()
        self.optimizer.load_state_dict(state_dict)
        for ours, theirs in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            params = ours["params"]
            ours.clear()
            ours.update({**theirs, "params": params})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        what = "an offloaded optimizer cannot be copied or pickled: its copies are of these parameters."
        raise SettingError(what, do="save its state_dict(), and load it into another one", where=self._kind)

    @property
    def _kind(self) -> str:
        return f"offloaded {type(self.optimizer).__name__}"

    def __repr__(self) -> str:
        return f"Offloaded{self.optimizer!r}"


def _as_groups(params: Any) -> list[dict[str, Any]]:
    """Return parameters, or groups of them, as a list of groups."""
    given: list[Any] = [params] if isinstance(params, torch.Tensor) else list(params)
    if not given or not isinstance(given[0], dict):
        given = [{"params": given}]
    groups = [{**group} for group in given]
    for group in groups:
        group["params"] = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
    return groups


def _host_of(p: Any) -> Any:
    """Make the copy of a parameter: memory that is not touched, and so takes none, before its first step."""
    host = torch.nn.Parameter(empty_on_host(p, page_locked=p.is_cuda and p.requires_grad), p.requires_grad)
    if hasattr(p, "grad_dtype") and p.requires_grad and p.grad_dtype != p.dtype:
        host.grad_dtype = p.grad_dtype
    return host

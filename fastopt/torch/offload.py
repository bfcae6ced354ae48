"""Steps on the CPU for a model on a GPU: complete gradients go there, and what a forward pass reads comes back.

One class, and over 300 lines because torch prescribes its methods, and a fifth of them is what `offload` promises.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch._compile import _disable_dynamo  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import gradient_type, is_distributed
from fastopt.checks import integer
from fastopt.errors import LayoutError, SettingError, raised_by
from fastopt.torch.adapter import Adapter
from fastopt.torch.buckets import labels_of
from fastopt.torch.gradients import GradientHooks, require_complete, require_optimizer_class
from fastopt.torch.guards import same_objects
from fastopt.torch.observed import HostState
from fastopt.torch.requirements import may_wait, require_gradient, require_parameter, require_unchanged
from fastopt.torch.transfers import Gradient, Transfers, Worker, empty_on_host


@raised_by("offload")
def offload(
    module: Any, optimizer_class: type[Adapter], *, accumulate: int | None = 1, **options: Any
) -> OffloadedOptimizer:
    """Return an optimizer that steps on the CPU, where its state and copies of the parameters lie.

    The device holds the parameters alone, in the type in which the forward pass reads them, and the gradients that are
    on their way. The loop stays as it is:

        model = Model().to("cuda", torch.bfloat16)
        optimizer = fastopt.torch.offload(model, fastopt.torch.AdamW, lr=1e-3, storage="split")
        for x, y in batches:
            loss(model(x), y).backward()    # gradients go to the CPU, where a worker steps the copies
            optimizer.step()                # waits for them, and copies what the model sees back
            schedule.step()

    Each gradient is copied when it is complete, and freed on the device. While backward goes on, a worker thread steps
    the copy of the parameter by the CPU kernels; `step()` brings the result to the device. So parameters, state and
    counts are, bit for bit, those of the same optimizer on a CPU.

    What needs all gradients at once, as clipping or GradScaler, and any number of backward passes for a step, works
    with `accumulate=None`: then `step()` steps all, and until then `p.grad` stands for the gradient on the CPU, so that
    `clip_grad_norm_` and trainers find it. Otherwise what reads `p.grad` between backward and step raises a
    SettingError.

    `state_dict`, schedulers, groups and torch's distributed checkpoints work as always; state is on the CPU. Options
    are read when the first gradient of a step is complete, with `accumulate=None` in `step()`. Parameters that others
    write on the device, as when a model is loaded, are copied to the CPU before the next step; autograd counts such
    writes, but not those through `p.data` or NumPy: call `read_parameters()` after these.

    Bytes per parameter, Adam with bfloat16 parameters and storage="split": 2 on the device, 12 on the CPU (2 + 2
    parameter, 8 state), and 2 of page-locked memory for each gradient under way.

    Args:
        module: the model, or parameters, or groups of them, as for torch's optimizers.
        optimizer_class: one of fastopt.torch's optimizers.
        accumulate: how many backward passes add their gradients before `step()`: with the last the parameters are
            stepped. None leaves the number open.
        options: arguments of the class. flatten=True is refused: copies would wait for all of a flat buffer.

    Raises:
        LayoutError: a parameter is distributed, without memory, or on a device that is neither CPU nor CUDA, or the
            module averages gradients between processes after they are complete here (DDP, FSDP1). From `backward()`: a
            gradient that cannot be stepped, or a parameter that was converted.
        SettingError: the class is another library's; an argument is out of its range; another optimizer takes the
            gradients of these parameters. From `backward()`: a parameter got more gradients than `accumulate` before
            `step()`. From `step()`: a parameter was written to between backward and step.

    """
    require_optimizer_class(optimizer_class)
    if options.get("flatten"):
        raise SettingError("flat buffers are copied as a whole.", got="flatten=True", do="leave flatten=False")
    if options.get("capturable"):
        raise SettingError("steps on the CPU are not captured.", got="capturable=True", do="leave capturable=False")
    for name in ("max_norm", "skip_nonfinite"):
        if options.get(name):
            do = "leave it out; with accumulate=None clip by torch.nn.utils.clip_grad_norm_ before step()"
            raise SettingError("the norm of all gradients is known after the backward pass.", got=name, do=do)
    if options.get("ema") is not None:
        what, do = "averages would lie in the CPU's memory alone.", "use torch.optim.swa_utils.AveragedModel"
        raise SettingError(what, got="ema", do=do)
    if accumulate is not None:
        accumulate = integer("accumulate", accumulate, 1)
    require_complete(module)
    params: Any = module
    if isinstance(module, torch.nn.Module):
        params = module.named_parameters() if options.get("aux_for") else module.parameters()
    return OffloadedOptimizer(params, optimizer_class, accumulate, options)


class OffloadedOptimizer(torch.optim.Optimizer):
    """torch's Optimizer of parameters on a device, around `optimizer`: one of fastopt's, of their copies on the CPU."""

    def __init__(self, params: Any, optimizer_class: type[Adapter], accumulate: int | None, options: dict[str, Any]):
        self._accumulate = accumulate  # None: `step` steps all
        self._transfers, self._worker, self._lock = Transfers(), Worker(), threading.RLock()
        self._hosts: dict[Any, Any] = {}  # parameter → its copy on the CPU
        self._labels: dict[Any, str] = {}  # what errors call it
        self._copied: dict[Any, tuple] = {}  # parameter → its contents, when the two were last the same
        self._arrived: dict[Any, int] = {}  # parameter → its gradients since `step`
        self._versions: dict[Any, int] = {}  # parameter whose copy the worker steps → its version then
        self._stepped: list[Any] = []  # whose copies are stepped, and not on the device yet
        self._following = False  # whether the options were read for this step
        self._listed: list[list[Any]] = []  # the parameters of each group
        self._hooks = GradientHooks(self._on_gradient, self._unused)
        groups = _Groups(params, {}).param_groups
        made = [self._with_hosts(group, k) for k, group in enumerate(groups)]
        self.optimizer = optimizer_class([host_group for host_group, _ in made], **options)
        if accumulate is not None:
            self.optimizer.step_apart(None)
        if len(self.optimizer.param_groups) > len(groups):  # by a class that divides them
            groups = self._divided([hosts for _, hosts in made], 0)
        super().__init__(groups, self.optimizer.defaults)
        for _, hosts in made:
            self._adopt(hosts)

    # Parameters.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch does. After an error nothing is changed."""
        k = len(self.param_groups)
        if k < len(self.optimizer.param_groups):  # it is made with it
            super().add_param_group(param_group)
            self._listed.append(list(self.param_groups[k]["params"]))
            return
        with raised_by("offload"):
            (group,) = _Groups([param_group], {}).param_groups
            host_group, hosts = self._with_hosts(group, k)
            self.optimizer.add_param_group(host_group)
            own = [group] if len(self.optimizer.param_groups) == k + 1 else self._divided([hosts], k)
            try:
                for part in own:
                    super().add_param_group(part)
                self._adopt(hosts)
            except BaseException:
                del self.param_groups[k:], self.optimizer.param_groups[k:]
                raise
            self._listed += [list(part["params"]) for part in own]

    def _divided(self, made: list[dict[Any, tuple[Any, str]]], first: int) -> list[dict[str, Any]]:
        """Return the groups of the optimizer from `first` on, with the parameters in place of their copies."""
        owners = {host: p for hosts in made for p, (host, _) in hosts.items()}
        return [
            {**group, "params": [owners[h] for h in group["params"]]} for group in self.optimizer.param_groups[first:]
        ]

    def _with_hosts(self, group: dict[str, Any], k: int) -> tuple[dict[str, Any], dict[Any, tuple[Any, str]]]:
        """Return a group with copies in place of the parameters, and parameter → copy and name. They have no values."""
        hosts: dict[Any, tuple[Any, str]] = {}
        for p, label in zip(group["params"], labels_of([*[{}] * k, group], k), strict=True):
            if is_distributed(p):
                what, do = f"{label} is distributed.", "use fully_shard(…, offload_policy=CPUOffloadPolicy())"
                raise LayoutError(what, got=type(p).__name__, do=do)
            if p.requires_grad or not may_wait(p):
                require_parameter(p, label)
            if p not in hosts:
                hosts[p] = self._hosts[p] if p in self._hosts else _host_of(p), label
        params: list[Any] = [hosts[p][0] for p in group["params"]]
        names = group.get("param_names")
        theirs = {**group, "params": params if names is None else list(zip(names, params, strict=True))}
        theirs.pop("param_names", None)
        return theirs, hosts

    def _adopt(self, hosts: dict[Any, tuple[Any, str]]) -> None:
        self._hooks.add(hosts)
        self._hosts.update({p: host for p, (host, _) in hosts.items()})
        self._labels.update({p: label for p, (_, label) in hosts.items()})

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
        now = self._transfers.contents(p)
        if self._copied.get(p) != now:
            self._transfers.read(p, self._hosts[p])
            self._copied[p] = now

    def _refresh_idle(self, p: Any) -> None:
        """Refresh a copy on which state depends, unless a step of it is under way."""
        host = self._hosts.get(p)
        with self._lock, self.optimizer.apart_from_steps(), torch.no_grad():
            if host is not None and host in self.optimizer.state and p not in self._arrived:
                self._refresh(p)

    def read_parameters(self) -> None:
        """Copy all parameters to the CPU before the next step, as after writes that autograd does not count."""
        with self._lock:
            self._worker.wait()
            self._copied.clear()

    # Steps.

    def _on_gradient(self, p: Any, fresh: bool) -> None:
        """Send a complete gradient to the CPU."""
        with raised_by(f"{self._kind} in the backward pass"):
            count = self._arrived.get(p, 0)
            if count == self._accumulate:
                what = "a parameter got another gradient before step(), after it was stepped."
                do = "call step() after so many backward passes, also if one failed; or pass accumulate=, or None"
                got, expected = f"gradient {count + 1} of {self._labels[p]}", f"accumulate={self._accumulate}"
                raise SettingError(what, got=got, expected=expected, do=do)
            if self._hooks.was_zeroed(p) or (fresh and count):
                self._worker.submit(self._forget, p)
                count = 0
            host = self._hosts[p]
            self._require_fitting(p, host)
            if self._accumulate is not None and not self._following:
                self._follow()
                self._following = True
            self._arrived[p] = count + 1
            last = count + 1 == self._accumulate
            if last:
                self._versions[p] = p._version
            self._worker.submit(self._add, p, self._transfers.start(p.grad), last)

    def _require_fitting(self, p: Any, host: Any) -> None:
        """Raise a LayoutError if a parameter or its gradient is not what the copy was made for."""
        if p.dtype != host.dtype or p.shape != host.shape or p.stride() != host.stride():
            require_unchanged(p, host, p.device, self._labels[p])
        wanted = gradient_type(p)
        if p.grad.dtype != wanted or p.grad.layout != torch.strided or p.grad.stride() != p.stride():
            require_gradient(p.grad, p, wanted, self._labels[p])
        if gradient_type(host) != wanted:
            host.grad_dtype = wanted

    def _forget(self, p: Any) -> None:
        self._hosts[p].grad = None

    def _add(self, p: Any, gradient: Gradient, last: bool) -> None:
        """Add a gradient to those that came before; after the last, step the copy. Runs in the worker."""
        host, found = self._hosts[p], gradient.wait()
        host.grad = found if host.grad is None else host.grad.add_(found)
        if last:
            self._refresh(p)
            self.optimizer.step_one(host, same=False)
            host.grad = None
            self._stepped.append(p)

    def _unused(self, p: Any) -> torch.Tensor | None:
        """Return the gradient of a parameter on the CPU, if no step has used it or is about to."""
        if self._arrived.get(p, 0) == self._accumulate:
            return None
        self._worker.wait()
        return self._hosts[p].grad

    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Wait until all parameters are stepped, step those that are not yet, and copy them to the device.

        After an error those that were not stepped keep their gradients, and another `step()` takes them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = list(self._hosts)
        with raised_by(f"{self._kind}.step"), torch.no_grad(), self._lock:
            for p in params:  # gradients of another origin
                self._hooks.take(p, in_step=True)
            self._worker.wait()
            self._worker.raise_error()
            self._step_rest([p for p in params if self._hosts[p].grad is not None])
            try:
                self._send()
            finally:
                self._transfers.finish()
                self._hooks.release(params)
                self._arrived.clear()
                self._following = False
        return loss

    def _step_rest(self, params: list[Any]) -> None:
        """Step the copies that have a gradient, but those whose gradient was forgotten."""
        for p in params:
            if not self._hooks.is_taken(p):
                self._forget(p)
        rest = [p for p in params if self._hosts[p].grad is not None]
        if rest:
            for p in rest:
                self._refresh(p)
            self._follow()
            used = [(setattr, self._hosts[p], "grad", None) for p in rest]
            self.optimizer.step_with([(self._stepped.extend, rest), *used])

    def _send(self) -> None:
        """Copy what the model sees of the stepped parameters to the device."""
        written = []
        while self._stepped:
            p = self._stepped[-1]
            if self._versions.pop(p, p._version) == p._version:
                self._transfers.write(self._hosts[p], p)
                self._copied[p] = self._transfers.contents(p)
            else:
                self._copied.pop(p, None)
                written.append(self._labels[p])
            self._stepped.pop()
        if written:
            what = "parameters were written to between backward and step: their steps are lost, what was written stays."
            do = "write before backward() or after step(), or pass accumulate=None"
            raise SettingError(what, got=", ".join(written[:3]), do=do)

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients that were not used, those on the CPU too: to None, or to zero, as torch does."""
        self._worker.wait()
        super().zero_grad(set_to_none)
        for p, host in self._hosts.items():
            if host.grad is not None:
                self._arrived.pop(p, None)
                if set_to_none:
                    host.grad = None

    # State.

    @property
    def state(self) -> Any:
        """The state, on the CPU, by the parameters on the device."""
        return HostState(self.optimizer.state, self._hosts, self._refresh_idle)

    @state.setter
    def state(self, given: Mapping) -> None:  # type: ignore[override]
        self.optimizer.state = defaultdict(dict, {self._hosts.get(p, p): x for p, x in given.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes, and that of the same optimizer anywhere else."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        with raised_by(f"{self._kind}.state_dict"), self._lock:
            self._worker.wait()
            self._follow()
            for p in self._hosts:
                self._refresh_idle(p)
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
        with self._lock:
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


class _Groups(torch.optim.Optimizer):
    """What torch makes of parameters or groups of them, with its checks."""

    def step(self, *_: Any) -> None:  # type: ignore[override] — torch would patch it if it were not hooked
        """Take none: it is made for its groups alone."""

    step.hooked = True  # type: ignore[attr-defined]


def _host_of(p: Any) -> Any:
    """Make the copy of a parameter: memory that is not touched, and so takes none, before its first step."""
    host = torch.nn.Parameter(empty_on_host(p, page_locked=p.is_cuda and p.requires_grad), p.requires_grad)
    if p.requires_grad and gradient_type(p) != p.dtype:
        host.grad_dtype = p.grad_dtype
    return host

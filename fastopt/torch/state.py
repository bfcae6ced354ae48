"""What optimizers keep of parameters beside them: made when it is missing, shown as torch shows it, given and taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import LayoutError, explain
from fastopt.kernels.program import Program, planes
from fastopt.kernels.storage import STORAGES
from fastopt.torch.flat import Flat
from fastopt.torch.kept import forward_plane, key, require_state
from fastopt.torch.tensors import (
    decode,
    describe,
    encode,
    fits,
    flat,
    is_dense,
    is_wrapped,
    local,
    plane_size,
    same_order,
    torch_type,
)


class State:
    """The state of some parameters, plane by plane, and how many steps each has taken.

    `names` says what errors call the parameters, `entries` which scalars are kept beside the count and at what they
    start. The formats that are `kept` and the `program` come with a rule.
    """

    program: Program

    def __init__(self, params: Sequence[Any], names: Sequence[str], entries: dict[str, float]):
        self.params, self.names = list(params), list(names)
        kind = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch counts
        with torch.inference_mode(mode=False):  # whose tensors have no version counter
            self.steps = torch.zeros(len(self.params), dtype=kind, device="cpu")
            self.entries = {
                name: torch.full((len(self.params),), value, dtype=kind, device="cpu")
                for name, value in entries.items()
            }
        self.beginning = entries
        self.memory: list[dict[str, torch.Tensor]] = [{} for _ in self.params]  # name of a plane → its tensor
        self.shown: list[dict[str, Any]] = [{} for _ in self.params]  # likewise, as state shows it
        self.kept: dict[str, str] = {}
        self.flat: Flat | None = None
        self.stale = True  # what was arranged for the last step no longer holds

    @property
    def counts(self) -> np.ndarray:
        """How many steps each parameter has taken, in the memory of `steps`, which `share_memory_` moves."""
        return self.steps.numpy()

    def require_own(self, i: int, where: str) -> None:
        """Raise a LayoutError if the tensors of a parameter's state are not of the type and shape that they had."""
        p = local(self.params[i])
        held = {name: plane for b, chosen in self.kept.items() for name, plane in planes(b, STORAGES[chosen]).items()}
        for name, tensor in self.memory[i].items():
            plane = held[name]
            shape = (plane_size(plane, p.numel()),) if plane.tiled else p.shape
            same = tensor.layout == torch.strided and tensor.shape == shape and tensor.dtype == torch_type(plane)
            if not same or tensor.device != p.device or not fits(tensor):
                what = f"the state {name!r} of {self.names[i]} was made another tensor in place."
                expected = f"{torch_type(plane)}{list(shape)} in memory of its own"
                do = "assign another tensor to it in optimizer.state"
                raise LayoutError(explain(where, what, got=describe(tensor), expected=expected, do=do))

    def settle(self, i: int) -> None:
        """Give state that was moved by others to where no step can follow, as by `.data =`, memory of ours again."""
        p = local(self.params[i])
        for b, chosen in self.kept.items():
            own = planes(b, STORAGES[chosen])
            for name in self.memory[i].keys() & own.keys():
                tensor, tiled = self.memory[i][name], own[name].tiled
                placed = self.flat is None or self.flat.holds_state(name, i, own[name], tensor)
                if not placed or not (tensor.is_contiguous() if tiled else is_dense(tensor) and same_order(tensor, p)):
                    self._hold(i, name, own[name], whole=len(own) == 1)
                    self.memory[i][name].copy_(tensor)

    def _allocate(self, i: int, b: str, value: float) -> bool:
        """Make the planes of one buffer of a parameter that it does not have yet, and say whether there are any."""
        storage, p = STORAGES[self.kept[b]], self.params[i]
        own = planes(b, storage)
        forward = list(own)[storage.forward] if b == "p" else None
        if not (missing := [name for name in own if name != forward and name not in self.memory[i]]):
            return False
        for name in missing:
            self._hold(i, name, own[name], whole=len(own) == 1)
        if b == "p":
            self._fill(i, b, p)
        elif len(own) == 1 and storage.planes[0].dtype.kind == "f":
            self.memory[i][missing[0]].fill_(value)
        else:
            self._fill(i, b, torch.full_like(local(p), value, dtype=getattr(torch, storage.computes.name)))
        return True

    def _hold(self, i: int, name: str, plane: Any, *, whole: bool) -> None:
        """Allocate one plane of a parameter; a whole buffer of a distributed one is distributed likewise."""
        p, kind = self.params[i], torch_type(plane)
        tensor = local(p)
        if self.flat is not None:
            self.memory[i][name] = self.shown[i][name] = self.flat.plane(name, plane, i, tensor)
        elif plane.tiled:
            self.memory[i][name] = self.shown[i][name] = torch.zeros(
                plane_size(plane, tensor.numel()), dtype=kind, device=tensor.device
            )
        else:
            shown = torch.zeros_like(p if whole else tensor, dtype=kind, requires_grad=False)
            self.memory[i][name], self.shown[i][name] = local(shown), shown

    def _fill(self, i: int, b: str, value: torch.Tensor) -> None:
        """Encode values into the planes of a buffer; of a parameter's, all but what the forward pass reads."""
        storage, like = STORAGES[self.kept[b]], local(self.params[i])
        encoded = encode(storage, local(value), like)
        for k, (name, words) in enumerate(zip(planes(b, storage), encoded, strict=True)):
            if b != "p" or k != storage.forward:
                flat(self.memory[i][name]).copy_(words)

    def expose(self, i: int, names: dict[str, str], state: Any, *, counted: bool) -> None:
        """Show a parameter's memory in the optimizer's state, under torch's names."""
        with_step = counted or self.program.noise
        if not self.shown[i] and not with_step:
            return
        entries = state[self.params[i]]
        for b, chosen in self.kept.items():  # values that are kept in planes now
            if b != "g" and len(STORAGES[chosen].planes) > 1:
                dict.pop(entries, "master" if b == "p" else names.get(b, b), None)
        shown = {key(name, self.kept, names): tensor for name, tensor in self.shown[i].items()}
        if with_step:
            shown = {"step": self.steps[i], **{n: x[i] for n, x in self.entries.items()}, **shown}
        for name, tensor in shown.items():
            dict.__setitem__(entries, name, tensor)

    def forget(self) -> None:
        """Go back to before the first step."""
        self.memory, self.shown = [{} for _ in self.params], [{} for _ in self.params]
        self.counts[...] = 0
        for name, vector in self.entries.items():
            vector.fill_(self.beginning[name])
        self.stale = True

    def reread(self, i: int, entries: dict[str, Any], names: dict[str, str], where: str) -> None:
        """See what others have made of a parameter's state: what is gone, and what is another tensor now."""
        shown = {key(name, self.kept, names): (name, tensor) for name, tensor in self.shown[i].items()}
        ours = {name: plane for name, (plane, tensor) in shown.items() if entries.get(name) is tensor}
        self.memory[i] = {plane: self.memory[i][plane] for plane in ours.values()}
        self.shown[i] = {plane: self.shown[i][plane] for plane in ours.values()}
        entries = {**entries, "step": float(entries["step"])} if entries.get("step") is not None else entries
        if not self.memory[i]:
            self.counts[i] = 0
        for b, chosen in self.kept.items():  # planes of a state that was moved here as it is
            own = planes(b, STORAGES[chosen])
            for name, plane in own.items() if b != "g" and len(own) > 1 else ():
                tensor, size = entries.get(key(name, self.kept, names)), local(self.params[i]).numel()
                if name not in ours.values() and tensor is not None and tensor.numel() == plane_size(plane, size):
                    self._hold(i, name, plane, whole=False)
                    flat(self.memory[i][name]).copy_(flat(tensor))
        self.take(i, {name: x for name, x in entries.items() if name not in ours}, names, where=where)

    def take(
        self,
        i: int,
        given: dict[str, Any],
        names: dict[str, str],
        *,
        where: str,
        copy: bool = False,
        exactly: bool = False,
    ) -> None:
        """Take over a parameter's state by torch's names: the tensors where they fit, or with `copy` their values."""
        theirs = {names.get(b, b): b for b in self.kept if b not in ("p", "g")}
        p, values = local(self.params[i]), {}
        for name, value in given.items():
            b = "p" if name == "master" else theirs.get(name)
            if b is not None and value is not None:
                text = f"the state {name!r} of {self.names[i]}"
                require_state(value, self.params[i], b, STORAGES[self.kept[b]], where, text, exactly=exactly)
                values[b] = value
        if given.get("step") is not None:
            self.counts[i] = float(given["step"])
        elif values.keys() - {"p"}:
            self.counts[i] = max(self.counts[i], 1)
        for name, vector in self.entries.items():
            if given.get(name) is not None:
                vector[i] = float(given[name])
        for b, value in values.items():
            own = planes(b, STORAGES[self.kept[b]])
            (first, plane), tensor = next(iter(own.items())), local(value)
            if len(own) > 1:
                forward = forward_plane(b, own, STORAGES[self.kept[b]])
                for name in own.keys() - forward:
                    self._hold(i, name, own[name], whole=False)
                self._fill(i, b, value)
                for name in own.keys() - forward if b == "p" else ():
                    if (exact := given.get(key(name, self.kept, names))) is not None:
                        flat(self.memory[i][name]).copy_(flat(exact))
            elif (
                not copy
                and self.flat is None
                and tensor.dtype == torch_type(plane)
                and is_dense(tensor)
                and same_order(tensor, p)
            ):
                self.memory[i][first], self.shown[i][first] = tensor, value
            else:
                self._hold(i, first, plane, whole=True)
                self.memory[i][first].copy_(tensor.detach())
        self.stale = True

    def decoded(self, i: int, entries: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        """Give a parameter's state under torch's names, what is kept in several planes as values of full precision.

        What a parameter keeps beside what the model sees is given twice: as it is, for the same storage, where two ways
        to write one value would make a difference to the model, and within the value, for every other.
        """
        given, p = dict(entries), self.params[i]
        for b, chosen in self.kept.items():
            storage = STORAGES[chosen]
            own = planes(b, storage)
            if b == "g" or len(own) == 1 or not self.memory[i].keys() >= own.keys() - forward_plane(b, own, storage):
                continue
            held = [local(p) if name in forward_plane(b, own, storage) else self.memory[i][name] for name in own]
            values = decode(storage, held, local(p))
            for name in own if b != "p" else ():  # those of a parameter, which only it and they make up, stay beside it
                given.pop(key(name, self.kept, names), None)
            if is_wrapped(p):
                values = type(p).from_local(values, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            given["master" if b == "p" else names.get(b, b)] = values
        return given

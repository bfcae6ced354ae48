"""The state of some parameters: made when it is missing, shown as torch shows it, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import (
    Torch,
    element_type,
    flat,
    is_dense,
    is_distributed,
    local,
    same_order,
    tensor_of_values,
    values_in_order,
)
from fastopt.errors import LayoutError
from fastopt.kernels.formats import STORAGES
from fastopt.store import Store
from fastopt.torch.flat import FlatBuffers, allocator
from fastopt.torch.requirements import require_plane, require_values

TORCH = Torch()


class Settings(NamedTuple):
    """What fastopt's optimizers are told beyond torch's options."""

    flatten: bool
    storage: Any
    seed: int


class StateNames(NamedTuple):
    """What torch's state calls a rule's buffers, and what else it has."""

    buffers: Mapping[str, str] = MappingProxyType({})  # the rule's name of a buffer → torch's, where it differs
    entries: Mapping[str, float] = MappingProxyType({})  # scalars beside the number of steps → where they start
    counted: bool = True  # whether torch's state has the number of steps

    def of_value(self, buffer: str) -> str:
        """Return the name of a buffer's values: the parameter's, in full precision, are "master"."""
        return "master" if buffer == "p" else self.buffers.get(buffer, buffer)


class StepCounts:
    """How many steps each parameter has taken, and torch's other scalars: vectors whose elements the state shows."""

    def __init__(self, count: int, entries: Mapping[str, float]):
        kind = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch counts
        self._start = {"step": 0.0, **entries}
        with torch.inference_mode(mode=False):  # whose tensors have no version counter
            self.vectors = {n: torch.full((count,), x, dtype=kind, device="cpu") for n, x in self._start.items()}

    @property
    def versions(self) -> list[int]:
        """Incremented when others write a count; a step writes through NumPy and does not increment them."""
        return [vector._version for vector in self.vectors.values()]

    def shown(self, i: int) -> dict[str, torch.Tensor]:
        """Return a parameter's elements, by torch's names."""
        return {name: vector[i] for name, vector in self.vectors.items()}

    def reset(self) -> None:
        """Go back to before the first step."""
        for name, vector in self.vectors.items():
            vector.fill_(self._start[name])


class ParamState:
    """What is stored for parameters of one type and device beside them: what the model sees is a plane of each row."""

    def __init__(
        self,
        params: Sequence[Any],
        labels: Sequence[str],
        names: StateNames,
        formats: Mapping[str, str],
        flat: FlatBuffers | None,
    ):
        self.params, self.labels, self.names, self._flat = list(params), list(labels), names, flat
        self.counts = StepCounts(len(self.params), names.entries)
        self.shows_step = names.counted
        self.formats = dict(formats)
        sizes = [local(p).numel() for p in self.params]
        self.store = Store(TORCH, formats, sizes, allocator(self.params, flat))
        self.forget()

    def forget(self) -> None:
        """Go back to before the first step."""
        forward = self.store.forward("p")
        for i, p in enumerate(self.params):
            self.store.planes[i] = {forward: p}
        self.counts.reset()

    def use_formats(self, formats: Mapping[str, str]) -> None:
        """Take the formats of another rule, or raise a LayoutError where a buffer would be stored in another one."""
        changed = [b for b, name in formats.items() if self.formats.get(b, name) != name]
        if changed and any(len(planes) > 1 for planes in self.store.planes):
            raise LayoutError(
                f"this change of settings would store the state {changed[0]!r} in another format.",
                got=formats[changed[0]],
                expected=self.formats[changed[0]],
                do="name its format in storage=",
            )
        self.formats |= formats
        self.store.formats |= {b: STORAGES[name] for b, name in formats.items()}

    # Planes.

    def own_planes(self, i: int) -> dict[str, Any]:
        """Return the tensors of a parameter's state; the parameter itself is not among them."""
        forward = self.store.forward("p")
        return {name: tensor for name, tensor in self.store.planes[i].items() if name != forward}

    def make(self, i: int, buffer: str, value: float) -> bool:
        """Make the planes of a buffer that a parameter lacks; return whether it lacked any."""
        if not self.store.make(i, buffer, value):
            return False
        if buffer == "p":
            self._encode(i, buffer, self.params[i])
        return True

    def _encode(self, i: int, buffer: str, value: Any) -> None:
        """Encode a tensor's values into the planes of a buffer; of a parameter's, all but what the model sees."""
        like, form = local(self.params[i]), self.store.formats[buffer]
        skip = (self.store.forward("p"),) if buffer == "p" else ()
        self.store.encode(i, buffer, values_in_order(local(value), like, form.computes), skip=skip)

    def require_own_planes(self, i: int) -> None:
        """Raise a LayoutError if the tensors of a parameter's state are not of the type and shape that they had."""
        p = local(self.params[i])
        for name, tensor in self.own_planes(i).items():
            plane = self.store.plane(name)
            shape = (plane.size(p.numel()),) if plane.tiled else p.shape
            text = f"the state {name!r} of {self.labels[i]}"
            require_plane(local(tensor), shape, element_type(plane), p.device, text)

    def settle(self, i: int) -> None:
        """Copy state that others moved to where no step can follow, as by `.data =`, to memory of ours again."""
        p = local(self.params[i])
        for name, shown in self.own_planes(i).items():
            plane, tensor = self.store.plane(name), local(shown)
            usable = tensor.is_contiguous() if plane.tiled else is_dense(tensor) and same_order(tensor, p)
            if not usable or (self._flat is not None and not self._flat.has_state(i, name, plane, tensor)):
                local(self.store.allocate(i, name)).copy_(tensor)

    # What torch sees.

    def key(self, name: str) -> str:
        """Return the name under which state shows a plane: torch's, or one that says how it is stored."""
        buffer, _, suffix = name.partition(".")
        if buffer == "p":
            return f"param.{suffix or 'master'}"
        own = self.names.buffers.get(buffer, buffer)
        if suffix:
            return f"{own}.{suffix}"
        return own if len(self.store.formats[buffer].planes) == 1 else f"{own}.{self.formats[buffer]}"

    def expose(self, i: int, state: Any) -> None:
        """Show a parameter's tensors in the optimizer's state, under torch's names."""
        own = self.own_planes(i)
        if not own and not self.shows_step:
            return
        entries = state[self.params[i]]
        for b, form in self.store.formats.items():  # values that are stored in planes now
            if b != "g" and len(form.planes) > 1:
                dict.pop(entries, self.names.of_value(b), None)
        shown = self.counts.shown(i) if self.shows_step else {}
        for name, tensor in {**shown, **{self.key(name): tensor for name, tensor in own.items()}}.items():
            dict.__setitem__(entries, name, tensor)

    def reread(self, i: int, entries: dict[str, Any]) -> None:
        """Follow what others have made of a parameter's state: what is gone, and what is another tensor now."""
        own = {self.key(name): name for name in self.own_planes(i)}
        ours = {key: name for key, name in own.items() if entries.get(key) is self.store.planes[i][name]}
        for name in set(own.values()) - set(ours.values()):
            del self.store.planes[i][name]
        if not ours and entries.get("step") is None:
            self.counts.vectors["step"][i] = 0
        for b, form in self.store.formats.items():  # planes of a state that was moved here as it is
            for name, plane in form.plane_names(b).items() if b != "g" and len(form.planes) > 1 else ():
                tensor, size = entries.get(self.key(name)), local(self.params[i]).numel()
                if name not in ours.values() and tensor is not None and tensor.numel() == plane.size(size):
                    flat(local(self.store.allocate(i, name))).copy_(flat(local(tensor)))
        self.take(i, {key: x for key, x in entries.items() if key not in ours})

    def take(self, i: int, given: Mapping[str, Any], *, copy: bool = False) -> None:
        """Take a parameter's state by torch's names: the tensors where they fit, or with `copy` their values."""
        theirs = {self.names.of_value(b): b for b in self.store.formats if b != "g"}
        values = {}
        for name, value in given.items():
            if name in theirs and value is not None:
                b, text = theirs[name], f"the state {name!r} of {self.labels[i]}"
                require_values(value, self.params[i], b, self.store.formats[b], text, exactly=False)
                if b != "p" or len(self.store.formats[b].planes) > 1:  # loading never writes parameters
                    values[b] = value
        for name, vector in self.counts.vectors.items():
            if given.get(name) is not None:
                vector[i] = float(given[name])
            elif name == "step" and values.keys() - {"p"}:
                vector[i] = max(vector[i], 1)
        for b, value in values.items():
            if len(self.store.formats[b].planes) > 1:
                self._take_planes(i, b, value, given)
            else:
                self._take_tensor(i, b, value, copy=copy)

    def _take_planes(self, i: int, b: str, value: Any, given: Mapping[str, Any]) -> None:
        """Encode values; of a parameter's, take the very planes where they were saved beside."""
        own = [name for name in self.store.formats[b].plane_names(b) if b != "p" or name != self.store.forward("p")]
        for name in own:
            self.store.allocate(i, name)
        self._encode(i, b, value)
        for name in own if b == "p" else ():
            if (exact := given.get(self.key(name))) is not None:
                flat(local(self.store.planes[i][name])).copy_(flat(local(exact)))

    def _take_tensor(self, i: int, b: str, value: Any, *, copy: bool) -> None:
        """Take a tensor as it is where it fits, or a copy."""
        ((name, plane),) = self.store.formats[b].plane_names(b).items()
        tensor, p = local(value), local(self.params[i])
        fits = tensor.dtype == element_type(plane) and is_dense(tensor) and same_order(tensor, p)
        self.store.planes[i][name] = value
        if copy or not fits:
            local(self.store.allocate(i, name)).copy_(tensor.detach())

    def decoded(self, i: int, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Return a parameter's state under torch's names, what is stored in several planes as values in full precision.

        What a parameter has beside what the model sees is saved twice: as it is, for the same storage, where two ways
        to write one value would make a difference to the model, and within the value, for every other.
        """
        found, p = dict(entries), self.params[i]
        for b, form in self.store.formats.items():
            names = form.plane_names(b)
            if b == "g" or len(names) == 1 or not self.store.planes[i].keys() >= names.keys():
                continue
            values = tensor_of_values(self.store.decode(i, b), local(p))
            for name in names if b != "p" else ():
                found.pop(self.key(name), None)
            if is_distributed(p):
                values = type(p).from_local(values, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            found[self.names.of_value(b)] = values
        if self.shows_step:
            counted = found.keys() & self.counts.vectors.keys()
            found |= {name: found[name].clone() for name in counted}  # ours are views of one vector
        return found

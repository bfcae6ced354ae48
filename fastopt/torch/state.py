"""The state of some parameters: made when it is missing, shown as torch shows it, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch  # pyright: ignore[reportMissingImports]

from fastopt.arrays.torch import (
    Torch,
    element_type,
    is_dense,
    is_distributed,
    local,
    placed_as,
    same_order,
    tensor_of_values,
    values_in_order,
)
from fastopt.errors import LayoutError
from fastopt.kernels.formats import STORAGES
from fastopt.store import Store
from fastopt.torch.flat import FlatBuffers, allocator
from fastopt.torch.observed import Encoded, ParameterState
from fastopt.torch.requirements import require_plane, require_values

TORCH = Torch()


class Settings(NamedTuple):
    """What fastopt's optimizers are told beyond torch's options."""

    flatten: bool
    storage: Any
    seed: int
    apart: bool = False  # each parameter is a bucket, to be stepped by itself
    max_norm: float | None = None  # of all gradients, above which they are scaled down
    skip_nonfinite: bool = False  # whether a step is skipped whose gradients are not finite
    ema: float | None = None  # decay of an average of the parameters


class StateNames(NamedTuple):
    """What torch's state calls a rule's buffers, and what else it has."""

    buffers: Mapping[str, str] = MappingProxyType({})  # the rule's name of a buffer → torch's, where it differs
    entries: Mapping[str, float] = MappingProxyType({})  # scalars beside the number of steps → where they start
    counted: bool = True  # whether torch's state has the number of steps

    @property
    def counts(self) -> tuple[str, ...]:
        """The scalars in torch's state."""
        return ("step", *self.entries)

    def of_value(self, buffer: str) -> str:
        """Return the name of a buffer's values: the parameter's, in full precision, are "master"."""
        return "master" if buffer == "p" else self.buffers.get(buffer, buffer)


def is_beside(name: Any) -> bool:
    """Whether an entry of saved state is part of how a parameter was stored, beside its values."""
    return isinstance(name, str) and name.startswith("param.")


class StepCounts:
    """How many steps each parameter has taken, and torch's other scalars: vectors whose elements the state shows.

    They are on the CPU, or for steps that a CUDA graph repeats on the device of the parameters.
    """

    def __init__(self, count: int, entries: Mapping[str, float], device: Any = "cpu"):
        kind = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch counts
        self._start = {"step": 0.0, **entries}
        with torch.inference_mode(mode=False):  # whose tensors have no version counter
            self.vectors = {n: torch.full((count,), x, dtype=kind, device=device) for n, x in self._start.items()}

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

    def values(self) -> dict[str, torch.Tensor]:
        """Copy the vectors."""
        return {name: vector.clone() for name, vector in self.vectors.items()}

    def set(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set the vectors to what `values` returned."""
        for name, vector in self.vectors.items():
            vector.copy_(values[name])


class ParamState:
    """What is stored for parameters of one type and device beside them: what the model sees is a plane of each row."""

    def __init__(
        self,
        params: Sequence[Any],
        labels: Sequence[str],
        names: StateNames,
        formats: Mapping[str, str],
        flat: FlatBuffers | None,
        live_on: Any = None,
    ):
        self._live = live_on is not None  # a device on which CUDA graphs may step
        self.params, self.labels, self.names, self._flat = list(params), list(labels), names, flat
        self.counts = StepCounts(len(self.params), names.entries, live_on or "cpu")
        self.shows_step = names.counted
        self.formats = dict(formats)
        sizes = [local(p).numel() for p in self.params]
        self.store = Store(TORCH, formats, sizes, allocator(self.params, flat))
        self.forget()

    def forget(self) -> tuple:
        """Go back to before the first step, and return what `restore` takes to undo it."""
        former = self.store.planes, self.counts.values(), self._flat and self._flat.forget_state()
        forward = self.store.forward("p")
        self.store.planes = [{forward: p} for p in self.params]
        self.counts.reset()
        return former

    def restore(self, former: tuple) -> None:
        """Undo `forget`, and what came after it."""
        self.store.planes, counted, flat_state = former
        self.counts.set(counted)
        if self._flat is not None:
            self._flat.state = flat_state

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

    def start_as_parameter(self, i: int, buffer: str) -> None:
        """Set a buffer to the values of its parameter."""
        self.store.encode(i, buffer, self.store.decode(i, "p"))

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

    def _shown(self, i: int) -> dict[str, str]:
        """Return the buffers of which a parameter has state, and the names under which torch's state shows them."""
        planes, own = self.store.planes[i].keys(), self.own_planes(i).keys()
        names = {b: form.plane_names(b).keys() for b, form in self.store.formats.items() if b != "g"}
        return {b: self.names.of_value(b) for b, known in names.items() if own & known and planes >= known}

    def is_own(self, name: Any) -> bool:
        """Whether an entry of saved state is what torch or fastopt calls something, stored here or not."""
        return name in self.names.counts or name in map(self.names.of_value, self.store.formats) or is_beside(name)

    def _entry(self, i: int, b: str) -> Any:
        """Return what stands in torch's state for a buffer: the tensor that has its values, or `Encoded`."""
        form = self.store.formats[b]
        for name, plane in form.plane_names(b).items():
            if form.has_values(plane):
                return self.store.planes[i][name]
        return Encoded((self, i, b), partial(self._decode, i, b), partial(self._write, i, b), self._live)

    def _beside(self, i: int) -> dict[str, str]:
        """Return planes of a parameter that its values do not determine, and the names under which they are saved.

        Compensated bfloat16 has two ways to write a value half way between two.
        """
        planes = self.store.formats["p"].plane_names("p").items()
        own = self.own_planes(i)
        return {f"param.{plane.suffix}": name for name, plane in planes if name in own and plane.view}

    def expose(self, i: int, state: Any) -> None:
        """Show a parameter's state under torch's names."""
        shown = self._shown(i)
        if not shown and not self.shows_step:
            return
        entries = state[self.params[i]]
        for name, count in self.counts.shown(i).items() if self.shows_step else ():
            entries.show(name, count)
        for b, name in shown.items():
            entries.show(name, self._entry(i, b))
        for name, plane in self._beside(i).items():
            entries.show(name, self.store.planes[i][plane])

    def reread(self, i: int, entries: ParameterState) -> None:
        """Follow what others have made of a parameter's state: what is gone, and what is another tensor now."""
        ours, planes = set(), self.store.planes[i]
        for b, name in self._shown(i).items():
            now = entries.stored(name)
            if now.owner == (self, i, b) if type(now) is Encoded else now is self._entry(i, b):
                ours.add(name)
            else:
                for plane in self.store.formats[b].plane_names(b).keys() & self.own_planes(i).keys():
                    del planes[plane]
        if not ours and entries.get("step") is None:
            self.counts.vectors["step"][i] = 0
        ours |= {name for name, plane in self._beside(i).items() if entries.stored(name) is planes[plane]}
        self.take(i, {name: entries[name] for name in entries if name not in ours})
        for name in [name for name in entries if is_beside(name) and name not in ours]:
            dict.pop(entries, name)

    def take(self, i: int, given: Mapping[str, Any], *, copy: bool = False) -> None:
        """Take a parameter's state by torch's names: the tensors where they fit, or with `copy` their values."""
        theirs = {self.names.of_value(b): b for b in self.store.formats if b != "g"}
        values = {}
        for name, value in given.items():
            if name in theirs and value is not None:
                b = theirs[name]
                self._require_values(i, b, value)
                if b != "p" or len(self.store.formats[b].planes) > 1:  # loading never writes parameters
                    values[b] = placed_as(value, self.params[i])
        for name, vector in self.counts.vectors.items():
            if given.get(name) is not None:
                vector[i] = float(given[name])
            elif name == "step" and values.keys() - {"p"}:
                vector[i] = max(vector[i], 1)
        for b, value in values.items():
            if len(self.store.formats[b].planes) > 1:
                for name in self.store.formats[b].plane_names(b):
                    if b != "p" or name != self.store.forward("p"):
                        self.store.allocate(i, name)
                self._encode(i, b, value)
                for name, plane in self._beside(i).items() if b == "p" else ():
                    exact = given.get(name)
                    if exact is not None and is_distributed(exact) == is_distributed(self.params[i]):  # not so in 0.1
                        local(self.store.planes[i][plane]).copy_(local(placed_as(exact, self.params[i])))
            else:
                self._take_tensor(i, b, value, copy=copy)

    def _require_values(self, i: int, b: str, value: Any) -> None:
        text = f"the state {self.names.of_value(b)!r} of {self.labels[i]}"
        require_values(value, self.params[i], b, self.store.formats[b], text, exactly=False)

    def _take_tensor(self, i: int, b: str, value: Any, *, copy: bool) -> None:
        """Take a tensor as it is where it fits, or a copy."""
        ((name, plane),) = self.store.formats[b].plane_names(b).items()
        tensor, p = local(value), local(self.params[i])
        fits = tensor.dtype == element_type(plane) and is_dense(tensor) and same_order(tensor, p)
        self.store.planes[i][name] = value
        if copy or not fits:
            local(self.store.allocate(i, name)).copy_(tensor.detach())

    def _decode(self, i: int, b: str) -> torch.Tensor:
        """Return the values of a buffer, a new tensor, distributed as the parameter is."""
        p = self.params[i]
        with torch.no_grad(), torch.inference_mode(mode=False):
            values = tensor_of_values(self.store.decode(i, b), local(p))
            if is_distributed(p):
                values = type(p).from_local(values, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        return values

    @torch.no_grad()
    def _write(self, i: int, b: str, value: Any) -> None:
        """Store values that somebody has changed in what `_decode` returned."""
        self._require_values(i, b, value)
        self._encode(i, b, value)

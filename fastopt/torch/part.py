"""The parameters of one group that are kept alike: their memory, what has become of it, and one launch for all.

Each parameter has a row: where it lies, and where its gradient and its state do. Rows are made once and hold as long as
the addresses do; at each step those are compared, tensor by tensor (`before`). In flat buffers neighbours are one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from fastopt.errors import LayoutError, explain
from fastopt.groups import initial_state
from fastopt.kernels.form import exact, form
from fastopt.kernels.noise import noise_keys
from fastopt.kernels.program import Program, host_scalars, plan, planes
from fastopt.kernels.storage import STORAGES, TILE
from fastopt.torch import walks
from fastopt.torch.before import MOVED, SAME, before
from fastopt.torch.flat import ALIGNED, Flat
from fastopt.torch.kept import formats
from fastopt.torch.state import State
from fastopt.torch.tensors import (
    describe,
    local,
    on_stream,
    require_gradient,
    require_parameter,
    same_order,
    torch_type,
)

_TIE = "share one nn.Parameter between modules to tie them"


@dataclass
class Bucket:
    """Active parameters that have taken equally many steps, and so share the scalars of the next."""

    index: Any  # which of the part's parameters: an array, or a slice of them all
    rows: np.ndarray  # which of the active ones is each row given to the launch; of merged rows the first
    t: int
    entries: dict[str, float]
    launch: Any


class Part(State):
    """Parameters of one group and of one type and device.

    `names` says what errors call them, `first` is the offset of the first for noise. With `flatten` parameters,
    gradients and state move into flat buffers.
    """

    def __init__(
        self, params: Sequence[Any], names: Sequence[str], first: int, entries: dict[str, float], *, flatten: bool
    ):
        super().__init__(params, names, entries)
        self.objects = np.fromiter(map(id, self.params), np.int64, len(self.params))
        self.rule: Any = None
        self.shape: tuple = ()
        self.before: Any = None  # what the last step found
        self.buckets: list[Bucket] = []
        tensors = [local(p) for p in params]
        self.templates = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors]
        self.device = params[0].device
        sizes = [t.numel() for t in tensors]
        self.offsets = first + np.cumsum([0, *(-(-n // TILE) * TILE for n in sizes)])
        self.flatten = flatten

    def holds(self, given: Any) -> bool:
        """Whether a group's parameters are still these."""
        return walks.holds(given, self.params, self.objects)

    @property
    def end(self) -> int:
        """The offset after the last parameter."""
        return int(self.offsets[-1])

    def follow(self, rule: Any, storage: Any, where: str) -> None:
        """Take another rule, or the same again: its program, and the formats of its buffers."""
        if rule is self.rule:
            return
        shape = exact(form(rule))
        if shape == self.shape:  # numbers alone have changed, as a scheduler changes them at each step
            self.rule, self.scalars = rule, host_scalars(self.program, rule)
            return
        kept = formats(rule, storage, self.params[0].dtype, where)
        changed = [b for b in kept if self.kept.get(b, kept[b]) != kept[b]]
        program, self.scalars = plan(rule, tuple(kept.items()))
        if changed and any(self.memory):
            what = f"this change of settings would keep the state {changed[0]!r} in another format."
            got, expected = kept[changed[0]], self.kept[changed[0]]
            raise LayoutError(explain(where, what, got=got, expected=expected, do="name its format in storage="))
        self.kept |= kept
        self.stale |= self.rule is None or program is not self.program
        self.rule, self.program, self.shape = rule, program, shape
        if self.flatten and self.flat is None:
            coarse = program.noise or program.tiled or storage is not None
            align = TILE if coarse else ALIGNED
            self._require_separate(where)
            self.flat = Flat(self.params, align, self._gradient_type())

    def _require_separate(self, where: str) -> None:
        """Raise a LayoutError if parameters overlap: in flat buffers each would silently get memory of its own."""
        at = sorted(
            (p.data_ptr(), p.numel() * p.element_size(), name) for p, name in zip(self.params, self.names, strict=True)
        )
        placed = [x for x in at if x[1]]
        for (first, size, name), (after, _, other) in pairwise(placed):
            if first + size > after:
                raise LayoutError(explain(where, f"the memory of {name} and {other} overlaps.", do=_TIE))

    def _gradient_type(self) -> torch.dtype:
        return torch_type(STORAGES[self.kept["g"]].planes[0])

    # What has changed since the last step.

    def look(self, where: str) -> None:
        """Compare addresses with those of the last step, and raise a LayoutError where a step is impossible."""
        self.moved = False
        if not self.stale and self.steps._version == self.version:
            found = self.before.compare(hold=not self.within)
            if found == SAME:
                return
            if found == MOVED and self._may_move():
                self._require_apart(self.before.now, np.flatnonzero(self.before.now != self.before.g_at), where)
                self.moved = True
                return
        self.stale, self.buckets = True, []
        grads = self.grads = [p.grad for p in self.params]
        self.found = [i for i, g in enumerate(grads) if g is not None]
        kind = self._gradient_type()
        for i in self.found:
            require_parameter(self.params[i], where, self.names[i])
            self._require_unchanged(i, where)
            require_gradient(grads[i], self.params[i], kind, where, self.names[i])
            self.require_own(i, where)

    def release(self) -> None:
        """Let go of the gradients, which a step holds so that others can free none of them meanwhile."""
        self.grads = []
        if self.before is not None:
            self.before.release()

    def _require_unchanged(self, i: int, where: str) -> None:
        """Raise a LayoutError if a parameter is not of the type, place, shape and order that its state has."""
        p, former = local(self.params[i]), self.templates[i]
        same = p.dtype == former.dtype and p.device == self.device and p.shape == former.shape
        if same and same_order(p, former):
            return
        if same and self.flat is None and not self.memory[i]:
            self.templates[i] = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="meta")
            return
        what, do = f"{self.names[i]} has changed since the optimizer was made.", "convert the model first, then make it"
        expected = f"{former.dtype}{list(former.shape)} with strides {list(former.stride())} on {self.device}"
        got = f"{describe(p)}, strides {list(p.stride())}"
        raise LayoutError(explain(where, what, got=got, expected=expected, do=do))

    def _may_move(self) -> bool:
        """Whether the rows stay what they are though gradients lie elsewhere: in flat buffers neighbours are one."""
        if self.flat is None:
            return True
        return not (((self.before.now == self.flat_at) != self.own) & (self.g_bytes > 0)).any()

    def _require_apart(self, g_at: np.ndarray, which: np.ndarray, where: str) -> None:
        """Raise a LayoutError if one of these gradients lies in memory that the step writes."""
        first, size = g_at[which], self.g_bytes[which]
        after = np.searchsorted(self.starts, first, "right")
        into = ((self.ends[after - 1] > first) | (self.starts[after] < first + size)) & (size > 0)
        if into.any():
            what = f"the gradient of {self.names[self.found[which[into][0]]]} lies in memory of a"
            raise LayoutError(explain(where, f"{what} parameter or its state.", do="give it memory of its own"))

    # Memory.

    def prepare(self, names: dict[str, str], state: Any, *, counted: bool, where: str) -> None:
        """Make rows of what was found by `look`, and what state is missing.

        `state` is the optimizer's; `counted` says whether it shows how many steps were taken. Where it does not, as in
        torch.optim.SGD, the first step is the one that makes the state.
        """
        if not self.stale:
            if self.moved:
                self._move()
            return
        initial = initial_state(self.rule, self.program)
        for i in self.found:
            self.settle(i)
            made = [b for b in self.program.storages if b != "g" and self._allocate(i, b, initial.get(b, 0.0))]
            if not counted and set(made) - {"p"}:
                self.counts[i] = 0
            self.expose(i, names, state, counted=counted)
        self._arrange(where)
        self.stale = False

    def _arrange(self, where: str) -> None:
        program, params = self.program, self.params
        chosen = set(self.found)
        self.active = [params[i] for i in self.found]
        self.idle = [p for i, p in enumerate(params) if i not in chosen]
        tensors = list(map(local, self.active))
        grads = [local(p.grad) for p in self.active]
        forward = list(planes("p", program.storages["p"]))[program.storages["p"].forward]
        kept = [b.name for b in program.buffers if b.name != forward and b.buffer != "g"]
        self.before = before(self.active, self.idle, [self.memory[i][name] for i in self.found for name in kept])
        self.g_bytes = np.array([g.numel() * g.element_size() for g in grads], np.int64)
        found = np.array(self.found, np.intp)
        self.own = own = np.zeros(len(found), bool)
        if self.flat is not None:
            own[:] = self.flat.among(self.found, self.active)
            self.flat_at = self.flat.gradients_at(found)
        self.within = self.flat is not None and bool(own.all())  # what holds the gradients is ours
        columns = []
        for b in program.buffers:
            given = self.before.p_at if b.name == forward else self.before.g_at if b.buffer == "g" else None
            columns.append([self.memory[i][b.name].data_ptr() for i in self.found] if given is None else given)
        sizes = np.array([t.numel() for t in tensors], np.int64)
        at = np.array(columns, np.int64).reshape(len(columns), len(sizes)).T
        written = [k for k, b in enumerate(program.buffers) if b.buffer != "g"]
        self._require_disjoint(at, sizes, written, where)
        self._require_apart(self.before.g_at, np.arange(len(found)), where)
        self.buckets = []
        groups: dict[tuple, list[int]] = {}
        values = [self.counts[found], *(x.numpy()[found] for x in self.entries.values())]
        for k, equal in enumerate(zip(*(v.tolist() for v in values), strict=True)):
            groups.setdefault(equal, []).append(k)
        for (t, *entries), rows in groups.items():
            member = np.array(rows)
            lengths = sizes[member]
            if self.flat is not None:
                member = member[lengths > 0]
                member, lengths = self.flat.merged(member, found, own, sizes, gaps=not program.tiled)
            whole = len(rows) == len(params)
            self.buckets.append(
                Bucket(
                    slice(None) if whole else found[rows],
                    member,
                    int(t),
                    dict(zip(self.entries, entries, strict=True)),
                    _bind(program, lengths, self.offsets[found[member]], at[member], self.device),
                )
            )
        self.version = self.steps._version  # which others raise when they write a count; this step does not

    def _require_disjoint(self, at: np.ndarray, sizes: np.ndarray, written: list[int], where: str) -> None:
        """Note where the step writes, in order, and raise a LayoutError if two of those places overlap."""
        buffers = [self.program.buffers[k] for k in written]
        lengths = np.stack(
            [-(-sizes // TILE) * b.dtype.itemsize if b.tiled else sizes * b.dtype.itemsize for b in buffers]
        )
        starts = at[:, written].T.ravel()
        order = np.argsort(starts, kind="stable")
        order = order[lengths.ravel()[order] > 0]
        beyond = np.iinfo(np.int64).max  # so that there is always one before and one after
        self.starts = np.concatenate([[0], starts[order], [beyond]])
        self.ends = np.concatenate([[0], (starts + lengths.ravel())[order], [beyond]])
        clash = np.flatnonzero(self.ends[:-1] > self.starts[1:])
        if clash.size:
            pair = [self.names[self.found[int(order[k]) % len(sizes)]] for k in (clash[0] - 1, clash[0])]
            what = f"the memory of {pair[0]} and {pair[1]}, or of their state, overlaps."
            raise LayoutError(explain(where, what, do=_TIE))

    def _move(self) -> None:
        """Write where the gradients now are into the rows."""
        k = next(k for k, b in enumerate(self.program.buffers) if b.buffer == "g")
        for bucket in self.buckets:
            bucket.launch.set_column(k, self.before.now[bucket.rows])
        self.before.settle()

    # A step.

    def calls(self, seed: int, advance: Callable[[Any, int, dict], tuple[Any, dict]]) -> list[tuple]:
        """Prepare the step of what `prepare` has arranged; `advance` gives the rule and the entries of step t."""
        calls: list[tuple] = []
        for bucket in self.buckets:
            t = bucket.t + 1
            rule, entries = advance(self.rule, t, bucket.entries)
            scalars = self.scalars if rule is self.rule else host_scalars(self.program, rule)
            calls += bucket.launch.calls(noise_keys(seed, t) if self.program.noise else (), scalars(t))
            for name, value in entries.items():
                calls.append((self.entries[name].numpy().__setitem__, bucket.index, value))
            calls += [
                (self.counts.__setitem__, bucket.index, t),
                (setattr, bucket, "t", t),
                (setattr, bucket, "entries", entries),
            ]
        return calls


def _bind(program: Program, sizes: np.ndarray, offsets: np.ndarray, at: np.ndarray, device: torch.device) -> Any:
    if device.type == "cuda":
        from fastopt.kernels import cuda_table

        with on_stream(device, "fastopt.torch"):  # CuPy gives memory that was freed on a stream out on it again
            return cuda_table.bind(program, sizes, offsets, at, device.index)
    from fastopt.kernels import cpu_table

    return cpu_table.bind(program, sizes, offsets, at)

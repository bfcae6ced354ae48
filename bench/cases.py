"""What is timed, as data: a case is a rule, a storage, a size, threads and a backend; a part is a list of cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fastopt.errors import SettingError, suggest
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.formats import PRESETS
from fastopt.kernels.rules.cases import CASES

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
SMALL = "100x10-1000"  # a hundred tensors of 10 to 1,000 parameters
LARGE = "64Mi"


@dataclass(frozen=True)
class Case:
    """One thing to time. `size` is a number of parameters, "64Mi", or of tensors, "100x1000" and "100x10-1000"."""

    rule: str = "adam-decoupled"
    storage: str = "f32"
    size: str = LARGE
    threads: int = 1
    backend: str = "cpu"
    groups: int = 1

    @property
    def name(self) -> str:
        """Say it in one line; it tells cases apart."""
        more = [f"{self.groups} groups"] * (self.groups > 1) + [self.backend] * (self.backend == "reference")
        return ", ".join([self.rule, self.storage, self.size, self.workers, *more])

    @property
    def workers(self) -> str:
        """Say what works on it: the threads, or a device."""
        return "cuda" if self.backend == "cuda" else f"{self.threads} thread{'s' * (self.threads > 1)}"

    @cached_property
    def tensors(self) -> dict[str, int]:
        """The parameters of each tensor, by name; names begin with their group's."""
        return {f"g{k % self.groups}.w{k}": n for k, n in enumerate(tensor_sizes(self.size))}

    @property
    def elements(self) -> int:
        """The parameters of all tensors."""
        return sum(self.tensors.values())

    @property
    def settings(self) -> dict[str, dict[str, float]] | None:
        """What the groups of an Optimizer change, each has its own learning rate; None where there is one group."""
        lr = CASES[self.rule].lr if self.groups > 1 else 0.0
        return {f"g{k}.*": {"lr": lr * (1 + k / 1000)} for k in range(self.groups)} if self.groups > 1 else None

    @cached_property
    def program(self) -> Program:
        """The rule traced with its storage."""
        return trace(CASES[self.rule], self.storage)

    @property
    def traffic(self) -> float:
        """The bytes that a step has to read and write."""
        return self.elements * self.program.bytes_per_parameter

    def as_dict(self) -> dict[str, Any]:
        """Give it as results keep it."""
        return asdict(self)


class Entry(NamedTuple):
    """A case of a part, and which peers stand beside it.

    "all", "light" (those that need no process of their own), "torch" (of those, torch.optim), "calls" or "".
    """

    part: str
    case: Case
    peers: str = "all"

    @property
    def key(self) -> str:
        """Name the entry in a file of results."""
        return f"{self.part}: {self.case.name}"


def tensor_sizes(text: str) -> tuple[int, ...]:
    """Read a size: "64Mi", "100x1000", or "100x10-1000", which are drawn at random, the same every time.

    >>> tensor_sizes("2Ki"), tensor_sizes("3x10")
    ((2048,), (10, 10, 10))
    """
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)(Ki|Mi|Gi)?(?:-(\d+)(Ki|Mi|Gi)?)?", text)
    if found:
        count, low = int(found[1] or 1), int(found[2]) * UNITS[found[3] or ""]
        high = int(found[4]) * UNITS[found[5] or ""] if found[4] else low
        if 1 <= low <= high and 1 <= count <= 100_000 and count * high <= 1 << 40:
            return (
                tuple(np.random.default_rng(0).integers(low, high + 1, count).tolist()) if found[4] else (low,) * count
            )
    expected = "a number of parameters (1000, 64Mi), or of tensors and their parameters (100x1000, 100x10-1000)"
    raise SettingError("this is no size.", got=repr(text), expected=expected)


def distinct_rules() -> list[str]:
    """List the rules of CASES that have a kernel of their own: rows that differ only in numbers have one, the first."""
    first = {trace(rule, np.float32).name: name for name, rule in reversed(CASES.items())}
    return [name for name in CASES if first[trace(CASES[name], np.float32).name] == name]


MAIN = (
    "sgd", "momentum-heavy-ball", "rmsprop", "rmsprop-centered", "rmsprop-momentum", "rmsprop-centered-momentum",
    "adam", "adam-decoupled", "adagrad", "lion",
)  # fmt: skip
"""The rules that stand beside every peer; the other forms stand beside torch.optim."""

STORED = ("sgd", "momentum-heavy-ball", "rmsprop", "adam-decoupled", "lion")
"""The rules that are timed in every storage of the picture."""

SHOWN = tuple(name for name in PRESETS if name not in ("f64", "mixed_f16"))
IN_CACHE = "20Ki"  # parameters: 560 KiB of float32 Adam
SIZES = ("1", "10", "100", "1000", "10007", "100003", "1Mi", "4Mi", "16Mi", "64Mi", "256Mi")

PARTS = {
    "rules": "every kernel in float32 from memory",
    "storages": "AdamW and others in every storage, from memory; AdamW in cache on one thread",
    "sizes": "AdamW in float32 over sizes, one tensor",
    "tensors": "AdamW on many tensors of 10 to 1,000 parameters",
    "groups": "AdamW on 64 tensors of 1,000 in groups, each with its own learning rate",
    "threads": "SGD and AdamW from memory, on one thread and on more",
    "calls": "what each way to ask for a step costs: step, step(grads), scheduled, update, the kernel alone",
    "torch": "fastopt.torch in place of torch.optim, on torch's tensors",
    "first": "first steps: import, cold compile, warm cache, beside what torch.compile and DeepSpeed build",
    "memory": "what a fresh process that steps holds, and holds at most",
}
"""The parts of a run and what they say. "first" and "memory" have measurements of their own (first.py, memory.py)."""


def plan(part: str, threads: int, quick: bool) -> list[Entry]:
    """List the cases of a part; quick ones are fewer and smaller, so that all parts take two minutes."""
    large = "16Mi" if quick else LARGE
    case = Case(size=large, threads=threads)
    peers = "light" if quick else "all"
    match part:
        case "rules":
            known = ("sgd", "rmsprop-centered-momentum", "adam-decoupled", "lion") if quick else distinct_rules()
            found = [(replace(case, rule=r), peers if r in MAIN else "torch") for r in known]
        case "storages":
            stored = [(r, s) for r in STORED for s in SHOWN if r == "adam-decoupled" or s in PICTURED]
            if quick:
                stored = [("adam-decoupled", s) for s in ("f32", "bf16", "split", "8bit")]
            # Beside peers stand the storages of Adam; its float32, which does so among the rules, is what they save.
            found = [
                (replace(case, rule=r, storage=s), peers if r == "adam-decoupled" and s != "f32" else "")
                for r, s in stored
                if (r, s) == ("adam-decoupled", "f32") or s != "f32"
            ]
            cached = ("f32", "bf16", "8bit") if quick else SHOWN
            found += [(replace(case, storage=s, size=IN_CACHE, threads=1), "") for s in cached]
        case "sizes":
            found = [(replace(case, size=n), peers) for n in (SIZES[3:9:2] if quick else SIZES)]
        case "tensors":
            counts = (100,) if quick else (1, 10, 100, 1000)
            found = [(replace(case, size=f"{n}x10-1000"), peers) for n in counts]
        case "groups":
            counts = (1, 16) if quick else (1, 4, 16, 64)
            found = [(replace(case, size="64x1000", groups=n), "light") for n in counts]
        case "threads":
            many = sorted({1, *(1 << k for k in range(threads.bit_length()) if 1 << k <= threads), threads})
            found = [
                (replace(case, rule=r, threads=n), "light")
                for r in (("adam-decoupled",) if quick else ("sgd", "adam-decoupled"))
                for n in many
            ]
        case "calls":
            found = [(replace(case, size=n), "calls") for n in ("1000", SMALL)]
        case "torch":
            made = [(r, "1000x10-1000") for r in ("adam-decoupled", "rmsprop")]
            if not quick:
                made += [("adam-decoupled", "10x10-1000"), ("adam-decoupled", large), ("rmsprop", large)]
            found = [(replace(case, rule=r, size=n), "drop-in") for r, n in made]
        case _:
            found = []
    return [Entry(part, one, beside) for one, beside in found]


PICTURED = ("f32", "bf16", "split", "8bit", "split_8bit", "bf16_8bit")
"""The storages of the picture of shares."""


def chosen(
    rules: Sequence[str], storages: Sequence[str], sizes: Sequence[str], threads: Sequence[int], backend: str
) -> list[Entry]:
    """List all cases of these rules, storages, sizes and threads, or raise a SettingError for one that is not there."""
    for name in rules:
        if name not in CASES:
            raise SettingError(f"there is no rule {name!r}.", do=suggest(name, list(CASES)))
    for name in storages:
        if name not in PRESETS:
            raise SettingError(f"there is no storage {name!r}.", do=suggest(name, list(PRESETS)))
    for text in sizes:
        tensor_sizes(text)
    made = product(rules, storages, sizes, threads)
    return list(dict.fromkeys(Entry("chosen", Case(*each, backend)) for each in made))

"""What is timed, as data: a case is a rule, storage, size, number of threads and backend; a part is a list of cases."""

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
from fastopt.kernels.rules import EMA, Adam, ClipByGlobalNorm, ScaledGradient, SkipNonfinite, ZeroGradients
from fastopt.kernels.rules.cases import CASES

AROUND: dict[str, Any] = {
    "clip": ClipByGlobalNorm(Adam(lr=0.01, eps=1e-3, weight_decay=0.5), max_norm=0.5),
    "unscale-skip-clip-ema-zero": ScaledGradient(
        SkipNonfinite(
            ZeroGradients(
                EMA(
                    ClipByGlobalNorm(Adam(lr=0.01, eps=1e-3, weight_decay=0.5), max_norm=0.5),
                    decay=0.9,
                    bias_correction=False,
                )
            )
        ),
        factor=0.5,
    ),
}
"""AdamW with what surrounds a step, in the step: rules of their own for the benchmark, because peers take passes."""

TIMED: dict[str, Any] = {**CASES, **AROUND}
"""All rules that a case may have, by name."""

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
SMALL = "100x10-1000"  # 100 tensors of 10 to 1,000 parameters each
LARGE = "64Mi"


@dataclass(frozen=True)
class Case:
    """One optimizer step to time. `size` is one tensor ("64Mi") or several ("100x1000", "100x10-1000")."""

    rule: str = "adam-decoupled"
    storage: str = "f32"
    size: str = LARGE
    threads: int = 1
    backend: str = "cpu"
    groups: int = 1

    @property
    def name(self) -> str:
        """A one-line name, unique among cases."""
        more = [f"{self.groups} groups"] * (self.groups > 1) + [self.backend] * (self.backend == "reference")
        return ", ".join([self.rule, self.storage, self.size, self.runs_on, *more])

    @property
    def runs_on(self) -> str:
        """The number of threads ("2 threads"), or "cuda"."""
        return "cuda" if self.backend == "cuda" else f"{self.threads} thread{'s' * (self.threads > 1)}"

    @cached_property
    def tensors(self) -> dict[str, int]:
        """The number of parameters of each tensor, by name; a name begins with that of its group: "g0.w3"."""
        return {f"g{k % self.groups}.w{k}": n for k, n in enumerate(tensor_sizes(self.size))}

    @property
    def elements(self) -> int:
        """The number of parameters of all tensors."""
        return sum(self.tensors.values())

    @property
    def settings(self) -> dict[str, dict[str, float]] | None:
        """The `groups` argument of an Optimizer: a learning rate for each group, or None if there is only one group."""
        lr = TIMED[self.rule].lr if self.groups > 1 else 0.0
        return {f"g{k}.*": {"lr": lr * (1 + k / 1000)} for k in range(self.groups)} if self.groups > 1 else None

    @cached_property
    def program(self) -> Program:
        """The rule, traced with the storage."""
        return trace(TIMED[self.rule], self.storage)

    @property
    def traffic(self) -> float:
        """The number of bytes that a step has to read and write."""
        return self.elements * self.program.bytes_per_parameter

    def as_dict(self) -> dict[str, Any]:
        """Return the case as results files store it."""
        return asdict(self)


class Entry(NamedTuple):
    """A case of a part, and the peers to compare it with.

    `peers` is "all", "light" (peers that run in this process), "torch" (only torch.optim among those), "calls"
    (fastopt's APIs for one step), "drop-in" (fastopt.torch and torch.optim), "around" (passes of torch around a step)
    or "" (none).
    """

    part: str
    case: Case
    peers: str = "all"

    @property
    def key(self) -> str:
        """The key of this entry in a results file."""
        return f"{self.part}: {self.case.name}"


def tensor_sizes(text: str) -> tuple[int, ...]:
    """Parse a size into the number of parameters of each tensor; those of "100x10-1000" are random with a fixed seed.

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
    raise SettingError("this is not a size.", got=repr(text), expected=expected)


def distinct_rules() -> list[str]:
    """Return the rows of CASES that compile to different kernels: of rows with the same kernel, the first."""
    first = {trace(rule, np.float32).name: name for name, rule in reversed(CASES.items())}
    return [name for name in CASES if first[trace(CASES[name], np.float32).name] == name]


MAIN = (
    "sgd", "momentum-heavy-ball", "rmsprop", "rmsprop-centered", "rmsprop-momentum", "rmsprop-centered-momentum",
    "adam", "adam-decoupled", "adagrad", "lion",
)  # fmt: skip
"""The rules that are compared with every peer; all others are compared with torch.optim only."""

STORAGE_RULES = ("sgd", "momentum-heavy-ball", "rmsprop", "adam-decoupled", "lion")
"""The rules that are timed in several storages."""

TIMED_STORAGES = tuple(name for name in PRESETS if name not in ("f64", "mixed_f16"))
COMMON_STORAGES = ("f32", "bf16", "split", "8bit", "split_8bit", "bf16_8bit")
"""The storages in which all of STORAGE_RULES are timed; AdamW is timed in all of TIMED_STORAGES."""

IN_CACHE = "20Ki"  # parameters: float32 Adam then reads and writes 560 KiB
SIZES = ("1", "10", "100", "1000", "10007", "100003", "1Mi", "4Mi", "16Mi", "64Mi", "256Mi")

PARTS = {
    "rules": "every kernel in float32, larger than the cache",
    "storages": "AdamW and other rules in every storage, larger than the cache; AdamW in cache on one thread",
    "sizes": "AdamW in float32 on one tensor of different sizes",
    "tensors": "AdamW on many tensors of 10 to 1,000 parameters",
    "groups": "AdamW on 64 tensors of 1,000 in parameter groups with different learning rates",
    "threads": "SGD and AdamW, larger than the cache, on one thread and on more",
    "calls": "the cost of each API for one step: step, step(grads), scheduled lr, update, the kernel alone",
    "torch": "fastopt.torch compared with torch.optim, on torch tensors",
    "around": "AdamW with what surrounds a step (unscale, skip, clip, average, zero), and LAMB, beside passes of torch",
    "first": "time to the first step: imports, compiling or loading kernels; also torch.compile and DeepSpeed",
    "memory": "memory of a fresh process after some steps, and its peak during a step",
}
"""The parts of a run with their descriptions. "first" and "memory" are measured by first.py and memory.py."""


def plan(part: str, threads: int, quick: bool) -> list[Entry]:
    """Return the cases of a part; with `quick`, fewer and smaller ones, so that all parts take two minutes."""
    large = "16Mi" if quick else LARGE
    case = Case(size=large, threads=threads)
    peers = "light" if quick else "all"
    match part:
        case "rules":
            known = ("sgd", "rmsprop-centered-momentum", "adam-decoupled", "lion") if quick else distinct_rules()
            found = [(replace(case, rule=r), peers if r in MAIN else "torch") for r in known]
        case "storages":
            stored = [
                (r, s) for r in STORAGE_RULES for s in TIMED_STORAGES if r == "adam-decoupled" or s in COMMON_STORAGES
            ]
            if quick:
                stored = [("adam-decoupled", s) for s in ("f32", "bf16", "split", "8bit")]
            # AdamW in float32 is the baseline of the storages. It is compared with peers in the part "rules".
            found = [
                (replace(case, rule=r, storage=s), peers if r == "adam-decoupled" and s != "f32" else "")
                for r, s in stored
                if (r, s) == ("adam-decoupled", "f32") or s != "f32"
            ]
            cached = ("f32", "bf16", "8bit") if quick else TIMED_STORAGES
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
        case "around":
            found = [(replace(case, rule=r, size=n), "around") for n in (large, "1000x10-1000") for r in AROUND]
            found += [(replace(case, rule="lamb"), "around")]
        case _:
            found = []
    return [Entry(part, one, compared) for one, compared in found]


def chosen(
    rules: Sequence[str], storages: Sequence[str], sizes: Sequence[str], threads: Sequence[int], backend: str
) -> list[Entry]:
    """Return an entry for each combination of these values, or raise a SettingError for an unknown one."""
    for name in rules:
        if name not in TIMED:
            raise SettingError(f"there is no rule {name!r}.", do=suggest(name, list(TIMED)))
    for name in storages:
        if name not in PRESETS:
            raise SettingError(f"there is no storage {name!r}.", do=suggest(name, list(PRESETS)))
    for text in sizes:
        tensor_sizes(text)
    made = product(rules, storages, sizes, threads)
    return list(dict.fromkeys(Entry("chosen", Case(*each, backend)) for each in made))

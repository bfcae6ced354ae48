"""The backends by name: what a step runs on. The only module above them that names one; each is imported when used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

from fastopt.errors import BackendError, SettingError, suggest
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.launch import Launch, Numbers, Rows


class Backend(NamedTuple):
    """Where a backend is, and whose memory it steps on."""

    module: str  # its folder, with `bind(program, rows)`, and `print_source(program)` if it prints
    device: str  # kind of device: "cpu" or "cuda"
    language: str = ""  # of what it prints


BACKENDS: dict[str, Backend] = {
    "reference": Backend("fastopt.kernels.reference", "cpu"),
    "cpu": Backend("fastopt.kernels.cpu", "cpu", "python"),
    "cuda": Backend("fastopt.kernels.cuda", "cuda", "cpp"),
}
"""The table of backends; "auto" means the compiled one for the device where the arrays are."""

_COMPILED = {"cpu": "cpu", "cuda": "cuda"}  # kind of device → its compiled backend


@cache
def _module(name: str) -> ModuleType:
    return import_module(BACKENDS[name].module)


def bind(name: str, program: Program, rows: Rows) -> Launch:
    """Prepare the steps of a program over rows on a backend."""
    return _module(name).bind(program, rows)


def require_together(programs: Sequence[Program]) -> None:
    """Raise a SettingError unless these programs can take a step together.

    That is with the same totals over all, or none; and all of them may be skipped, or none.
    """
    kinds = [program.kinds_over_all for program in programs]
    for program, kind in zip(programs, kinds, strict=True):
        if kind != kinds[0]:
            what = "the rules of these groups take different totals over all parameters."
            got = f"{programs[0].rule} and {program.rule}"
            raise SettingError(what, got=got, do="put the same rule, as ClipByGlobalNorm, around each group's")
        if (program.condition is None) != (programs[0].condition is None):
            what = "the rules of some groups skip steps, and those of others do not."
            got = f"{programs[0].rule} and {program.rule}"
            raise SettingError(what, got=got, do="put the same rule, as SkipNonfinite, around each group's")


def steps(name: str, taken: Sequence[tuple[Launch, tuple, Numbers]]) -> list[tuple]:
    """Prepare the step of several launches at once, with totals over all; each comes with its keys and scalars."""
    return _module(name).steps(taken)


def print_source(name: str, program: Program) -> str:
    """Return the source that a program becomes on a backend, complete and readable."""
    if name not in BACKENDS or not BACKENDS[name].language:
        printing = [known for known, backend in BACKENDS.items() if backend.language]
        raise BackendError(f"the backend {name!r} prints nothing.", do=suggest(name, printing))
    return _module(name).print_source(program)


def choose(name: Any, device: str) -> str:
    """Return the backend that steps on the memory of a device ("cpu", "cuda:0"), or raise a BackendError.

    "auto" is the compiled one.
    """
    kind = device.partition(":")[0]
    known = ["auto", *BACKENDS]
    if name not in known:
        raise BackendError("there is no such backend.", got=repr(name), do=suggest(str(name), known))
    if name == "auto":
        return _COMPILED[kind]
    if BACKENDS[name].device != kind:
        on_cpu = BACKENDS[name].device == "cpu"
        raise BackendError(
            f"the backend {name!r} is not for arrays that live there.",
            got=device,
            expected="the CPU's memory" if on_cpu else "a CUDA device",
            do="copy them with .get()" if on_cpu else "copy them with cupy.asarray",
        )
    return name

"""The languages in which a step can be exported, by name: to be compiled and called without fastopt."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastopt.errors import BackendError, suggest
from fastopt.kernels.compiler.program import Program

LANGUAGES: dict[str, str] = {"c": "fastopt.kernels.c.printer", "cuda": "fastopt.kernels.cuda.exported"}
"""Each with its module, which has `print_export(program, rule, command)` and is imported when used."""


def print_export(language: str, program: Program, rule: Any, command: str) -> str:
    """Return the source, complete in itself; `command` is said in it to have printed it.

    Raises:
        BackendError: there is no such language, or it has no source for such a rule.

    """
    if language not in LANGUAGES:
        do = suggest(str(language), list(LANGUAGES))
        raise BackendError("there is no such language.", got=repr(language), expected=", ".join(LANGUAGES), do=do)
    if program.matrices:
        raise BackendError(
            "the rule calls functions of whole matrices, which are no passes over elements.",
            got=program.rule,
            expected="a rule whose step is passes over elements, with totals or without, such as adam",
            do="step it with fastopt.Optimizer",
        )
    return import_module(LANGUAGES[language]).print_export(program, rule, command)

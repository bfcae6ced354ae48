"""`export_source`: a step as source code in another language, to be compiled and called without fastopt."""

from __future__ import annotations

from typing import Any

from fastopt.errors import raised_by
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.exports import print_export


@raised_by("export_source")
def export_source(rule: Any, storage: Any = "f32", language: str = "c") -> str:
    """Return one self-contained source file that takes the steps of a rule, with the same bits as fastopt.

    It has the step itself, a function that computes its scalars for a step t (where the rule's `scalars` can be
    written in that language; elsewhere a comment says what the caller computes) and, for rules and storages with random
    numbers, one that computes their keys. Comments say what each argument is. docs/export.md has examples.

    Args:
        rule: any rule without functions of matrices, the user's own included.
        storage: as for `fastopt.update`.
        language: "c", which is C99 and C++11, or "cuda", which nvcc compiles.

    Raises:
        RuleError: this is no rule, or it cannot be traced.
        SettingError: there is no such storage.
        BackendError: there is no such language, or the rule calls functions of whole matrices, as Muon does.

    >>> import fastopt
    >>> text = fastopt.export_source(fastopt.Adam(lr=1e-3), "8bit")
    >>> "void adam_pf32_gf32_mf8_vuf8(" in text
    True

    """
    return print_export(language, trace(rule, storage), rule, "fastopt.export_source")

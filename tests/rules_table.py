"""docs/rules.md, from the rules themselves: `python tests/rules_table.py` writes it, and a test checks it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import fastopt
from fastopt.kernels import rules
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.rules.around import Around

FILE = Path(__file__).parent.parent / "docs" / "rules.md"

HEAD = """\
# Rules

<!-- written by `python tests/rules_table.py`, do not edit -->

Every rule is one file in `kernels/rules/`, whose docstring has the formula, what each setting means, and where other
libraries differ. All run on every backend and in every storage. Bytes are those read and written per parameter and
step; `fastopt.torch` has a class of the same name for each, but for Momentum, which is SGD there. What settings have in
common, and what PyTorch and optax call the buffers, is in [settings and names](names.md).

| rule | bytes in float32 | in bf16_8bit | state | settings | source |
|---|---|---|---|---|---|
"""

AROUND = """
## Around any rule

These take a rule as their first setting, your own included, and combine: the step is still one pass, or one more
where a norm of all gradients is needed.

| rule | what it does | settings |
|---|---|---|
"""

MATRICES = """
## For matrices

The products of matrices are those of NumPy, CuPy or torch; all else is passes of kernels. Everything that is no
matrix goes to another rule, `aux`.

| rule | bytes in float32, outside of the products | in bf16_8bit | state | settings | source |
|---|---|---|---|---|---|
"""


def settings(rule: Any) -> str:
    """List the settings of a rule and their defaults."""
    found = []
    for f in dataclasses.fields(rule):
        default = "" if f.default is dataclasses.MISSING else f"={f.default!r}"
        found.append(f"`{f.name}{default}`")
    return ", ".join(found)


def source(rule: Any) -> str:
    """Return the paper that a rule's docstring names."""
    text = re.sub(r"\s+", " ", inspect.getdoc(rule) or "")
    found = re.search(r"Source: (.*?)\.?$", text)
    return found[1].replace("|", "\\|") if found else "—"


def row(rule: Any) -> str:
    """Return the row of a rule."""
    made = rule()
    plain, small = trace(made, "f32"), trace(made, "bf16_8bit")
    state = ", ".join(f"`{b}`" for b in plain.state) or "none"
    moved = (f"{program.bytes_per_parameter:.3g}" for program in (plain, small))
    return f"| `{rule.__name__}` | {' | '.join(moved)} | {state} | {settings(rule)} | {source(rule)} |"


def first_line(rule: Any) -> str:
    """Return what a rule is, in its docstring's first words."""
    return (inspect.getdoc(rule) or "").split("\n")[0].replace("|", "\\|")


def text() -> str:
    """Return the page."""
    around = sorted(
        (x for x in vars(rules).values() if isinstance(x, type) and issubclass(x, Around) and x is not Around),
        key=lambda x: x.__name__,
    )
    return "\n".join(
        [
            HEAD + "\n".join(map(row, fastopt.RULES.values())),
            MATRICES + "\n".join(map(row, fastopt.MATRIX_RULES.values())),
            AROUND + "\n".join(f"| `{x.__name__}` | {first_line(x)} | {settings(x)} |" for x in around),
            "",
        ]
    )


if __name__ == "__main__":
    FILE.write_text(text())

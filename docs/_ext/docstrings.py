"""Docstrings of this project as reStructuredText: what is indented is a formula or a table, line by line.

Sphinx would join the lines of an indented block. Sections (`Args:`, `Raises:`) and examples (`>>>`) stay as they are,
for napoleon and for docutils.
"""

import dataclasses
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")
_ESCAPED = re.compile(r"(`[^`]*`)|(\*|\||(?<=\w)_(?=\W|$))")


def convert(lines: list[str]) -> list[str]:
    """Return a docstring with its indented blocks as code blocks and without accidental markup."""
    made: list[str] = []
    block, section = False, ""
    for k, line in enumerate(lines):
        text, indented = line.strip(), line.startswith("    ")
        if text and not indented:
            found = _SECTION.match(text)
            section, block = found[1] if found else "", False
        if indented and not section and not block and not lines[k - 1].strip():
            made += [".. code-block:: text", ""]
            block = True
        if section == "Raises" and re.match(r"    \w[^:]*$", line) and not lines[k - 1].strip().endswith(","):
            made, section, line = [*made, ""], "", text  # a sentence about all of them, not one more exception
        example = text.startswith(">>>") or (made and made[-1].lstrip().startswith((">>>", "...")))
        made.append(line if block or example else _ESCAPED.sub(lambda m: m[1] or f"\\{m[2]}", line))
    return made


def _process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = convert(lines)


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what each rule and each schedule has by its contract: the class says what it computes."""
    if name in ("scalars", "update", "at", "initial", "added", "names", "unsigned", "exact", "loads_partly"):
        return getattr(thing, "__qualname__", name) not in ("EWA.update", "Schedule.at")
    return None


def _signature(app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: Any, returns: Any) -> Any:
    """Write the settings of a rule or schedule as a call: names and defaults, without the types."""
    if what == "class" and dataclasses.is_dataclass(thing):
        required = dataclasses.MISSING
        fields = [f.name if f.default is required else f"{f.name}={f.default!r}" for f in dataclasses.fields(thing)]
        return f"({', '.join(fields)})", None
    return None


def _strip(app: Sphinx, doctree: nodes.document) -> None:
    """Remove the empty line that ends an example in Markdown, where doctest needs it."""
    for block in doctree.findall(nodes.literal_block):
        block.children[:] = [nodes.Text(block.astext().rstrip("\n"))]
        block.rawsource = block.astext()


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("doctree-read", _strip)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""What autodoc makes of this project's docstrings, signatures and members."""

import dataclasses
from typing import Any

from docutils import nodes
from markup import convert
from sphinx.application import Sphinx


def _process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = convert(lines)
    if what == "property":
        lines[:0] = ["..", ""]  # a comment: napoleon takes what stands before a colon in the first line for a type


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

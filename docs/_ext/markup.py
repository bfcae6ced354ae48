"""Docstrings of this project as reStructuredText: what is indented is a formula or a table, line by line.

Sphinx would join the lines of an indented block. Sections (`Args:`, `Raises:`) and examples (`>>>`) stay as they are,
for napoleon and for docutils.
"""

import re

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

"""Pictures of the guide: drawn by each chapter's own code when the site is built, and put into the page as SVG.

A chapter's blocks of Python run in order, in guide/, and save the pictures that the chapter shows. In the page the
colour of lines and letters that have none of their own is that of the page's text, in light and in dark.
"""

import contextlib
import os
import re
from html import escape
from pathlib import Path
from typing import Any

import examples
import matplotlib as mpl
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

_TEXT = "#010203"  # the colour of text and axes in guide.mplstyle
_SHOWN = re.compile(r"^!\[[^\]]*\]\(([\w-]+\.svg)\)", re.MULTILINE)
_LOG = logging.getLogger(__name__)


def draw(app: Sphinx) -> None:
    """Run the code of every chapter that shows a picture."""
    folder = Path(app.srcdir) / "guide"
    for chapter in sorted(folder.glob("*.md")):
        text = chapter.read_text(encoding="utf-8")
        shown = _SHOWN.findall(text)
        if not shown:
            continue
        for name in shown:
            (folder / name).unlink(missing_ok=True)
        namespace: dict[str, Any] = {"__name__": chapter.name}
        with contextlib.chdir(folder), mpl.rc_context(fname=folder / "guide.mplstyle"), open(os.devnull, "w") as quiet:
            mpl.rcParams["svg.hashsalt"] = chapter.name
            for _, code in examples.blocks(text):
                with contextlib.redirect_stdout(quiet):
                    examples.run(code, namespace, chapter.name)
        for name in shown:
            if not (folder / name).is_file():
                _LOG.warning("%s shows %s, which its code does not save", chapter.name, name)


def inline(svg: str, alt: str) -> str:
    """Return an SVG file as part of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).replace(_TEXT, "currentColor")
    return f'<figure class="picture">{svg}</figure>'


def place(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace images of SVG files by their text."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            svg = (Path(app.srcdir) / image["uri"]).read_text(encoding="utf-8")
            image.replace_self(nodes.raw("", inline(svg, image.get("alt", "")), format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Draw before documents are read, place when they are written."""
    app.connect("builder-inited", draw)
    app.connect("doctree-resolved", place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

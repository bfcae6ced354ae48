"""The checks that a build of the documentation makes: without Sphinx, on pages made here."""

import importlib
import re
from pathlib import Path

import links
import markup
import pytest

import fastopt
from fastopt import schedules

DOCS = Path(__file__).parent.parent / "docs"


def named(page: str) -> set[str]:
    """Return the names that a page of the API describes."""
    text = (DOCS / "api" / page).read_text(encoding="utf-8")
    return set(re.findall(r"^(?:   |\.\. py:(?:data|module):: )(?:fastopt\.)?(\w+)$", text, re.MULTILINE))


def test_every_public_name_is_on_a_page_of_the_api():
    pages = {path.name for path in (DOCS / "api").glob("*.rst")}
    found = set.union(*(named(page) for page in pages - {"torch.rst", "schedules.rst"})) | {"schedules"}
    assert found >= set(fastopt.__all__), set(fastopt.__all__) - found
    assert named("schedules.rst") >= set(schedules.__all__)


def test_every_public_name_of_fastopt_torch_is_on_its_page():
    pytest.importorskip("torch", reason="torch is not installed")
    module = importlib.import_module("fastopt.torch")
    assert named("torch.rst") >= set(module.__all__)


def test_an_undocumented_name_is_found():
    pytest.importorskip("torch", reason="torch is not installed")
    wrong = links.undocumented({f"fastopt.{name}" for name in fastopt.__all__ if name != "Adam"})
    assert wrong[0] == "fastopt.Adam is on no page of the API: name it in a table in docs/api/"
    assert len(wrong) == 1 + len(schedules.__all__) + len(importlib.import_module("fastopt.torch").__all__)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here"><a href="https://example.org/x#y"><a href="folder/">', None),
        ('<img src="data:image/png;base64,AA">', None),
        ('<a href="none.html">', "index.html links to none.html, which does not exist"),
        ('<a href="other.html#nowhere">', "there is no such place"),
        ('<a href="#nowhere">', "there is no such place"),
        ('<img src="none.png">', "none.png, which does not exist"),
        ('<script src="https://cdn.example.org/x.js">', "loads https://cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads //example.org/x.css"),
        ('<style>@import "https://example.org/font.css";</style>', "loads https://example.org/font.css"),
    ],
)
def test_broken_links_and_files_from_elsewhere_are_found(body, words, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("")
    (tmp_path / "other.html").write_text('<p id="there">')
    (tmp_path / "index.html").write_text(f'<p id="here">{body}')
    wrong = links.broken(tmp_path)
    assert len(wrong) == (words is not None)
    assert (words or "") in "".join(wrong)


def test_stylesheets_and_scripts_that_load_from_elsewhere_are_found(tmp_path):
    (tmp_path / "index.html").write_text("")
    (tmp_path / "own.css").write_text(
        "@font-face { src: url(own.woff) } a { background: url(data:image/png;base64,AA) }"
    )
    assert links.broken(tmp_path) == []
    (tmp_path / "theirs.css").write_text("@font-face { src: url('https://example.org/x.woff') }")
    assert links.broken(tmp_path) == ["theirs.css loads https://example.org/x.woff, which is not part of the site"]


def test_what_is_indented_in_a_docstring_is_kept_line_by_line():
    docstring = """Step, with x* and `a|b`.

    p ← p − g
    v ← v

Raises:
    SettingError: it is
        wrong.
    In each case nothing is changed.

>>> f(*x)
'a*'
"""
    assert markup.convert(list(docstring.splitlines())) == [
        "Step, with x\\* and `a|b`.", "", ".. code-block:: text", "", "    p ← p − g", "    v ← v", "",
        "Raises:", "    SettingError: it is", "        wrong.", "", "In each case nothing is changed.", "",
        ">>> f(*x)", "'a*'",
    ]  # fmt: skip

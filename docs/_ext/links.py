"""What is wrong with a built site: links that lead nowhere, files from elsewhere, public names that are on no page."""

import importlib
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MODULES = ("fastopt", "fastopt.schedules", "fastopt.torch")
_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")
_LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


class Page(HTMLParser):
    """The identifiers of a page, its links, and the files that it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)
        self.loaded |= set(_CSS.findall(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one tag."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "index", "search", "next", "prev", "author"):
            self.loaded.add(found.get("href", ""))
        elif tag in _LOADED and found.get(_LOADED[tag]):
            self.loaded.add(found[_LOADED[tag]])


def broken(folder: Path) -> list[str]:
    """Return what is wrong with the links and the loaded files of all pages in a folder."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    wrong = []
    for path in sorted(folder.rglob("*.css")):
        outside = _CSS.findall(path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(folder)} loads {link}, which is not part of the site" for link in outside]
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        outside = [link for link in sorted(page.loaded) if urlsplit(link).netloc]
        wrong += [f"{name} loads {link}, which is not part of the site" for link in outside]
        for link in sorted(page.links | page.loaded):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                wrong.append(f"{name} links to {link}, which does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
                wrong.append(f"{name} links to {link}: there is no such place on that page")
    return wrong


def undocumented(documented: set[str], modules: Sequence[str] = MODULES) -> list[str]:
    """Return the public names that no page of the API describes, or that have no docstring."""
    wrong = []
    for module in modules:
        for name in importlib.import_module(module).__all__:
            full = f"{module}.{name}"
            if full not in documented:
                wrong.append(f"{full} is on no page of the API: name it in a table in docs/api/")
            elif callable(thing := getattr(importlib.import_module(module), name)) and not thing.__doc__:
                wrong.append(f"{full} has no docstring")
    return wrong

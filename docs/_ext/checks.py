"""The check of the built site: `sphinx-build -W` fails for whatever `links` finds.

The laboratory is made here too, a page of its own, so that its links are checked with the others.
"""

from importlib.util import find_spec
from pathlib import Path

from links import MODULES, broken, undocumented
from sphinx.application import Sphinx
from sphinx.util import logging

from fastopt.demo.laboratory.page import build

_LOG = logging.getLogger(__name__)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Make the laboratory, and check the site."""
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    (out / "laboratory").mkdir(exist_ok=True)
    page = build(Path(app.srcdir) / "laboratory")
    (out / "laboratory" / "index.html").write_text(page, encoding="utf-8")
    objects = app.env.get_domain("py").get_objects()
    modules = [module for module in MODULES if module != "fastopt.torch" or find_spec("torch")]
    for wrong in undocumented({name for name, *_ in objects}, modules) + broken(out):
        _LOG.warning(wrong)


def leave_out_torch(app: Sphinx, docname: str, source: list[str]) -> None:
    """Say on the page of fastopt.torch that it is left out where torch, which it imports, is not installed."""
    if docname == "api/torch" and not find_spec("torch"):
        _LOG.info("fastopt.torch is left out of the API: torch is not installed here")
        source[0] = (
            "fastopt.torch\n=============\n\nLeft out: this site was built without torch. ``pip install torch``\n"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Check when all is written."""
    app.connect("source-read", leave_out_torch)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The check of the built site: `sphinx-build -W` fails for whatever `links` finds.

The laboratory is copied here too, as it is, so that its links are checked with the others.
"""

import shutil
from pathlib import Path

from links import broken, undocumented
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Copy the laboratory, if there is one, and check the site."""
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    laboratory = Path(app.srcdir) / "laboratory"
    if (laboratory / "index.html").is_file():
        shutil.copytree(laboratory, out / "laboratory", dirs_exist_ok=True)
    objects = app.env.get_domain("py").get_objects()
    for wrong in undocumented({name for name, *_ in objects}) + broken(out):
        _LOG.warning(wrong)


def setup(app: Sphinx) -> dict[str, bool]:
    """Check when all is written."""
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The documentation site: `sphinx-build -W --keep-going docs build/site` builds and checks it, without a network.

The extensions in _ext/ are what Sphinx does not have: docstrings in the style of this project, formulas without a
script, pictures drawn by the pages' own code, and the check of links and of public names.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))
shutil.rmtree(DOCS / "api" / "generated", ignore_errors=True)  # a page of a name that is gone would stay

import fastopt  # noqa: E402

project, author, copyright = "fastopt", "fastopt", "Apache-2.0"  # noqa: A001 — the names that Sphinx reads
version = release = fastopt.__version__
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "docstrings", "mathml", "pictures", "checks",
]  # fmt: skip
exclude_patterns = ["_ext", "laboratory"]
templates_path = ["_templates"]
with_torch = find_spec("torch") is not None  # without it the page of fastopt.torch says that it is left out

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
html_math_renderer = "mathml"
default_role = "py:obj"
autosummary_generate = [f"api/{page.name}" for page in DOCS.glob("api/*.rst") if with_torch or page.name != "torch.rst"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_use_ivar, napoleon_use_rtype = True, False
napoleon_numpy_docstring = False
toc_object_entries = False
suppress_warnings = ["myst.header"]  # documents that begin with a comment or that are included

html_theme = "furo"
html_title = f"fastopt {version}"
html_static_path = ["_static"]
html_sidebars = {
    "**": [
        "sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html", "sidebar/navigation.html",
        "sidebar/laboratory.html", "sidebar/scroll-end.html",
    ]
}  # fmt: skip
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

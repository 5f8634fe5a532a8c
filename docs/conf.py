"""The documentation site: `make docs` builds it into docs/_build/html, offline, with warnings as errors."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import board  # noqa: E402
import pages  # noqa: E402

import illava_lab  # noqa: E402

project = pages.PROJECT["name"]
version = release = illava_lab.__version__
author = copyright = "the illava-lab authors"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

# Chapters show the outputs that are stored in them. Whoever wants other ones runs them.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the default is two addresses on the web
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # a name between single backticks in a docstring
napoleon_use_ivar = True  # attributes as a list, not as entries of their own
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "__init__, __new__"}
python_maximum_signature_line_length = 65
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "illava-lab"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False


def setup(app):
    """Bring in what is made from the repository."""
    app.connect("config-inited", lambda app, config: pages.write_chapters(DOCS / "course"))
    app.connect("build-finished", lambda app, error: error or board.copy_rows(Path(app.outdir)))
    app.connect("source-read", lambda app, page, source: source.__setitem__(0, pages.fill(source[0])))
    app.connect("build-finished", lambda app, error: error or pages.write_figures(Path(app.outdir) / "_static"))

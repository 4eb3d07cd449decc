"""How Sphinx makes a site of these pages: `make docs`. The reference is written from docstrings and YAML files."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

project = "bitsweep"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "settings_reference"]
# The README and the other pages at the top belong to the site, too.
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "bitsweep"
html_show_copyright = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def setup(app: Any) -> None:
    """Leave out how classes are made: their settings are in YAML, and results are given by functions."""
    app.connect("autodoc-process-signature", lambda _, kind, *_rest: ("", None) if kind == "class" else None)

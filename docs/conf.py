"""The site that `make docs` builds (Sphinx). Nothing is fetched while it is built or read."""

import re
from typing import Any

import block_recurrent

project = "Block-Recurrent Transformers"
copyright = "the authors of block_recurrent, Apache-2.0"
release = block_recurrent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # docstrings write code as Markdown does
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
# Docstrings are plain text first, and a table that a program wrote begins below the title.
suppress_warnings = ["docutils", "myst.header"]

html_theme = "furo"
html_title = f"block_recurrent {release}"
html_show_sphinx = False


def keep_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Outside code, a star in a docstring is a star and no emphasis."""
    text = re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    """Connects what Sphinx is to call."""
    app.connect("autodoc-process-docstring", keep_stars, priority=400)

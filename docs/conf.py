"""The site that `make docs` builds (Sphinx). Nothing is fetched while it is built or read."""

import inspect
import re
from typing import Any

from flax import nnx
from sphinx.util.inspect import stringify_signature

import block_recurrent

project = "Block-Recurrent Transformers"
copyright = "the authors of block_recurrent, Apache-2.0"
release = block_recurrent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # links such as gin.md#does-it-fit
default_role = "code"  # docstrings write code as Markdown does
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_use_ivar = True
# Docstrings are plain text first. Tables that a program wrote begin below the title.
suppress_warnings = ["docutils", "myst.header"]

html_theme = "furo"
html_title = f"block_recurrent {release}"
html_show_sphinx = False


def keep_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps a star outside code from starting emphasis."""
    text = re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", "\n".join(lines))
    lines[:] = text.split("\n")


class Name(str):
    """A default value that is shown by its name."""

    __repr__ = str.__str__


def named(argument: inspect.Parameter) -> inspect.Parameter:
    """An argument whose default, if it is a function, is shown by its name."""
    if not inspect.isfunction(argument.default):
        return argument
    return argument.replace(default=Name(argument.default.__name__))


def show_arguments(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """The arguments of a module's `__init__`; Sphinx would show those of its metaclass."""
    if what != "class" or not issubclass(obj, nnx.Module):
        return None
    found = inspect.signature(obj.__init__)
    arguments = [named(a) for a in found.parameters.values() if a.name != "self"]
    found = found.replace(parameters=arguments, return_annotation=inspect.Signature.empty)
    return stringify_signature(found, unqualified_typehints=True), ""


def leave_out_aliases(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out the fields of a NamedTuple, which its docstring describes."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field") else None


def setup(app: Any) -> None:
    """Connects the functions above to the events of Sphinx."""
    app.connect("autodoc-process-docstring", keep_stars, priority=400)
    app.connect("autodoc-process-signature", show_arguments)
    app.connect("autodoc-skip-member", leave_out_aliases)

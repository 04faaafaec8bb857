"""Packages that only some programs need; an extra of the installation brings them."""

import importlib
from typing import Any


class MissingPackage(ImportError):
    """A package is not installed; the message says how to install it."""


def require(module: str, extra: str) -> Any:
    """Imports a module whose package may be missing, and returns it.

    Args:
      module: its name, for instance "pyarrow.parquet".
      extra: the extra of block_recurrent that brings the package, for instance "data".

    Raises:
      MissingPackage: the package, or one that it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise MissingPackage(
            f"needs {package}: pip install 'block_recurrent[{extra}]'", name=package
        ) from error

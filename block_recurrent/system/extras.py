"""Packages that only some programs need, which an extra of the installation brings."""

import importlib
from typing import Any


class MissingPackage(ImportError):
    """A package that is needed is not installed; the message says how to install it."""


def require(module: str, extra: str) -> Any:
    """Imports and returns a module, where its package may be missing.

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

"""Packages that only some commands need."""

import importlib
from typing import Any, Literal

from pcam.errors import UserError


def import_extra(
    name: str, extra: Literal["cluster", "explain", "export", "hub", "keras", "page", "slides", "timm"]
) -> Any:
    """Import a module of an optional package.

    Args:
        name: The module.
        extra: The extra in pyproject.toml that installs it.

    Returns:
        The module.

    Raises:
        UserError: If it, or what it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Expected the package {str(error.name).partition('.')[0]}, which this command needs, but it is not "
            f"installed; install it with: pip install 'pcam[{extra}]'."
        ) from error

"""The configs that come with the package: where they lie, and how one is found by its name."""

from pathlib import Path
from typing import Final

from pcam.errors import UserError

_PACKAGE: Final = Path(__file__).parent


def find_config(name: str | Path, folder: str = "") -> Path:
    """Find a config by its path, or by its name if it is one that comes with the package.

    Args:
        name: The path of a YAML file, or the name of a shipped config without folder and ending, such as
            "random_dropout". A file that exists is taken as it is.
        folder: Where shipped configs are looked for: "" for experiments, "studies" for studies.

    Returns:
        The path of the file.

    Raises:
        UserError: If there is no such file and no shipped config of that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if str(name) and path.parts != (path.stem,):  # a path, which could only have been a file
        raise UserError(
            f"Expected a config at {path}, but there is no such file; correct the path, or name one that is shipped: "
            f"{_names_in_words(folder)}."
        )
    shipped = _configs_folder() / folder / f"{name}.yaml"
    if not shipped.is_file():
        raise UserError(
            f"Expected the path of a config, or the name of one that is shipped ({_names_in_words(folder)}), but found "
            f"'{name}'."
        )
    return shipped


def list_configs(folder: str = "") -> list[str]:
    """List the names of the configs that come with the package.

    Args:
        folder: "" for experiments, "studies" for studies.

    Returns:
        The names, sorted, each of which `find_config` finds.
    """
    return sorted(path.stem for path in (_configs_folder() / folder).glob("*.yaml"))


def _configs_folder() -> Path:
    """The folder in an installed package, or else the one at the top of a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def _names_in_words(folder: str) -> str:
    return ", ".join(list_configs(folder)) or "none is"

"""The architecture: which part of the package may import which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcam

PACKAGE = Path(pcam.__file__).parent

LAYERS = [
    ["errors", "messages", "options", "memory", "terminal"],
    ["atomic", "patches", "extras", "checkpoint_file", "device", "wrong_values"],
    ["shipped", "run_options", "outputs", "yaml_files", "published", "optical_density"],
    ["run_folder"],
    ["door", "resuming"],
    ["data", "models"],
    ["evaluation"],
    ["training"],
    ["rebuilding", "cli"],
    ["trained"],
    ["fit", "probe"],
    ["slides"],
    ["study", "benchmark", "page"],
    ["commands"],
    ["__main__"],
    ["__init__"],
]
"""Parts of the package from the bottom up; a part may import what is below it, and nothing beside it or above."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """The parts of the package that a module imports, wherever in it; what only a type checker reads counts too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("pcam."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_climbs(path: Path) -> None:
    own = part_of(path)
    for part in imported_parts(path):
        assert part == own or LEVEL[part] < LEVEL[own], f"{own} imports {part}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_too_long_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400

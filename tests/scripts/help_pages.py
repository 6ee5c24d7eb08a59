"""What tests of `--help` share."""

import re
import subprocess
import sys

from tests.conftest import REPOSITORY

HEAVY = {"lightning", "torch", "numpy", "pandas", "h5py", "matplotlib", "scipy", "requests"}
"""Packages whose import takes a good part of a second or more."""


def check_help(page: str, summary: str) -> None:
    """Check that a help page describes its command once, and explains each argument and option."""
    assert page.count(summary) == 1
    entries = re.split(r"\n  (?=\S)", page.partition("\n\n")[2])[1:]
    assert entries
    for entry in entries:
        name, explanation = re.split(r"\s{2,}", entry, maxsplit=1)
        assert re.match(r'[A-Z"]', explanation), name  # else it is what jsonargparse adds: "(type: int, default: 1)"


def heavy_imports(module: str, *words: str) -> list[str]:
    """Run a command in a process of its own, and list the heavy packages that it has imported by its end."""
    program = (
        f"import atexit, sys, {module}; "
        f"atexit.register(lambda: print(*sorted({HEAVY} & set(sys.modules)), file=sys.stderr)); "
        f"{module}.main({list(words)})"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "usage:" in ended.stdout
    return ended.stderr.split()

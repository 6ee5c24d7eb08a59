"""Adds the page of all commands to the site: what each says of itself with --help."""

import contextlib
import io
import os
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pcam.__main__ import DATA_COMMANDS, MODULES, main
from pcam.commands.benchmark import COMMANDS as RACES

WIDTH = "76"
"""Columns of the help texts, as many as a page shows."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page.

    Args:
        files: All files of the site.
        config: The site's.

    Returns:
        The files, with one more.
    """
    os.environ["COLUMNS"] = WIDTH
    commands = [[name] for name in MODULES if name not in ("benchmark", "prepare_data")]
    commands += [*([name] for name in DATA_COMMANDS), *(["benchmark", name] for name in RACES)]
    sections = [f"## pcam {' '.join(words)}\n\n```text\n{_help(words)}\n```\n" for words in commands]
    text = "# Commands\n\nWhat each command says of itself with `--help`.\n\n" + "\n".join(sections)
    files.append(File.generated(config, "reference/commands.md", content=text))
    return files


def _help(words: list[str]) -> str:
    said = io.StringIO()
    sys.argv = ["pcam", *words]  # what the usage of a command begins with
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue().strip()

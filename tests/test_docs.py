"""The pages of the documentation do what they say: their code runs, and the options and tests they name exist."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pcam.data.layouts import FORMS
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


def fenced(page: Path, language: str) -> list[str]:
    """The code blocks of a language in a page, as they stand."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow  # paints patches and trains a few steps
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # Lightning's advice: a batch is read in a fraction of a millisecond
    "ignore:The number of training batches",  # fewer than steps between two entries of the log
)
@pytest.mark.parametrize("name", ["library.md", "extending.md"])
def test_every_block_of_a_page_runs_in_its_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pcam.data.layouts.FORMS", FORMS)  # a page adds one
    page = ModuleType(f"page_{name.removesuffix('.md')}")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    blocks = fenced(DOCS / name, "python")
    assert len(blocks) > 8
    for number, block in enumerate(blocks, 1):
        file = re.match(r"# (\w+)\.py\n", block)
        if file:  # to be saved under this name
            Path(f"{file[1]}.py").write_text(block)
            monkeypatch.setitem(sys.modules, file[1], None)  # to be forgotten after the test
            monkeypatch.delitem(sys.modules, file[1])
        else:
            exec(compile(block, f"{name}, block {number}", "exec"), vars(page))

"""The pages of the documentation do what they say: their code runs, and the options and tests they name exist."""

import doctest
import inspect
import json
import re
import sys
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pcam
from pcam.__main__ import DATA_COMMANDS, MODULES, main
from pcam.commands.benchmark import COMMANDS as RACES
from pcam.commands.study import main as study
from pcam.commands.train_help import UNEXPLAINED, data_options, short_parser, trainer_options
from pcam.data.layouts import FORMS
from pcam.models import inference
from pcam.shipped import find_config
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [*sorted(REPOSITORY.glob("*.md")), REPOSITORY / "lightning_logs" / "README.md", *sorted(DOCS.rglob("*.md"))]
EXPLAINED = (
    "BaselineCNN", "Choices", "EvaluationSettings", "MobileNetV2", "PatchClassifier", "Predictions", "RunFolder",
    "TimmNetwork", "compare", "measure",
)  # fmt: skip
"""What has an example in its docstring."""

PARTS = {
    "network": [pcam.BaselineCNN, pcam.MobileNetV2, pcam.TimmNetwork],
    "optimizer": [torch.optim.AdamW, torch.optim.SGD],
    "scheduler": [torch.optim.lr_scheduler.OneCycleLR],
}
ELSEWHERE = {
    "--editable": "pip",
    "--kills": "tests/scripts/soak.py",
    "--logdir": "tensorboard",
    "--model.network.width": "the network that docs/extending.md defines",
    "--address": "ray start",
    "--array": "SLURM",
    "--commands": "tests/scripts/signals.py",
    "--cpus-per-task": "SLURM",
    "--head": "ray start",
    "--master-addr": "torchrun",
    "--nnodes": "torchrun",
    "--node-rank": "torchrun",
    "--nproc-per-node": "torchrun",
    "--seed": "tests/scripts/soak.py",
    "--signal": "SLURM",
    "--signals": "tests/scripts/signals.py",
    "--time": "SLURM",
}
"""Options that pages speak of and no command has, and what has them."""


def fenced(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page that are in one of these languages, as they stand."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for language, content in blocks if language in languages]


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


@pytest.mark.slow  # paints patches and trains 300 steps
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*non-interactive")
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"tour.ipynb, cell {number}", "exec"), names)
    assert names["low"] > 0  # the network that was trained on these patches is better on them


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_example_of_a_docstring_runs(name: str) -> None:
    explained = getattr(pcam, name, None) or getattr(inference, name)
    examples = [example for example in doctest.DocTestFinder(recurse=False).find(explained, name) if example.examples]
    assert examples
    for example in examples:
        said: list[str] = []
        assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def known_options(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options of a command, as its help has them."""
    if command == ("train",):
        options = {option for action in short_parser()._actions for option in action.option_strings}
        parts = {"data": data_options(), "trainer": trainer_options()}
        return options | UNEXPLAINED | {f"--{part}.{name}" for part, names in parts.items() for name in names}
    with suppress(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"--[a-z][\w.]*", capsys.readouterr().out))


def is_option_of_a_part(option: str) -> bool:
    """Whether an option of train is one of a shipped network, or of the optimizer or scheduler of a shipped config."""
    model, _, rest = option.removeprefix("--").partition(".")
    part, *names = rest.split(".")
    if model != "model" or part not in PARTS:
        return False
    parameters = {name for parameter_class in PARTS[part] for name in inspect.signature(parameter_class).parameters}
    return not names or names[-1] in {*parameters, "help"}


def command_lines(page: Path) -> list[tuple[tuple[str, ...], list[str]]]:
    """The command lines in the blocks of a page: the words of the command, and the words that follow."""
    found = []
    for line in chain.from_iterable(block.splitlines() for block in fenced(page, "", "bash")):
        for part in line.partition(" #")[0].split(" | "):
            words = re.sub(r"^([A-Z_]+=\S+ )+", "", part).split()
            script = [re.fullmatch(r"scripts/(\w+)\.py", word) for word in words[:2]]
            if script[1:] and script[1]:
                command, rest = [script[1][1]], words[2:]
            elif words[:1] == ["pcam"]:
                command, rest = words[1:2], words[2:]
            elif words[:3] == ["python", "-m", "pcam"]:
                command, rest = words[3:4], words[4:]
            else:
                continue
            if command[0] in ("benchmark", "prepare_data"):
                command, rest = [*command, rest[0]], rest[1:]
            found.append((tuple(command), rest))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_names_commands_configs_and_options_that_there_are(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = command_lines(page)
    assert len(lines) > 12 or page != REPOSITORY / "README.md"
    for command, words in lines:
        assert command[0] in [*MODULES, *DATA_COMMANDS], command
        known = known_options(command, capsys)
        for word, following in pairwise([*words, ""]):
            option = word.partition("=")[0].rstrip("+")
            if option.startswith("--") and option != "--":
                assert option in known or is_option_of_a_part(option) or option in ELSEWHERE, (command, word)
            if option == "--config" and not following.isupper():
                assert find_config(Path(following).stem, "studies" if command == ("study",) else "").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_speaks_of_options_that_there_are(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepares = [(name,) for name in DATA_COMMANDS]
    races = [("benchmark", name) for name in RACES]
    others = [(name,) for name in MODULES if name not in ("benchmark", "prepare_data")]
    known = set().union(*(known_options(command, capsys) for command in [*prepares, *races, *others])) | set(ELSEWHERE)
    for option in re.findall(r"(?<![-\w])--[a-z][\w.-]*\w", page.read_text(encoding="utf-8")):
        assert option in known or is_option_of_a_part(option), option


def by_a_study(page: Path) -> list[list[str]]:
    """The options of the command that wrote a page, if `pcam study --page` did."""
    return [words for command, words in command_lines(page) if command == ("study",) and "--page" in words]


@pytest.mark.slow  # draws all figures of a report
@pytest.mark.parametrize(
    "page", [page for page in DOCS.glob("*.md") if by_a_study(page)], ids=lambda page: str(page.relative_to(REPOSITORY))
)
def test_a_page_that_a_study_wrote_is_what_it_writes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    (words,) = by_a_study(page)
    name = words[words.index("--page") + 1]
    again = tmp_path / name
    study([*(str(again) if word == name else word for word in words), "--output", str(tmp_path / "study")])
    assert again.read_text(encoding="utf-8").replace(str(again), name) == page.read_text(encoding="utf-8")
    pictures = {path.name for path in (again.parent / "images").iterdir()}
    assert pictures == {path.name for path in (page.parent / "images").glob(f"{page.stem}_*.svg")}


def test_the_readme_says_what_the_study_answers() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    paragraph = readme.split("**Answers a question**")[1].split("```")[0]
    answers = (DOCS / "study.md").read_text(encoding="utf-8").split("## The answers")[1].split("\n## ")[0]
    found = re.findall(r"(\.\d+) \((\.\d+ to \.\d+)\)", " ".join(paragraph.split()))
    assert len(found) == 2
    for difference, interval in found:
        assert re.search(rf"by {re.escape(difference)}( nats)? \({re.escape(interval)}\)", answers), difference


def test_a_study_that_a_page_shows_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = fenced(DOCS / "scale.md", "yaml")
    path = tmp_path / "study.yaml"
    path.write_text(block)
    with pytest.raises(SystemExit):
        study(["--config", str(path), "--report_only", "--output", str(tmp_path / "study")])
    # All of it was read and checked before this was found.
    assert "Expected the result of at least one run" in capsys.readouterr().err


def test_every_test_that_a_page_names_is_there() -> None:
    text = (DOCS / "reliability.md").read_text(encoding="utf-8")
    tests: dict[str, set[str]] = {}
    for path in (REPOSITORY / "tests").glob("**/*.py"):
        found = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        tests.setdefault(path.name, set()).update(found)
    named = re.findall(r"(\w+\.py)::(\w+)", text)
    assert len(named) > 40
    assert [name for name in named if name[1] not in tests.get(name[0], set())] == []
    assert [name for name in re.findall(r"`(?:tests/\w+/)?((?:test_\w+|soak)\.py)`", text) if name not in tests] == []
    assert "`..." not in text  # a name that is cut cannot be found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in {title.lower().replace(" ", "-") for title in headings}, target

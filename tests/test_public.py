"""The public interface, the command `pcam`, and how soon they answer."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import pcam
from pcam.__main__ import DATA_COMMANDS, MODULES, main
from pcam.commands.train_help import short_parser
from pcam.door import leave, program
from pcam.shipped import list_configs
from tests.conftest import REPOSITORY

HEAVY = ("torch", "lightning", "torchvision", "torchmetrics", "pandas", "scipy", "matplotlib", "h5py")
"""Packages whose import takes a good part of a second, or several."""


def imported(code: str) -> set[str]:
    """Run Python code in a process of its own; which of the heavy packages it imported."""
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(done.stderr.split())


@pytest.mark.parametrize("name", pcam.__all__)
def test_every_public_name_is_there_with_a_docstring(name: str) -> None:
    assert getattr(pcam, name).__doc__
    assert name in dir(pcam)


def test_the_names_are_those_that_a_type_checker_sees() -> None:
    tree = ast.parse(Path(pcam.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(pcam.__all__)
    assert (Path(pcam.__file__).parent / "py.typed").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pcam' has no attribute 'nothing'"):
        pcam.nothing  # noqa: B018


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert pcam.__version__ == project["version"]
    (command,) = entry_points(group="console_scripts", name="pcam")
    assert command.value == project["scripts"]["pcam"] == "pcam.__main__:main"


def test_every_package_and_config_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {
        str(path.parent.relative_to(REPOSITORY)).replace("/", ".") for path in REPOSITORY.glob("pcam/**/__init__.py")
    }
    assert set(setuptools["packages"]) == packages | {"pcam.configs", "pcam.configs.studies"}


@pytest.mark.slow  # starts a process each
@pytest.mark.parametrize("command", [*MODULES, *DATA_COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    call = f"from pcam.__main__ import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass"
    assert imported(call) == set()


@pytest.mark.slow  # starts a process each
@pytest.mark.parametrize("words", [["train", "--bogus"], ["evaluate", "--bogus"], ["predict"], ["nothing"]])
def test_a_wrong_command_line_imports_nothing_heavy(words: list[str]) -> None:
    call = f"from pcam.__main__ import main\ntry: main({words})\nexcept SystemExit: pass"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{call}\nassert not set({HEAVY}) & set(sys.modules)"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Expected" in done.stderr or "required" in done.stderr


@pytest.mark.slow  # starts a process
def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import pcam") == set()


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = capsys.readouterr().out
    for name in [*MODULES, *DATA_COMMANDS]:
        assert f"\n  {name} " in listed
    main(["--version"])
    assert capsys.readouterr().out == f"pcam {pcam.__version__}\n"


def test_a_command_that_is_not_there_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluat"])
    assert "Expected a command of pcam, but found 'evaluat'; similar ones are evaluate" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["zzz"])
    assert "'zzz'; pcam --help lists them." in capsys.readouterr().err


def test_the_configs_are_listed_with_their_questions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    experiments, studies = capsys.readouterr().out.split("studies:")
    for listed, names in ((experiments, list_configs()), (studies, list_configs("studies"))):
        for name in names:
            (line,) = (line for line in listed.splitlines() if line.split()[:1] == [name])
            assert line.rstrip().endswith(("?", ".")), line
            assert len(line.split()) > 4, line


def test_a_program_is_called_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in {
        ("/usr/bin/pcam", "train", "--config"): "pcam train",
        ("/lib/pcam/__main__.py", "--help"): "pcam",
        ("scripts/train.py", "x"): "train.py",
    }.items():
        monkeypatch.setattr(sys, "argv", list(words))
        assert program() == expected
    with pytest.raises(SystemExit, match="3"):
        leave("Expected nothing.", 3)
    assert capsys.readouterr().err == "train.py: Expected nothing.\n"


def test_the_short_help_of_train_is_short_and_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 150
    assert "--data.root" in "\n".join(text.splitlines()[:60])
    for action in short_parser()._actions:
        assert action.help, action.option_strings

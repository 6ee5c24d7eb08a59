"""Shipped configs are found by name, and every other by its path."""

from pathlib import Path

import pytest

from pcam import shipped
from pcam.errors import UserError
from pcam.shipped import find_config, list_configs
from tests.conftest import REPOSITORY


def test_a_bare_name_is_a_shipped_config() -> None:
    assert find_config("cnn") == REPOSITORY / "configs" / "cnn.yaml"
    assert find_config(Path("demo"), "studies") == REPOSITORY / "configs" / "studies" / "demo.yaml"


def test_every_shipped_config_is_listed() -> None:
    assert list_configs() == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
    assert list_configs("studies") == sorted(path.stem for path in (REPOSITORY / "configs" / "studies").iterdir())


def test_a_file_that_exists_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("cnn"), Path("own.yaml"), tmp_path / "own.yaml"):
        path.write_text("experiment: own\n")
        assert find_config(path) == path


def test_a_package_that_is_installed_has_its_configs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "pcam")
    (tmp_path / "pcam" / "configs").mkdir(parents=True)
    (tmp_path / "pcam" / "configs" / "mine.yaml").write_text("experiment: mine\n")
    assert find_config("mine") == tmp_path / "pcam" / "configs" / "mine.yaml"
    assert list_configs() == ["mine"]


@pytest.mark.parametrize("name", ["nothing", "", "best "])
def test_a_name_that_is_none_is_answered_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"the name of one that is shipped \(.*cnn.*\), but found '{name}'"):
        find_config(name)


@pytest.mark.parametrize("path", ["configs/nothing.yaml", "nothing.yaml", "../cnn", "/", "studies/demo"])
def test_a_path_where_nothing_is_is_named(path: str) -> None:
    with pytest.raises(UserError, match=r"Expected a config at .*, but there is no such file; .* shipped: .*cnn"):
        find_config(path)

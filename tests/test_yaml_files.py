"""What a config may not have."""

from pathlib import Path

import pytest

from pcam.errors import ConfigError
from pcam.yaml_files import check_yaml
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_taken(path: Path) -> None:
    check_yaml(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", r"'a' is in line 1 of .* and again in line 3"),
        ("data:\n  root: x\n  batch_size: 2\n  root: y\n", "'root' is in line 2 of .* and again in line 4"),
        ("a: [{b: 1, c: {d: 1}, b: 2}]\n", "'b' is in line 1"),
        ("a: {x: [1, 2], y: {}}\nb: []\na: 1\n", "'a' is in line 1 of .* and again in line 3"),
        ("a: &x 1\nb: *x\n", r"without aliases, but found \*x in line 2"),
        ("a: &x [*x]\n", r"without aliases, but found \*x"),
        ("a: [1\n", "Expected a config in YAML, but .* cannot be read"),
        ("[" * 100_000, "at most 50 levels deep, but .* is deeper in line 1"),
    ],
)
def test_what_does_not_say_what_it_seems_to_say_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        check_yaml(path)


@pytest.mark.parametrize(
    "text",
    ["", "a: 1\n", "a: {b: 1}\nc: {b: 1}\n", "- {a: 1}\n- {a: 1}\n", "a: a\nb: a\n", "? [1, 2]\n: a\na: 2\n",
     "x: {p: {a: 1}, a: 2}\n", "x: [a, a]\na: 1\n"],
)  # fmt: skip
def test_keys_of_different_mappings_may_be_the_same(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check_yaml(path)


def test_what_is_not_utf_8_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"experiment: \xff\n")
    with pytest.raises(ConfigError, match="Expected a config in UTF-8, but found the byte 0xff at place 12"):
        check_yaml(path)

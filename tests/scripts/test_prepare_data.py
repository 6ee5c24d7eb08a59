"""The data commands through their front door: what they print, which spellings they take, what --help says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pcam.commands.prepare_data import COMMANDS
from pcam.commands.prepare_data import main as prepare_data
from pcam.data import PCamDataModule
from tests.conftest import COUNTS, REPOSITORY, write_patches
from tests.scripts.help_pages import check_help, heavy_imports


def test_packing_says_where_each_store_is_and_what_it_holds(
    patch_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data(["pack", str(patch_root), "--cache_dir", str(tmp_path)])
    said = capsys.readouterr().out
    data = PCamDataModule(patch_root, cache_dir=tmp_path)
    for split, counts in COUNTS.items():
        path = data.store_path(split)
        assert path.is_file()
        share = counts[1] / sum(counts)
        assert (
            f"The {split} split has {sum(counts)} patches, {share:.1%} of them tumour.\n  store:       {path}\n"
            f"  fingerprint: {data.packed(split).fingerprint}\n"
        ) in said
    assert said.endswith(f"Train on them with --data.root {patch_root} --data.cache_dir {tmp_path}\n")


def test_only_the_splits_that_are_there_are_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_patches(tmp_path / "patches", {"train": (3, 2), "valid": (2, 2)})
    prepare_data(["pack", str(tmp_path / "patches"), "--cache_dir", str(tmp_path / "cache")])
    assert re.findall("The (.*) split", capsys.readouterr().out) == ["train", "valid"]
    assert len(list((tmp_path / "cache").glob("*/*.h5"))) == 2


def test_stores_without_repeats_can_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "patches"
    write_patches(root, {"train": (3, 2), "valid": (2, 2)})
    (root / "train" / "0" / "copy.png").hardlink_to(root / "train" / "0" / "patch0000000.png")
    prepare_data(["pack", str(root), "--cache_dir", str(tmp_path / "cache"), "--deduplicate"])
    said = capsys.readouterr().out
    assert "The train split has 5 patches" in said
    assert said.endswith("--data.deduplicate true\n")
    assert PCamDataModule(root, cache_dir=tmp_path / "cache", deduplicate=True).store_path("train").is_file()


def test_what_cannot_be_packed_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        prepare_data(["pack", str(tmp_path / "nowhere")])
    assert f"Expected a folder with PatchCamelyon at {tmp_path}/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--out"])  # the second is the old spelling
def test_synthetic_patches_are_written_where_asked(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a place"
    prepare_data(["synthesize", flag, str(place), "--train", "4", "--valid", "3", "--test", "2"])
    counts = [len(list((place / split).rglob("*.png"))) for split in ("train", "valid", "test")]
    assert counts == [4, 3, 2]
    assert capsys.readouterr().out.endswith(
        f"Wrote 9 patches to {place}. Train on them with --data.root '{place}'\n"  # quoted: it has a blank
    )


def test_synthetic_patches_go_where_the_demo_looks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_data(["synthesize", "--train", "4", "--valid", "2", "--test", "2"])
    assert len(list((tmp_path / "data" / "synthetic").rglob("*.png"))) == 8


@pytest.mark.parametrize("place", [["DIR"], ["--root", "DIR"], ["--root=DIR"]])  # the last two are old spellings
@pytest.mark.parametrize("place_is_first", [True, False])
def test_a_download_goes_where_asked(
    place: list[str], place_is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: Mapping[str, object] = {}

    def fetch(root: Path, splits: Sequence[str]) -> None:
        nonlocal asked
        asked = {"root": root, "splits": list(splits)}

    monkeypatch.setattr("pcam.data.download.download", fetch)  # the real one has tests of its own, with a server
    words = [word.replace("DIR", str(tmp_path)) for word in place]
    splits = ["--splits", "[valid,test]"]
    prepare_data(["download", *(words + splits if place_is_first else splits + words)])
    assert asked == {"root": tmp_path, "splits": ["valid", "test"]}
    assert capsys.readouterr().out == (
        f"The official files of valid, test are complete in {tmp_path}. Train on them with --data.root {tmp_path}\n"
    )


SUMMARIES = {
    "download": "Download PatchCamelyon's official files",
    "verify": "Read every byte",
    "pack": "Pack every split",
    "audit": "Look for repeated patches",
    "synthesize": "Write synthetic patches",
    "cut": "Cut ",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_option_and_describes_the_command_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        prepare_data([name, "--help"])
    page = capsys.readouterr().out
    check_help(page, SUMMARIES[name])
    assert not re.search(r"--(root|out)\b", page)  # old spellings are not shown


def test_help_answers_without_importing_what_takes_time() -> None:
    assert heavy_imports("pcam.commands.prepare_data", "synthesize", "--help") == []


def test_the_script_is_the_command() -> None:
    assert "from pcam.commands.prepare_data import main" in (REPOSITORY / "scripts" / "prepare_data.py").read_text()

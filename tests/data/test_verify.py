"""Verifying finds what is wrong, names it, and ends with exit code 1; what is right passes."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pcam.commands.prepare_data import main as prepare_data
from pcam.data import PCamDataModule
from pcam.data.layouts import official
from pcam.data.layouts.official import OFFICIAL_MD5
from pcam.data.verify import Finding, findings_table, verify
from tests.data.forms import (
    STEM,
    Patches,
    noise,
    write_classes,
    write_course,
    write_kaggle,
    write_official,
    write_official_packed,
    write_parquet,
)

PATCHES = noise()


def faults(findings: list[Finding]) -> list[str]:
    return [f"{finding.subject}: {finding.fault}" for finding in findings if finding.fault is not None]


@pytest.mark.parametrize("write", [write_official, write_official_packed])
def test_official_files_are_compared_with_their_md5(
    write: Callable[[Path, Patches], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, PATCHES)
    paths = sorted(tmp_path.glob(f"{STEM}*"))
    md5s = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
    monkeypatch.setattr(official, "OFFICIAL_MD5", md5s)
    data = PCamDataModule(tmp_path, cache_dir=tmp_path / "cache")
    findings = verify(data)
    assert sorted(finding.subject for finding in findings) == [path.name for path in paths]
    assert not faults(findings)
    contents = bytearray(paths[2].read_bytes())
    contents[-100] ^= 1
    paths[2].write_bytes(contents)
    found = hashlib.md5(contents).hexdigest()
    assert faults(verify(data)) == [f"{paths[2].name}: its MD5 is {found}, not {md5s[paths[2].name]}; fetch it anew"]


def test_swapped_splits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official(tmp_path, PATCHES)
    md5s = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in tmp_path.glob(f"{STEM}*")}
    monkeypatch.setattr(official, "OFFICIAL_MD5", md5s)
    valid, test = (tmp_path / f"{STEM}_{split}_x.h5" for split in ("valid", "test"))
    valid.rename(tmp_path / "third")
    test.rename(valid)
    (tmp_path / "third").rename(test)
    assert faults(verify(PCamDataModule(tmp_path, cache_dir=tmp_path / "cache"))) == [
        f"{valid.name}: valid and test are swapped: this is the official {test.name}; rename it",
        f"{test.name}: valid and test are swapped: this is the official {valid.name}; rename it",
    ]


def test_a_missing_official_file_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official(tmp_path, {"test": PATCHES["test"]})
    md5s = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in tmp_path.glob(f"{STEM}*")}
    monkeypatch.setattr(official, "OFFICIAL_MD5", md5s)
    (tmp_path / f"{STEM}_test_y.h5").unlink()
    found = faults(verify(PCamDataModule(tmp_path, cache_dir=tmp_path / "cache")))
    assert found == [f"{STEM}_test_y.h5: it is missing; fetch it with pcam download"]


def test_the_official_table_has_each_file_packed_and_unpacked() -> None:
    names = {f"{STEM}_{split}_{part}.h5" for split in ("train", "valid", "test") for part in "xy"}
    assert OFFICIAL_MD5.keys() == names | {f"{name}.gz" for name in names}
    assert len(set(OFFICIAL_MD5.values())) == 12
    # The data set's README has these two the wrong way round.
    assert OFFICIAL_MD5[f"{STEM}_valid_x.h5"] == "81cf9680f1724c40673f10dc88e909b1"
    assert OFFICIAL_MD5[f"{STEM}_test_x.h5"] == "2614b2e6717d6356be141d9d6dbfcb7e"


def test_kaggle_is_compared_with_its_names_file_by_file(tmp_path: Path) -> None:
    write_kaggle(tmp_path / "patches", PATCHES)
    data = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache")
    findings = verify(data)
    assert [(finding.subject, finding.found) for finding in findings] == [
        ("train_labels.csv", "40 patches, 42.5% tumour"),
        ("train/*.tif", "40 images"),
        ("test/*.tif", "7 images"),
    ]
    assert not faults(findings)
    changed, truncated, *_ = sorted((tmp_path / "patches" / "test").iterdir())
    with Image.open(changed) as image:
        image.putpixel((95, 95), (1, 2, 3))
        image.save(changed)
    truncated.write_bytes(truncated.read_bytes()[:1000])
    (tmp_path / "patches" / "train" / "extra.tif").write_bytes(truncated.read_bytes())
    labels, train, test = faults(verify(data))
    assert labels.startswith("train_labels.csv: Expected a row in")
    assert train.startswith(f"train/*.tif: Expected an image in {tmp_path}/patches/train/extra.tif, but it cannot be")
    assert test == f"test/*.tif: {changed} has other pixels than its name says; unpack Kaggle's archive anew (1 more)"


@pytest.mark.parametrize(
    ("write", "splits"),
    [(write_classes, "train valid test"), (write_course, "train valid"), (write_parquet, "train valid test")],
)
def test_patches_of_other_forms_are_decoded_and_counted(
    write: Callable[[Path, Patches], None], splits: str, tmp_path: Path
) -> None:
    write(tmp_path / "patches", PATCHES)
    findings = verify(PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache"))
    balances = {
        "train": "41 patches, 43.9% tumour",
        "valid": "12 patches, 41.7% tumour",
        "test": "7 patches, 42.9% tumour",
    }
    expected = [(split, balances[split]) for split in splits.split()]
    assert sorted((finding.subject, finding.found) for finding in findings) == sorted(expected)
    assert not faults(findings)


def test_every_patch_that_cannot_be_read_counts(tmp_path: Path) -> None:
    write_classes(tmp_path / "patches", PATCHES)
    first, second, *_ = sorted((tmp_path / "patches" / "valid" / "1").iterdir())
    Image.new("RGB", (95, 96)).save(first)
    second.write_text("no image")
    (found,) = faults(verify(PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache")))
    assert found == (
        f"valid: Expected patches of 96x96 pixels, but {first} has 95x96; remove it or cut it to size. (1 more)"
    )


def test_packed_stores_are_verified_with_their_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path / "patches", PATCHES)
    data = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache")
    deduplicated = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache", deduplicate=True)
    paths = [data.packed("train").path, data.packed("valid").path, deduplicated.packed("train").path]
    findings = verify(data)
    assert [(finding.subject, finding.found) for finding in findings[3:]] == [
        (str(paths[0]), "packed: 41 patches, 43.9% tumour"),
        (str(paths[1]), "packed: 12 patches, 41.7% tumour"),
        (str(paths[2]), "packed: 40 patches, 42.5% tumour"),
    ]
    assert not faults(findings)
    offset = data.packed("train").offset
    with paths[0].open("rb+") as file:
        file.seek(offset + 40 * 27_648 + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 128]))
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    altered, truncated = faults(verify(data))
    assert "but found other pixels in 1 of 41 rows, the first row 40; delete it" in altered
    assert "but it cannot be used" in truncated


def test_a_store_of_files_that_have_changed_is_no_fault(tmp_path: Path) -> None:
    write_classes(tmp_path / "patches", PATCHES)
    data = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache")
    data.packed("train")
    (tmp_path / "patches" / "train" / "0" / "patch9999999.png").hardlink_to(
        sorted((tmp_path / "patches" / "valid" / "0").iterdir())[0]
    )
    findings = verify(data)
    assert findings[-1].found.endswith("the files have changed since, and the next run packs them again")
    assert not faults(findings)


def test_the_script_ends_with_0_or_with_1_and_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "patches", PATCHES)
    arguments = ["verify", str(tmp_path / "patches"), "--cache_dir", str(tmp_path / "cache")]
    prepare_data(arguments)
    assert "43.9% tumour" in capsys.readouterr().out
    sorted((tmp_path / "patches" / "test" / "0").iterdir())[0].write_text("no image")
    with pytest.raises(SystemExit) as ended:
        prepare_data(arguments)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert (
        f"Expected all of {tmp_path}/patches and its packed stores to be right, but found 1 of 3 parts wrong, the "
        f"first test" in said.err
    )
    assert "remove it" in said.out.replace("\n", "")


@pytest.mark.parametrize("name", ["a[/b]", "[red]m", "[bold", "a\x1b[31m"])
def test_names_that_look_like_markup_or_move_the_cursor_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    root = tmp_path / name  # "a[/b]" is two folders
    write_classes(root, PATCHES)
    sorted((root / "valid" / "1").iterdir())[0].write_text("no image")
    data = PCamDataModule(root, cache_dir=tmp_path / "cache")
    data.packed("train")
    console = Console(file=io.StringIO(), record=True, width=1000)
    console.print(findings_table(verify(data)))
    said = console.export_text()
    assert f"an image in {root}".replace("\x1b", "\\x1b") in said
    assert "\x1b" not in said


def test_a_form_verifies_itself_whatever_stands_in_place_of_its_files(tmp_path: Path) -> None:
    write_official(tmp_path, PATCHES)
    path = tmp_path / f"{STEM}_valid_y.h5"
    path.unlink()
    os.mkfifo(path)
    assert any(
        "but it is a named pipe" in found for found in faults(verify(PCamDataModule(tmp_path, cache_dir=tmp_path)))
    )


def test_verifying_writes_nothing(tmp_path: Path) -> None:
    write_kaggle(tmp_path / "patches", PATCHES)
    before = sorted(tmp_path.rglob("*"))
    verify(PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.real_data
def test_real_class_folders_are_right(real_data: Path, tmp_path: Path) -> None:
    assert not faults(verify(PCamDataModule(real_data / "pcam", cache_dir=tmp_path)))

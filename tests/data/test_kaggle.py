"""Kaggle's files: a tenth becomes the valid split, of whole slides where a table, in any common style, tells them."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcam.data import PCamDataModule
from pcam.data.layouts.kaggle import kaggle_labels
from pcam.data.packed import PackedSplit
from pcam.errors import UserError
from pcam.options import SplitName
from tests.data.forms import (
    STEM,
    Patches,
    kaggle_id,
    noise,
    slides_of,
    write_classes,
    write_kaggle,
    write_official_packed,
    write_official_with_meta,
)


def rows_of(store: PackedSplit) -> dict[str, int]:
    return dict(zip(store.ids(), store.labels.tolist(), strict=True))


MANY = noise({"train": (160, 140), "test": (3, 2)}, seed=5)


@pytest.fixture(scope="module")
def kaggle_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kaggle's files without slides; nobody may write to it."""
    root = tmp_path_factory.mktemp("kaggle") / "patches"
    write_kaggle(root, MANY)
    return root


def link(kaggle_root: Path, root: Path) -> Path:
    """Kaggle's files once more, for a test to change."""
    root.mkdir()
    for name in ("train", "test"):
        (root / name).mkdir()
        for path in (kaggle_root / name).iterdir():
            (root / name / path.name).hardlink_to(path)
    (root / "train_labels.csv").write_bytes((kaggle_root / "train_labels.csv").read_bytes())
    return root


def test_kaggle_gives_a_tenth_to_valid_by_a_hash_of_the_id(
    kaggle_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = PCamDataModule(kaggle_root, cache_dir=tmp_path / "cache")
    train, valid = rows_of(data.packed("train")), rows_of(data.packed("valid"))
    images, labels = MANY["train"]
    assert train | valid == {kaggle_id(image): label for image, label in zip(images, labels.tolist(), strict=True)}
    assert not train.keys() & valid.keys()
    assert 0.05 < len(valid) / (len(train) + len(valid)) < 0.16
    assert data.packed("train").slides() is None
    assert data.packed("train").ids() == data.packed("train").pixel_hashes()
    assert "chosen by a seeded hash of their ids: slides are not known" in caplog.text


def test_another_patch_on_kaggle_moves_no_patch_to_the_other_split(kaggle_root: Path, tmp_path: Path) -> None:
    root = link(kaggle_root, tmp_path / "patches")
    table = pd.read_csv(root / "train_labels.csv")
    (root / "train" / f"{table['id'][0]}.tif").unlink()
    table[1:].to_csv(root / "train_labels.csv", index=False)
    all_of_them = PCamDataModule(kaggle_root, cache_dir=tmp_path / "cache").packed("valid").ids()
    fewer = PCamDataModule(root, cache_dir=tmp_path / "cache").packed("valid").ids()
    assert fewer == [patch_id for patch_id in all_of_them if patch_id != table["id"][0]]


def slides_of_kaggle(data: PCamDataModule) -> tuple[dict[str, str], dict[str, str]]:
    stores = data.packed("train"), data.packed("valid")
    train, valid = (dict(zip(store.ids(), store.slides() or [], strict=True)) for store in stores)
    return train, valid


@pytest.mark.parametrize(("column", "encoding"), [("slide", "utf-8"), ("wsi", "utf-8"), ("slide", "utf-8-sig")])
def test_kaggle_is_split_by_slide_if_a_csv_tells_them(
    column: str, encoding: str, kaggle_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = link(kaggle_root, tmp_path / "patches")
    ids = pd.read_csv(root / "train_labels.csv")["id"]
    slides = {patch_id: f"slide {index % 30}" for index, patch_id in enumerate(ids)}
    pd.DataFrame(slides.items(), columns=["id", column]).to_csv(root / "slides.csv", index=False, encoding=encoding)
    train, valid = slides_of_kaggle(PCamDataModule(root, cache_dir=tmp_path / "cache"))
    assert train | valid == slides
    assert not set(train.values()) & set(valid.values())
    assert len(valid) == 29  # three of 30 slides of ten patches, one of which has one patch less
    assert f"chosen of whole slides, by {root}/slides.csv" in caplog.text


@pytest.mark.parametrize("form", ["{};{}\n", "{}, {}\n", "{}\t{}\n", '"{}";"{}"\n'])
@pytest.mark.parametrize("heading", ["id slide", "ID Slide"])
def test_a_table_of_slides_may_be_written_as_spreadsheets_do(
    form: str, heading: str, kaggle_root: Path, tmp_path: Path
) -> None:
    root = link(kaggle_root, tmp_path / "patches")
    ids = pd.read_csv(root / "train_labels.csv")["id"]
    slides = {patch_id: f"slide {index % 30}" for index, patch_id in enumerate(ids)}
    lines = [form.format(*heading.split()), *(form.format(*row) for row in slides.items())]
    (root / "slides.csv").write_text("".join(lines))
    train, valid = slides_of_kaggle(PCamDataModule(root, cache_dir=tmp_path / "cache"))
    assert train | valid == slides
    assert not set(train.values()) & set(valid.values())


def test_a_folder_by_the_name_of_some_other_csv_is_passed_over(kaggle_root: Path, tmp_path: Path) -> None:
    root = link(kaggle_root, tmp_path / "patches")
    (root / "notes.csv").mkdir()
    os.mkfifo(root / "pipe.csv")
    assert len(PCamDataModule(root, cache_dir=tmp_path / "cache").packed("train")) > 200


@pytest.mark.parametrize("write", [write_official_with_meta, write_official_packed])
def test_kaggle_is_split_by_slide_if_the_official_files_tell_them(
    write: Callable[[Path, Patches], None], kaggle_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = link(kaggle_root, tmp_path / "patches")
    images, labels = MANY["train"]
    order = np.random.default_rng(0).permutation(len(labels))
    official: Patches = {"train": (images[order], labels[order])}
    write(root, official)
    if write is write_official_packed:
        write_official_with_meta(tmp_path / "meta", official)
        (tmp_path / "meta" / f"{STEM}_train_meta.csv").rename(root / f"{STEM}_train_meta.csv")
    train, valid = slides_of_kaggle(PCamDataModule(root, cache_dir=tmp_path / "cache"))
    known = zip((kaggle_id(image) for image in official["train"][0]), slides_of(labels), strict=True)
    assert train | valid == dict(reversed(list(known)))
    assert not set(train.values()) & set(valid.values())
    assert 30 <= len(valid) <= 40  # one of eight slides: the others would make more than a tenth
    assert "chosen of whole slides, by the official files of train" in caplog.text


def test_kaggle_gives_the_same_store_as_class_folders(kaggle_root: Path, tmp_path: Path) -> None:
    found = PCamDataModule(kaggle_root, cache_dir=tmp_path / "cache")
    splits: list[SplitName] = ["train", "valid"]
    write_classes(
        tmp_path / "patches", {split: (found.packed(split).patches, found.packed(split).labels) for split in splits}
    )
    expected = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache")
    for split in splits:
        assert found.packed(split).fingerprint == expected.packed(split).fingerprint


@settings(max_examples=int(os.environ.get("PCAM_FUZZ_EXAMPLES", "60")), deadline=None)
@given(
    row=st.integers(0, 11),
    cells=st.one_of(st.text(max_size=30), st.sampled_from(["", ",", "a,b,c", '"', "id,label", "nan,nan", "1e999,1"])),
)
def test_a_csv_with_any_row_is_read_or_refused_in_a_sentence(
    row: int, cells: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kaggle")
    (folder / "train").mkdir()
    lines = ["id,label", *(f"patch{index},{index % 2}" for index in range(12))]
    for index in range(12):
        (folder / "train" / f"patch{index}.tif").touch()
    lines[row] = cells
    (folder / "train_labels.csv").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        sentence = f"{kaggle_labels(folder).sum()} of {folder}"
    except UserError as error:
        sentence = str(error)
    assert str(folder) in sentence

"""Repeats are dropped, and conflicting patches with them, if that is asked for."""

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pcam.data import PCamDataModule
from pcam.data.packed import PackedSplit, pack
from pcam.patches import PatchArray
from tests.data.forms import noise, write_classes, write_official_with_meta
from tests.data.memory import IMAGES, LABELS, files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "train.h5"


def with_repeats() -> tuple[PatchArray, NDArray[np.uint8]]:
    """Patch 0 three times; patch 1 twice and patch 2 three times with both labels."""
    rows = np.array([0, 1, 2, *range(3, 41), 0, 0, 1, 2, 2])
    labels = LABELS[rows]
    labels[-3:] = 1 - labels[1], 1 - labels[2], labels[2]
    images = IMAGES[rows]
    images[40] = IMAGES[5]  # whose own copy of patch 0 would make a fourth
    labels[40] = labels[5]
    return images, labels


def test_deduplicating_keeps_the_first_of_each_group_and_none_in_conflict(path: Path) -> None:
    images, labels = with_repeats()
    store = pack(files(images, labels), path, "Packing", deduplicate=True)
    assert sorted(int(patch_id.removeprefix("patch ")) for patch_id in store.ids()) == [0, *range(3, 40)]
    assert (store.repeats_dropped, store.conflicts_dropped) == (3, 5)
    assert len(set(store.pixel_hashes())) == len(store) == len(store.labels) == len(store.patches)
    store.verify()
    rows = [0, *range(3, 40)]
    plain = pack(files(images[rows], labels[rows]), path.with_name("plain.h5"), "Packing")
    assert store.fingerprint == plain.fingerprint
    assert (plain.repeats_dropped, plain.conflicts_dropped) == (0, 0)


def test_deduplicating_is_part_of_what_a_store_is_known_by(path: Path) -> None:
    images, labels = with_repeats()
    lengths = [len(pack(files(images, labels), path, "Packing", deduplicate=drop)) for drop in (False, True, False)]
    assert lengths == [46, 38, 46]


def test_the_data_module_keeps_both_stores_and_says_what_it_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_classes(tmp_path / "patches", noise())
    cache = tmp_path / "cache"
    plain = PCamDataModule(tmp_path / "patches", cache_dir=cache).packed("train")
    for _ in range(2):  # packed, and opened
        store = PCamDataModule(tmp_path / "patches", cache_dir=cache, deduplicate=True).packed("train")
        assert (len(plain), len(store)) == (41, 40)
        said = "train: kept 40 patches, dropped 1 repeats of them and 0 patches whose identical pixels carry both"
        assert caplog.text.count(said) == 1
        caplog.clear()
    assert PackedSplit(plain.path).fingerprint == plain.fingerprint


def test_slides_stay_with_their_patches_when_repeats_are_dropped(tmp_path: Path) -> None:
    write_official_with_meta(tmp_path / "patches", noise())
    store = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache", deduplicate=True).packed("train")
    slides = store.slides()
    assert slides is not None
    rows = [int(patch_id.removeprefix("train/")) for patch_id in store.ids()]
    assert slides == [f"camelyon16_train_tumor_{row * 8 // 41:03d}" for row in rows]

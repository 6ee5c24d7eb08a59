"""The same patches give the same store, the same batches and the same training in every form."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer

from pcam.data import PCamDataModule
from pcam.data.layouts import read_image
from pcam.models import BaselineCNN
from pcam.options import SplitName
from pcam.training import PatchClassifier
from tests.data.forms import (
    COUNTS,
    STEM,
    WRITERS,
    Patches,
    encode,
    kaggle_id,
    slides_of,
    write_classes,
    write_kaggle,
    write_official,
    write_official_packed,
)


@pytest.fixture(scope="module")
def expected(patches: Patches, tmp_path_factory: pytest.TempPathFactory) -> PCamDataModule:
    """The patches as class folders: what every other form has to give."""
    folder = tmp_path_factory.mktemp("expected")
    write_classes(folder / "patches", patches)
    return PCamDataModule(folder / "patches", batch_size=8, cache_dir=folder / "cache")


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_patches_give_the_same_batches_in_the_same_order(
    form: str, patches: Patches, expected: PCamDataModule, tmp_path: Path
) -> None:
    WRITERS[form](tmp_path / "patches", patches)
    found = PCamDataModule(tmp_path / "patches", batch_size=8, cache_dir=tmp_path / "cache")
    splits: list[SplitName] = ["train", "valid"] if form == "course" else ["train", "valid", "test"]
    for split in splits:
        store = found.packed(split)
        assert (int((store.labels == 0).sum()), int(store.labels.sum())) == COUNTS[split]
        assert store.fingerprint == expected.packed(split).fingerprint
    loaders = found.train_dataloader(), expected.train_dataloader()
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for batch, other in zip(*loaders, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))


@pytest.mark.slow  # takes some seconds
def test_the_same_patches_give_the_same_training(patches: Patches, expected: PCamDataModule, tmp_path: Path) -> None:
    write_official(tmp_path / "patches", patches)
    ends = []
    for data in (expected, PCamDataModule(tmp_path / "patches", batch_size=8, cache_dir=tmp_path / "cache")):
        torch.manual_seed(0)
        classifier = PatchClassifier(BaselineCNN(dropout=0.5), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        trainer = Trainer(
            max_steps=8, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(classifier, data)
        ends.append(classifier.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("form", ["official_with_meta", "official_packed", "parquet"])
def test_ids_are_indices_and_lead_back_to_the_patch(form: str, patches: Patches, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "patches", patches)
    store = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train")
    images, labels = patches["train"]
    assert sorted(store.ids()) == [f"train/{index:07d}" for index in range(len(labels))]
    indices = [int(patch_id.removeprefix("train/")) for patch_id in store.ids()]
    np.testing.assert_array_equal(store.patches, images[indices])
    np.testing.assert_array_equal(store.labels, labels[indices])
    slides = store.slides()
    if form == "official_with_meta":
        assert slides == [slides_of(labels)[index] for index in indices]
    else:
        assert slides is None


def test_nothing_but_the_store_and_its_lock_is_left_in_the_cache(patches: Patches, tmp_path: Path) -> None:
    write_official_packed(tmp_path / "patches", patches)
    store = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("test")
    assert {path.name for path in store.path.parent.iterdir()} == {"test-all.h5", "test-all.h5.lock"}


def test_chunks_of_hdf5_are_read_whatever_their_size(
    patches: Patches, expected: PCamDataModule, tmp_path: Path
) -> None:
    write_official(tmp_path / "patches", patches)
    with h5py.File(tmp_path / "patches" / f"{STEM}_train_x.h5", "w") as file:
        file.create_dataset("x", data=patches["train"][0], chunks=(7, 96, 48, 3), compression="gzip")
    found = PCamDataModule(tmp_path / "patches", cache_dir=tmp_path / "cache").packed("train")
    assert found.fingerprint == expected.packed("train").fingerprint


def test_parquet_may_hold_images_without_structs_and_labels_as_truth_values(
    patches: Patches, expected: PCamDataModule, tmp_path: Path, cache_dir: Path
) -> None:
    for split, (images, labels) in patches.items():
        rows = pd.DataFrame({"image": [encode(image) for image in images], "label": labels == 1})
        rows.to_parquet(tmp_path / f"{split}.parquet")
    found = PCamDataModule(tmp_path, cache_dir=cache_dir).packed("train")
    assert found.fingerprint == expected.packed("train").fingerprint


@pytest.mark.real_data
def test_real_patches_are_the_same_in_every_form(real_data: Path, tmp_path: Path) -> None:
    counts: dict[SplitName, int] = {"train": 150, "valid": 60, "test": 40}
    patches: Patches = {}
    for split, count in counts.items():
        files = [sorted((real_data / "pcam" / split / str(label)).iterdir())[:count] for label in (0, 1)]
        images = np.stack([read_image(path) for several in files for path in several])
        patches[split] = images, np.repeat(np.array([0, 1], dtype=np.uint8), count)
    fingerprints = {}
    for form, write in WRITERS.items():
        write(tmp_path / form, patches)
        data = PCamDataModule(tmp_path / form, cache_dir=tmp_path / "cache")
        fingerprints[form] = [data.packed("train").fingerprint, data.packed("valid").fingerprint]
    assert len({tuple(values) for values in fingerprints.values()}) == 1
    write_kaggle(tmp_path / "kaggle", patches)
    kaggle = PCamDataModule(tmp_path / "kaggle", cache_dir=tmp_path / "cache")
    hashes = kaggle.packed("train").pixel_hashes() + kaggle.packed("valid").pixel_hashes()
    assert sorted(hashes) == sorted({kaggle_id(image) for image in patches["train"][0]})

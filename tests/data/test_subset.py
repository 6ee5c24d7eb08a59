"""Training on some of the patches, or on those of some slides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

import pcam
from pcam.data import PCamDataModule
from pcam.errors import UserError
from tests.data.forms import noise, write_official_with_meta


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 training patches of eight slides."""
    root = tmp_path_factory.mktemp("data") / "patches"
    write_official_with_meta(root, noise())
    return root


def data(root: Path, cache_dir: Path, **options: Any) -> PCamDataModule:
    return PCamDataModule(root, batch_size=8, cache_dir=cache_dir, **options)


def test_fewer_patches_are_among_more_and_every_epoch_sees_the_same(root: Path, cache_dir: Path) -> None:
    few, more, other = (
        data(root, cache_dir, train_patches=number, seed=seed) for number, seed in ((10, 1), (20, 1), (10, 2))
    )
    chosen = set(few.rows("train").tolist())
    assert len(chosen) == 10
    assert chosen < set(more.rows("train").tolist())
    assert chosen != set(other.rows("train").tolist())
    loader = few.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        seen = np.concatenate([batch.indices.numpy() for batch in loader])
        assert sorted(seen.tolist()) == sorted(chosen)
    assert sum(len(patches) for patches in few.training_patches(100, "cpu")) == 8  # whole batches of those alone
    assert sum(len(batch.labels) for batch in few.loader("valid")) == len(few.packed("valid"))


def test_what_is_measured_is_the_whole_split(root: Path, cache_dir: Path) -> None:
    few = data(root, cache_dir, train_patches=10)
    seen = np.concatenate([batch.indices.numpy() for batch in few.loader("train")])
    assert seen.tolist() == list(range(41))
    network = pcam.BaselineCNN()
    (path := root.parent / "version_0" / "checkpoints").mkdir(parents=True)
    classifier = pcam.PatchClassifier(network, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer = Trainer(max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(classifier, few)
    trainer.save_checkpoint(path / "best.ckpt")
    predictions = pcam.TrainedRun.load(path.parent, network=network, data=few).predict("train")
    assert len(predictions.logits) == len(predictions.labels) == len(predictions.ids) == 41


def test_slides_are_chosen_before_patches(root: Path, cache_dir: Path) -> None:
    of_slides = data(root, cache_dir, train_slides=3)
    slides = np.array(of_slides.packed("train").slides())
    chosen = set(slides[of_slides.rows("train")])
    assert len(chosen) == 3
    assert len(of_slides.rows("train")) == np.isin(slides, list(chosen)).sum()  # all patches of those slides
    both = data(root, cache_dir, train_slides=3, train_patches=6)
    assert len(both.rows("train")) == 6
    assert set(slides[both.rows("train")]) <= chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_patches": 42}, r"Expected data.train_patches to be at most the 41 patches that are known .* found 42"),
        ({"train_slides": 9}, r"Expected data.train_slides to be at most the 8 slides that are known .* but found 9"),
    ],
)
def test_more_than_there_are_is_refused(options: dict[str, int], message: str, root: Path, cache_dir: Path) -> None:
    with pytest.raises(UserError, match=message):
        data(root, cache_dir, **options).train_dataloader()


def test_none_at_all_is_refused(root: Path, cache_dir: Path) -> None:
    for name in ("train_patches", "train_slides"):
        with pytest.raises(UserError, match=f"Expected data.{name} to be at least 1, but found 0"):
            data(root, cache_dir, **{name: 0})

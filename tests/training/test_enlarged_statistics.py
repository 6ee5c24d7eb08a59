"""Batch norm's statistics for enlarged patches: what they are, and that training does not know of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from pcam.data import PCamDataModule
from pcam.models import MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm
from pcam.training import EnlargedStatistics, PatchClassifier


def train(root: Path, cache_dir: Path, **options: Any) -> tuple[PatchClassifier, PCamDataModule, Trainer]:
    torch.manual_seed(0)
    network = MobileNetV2(weights=None, dropout=0.5, **options)
    classifier = PatchClassifier(network, lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    data = PCamDataModule(root, batch_size=4, cache_dir=cache_dir)
    trainer = Trainer(
        max_steps=2, limit_val_batches=2, val_check_interval=1, check_val_every_n_epoch=None, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EnlargedStatistics(patches=8)],
    )  # fmt: skip
    trainer.fit(classifier, data)
    return classifier, data, trainer


def test_statistics_are_those_of_enlarged_training_patches_and_training_is_as_without(
    patch_root: Path, cache_dir: Path
) -> None:
    classifier, data, trainer = train(patch_root, cache_dir, enlarged_sizes=[128])
    network = classifier.network
    assert isinstance(network, MobileNetV2)
    assert network.enlarged is not None
    layers = learning_layers(network.enlarged)
    found = read_statistics(layers)

    plain, _, without = train(patch_root, cache_dir)
    for name, value in plain.state_dict().items():
        assert torch.equal(classifier.state_dict()[name], value), name
    assert trainer.callback_metrics["val/loss"] != without.callback_metrics["val/loss"]

    reestimate_batch_norm(
        network.enlarged, [network.normalization(batch) for batch in data.training_patches(8, torch.device("cpu"))]
    )
    assert torch.equal(read_statistics(layers), found)
    # What was validated is what there is now.
    classifier.prepare_evaluation("32-true")
    for index, batch in zip(range(2), data.loader("valid"), strict=False):
        classifier.validation_step(batch, index)
    assert classifier.compute_validation_metrics()["val/loss"] == trainer.callback_metrics["val/loss"]


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_a_frozen_network_keeps_imagenets_statistics(patch_root: Path, cache_dir: Path) -> None:
    classifier, _, _ = train(patch_root, cache_dir, enlarged_sizes=[128], freeze=True)
    network = classifier.network
    assert isinstance(network, MobileNetV2)
    assert network.enlarged is not None
    own, enlarged = (
        [buffer for name, buffer in part.named_buffers() if "running" in name]
        for part in (network.features, network.enlarged)
    )
    assert all(torch.equal(*pair) for pair in zip(own, enlarged, strict=True))

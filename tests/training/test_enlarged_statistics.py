"""Batch norm's statistics for enlarged patches: what they are, and that training does not know of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from pcam.data import PCamDataModule
from pcam.models import MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm
from pcam.models.enlarged import EnlargedFeatures
from pcam.models.normalization import Normalization
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


@pytest.mark.slow  # takes some seconds
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
    with classifier.evaluating(batches=2):  # so few that PyTorch computes, as it did then
        for index, batch in zip(range(2), data.loader("valid"), strict=False):
            classifier.validation_step(batch, index)
    assert classifier.compute_validation_metrics()["val/loss"] == trainer.callback_metrics["val/loss"]


@pytest.mark.slow  # takes some seconds
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


@pytest.mark.slow  # takes some seconds
def test_a_trainer_that_knows_nothing_of_enlarged_patches_estimates_their_statistics_too(
    patch_root: Path, cache_dir: Path
) -> None:
    classifier = PatchClassifier(MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[128]), torch.optim.SGD)
    trainer = Trainer(
        max_steps=1, val_check_interval=1, check_val_every_n_epoch=None, limit_val_batches=1, accelerator="cpu",
        logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir))
    network = classifier.network
    assert isinstance(network, MobileNetV2)
    assert network.enlarged is not None
    found = read_statistics(learning_layers(network.enlarged))
    batches = PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir).training_patches(2048, torch.device("cpu"))
    reestimate_batch_norm(network.enlarged, map(network.normalization, batches))
    torch.testing.assert_close(read_statistics(learning_layers(network.enlarged)), found)


class Enlarging(torch.nn.Module):
    """A network of one's own that evaluates patches enlarged, by the protocol and not by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.normalization = Normalization("unit")
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=8), torch.nn.BatchNorm2d(4))
        self.enlarged = EnlargedFeatures(self.features, [128])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        normalized = self.normalization(patches)
        views = [self.features(normalized)] + ([] if self.training else self.enlarged(normalized))
        return torch.stack([view.mean(dim=(1, 2, 3)) for view in views]).mean(dim=0)


@pytest.mark.slow  # takes some seconds
def test_a_network_of_ones_own_may_evaluate_enlarged_patches(patch_root: Path, cache_dir: Path) -> None:
    network = Enlarging()
    trainer = Trainer(
        max_steps=1, val_check_interval=1, check_val_every_n_epoch=None, limit_val_batches=1, accelerator="cpu",
        logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir)
    trainer.fit(PatchClassifier(network, torch.optim.SGD), data)
    batches = [network.normalization(batch) for batch in data.training_patches(2048, torch.device("cpu"))]
    found = read_statistics(learning_layers(network.enlarged))
    reestimate_batch_norm(network.enlarged, batches)
    torch.testing.assert_close(read_statistics(learning_layers(network.enlarged)), found)

"""One training with several readings, against trainings that have the momenta themselves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import nn

from pcam.data import PCamDataModule
from pcam.errors import UserError
from pcam.models import BaselineCNN, MobileNetV2
from pcam.models.batch_norm import learning_layers, read_statistics, reestimate_batch_norm, write_statistics
from pcam.training import BatchNormReadings, PatchClassifier
from pcam.training.metrics_file import MetricsFile
from pcam.training.random_state import RandomState


class Small(nn.Module):
    """Batch norm, and dropout, which draws from the global random state."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8),
            nn.BatchNorm2d(8, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(),
            nn.Conv2d(8, 4, 3),
            nn.BatchNorm2d(4, momentum=momentum),
            nn.Flatten(),
            nn.Linear(400, 1),
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.layers(patches.float() / 255).squeeze(1)


def train(
    root: Path, cache_dir: Path, metrics: Path, *callbacks: Any, momentum: float = 0.1, **options: Any
) -> tuple[PatchClassifier, Trainer, PCamDataModule]:
    torch.manual_seed(0)
    classifier = PatchClassifier(Small(momentum), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    data = PCamDataModule(root, batch_size=8, augmentation="d4", cache_dir=cache_dir)
    trainer = Trainer(
        max_steps=24, log_every_n_steps=3, val_check_interval=6, check_val_every_n_epoch=None, accelerator="cpu",
        logger=MetricsFile(metrics), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(classifier, data, **options)
    return classifier, trainer, data


@pytest.mark.slow  # takes some seconds
def test_training_is_bit_identical_with_and_without_it(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    first, without, _ = train(patch_root, cache_dir, tmp_path / "without.csv")
    second, with_it, _ = train(patch_root, cache_dir, tmp_path / "with.csv", BatchNormReadings(patches=16))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    for name, value in without.callback_metrics.items():
        assert torch.equal(with_it.callback_metrics[name], value), name
    columns = (tmp_path / "with.csv").read_text().partition("\n")[0].split(",")
    assert {"val/loss_momentum_0.1", "val/auroc_momentum_0.001", "val/accuracy_reestimated"} <= set(columns)


@pytest.mark.parametrize("own", [0.1, 0.001])
@pytest.mark.slow  # takes some seconds
def test_each_reading_is_what_a_training_with_that_momentum_gives(
    own: float, patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    readings = BatchNormReadings((0.1, 0.5, 0.001))
    train(patch_root, cache_dir, tmp_path / "readings.csv", readings, momentum=own)
    rows = MetricsFile(tmp_path / "readings.csv", 24)._rows
    for momentum in (0.1, 0.5, 0.001):
        other, _, _ = train(patch_root, cache_dir, tmp_path / f"{momentum}.csv", momentum=momentum)
        expected = read_statistics(learning_layers(other.network))
        # From statistics of momentum 0.001, a batch's are known to about 1e-4 of their size.
        tolerance = 1e-5 if own == 0.1 else 1e-3
        torch.testing.assert_close(
            readings.state_dict()[str(momentum)], expected, rtol=tolerance, atol=tolerance, msg=str(momentum)
        )
        for step, row in MetricsFile(tmp_path / f"{momentum}.csv", 24)._rows.items():
            assert rows[step][f"val/loss_momentum_{momentum}"] == pytest.approx(row["val/loss"], rel=10 * tolerance)
    assert len(rows) == 4


@pytest.mark.slow  # takes some seconds
def test_the_reestimated_reading_is_that_of_reestimated_statistics(
    patch_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    classifier, trainer, data = train(patch_root, cache_dir, tmp_path / "metrics.csv", BatchNormReadings(patches=24))
    row = MetricsFile(tmp_path / "metrics.csv", 24)._rows[24]
    assert row["val/loss_momentum_0.1"] == trainer.callback_metrics["val/loss"].item()
    classifier.eval()
    reestimate_batch_norm(classifier.network, data.training_patches(24, torch.device("cpu")))
    (measured,) = trainer.validate(classifier, data, verbose=False)
    assert row["val/loss_reestimated"] == pytest.approx(measured["val/loss"], rel=1e-5)
    assert row["val/loss_reestimated"] != row["val/loss_momentum_0.1"]


class Save(Callback):
    """Writes a checkpoint after nine steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 9:
            trainer.save_checkpoint(self.path)


@pytest.mark.slow  # takes some seconds
def test_a_resumed_training_keeps_its_readings(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    whole, rest = BatchNormReadings(patches=16), BatchNormReadings(patches=16)
    path = tmp_path / "half.ckpt"
    train(patch_root, cache_dir, tmp_path / "whole.csv", whole, RandomState(), Save(path))
    train(patch_root, cache_dir, tmp_path / "rest.csv", rest, RandomState(), ckpt_path=path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value)


def test_statistics_go_into_a_network_that_is_built_alike() -> None:
    network = Small(0.1)
    other = copy.deepcopy(network)
    network(torch.rand(4, 3, 96, 96) * 255)
    write_statistics(learning_layers(other), read_statistics(learning_layers(network)))
    for name, value in network.state_dict().items():
        if "running" in name:
            assert torch.equal(other.state_dict()[name], value)


def test_what_it_cannot_do_is_refused(patch_root: Path, cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"above 0 and at most 1, but found 0; Keras's momentum"):
        BatchNormReadings((0.1, 0))
    with pytest.raises(UserError, match="Expected one momentum in all layers of batch norm"):
        train(patch_root, cache_dir, tmp_path / "none.csv", BatchNormReadings(), momentum=None)
    enlarging = MobileNetV2(weights=None, dropout=0.0, enlarged_sizes=[128])
    for network, message in ((BaselineCNN(), "BaselineCNN has none"), (enlarging, r"found enlarged_sizes \[128\]")):
        trainer = Trainer(
            logger=False, enable_checkpointing=False, accelerator="cpu", callbacks=[BatchNormReadings()], max_steps=1
        )
        with pytest.raises(UserError, match=message):
            trainer.fit(PatchClassifier(network, torch.optim.SGD), PCamDataModule(patch_root, cache_dir=cache_dir))

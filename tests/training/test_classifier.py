"""The classifier and its metrics, against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from torch import nn

from pcam.data import PCamDataModule
from pcam.models import BaselineCNN
from pcam.training import PatchClassifier


def test_metrics_are_exact_over_the_whole_split(patch_root: Path, cache_dir: Path) -> None:
    torch.manual_seed(0)
    classifier = PatchClassifier(BaselineCNN(), torch.optim.SGD)
    datamodule = PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir)  # 25 patches: the last batch is smaller
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    (found,) = trainer.validate(classifier, datamodule, verbose=False)
    store = datamodule.packed("valid")
    with torch.inference_mode():
        scores = classifier(store[np.arange(len(store))].patches).double().sigmoid().numpy()
    labels = store.labels
    assert found["val/auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["val/average_precision"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found["val/accuracy"] == pytest.approx(accuracy_score(labels, scores > 0.5), abs=1e-6)
    assert found["val/loss"] == pytest.approx(log_loss(labels, scores), abs=1e-5)


class Saturated(nn.Module):
    """Logits above 0 for all, in the right order, some above 1."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return 3 - patches[:, :, 32:64, 32:64].float().mean((1, 2, 3)) / 100


def test_the_metrics_see_scores_not_logits(patch_root: Path, cache_dir: Path) -> None:
    classifier = PatchClassifier(Saturated(), torch.optim.SGD)
    datamodule = PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    (found,) = trainer.validate(classifier, datamodule, verbose=False)
    assert found["val/auroc"] == 1.0
    assert found["val/accuracy"] == pytest.approx(11 / 25)  # every logit is positive, so every patch is called tumour


def test_the_scheduler_steps_with_each_batch(patch_root: Path, cache_dir: Path) -> None:
    classifier = PatchClassifier(
        BaselineCNN(),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    )
    datamodule = PCamDataModule(patch_root, batch_size=8, cache_dir=cache_dir)
    trainer = Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=3, accelerator="cpu",
        limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, datamodule)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


def test_only_what_learns_goes_to_the_optimizer() -> None:
    network = BaselineCNN()
    network.features.requires_grad_(False)
    optimizer = PatchClassifier(network, torch.optim.SGD).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert len(optimizer.param_groups[0]["params"]) == 4

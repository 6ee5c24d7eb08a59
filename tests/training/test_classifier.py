"""The classifier and its metrics, against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from torch import nn

from pcam.data import PCamDataModule
from pcam.data.stain import StainShift
from pcam.models import BaselineCNN, MobileNetV2
from pcam.training import PatchClassifier
from pcam.training.mean_loss import MeanLoss


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
    assert not any(name.startswith("val_shifted") for name in found)


@pytest.mark.slow  # takes some seconds
def test_shifted_stains_are_measured_beside_the_split_as_it_is(patch_root: Path, cache_dir: Path) -> None:
    torch.manual_seed(0)
    classifier = PatchClassifier(BaselineCNN(), torch.optim.SGD)
    shifts = [StainShift(haematoxylin=1.5), StainShift(eosin=0.5)]
    datamodule = PCamDataModule(patch_root, batch_size=4, cache_dir=cache_dir, stain_shifts=shifts)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    found = {
        name: value
        for measured in trainer.validate(classifier, datamodule, verbose=False)
        for name, value in measured.items()
    }
    for shifted, prefix in ((False, "val/"), (True, "val_shifted/")):
        batches = list(datamodule.loader("valid", shifted=shifted))
        labels = torch.cat([batch.labels for batch in batches]).numpy()
        with torch.inference_mode():
            scores = torch.cat([classifier(batch.patches) for batch in batches]).double().sigmoid().numpy()
        assert found[f"{prefix}auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert found[f"{prefix}loss"] == pytest.approx(log_loss(labels, scores), abs=1e-5)
    assert found["val/loss"] != pytest.approx(found["val_shifted/loss"], abs=1e-5)


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


def train_losses(root: Path, cache_dir: Path, network: nn.Module) -> list[float]:
    """The loss of each of four steps at a constant learning rate, then that of the valid split."""
    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *args: object) -> None:
            losses.append(outputs["loss"].item())

    classifier = PatchClassifier(network, lambda parameters: torch.optim.SGD(parameters, lr=1e-4))
    trainer = Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_steps=4,
        accelerator="cpu", callbacks=[Losses()], num_sanity_val_steps=0, val_check_interval=4,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(classifier, PCamDataModule(root, batch_size=16, cache_dir=cache_dir))
    return [*losses, trainer.callback_metrics["val/loss"].item()]


def seeded(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return BaselineCNN() if kind == "BaselineCNN" else MobileNetV2(weights=None, dropout=0.0)


class Plain(nn.Module):
    """The same network without what makes it fast: contiguous memory, ReLU6 in place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)
        for module in self.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        normalization = self.network.normalization
        features = self.network.features((patches.contiguous().float() - normalization.mean) / normalization.std)
        pooled = features.mean((2, 3)) if isinstance(self.network, MobileNetV2) else features
        return self.network.head(pooled).flatten()


@pytest.mark.parametrize("kind", ["BaselineCNN", "MobileNetV2"])
@pytest.mark.slow  # takes some seconds
def test_the_fast_path_gives_the_losses_of_the_plain_one(
    kind: str, patch_root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = train_losses(patch_root, cache_dir, seeded(kind))
    monkeypatch.setattr(PatchClassifier, "_start_evaluating", lambda *_: None)
    monkeypatch.setattr(PatchClassifier, "evaluate", PatchClassifier.forward)
    plain = train_losses(patch_root, cache_dir, Plain(seeded(kind)))
    assert len(fast) == 5
    assert fast == pytest.approx(plain, rel=1e-3)


def test_what_evaluates_is_no_part_of_a_checkpoint(patch_root: Path, cache_dir: Path) -> None:
    classifier = PatchClassifier(BaselineCNN(), torch.optim.SGD)
    before = set(classifier.state_dict())
    with classifier.evaluating():
        assert set(classifier.state_dict()) == before
        assert len(list(classifier.modules())) == len(list(PatchClassifier(BaselineCNN(), torch.optim.SGD).modules()))


def test_evaluating_without_preparation_neither_drops_nor_moves_statistics() -> None:
    classifier = PatchClassifier(MobileNetV2(weights=None, dropout=0.5), torch.optim.SGD)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    batch = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    first, second = classifier.evaluate(batch), classifier.evaluate(batch)
    assert classifier.training
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    torch.testing.assert_close(first, classifier.network.eval()(batch).detach(), rtol=1e-4, atol=1e-5)


def test_evaluating_after_further_training_uses_the_weights_of_now() -> None:
    classifier = PatchClassifier(BaselineCNN(), torch.optim.SGD)
    batch = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    with classifier.evaluating():
        before = classifier.evaluate(batch)
        with torch.no_grad():
            classifier.network.head[-1].bias += 1
        assert torch.equal(classifier.evaluate(batch), before)  # the copy of one validation
    torch.testing.assert_close(classifier.evaluate(batch), before + 1)


def test_a_loss_that_is_nan_makes_the_mean_nan_and_batches_count_by_their_size() -> None:
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2
    mean.update(torch.tensor(float("nan")), 1)
    assert mean.compute().isnan()

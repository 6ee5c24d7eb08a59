"""Who takes part in a race: this project as its scripts run it, what others write, and what the machine allows."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v2
from torchvision.transforms import Compose, Normalize, ToTensor

from pcam.benchmark.course import DROPOUT, LR, MOMENTUM, Course
from pcam.benchmark.race import Stopwatch
from pcam.cli import PCamCLI
from pcam.data import PCamDataModule
from pcam.memory import keep_freed_memory
from pcam.models import MobileNetV2
from pcam.models.normalization import MEAN_AND_STD
from pcam.options import SplitName

CONFIG: Final = Path(__file__).parents[2] / "configs" / "random_dropout.yaml"
"""The training that is measured: MobileNetV2, dropout 0.5, SGD. Which weights it starts from changes no speed."""


class Turns(Callback):
    """Cuts a training into turns.

    Args:
        stopwatch: The contestant's.
        course: How many steps a turn has.
    """

    def __init__(self, stopwatch: Stopwatch, course: Course) -> None:
        self._stopwatch = stopwatch
        self._course = course
        self._wait = DataWait()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the loader."""
        trainer.profiler = self._wait  # type: ignore[attr-defined]  # set by a connector

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the step."""
        if self._course.end_step(self._stopwatch, trainer.global_step, data_wait=self._wait.share()):
            self._wait.restart()


class DataWait(Profiler):
    """Measures which share of its time a training waits for the next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._begin, self._waited = time.perf_counter(), 0.0

    def share(self) -> float:
        """The share since then, 0 to 1."""
        return self._waited / (time.perf_counter() - self._begin)

    def start(self, action_name: str) -> None:
        """Note when the loop asks for a batch."""
        if action_name.endswith("train_dataloader_next"):
            self._asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add up until it has one."""
        if action_name.endswith("train_dataloader_next"):
            self._waited += time.perf_counter() - self._asked


def _options(course: Course) -> list[str]:
    """The words of a command line that set ours on a course."""
    return [
        f"--config={CONFIG}",
        f"--data.root={course.root}",
        f"--data.cache_dir={course.cache_dir}",
        f"--data.batch_size={course.batch_size}",
        f"--trainer.accelerator={course.accelerator}",
        "--trainer.devices=1",
    ]


def train_ours(course: Course, compiled: bool, stopwatch: Stopwatch) -> None:
    """Train as scripts/train.py does, without validation."""
    cli = PCamCLI([
        *_options(course),
        f"--runs_dir={course.folder / 'runs'}",
        f"--trainer.max_steps={course.all_steps}",
        f"--trainer.precision={course.precision}",
        "--trainer.limit_val_batches=0",
        *(["--compile"] if compiled else []),
    ])  # fmt: skip
    cli.trainer.callbacks.insert(0, Turns(stopwatch, course))  # type: ignore[attr-defined]  # a plain list
    cli.fit()


def train_ceiling(course: Course, compiled: bool, stopwatch: Stopwatch) -> None:
    """Take the same steps with the same network, on one batch that never moves."""
    keep_freed_memory()
    device = torch.device(course.accelerator)
    data = PCamDataModule(course.root, course.batch_size, cache_dir=course.cache_dir)
    batch = next(iter(data.loader("train")))
    patches, labels = batch.patches.to(device), batch.labels.to(device).float()
    network = MobileNetV2(weights=None, dropout=DROPOUT).to(device).train()
    forward = torch.compile(network.forward) if compiled else network.forward
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    for step in range(1, course.all_steps + 1):
        with torch.autocast(device.type, torch.bfloat16) if course.precision == "bf16-mixed" else nullcontext():
            loss = binary_cross_entropy_with_logits(forward(patches).float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch 2.15
        optimizer.step()
        course.end_step(stopwatch, step)


class PlainNetwork(nn.Module):
    """torchvision's MobileNetV2 with one output, as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2().features
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(1280, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, shape (batch,), of normalised images."""
        logits: Tensor = self.head(self.features(images).mean((2, 3))).squeeze(1)
        return logits


class PlainClassifier(LightningModule):
    """What a good engineer writes in an afternoon."""

    def __init__(self) -> None:
        super().__init__()
        self.network = PlainNetwork()
        self.auroc = BinaryAUROC()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Compute and log the loss."""
        images, labels = batch
        loss = binary_cross_entropy_with_logits(self.network(images), labels.float())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Gather scores."""
        images, labels = batch
        self.auroc.update(self.network(images).sigmoid(), labels)
        self.log("auroc", self.auroc, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the config."""
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)


def plain_images(course: Course, split: SplitName, *, shuffle: bool) -> DataLoader[Any]:
    """Read a split's class folders as torchvision does."""
    transform = Compose([ToTensor(), Normalize(*MEAN_AND_STD["imagenet"])])
    return DataLoader(ImageFolder(str(course.class_folders / split), transform), course.batch_size, shuffle=shuffle)


def train_plain(course: Course, stopwatch: Stopwatch) -> None:
    """Train with a default Trainer on ImageFolder."""
    trainer = Trainer(
        accelerator=course.accelerator,
        devices=1,
        max_steps=course.all_steps,
        max_epochs=-1,
        default_root_dir=course.folder / "plain",
        callbacks=[Turns(stopwatch, course)],
    )
    trainer.fit(PlainClassifier(), plain_images(course, "train", shuffle=True))


def evaluate_ours(course: Course, stopwatch: Stopwatch) -> None:
    """Evaluate the valid split as scripts/evaluate.py does."""
    assert course.weights is not None
    cli = PCamCLI(_options(course), record=False, precision=course.precision)
    cli.model.network.load_state_dict(torch.load(course.weights, weights_only=True))
    cli.predict("valid")
    for _ in range(course.rounds):
        stopwatch.start()
        predictions = cli.predict("valid")
        auroc = BinaryAUROC()(*predictions.tensors())
        stopwatch.stop(len(predictions.labels), auroc=auroc.item())


def evaluate_plain(course: Course, stopwatch: Stopwatch) -> None:
    """Evaluate the valid split with a default Trainer on ImageFolder."""
    assert course.weights is not None
    classifier = PlainClassifier()
    state = torch.load(course.weights, weights_only=True)
    classifier.network.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("normalization.")}
    )
    trainer = Trainer(accelerator=course.accelerator, devices=1, default_root_dir=course.folder / "plain")
    images = plain_images(course, "valid", shuffle=False)
    trainer.validate(classifier, images, verbose=False)
    for _ in range(course.rounds):
        stopwatch.start()
        (found,) = trainer.validate(classifier, images, verbose=False)
        stopwatch.stop(len(images.dataset), auroc=found["auroc"])  # type: ignore[arg-type]  # an ImageFolder

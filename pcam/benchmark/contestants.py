"""Who takes part in a race: this project as its commands run it, what others write, and what the machine allows."""

import time
from collections.abc import Mapping, Sequence
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

from pcam.benchmark.plain import PlainNetwork, plain_transform
from pcam.benchmark.race import Stopwatch
from pcam.benchmark.workload import DROPOUT, LR, MOMENTUM, Workload
from pcam.cli import PCamCLI
from pcam.data import PCamDataModule
from pcam.errors import UserError
from pcam.fit import fit
from pcam.memory import keep_freed_memory
from pcam.models import MobileNetV2
from pcam.models.batch_norm import reestimate_batch_norm
from pcam.models.inference import EvaluationSettings
from pcam.options import SplitName
from pcam.run_folder import RunFolder
from pcam.shipped import find_config
from pcam.trained import TrainedRun
from pcam.training.quiet import quieten

CONFIG: Final = "random_dropout"
"""The shipped config that is trained: MobileNetV2, dropout 0.5, SGD. The weights it starts from change no speed."""


class EndTurns(Callback):
    """Tell the stopwatch of each training step.

    Args:
        stopwatch: The stopwatch of the contestant.
        workload: Says how many steps a turn has.
    """

    def __init__(self, stopwatch: Stopwatch, workload: Workload) -> None:
        self._stopwatch = stopwatch
        self._workload = workload
        self._wait = DataWait()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start measuring how long training waits for batches."""
        trainer.profiler = self._wait  # type: ignore[attr-defined]  # set by a connector

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Report the step."""
        if self._workload.end_step(self._stopwatch, trainer.global_step, data_wait=self._wait.share()):
            self._wait.restart()


class DataWait(Profiler):
    """Measures which share of its time a training waits for the next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Forget what was measured, and measure from now on."""
        self._begin, self._waited = time.perf_counter(), 0.0

    def share(self) -> float:
        """The share of the time since the last restart, 0 to 1."""
        return self._waited / (time.perf_counter() - self._begin)

    def start(self, action_name: str) -> None:
        """Note the time when the training loop asks for a batch."""
        if action_name.endswith("train_dataloader_next"):
            self._asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add the time until the training loop has its batch."""
        if action_name.endswith("train_dataloader_next"):
            self._waited += time.perf_counter() - self._asked


def train_ours(workload: Workload, compiled: bool, stopwatch: Stopwatch) -> None:
    """Train as the command `train` does, without validation.

    Args:
        workload: What is to be trained.
        compiled: Whether to train with torch.compile.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    quieten()
    cli = PCamCLI([
        f"--config={find_config(CONFIG)}",
        f"--data.root={workload.root}",
        f"--data.cache_dir={workload.cache_dir}",
        f"--data.batch_size={workload.batch_size}",
        f"--runs_dir={workload.folder / 'runs'}",
        f"--trainer.accelerator={workload.accelerator}",
        "--trainer.devices=1",
        f"--trainer.max_steps={workload.all_steps}",
        f"--trainer.precision={workload.precision}",
        "--trainer.limit_val_batches=0",
        *(["--compile"] if compiled else []),
    ])  # fmt: skip
    cli.trainer.callbacks.insert(0, EndTurns(stopwatch, workload))  # type: ignore[attr-defined]  # a plain list
    fit(cli)


def train_ceiling(workload: Workload, compiled: bool, stopwatch: Stopwatch) -> None:
    """Take the same steps with the same network and optimizer on one batch that never moves: the machine's limit.

    Args:
        workload: What is to be trained.
        compiled: Whether to train with torch.compile.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    device = torch.device(workload.accelerator)
    data = PCamDataModule(workload.root, workload.batch_size, cache_dir=workload.cache_dir)
    batch = next(iter(data.loader("train")))
    patches, labels = batch.patches.to(device), batch.labels.to(device).float()
    network = MobileNetV2(weights=None, dropout=DROPOUT).to(device).train()
    forward = torch.compile(network.forward) if compiled else network.forward
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    for step in range(1, workload.all_steps + 1):
        with torch.autocast(device.type, torch.bfloat16) if workload.precision == "bf16-mixed" else nullcontext():
            loss = binary_cross_entropy_with_logits(forward(patches).float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch 2.15
        optimizer.step()
        workload.end_step(stopwatch, step)


class PlainClassifier(LightningModule):
    """The LightningModule that a good engineer writes in an afternoon."""

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
        """Collect the scores for the AUROC."""
        images, labels = batch
        self.auroc.update(self.network(images).sigmoid(), labels)
        self.log("auroc", self.auroc, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer that the config of `train_ours` names."""
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)


def plain_images(workload: Workload, split: SplitName, *, shuffle: bool) -> DataLoader[Any]:
    """Make torchvision's loader of a split in class folders.

    Args:
        workload: Says where the class folders are.
        split: The split.
        shuffle: Whether the order is random.

    Returns:
        A loader of normalised images and their labels.
    """
    images = ImageFolder(str(workload.class_folders / split), plain_transform())
    return DataLoader(images, workload.batch_size, shuffle=shuffle)


def train_plain(workload: Workload, stopwatch: Stopwatch) -> None:
    """Train `PlainClassifier` on torchvision's ImageFolder with a default Trainer.

    Args:
        workload: What is to be trained.
        stopwatch: Measures each turn.
    """
    trainer = Trainer(
        accelerator=workload.accelerator,
        devices=1,
        max_steps=workload.all_steps,
        max_epochs=-1,
        default_root_dir=workload.folder / "plain",
        callbacks=[EndTurns(stopwatch, workload)],
    )
    trainer.fit(PlainClassifier(), plain_images(workload, "train", shuffle=True))


def random_network(workload: Workload) -> MobileNetV2:
    """Make a network with random weights, but with batch-norm statistics of the patches, so that its logits differ.

    Args:
        workload: Says where the patches are.

    Returns:
        The network.
    """
    network = MobileNetV2(weights=None, dropout=DROPOUT)
    data = PCamDataModule(workload.root, workload.batch_size, cache_dir=workload.cache_dir)
    reestimate_batch_norm(network, data.training_patches(4 * workload.batch_size, torch.device("cpu")))
    return network


def trained_network(run: Path) -> MobileNetV2:
    """Load the best checkpoint of a run of MobileNetV2.

    Args:
        run: The run folder.

    Returns:
        The network.

    Raises:
        UserError: If the run cannot be opened, or is of a network that torchvision's MobileNetV2 cannot imitate.
    """
    network = TrainedRun.load(run, device="cpu").network
    if not isinstance(network, MobileNetV2):
        raise UserError(
            f"Expected a run of MobileNetV2, but found that {run} is one of {type(network).__name__}; name another run."
        )
    if network.enlarged is not None:
        raise UserError(
            f"Expected a run of MobileNetV2 that is evaluated at 96 pixels only, as torchvision's is, but found that "
            f"{run} is evaluated at {', '.join(map(str, network.enlarged.sizes))} too; name another run."
        )
    usual = MobileNetV2(weights=None, dropout=DROPOUT)
    epsilons = [
        {module.eps for module in one.modules() if isinstance(module, nn.BatchNorm2d)} for one in (network, usual)
    ]
    if epsilons[0] != epsilons[1] or not torch.equal(network.normalization.mean, usual.normalization.mean):
        raise UserError(
            f"Expected a run of MobileNetV2 with torchvision's normalization (imagenet) and bn_eps (1e-05), but found "
            f"others in {run}; name another run."
        )
    return network


def evaluate_ours(workload: Workload, stopwatch: Stopwatch) -> None:
    """Evaluate the valid split as the command `evaluate` does.

    Args:
        workload: What is to be evaluated.
        stopwatch: Measures each turn.
    """
    assert workload.weights is not None
    keep_freed_memory()
    network = MobileNetV2(weights=None, dropout=DROPOUT)
    network.load_state_dict(torch.load(workload.weights, weights_only=True))
    data = PCamDataModule(workload.root, workload.batch_size, cache_dir=workload.cache_dir)
    run = TrainedRun(
        RunFolder(workload.folder),
        "best",
        config={},
        step=0,
        network=network.to(workload.accelerator).eval(),
        find_data=lambda: data,
        settings=EvaluationSettings(precision=workload.precision),
    )
    run.predict("valid")  # a turn that does not count
    for _ in range(workload.rounds):
        stopwatch.start()
        predictions = run.predict("valid")
        auroc = BinaryAUROC()(*predictions.tensors())
        stopwatch.stop(len(predictions.labels), auroc=auroc.item())


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take of the state dict of a `MobileNetV2` what a `PlainNetwork` has."""
    return {name: value for name, value in state.items() if not name.startswith("normalization.")}


def evaluate_plain(workload: Workload, stopwatch: Stopwatch) -> None:
    """Evaluate the valid split with `PlainClassifier` on torchvision's ImageFolder with a default Trainer.

    Args:
        workload: What is to be evaluated.
        stopwatch: Measures each turn.
    """
    assert workload.weights is not None
    classifier = PlainClassifier()
    classifier.network.load_state_dict(plain_weights(torch.load(workload.weights, weights_only=True)))
    trainer = Trainer(accelerator=workload.accelerator, devices=1, default_root_dir=workload.folder / "plain")
    images = plain_images(workload, "valid", shuffle=False)
    trainer.validate(classifier, images, verbose=False)  # a turn that does not count
    for _ in range(workload.rounds):
        stopwatch.start()
        (found,) = trainer.validate(classifier, images, verbose=False)
        stopwatch.stop(len(images.dataset), auroc=found["auroc"])  # type: ignore[arg-type]  # an ImageFolder

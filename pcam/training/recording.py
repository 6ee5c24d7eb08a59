"""What a recorded run needs beside its training: callbacks, loggers and plugins, in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from pcam.data import PCamDataModule
from pcam.options import Monitor, SplitName
from pcam.run_folder import RunFolder
from pcam.training.checkpoints import AtomicCheckpoints, BestCheckpoint, LastCheckpoint
from pcam.training.curves import Curves
from pcam.training.divergence import Divergence
from pcam.training.hyperparameters import Hyperparameters
from pcam.training.interruption import Interruption
from pcam.training.metrics_file import MetricsFile
from pcam.training.random_state import RandomState
from pcam.training.train_loss import TrainLoss


@dataclass(frozen=True)
class Recording:
    """The parts of a Trainer that record a run.

    Args:
        run: The run folder that they write to.
        callbacks: In the order in which a Trainer must have them.
        loggers: TensorBoard, and `metrics.csv`.
        plugins: What writes checkpoints.
        hyperparameters: The callback that knows the metrics of the best validation so far.
    """

    run: RunFolder
    callbacks: Sequence[Callback]
    loggers: Sequence[Logger]
    plugins: Sequence[Any]
    hyperparameters: Hyperparameters

    def trainer_options(self) -> dict[str, Any]:
        """What `lightning.Trainer(**options)` needs to record the run; add options of your own beside it."""
        return {
            "callbacks": list(self.callbacks),
            "logger": list(self.loggers),
            "plugins": list(self.plugins),
            "use_distributed_sampler": False,  # the data module's own sampler does that
        }


def recording(
    run: RunFolder | Path | str,
    monitor: Monitor,
    *,
    hyperparameters: Mapping[str, str | float | bool | None] | None = None,
    checkpoint_every_seconds: float | None = None,
    resume_step: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Recording:
    """Make what records a run: `metrics.csv`, TensorBoard, checkpoints that are always whole, and figures.

    Ctrl-C, SIGTERM and a closed terminal end the training after the current step with a checkpoint; a loss that is not
    finite ends it before a checkpoint is written of it.

    Args:
        run: The run folder, such as `RunFolder.claim("lightning_logs", "mine")`.
        monitor: What the best checkpoint is best in: the lowest "val/loss", or the highest "val/auroc", "val/accuracy"
            or "val/average_precision".
        hyperparameters: Name and value of what tells this run from others, for TensorBoard's HParams tab.
        checkpoint_every_seconds: Also write `last.ckpt` this many seconds after the last checkpoint, above 0; null
            writes it only after each validation and at the end.
        resume_step: Number of optimizer steps behind the checkpoint that training resumes from, so that what was logged
            after it is dropped; null for a new run.
        callbacks: More callbacks, such as a progress bar, which see each step before anything is written.

    Returns:
        The parts, for `Trainer(..., **recording(...).trainer_options())`.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    parameters = Hyperparameters(hyperparameters or {}, monitor, run)
    return Recording(
        run,
        [
            *steps_callbacks(),
            *callbacks,
            Environment(run),
            Divergence(run),
            Curves(),
            parameters,
            BestCheckpoint(run, monitor),
            LastCheckpoint(run, checkpoint_every_seconds),
            Interruption(run),
        ],
        run_loggers(run, resume_step),
        [AtomicCheckpoints()],
        parameters,
    )


def run_loggers(run: RunFolder, resume_step: int | None = None) -> list[Logger]:
    """Make what logs to a run folder: TensorBoard, and `metrics.csv`.

    Args:
        run: The run folder.
        resume_step: What was logged after this step is dropped; null for a new run.
    """
    board = TensorBoardLogger(
        run.path.parent.parent,
        name=run.path.parent.name,
        version=run.path.name,
        default_hp_metric=False,
        purge_step=None if resume_step is None else resume_step + 1,
    )
    return [board, MetricsFile(run.metrics, resume_step)]


def steps_callbacks() -> list[Callback]:
    """Make the callbacks that every training has, recorded or not."""
    return [TrainLoss(), RandomState()]


class Environment(Callback):
    """Write `environment.json` when training starts: versions, machine, and the fingerprints of the patches.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; without fingerprints if the data are not a `PCamDataModule`."""
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        data = getattr(trainer, "datamodule", None)
        fingerprints: dict[SplitName, str] = {}
        if isinstance(data, PCamDataModule):
            fingerprints = {"train": data.packed("train").fingerprint, "valid": data.packed("valid").fingerprint}
        self.run.write_environment(name, fingerprints)

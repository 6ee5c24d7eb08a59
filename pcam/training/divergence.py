"""Stop when the loss is no number, before a checkpoint is written of it."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from pcam.errors import UserError
from pcam.patches import PatchBatch
from pcam.run_folder import RunFolder
from pcam.training.classifier import StepOutput


class Divergence(Callback):
    """End training once the loss is infinite or NaN, which it then stays; the checkpoints are from before.

    Looks every `trainer.log_every_n_steps` steps, where the loss is read anyway (each look waits for the device), and
    before each validation, whose end writes checkpoints, and at the end.

    Args:
        run: The run, whose last checkpoint the message names.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._loss: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,  # type: ignore[override]  # Lightning's type is wider: a step may return nothing
        batch: PatchBatch,
        batch_idx: int,
    ) -> None:
        """Keep the loss, and look where it is logged."""
        self._loss = outputs["loss"]
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector
            self._check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._loss is None or torch.isfinite(self._loss):
            return
        last = self.run.checkpoints / "last.ckpt"
        kept = f"{last} is from before" if last.exists() else "there is no checkpoint yet"
        raise UserError(
            f"Expected a finite training loss, but found {self._loss.item()} at step {trainer.global_step:,}: training "
            f"has diverged; {kept}. Train anew with a lower learning rate."
        )

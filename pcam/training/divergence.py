"""Stop when a loss is no number, before a checkpoint is written of it."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from pcam.errors import UserError
from pcam.patches import PatchBatch
from pcam.run_folder import RunFolder
from pcam.training.classifier import StepOutput


class Divergence(Callback):
    """End training once a loss is infinite or NaN, which it then stays; the checkpoints are from before.

    Looks every `trainer.log_every_n_steps` steps, where the loss is read anyway (each look waits for the device),
    before and after each validation, before each checkpoint, and at the end.

    Args:
        run: The run, whose last checkpoint the message names.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._loss: Tensor | None = None
        self._validation_loss: Tensor | None = None

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
            self.check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self.check(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,  # type: ignore[override]  # Lightning's type is wider: a step may return nothing
        batch: PatchBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the loss: that of the training step is from before the weights' last update."""
        loss = outputs["loss"]
        self._validation_loss = loss if self._validation_loss is None else self._validation_loss + loss

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, before anything is measured or drawn."""
        self.check(trainer)
        self._validation_loss = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Look.

        Raises:
            UserError: If a loss is infinite or NaN.
        """
        for name, loss in {"training": self._loss, "validation": self._validation_loss}.items():
            if loss is not None and not torch.isfinite(loss):
                last = self.run.checkpoints / "last.ckpt"
                kept = f"{last} is from before" if last.exists() else "there is no checkpoint yet"
                raise UserError(
                    f"Expected a finite {name} loss, but found {loss.item()} at step {trainer.global_step:,}: training "
                    f"has diverged; {kept}. Train anew with a lower learning rate."
                )

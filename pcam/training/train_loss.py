"""`train/loss`: the mean training loss since the last entry."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from pcam.patches import PatchBatch
from pcam.training.classifier import StepOutput
from pcam.training.mean_loss import MeanLoss


class TrainLoss(Callback):
    """Log the mean training loss of the steps since the last entry, every `trainer.log_every_n_steps` steps.

    A mean over all patches of these steps, where Lightning's own logging would show the last batch alone. Written to
    the loggers at once, before any checkpoint of the same step, so that a resumed run has no gap.
    """

    def __init__(self) -> None:
        self._loss = MeanLoss()
        self._loss.persistent(True)

    def state_dict(self) -> dict[str, Any]:
        """The sum so far: a checkpoint may fall between two entries."""
        return self._loss.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the sum."""
        self._loss.load_state_dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the sum to where the network is."""
        self._loss.to(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,  # type: ignore[override]  # Lightning's type is wider: a step may return nothing
        batch: PatchBatch,
        batch_idx: int,
    ) -> None:
        """Add the batch, and log where an entry is due."""
        self._loss.update(outputs["loss"], len(batch.labels))
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector
            loss = self._loss.compute()
            self._loss.reset()
            trainer.callback_metrics["train/loss"] = loss
            for logger in trainer.loggers:
                logger.log_metrics({"train/loss": loss.item(), "epoch": trainer.current_epoch}, trainer.global_step)

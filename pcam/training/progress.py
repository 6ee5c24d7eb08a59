"""The progress bar of training and prediction."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

_SHOWN = ("train/loss", "val/loss", "val/auroc")


class ProgressBar(RichProgressBar):
    """Lightning's bar, with the epoch's number alone (there may be no last one) and the metrics that count."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The step and the latest losses and AUROC."""
        shown: dict[str, int | str | float | dict[str, float]] = {"step": trainer.global_step}
        for name in _SHOWN:
            if name in trainer.callback_metrics:
                shown[name] = f"{trainer.callback_metrics[name]:.4f}"
        return shown

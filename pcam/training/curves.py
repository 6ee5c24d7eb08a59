"""What TensorBoard shows beside the scalars: curves, and patches with their scores."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import CatMetric

from pcam.evaluation.figures import precision_recall_figure, roc_figure
from pcam.evaluation.sheets import patch_grid
from pcam.patches import PatchBatch
from pcam.training.batch_norm_readings import BatchNormReadings
from pcam.training.classifier import StepOutput

GRID_PATCHES = 24
"""Patches in the grid: the first of the split, the same at each validation."""


class Curves(Callback):
    """Draw the ROC and precision-recall curves and a grid of patches at each validation.

    Also asks TensorBoard for one chart with both losses, under "Custom Scalars". Does nothing in the sanity check or
    without a TensorBoard logger.
    """

    def __init__(self) -> None:
        # Unchecked: a look for NaN waits for the device, at each batch.
        self._scores = CatMetric(nan_strategy="disable")
        self._labels = CatMetric(nan_strategy="disable")
        self._grid: tuple[Tensor, Tensor, Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the charts; move the collected scores to where the network is."""
        self._scores.to(pl_module.device)
        self._labels.to(pl_module.device)
        charts = {
            "Losses": {"train and validation": ["Multiline", ["train/loss", "val/loss"]]},
            "Validation": {
                "AUROC and average precision": ["Multiline", ["val/auroc", "val/average_precision"]],
                "accuracy": ["Multiline", ["val/accuracy"]],
            },
        }
        if any(isinstance(callback, BatchNormReadings) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            charts["Readings of batch norm"] = {  # tags are regular expressions
                "loss": ["Multiline", ["train/loss", "val/loss_.+"]],
                "AUROC": ["Multiline", ["val/auroc_.+"]],
            }
        for logger in _tensorboards(trainer):
            logger.experiment.add_custom_scalars(charts)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,  # type: ignore[override]  # Lightning's type is wider: a step may return nothing
        batch: PatchBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect scores and the patches of the grid, of the split as it is."""
        if trainer.sanity_checking or dataloader_idx > 0 or not _tensorboards(trainer):
            return
        scores = outputs["logits"].float().sigmoid()
        self._scores.update(scores)
        self._labels.update(batch.labels)
        if batch_idx == 0:
            self._grid = (batch.patches[:GRID_PATCHES], scores[:GRID_PATCHES], batch.labels[:GRID_PATCHES])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if trainer.sanity_checking or self._grid is None:
            return
        scores = self._scores.compute()  # gathers from all processes, so on all of them
        labels = self._labels.compute().long()
        self._scores.reset()
        self._labels.reset()
        if trainer.is_global_zero:
            _add_figure(trainer, "val/roc", roc_figure(scores, labels))
            _add_figure(trainer, "val/precision_recall", precision_recall_figure(scores, labels))
            _add_figure(trainer, "val/patches", patch_grid(*self._grid))
        self._grid = None


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _add_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    for logger in _tensorboards(trainer):
        logger.experiment.add_figure(tag, figure, global_step=trainer.global_step)

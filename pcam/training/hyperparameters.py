"""TensorBoard's HParams tab: what a run was, and what it reached."""

from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from pcam.options import MONITORS, Monitor


class Hyperparameters(Callback):
    """Log the hyper-parameters with the metrics of the best checkpoint when training ends.

    Args:
        values: Name and value of each hyper-parameter.
        monitor: What is best: the lowest loss, or the highest of the others.

    Attributes:
        best: The metrics of the best validation so far, and its `step`; empty before the first.
    """

    def __init__(self, values: Mapping[str, str | float | bool | None], monitor: Monitor) -> None:
        self.values = values
        self.monitor: Monitor = monitor
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, float]:
        """The metrics of the best validation so far."""
        return self.best

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take up the metrics of the best validation before the run was interrupted."""
        self.best = state_dict

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the metrics if they are the best so far."""
        if trainer.sanity_checking:
            return
        metrics: dict[str, float] = {name: trainer.callback_metrics[name].item() for name in MONITORS}
        sign = 1 if self.monitor == "val/loss" else -1
        if not self.best or sign * metrics[self.monitor] < sign * self.best[self.monitor]:
            self.best = {**metrics, "step": trainer.global_step}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        if not self.best:
            return
        values = {name: "null" if value is None else value for name, value in self.values.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                metrics = {f"best/{name}": value for name, value in self.best.items()}
                logger.log_hyperparams(values, metrics, step=trainer.global_step)

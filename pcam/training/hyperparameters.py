"""TensorBoard's HParams tab: what a run was, and what it reached."""

from collections.abc import Mapping
from typing import Final

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from pcam.errors import UserError
from pcam.options import MONITORS, Monitor
from pcam.run_folder import RunFolder

FIRST_PARAMETERS: Final = ("optimizer/lr", "seed")
"""Hyper-parameters in the first columns."""

FIRST_METRIC: Final[Monitor] = "val/auroc"
"""The metric in the first column of metrics."""


class Hyperparameters(Callback):
    """Log the hyper-parameters with the metrics of the best checkpoint when training ends.

    Args:
        values: Name and value of each hyper-parameter.
        monitor: What is best: the lowest loss, or the highest of the others.
        run: The run folder, whose `best.ckpt` the metrics are of.

    Attributes:
        best: The metrics of the best validation so far, and its `step`; empty before the first.
    """

    def __init__(self, values: Mapping[str, str | float | bool | None], monitor: Monitor, run: RunFolder) -> None:
        self.values = values
        self.monitor: Monitor = monitor
        self.run = run
        self.best: dict[str, float] = {}

    def state_dict(self) -> dict[str, float]:
        """The metrics of the best validation so far."""
        return self.best

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take up the metrics of the best validation so far; not if its checkpoint has been removed.

        Raises:
            UserError: If a metric is missing.
        """
        missing = [name for name in (*MONITORS, "step") if state_dict and name not in state_dict]
        if missing:
            raise UserError(
                f"Expected {', '.join(missing)} among the metrics of the best validation in the checkpoint of "
                f"{self.run.path}, but found {', '.join(map(str, state_dict))}; bring back the file that training "
                f"wrote."
            )
        self.best = state_dict if (self.run.checkpoints / "best.ckpt").is_file() else {}

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
        if not self.best or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._write(logger, trainer.global_step)

    def _write(self, logger: TensorBoardLogger, step: int) -> None:
        """Write what Lightning's `log_hyperparams` writes, but with the columns in an order of ours.

        TensorBoard 2.21 shows metrics in the order in which they are written, and hyper-parameters by their names,
        those first that are marked as differing between runs.
        """
        values = {name: "null" if value is None else value for name, value in self.values.items()}
        first = sorted(self.best, key=lambda name: name != FIRST_METRIC)
        metrics = {f"best/{name}": self.best[name] for name in first}
        logger.log_metrics(metrics, step)
        experiment, start, end = hparams(values, metrics)  # type: ignore[no-untyped-call]  # PyTorch's
        plugin = experiment.value[0].metadata.plugin_data
        contents = HParamsPluginData.FromString(plugin.content)
        for parameter in contents.experiment.hparam_infos:
            parameter.differs = parameter.name in FIRST_PARAMETERS
        plugin.content = contents.SerializeToString()
        writer = logger.experiment._get_file_writer()  # as Lightning does
        for part in (experiment, start, end):
            writer.add_summary(part, step)

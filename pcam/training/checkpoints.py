"""The two checkpoints of a run, the best and the last, and how they are written."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from pcam.atomic import atomic_path, link_path
from pcam.checkpoint_file import load_checkpoint
from pcam.errors import UserError
from pcam.messages import inform
from pcam.options import Monitor
from pcam.run_folder import RunFolder
from pcam.training.divergence import Divergence


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints beside where they belong, and rename them.

    Lightning 2.6 writes into the system's folder for temporary files and moves them from there, which on another file
    system means to overwrite the old checkpoint byte by byte, and `previous.ckpt`, which is a link to it, as well.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; a reader sees the old one or the new one.

        Args:
            checkpoint: What to write.
            path: Where to.
            storage_options: Not used.
        """
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint in a run folder, which may be moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was written so far, also if the run folder has been moved.

        Lightning 2.6 forgets it then, and the next validation would overwrite `best.ckpt`, however good it is.
        """
        assert self.dirpath is not None
        here = Path(self.dirpath)

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path  # empty before the first validation

        paths = {name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path")}
        models = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath})


class LastCheckpoint(_RunCheckpoint):
    """Write `last.ckpt` after each validation, at the end of training and, if asked, by the clock.

    The one before it stays as `previous.ckpt`. Lightning's `save_last=True` would, as of 2.6, copy the best epoch when
    only the best is kept.

    Args:
        run: Where to.
        every_seconds: Also this long after the one before, at the end of a step; None only at validation.
    """

    def __init__(self, run: RunFolder, every_seconds: float | None = None) -> None:
        super().__init__(run.checkpoints, filename="last", save_on_train_epoch_end=False, enable_version_counter=False)
        self._run = run
        self._every_seconds = every_seconds
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where training goes on from `previous.ckpt`, let it take the place of a `last.ckpt` that is not whole."""
        last, previous = (self._run.checkpoints / f"{name}.ckpt" for name in ("last", "previous"))
        if not trainer.is_global_zero or trainer.ckpt_path is None or not previous.exists():
            return
        if Path(trainer.ckpt_path).samefile(previous) and last.exists():
            try:
                load_checkpoint(last)
            except UserError:
                link_path(previous, last)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Write a checkpoint if it is time."""
        if self._every_seconds is None:
            return
        due = time.monotonic() - self._saved_at >= self._every_seconds
        # One process decides, as their clocks may differ. Before a validation that is due, there is none: resuming from
        # it would not repeat the validation, after which there is one anyway.
        if trainer.strategy.broadcast(due) and not validation_is_due(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final state too, where training does not end with a validation."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._saved_at = time.monotonic()
        prepare_last(self._run, trainer)
        super()._save_checkpoint(trainer, filepath)


def prepare_last(run: RunFolder, trainer: Trainer) -> None:
    """Make ready for a new `last.ckpt`: write what was logged, and let `previous.ckpt` be what `last.ckpt` is now.

    A run that goes on from a checkpoint logs only what comes after it. At every moment both checkpoints are whole.

    Raises:
        UserError: If training has diverged: the checkpoints that there are stay.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, Divergence):
            callback.check(trainer)
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    last = run.checkpoints / "last.ckpt"
    if trainer.is_global_zero and last.exists():
        link_path(last, run.checkpoints / "previous.ckpt")


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the step that has just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    # Private, but the only place that knows; Lightning 2.6.
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


class BestCheckpoint(_RunCheckpoint):
    """Write `best.ckpt` at each validation that is the best so far.

    Args:
        run: Where to.
        monitor: What is best: the lowest loss, or the highest of the others.
    """

    def __init__(self, run: RunFolder, monitor: Monitor) -> None:
        super().__init__(
            run.checkpoints,
            filename="best",
            monitor=monitor,
            mode="min" if monitor == "val/loss" else "max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what is best so far; if its file has been removed, the next validation writes one."""
        assert self.dirpath is not None
        path = Path(self.dirpath) / "best.ckpt"
        if state_dict["best_model_path"] and not path.is_file():
            inform(f"{path} is not there any more: it becomes the best of the validations from now on.")
            return
        super().load_state_dict(state_dict)

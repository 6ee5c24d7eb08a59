"""The two checkpoints of a run: the best and the last."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from pcam.errors import UserError
from pcam.run_folder import RunFolder

Monitor = Literal["val/loss", "val/accuracy", "val/auroc", "val/average_precision"]
MONITORS: tuple[Monitor, ...] = get_args(Monitor)


class LastCheckpoint(ModelCheckpoint):
    """Write `last.ckpt` after each validation and at the end of training.

    Lightning's `save_last=True` would, as of 2.6, copy the best epoch when only the best is kept.

    Args:
        run: Where to.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run.checkpoints, filename="last", save_on_train_epoch_end=False, enable_version_counter=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final state too, where training does not end with a validation."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def best_checkpoint(run: RunFolder, monitor: Monitor) -> ModelCheckpoint:
    """Make the callback that keeps the best checkpoint.

    Args:
        run: Where to.
        monitor: What is best: the lowest loss, or the highest of the others.

    Returns:
        A callback that writes `best.ckpt` at validation.
    """
    return ModelCheckpoint(
        run.checkpoints,
        filename="best",
        monitor=monitor,
        mode="min" if monitor == "val/loss" else "max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without running any code in it.

    Args:
        path: A file that Lightning wrote.

    Returns:
        Its contents, on the CPU.

    Raises:
        UserError: If it is truncated, no checkpoint, or holds more than tensors and plain values.
    """
    try:
        checkpoint: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"Expected a checkpoint of tensors and plain values in {path}, but it cannot be loaded safely ({reason}); "
            f"it may be truncated."
        ) from error
    if "state_dict" not in checkpoint or "global_step" not in checkpoint:
        raise UserError(f"Expected a checkpoint that scripts/train.py wrote, but {path} holds something else.")
    return checkpoint

"""The workload of a race: what every contestant has to do.

Imports nothing of Lightning's, which cannot be in one process with TensorFlow (see `pcam.benchmark.keras`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pcam.benchmark.race import Stopwatch
from pcam.options import Precision

LR: Final = 0.001
"""Learning rate of every training that is measured."""

MOMENTUM: Final = 0.95
"""Momentum of the SGD of every training that is measured."""

DROPOUT: Final = 0.5
"""Dropout before the last layer of every network that is measured."""

WARMUP_STEPS: Final = 8
"""Training steps before the first turn: they allocate buffers, choose kernels and, with torch.compile, compile."""


@dataclass(frozen=True)
class Workload:
    """What every contestant of a race has to do.

    Args:
        root: Folder with the patches, in any form.
        class_folders: Folder with the same patches in class folders, for contestants that read no other form.
        cache_dir: Folder for the packed stores.
        folder: Folder for what the contestants write.
        accelerator: "cpu" or "cuda".
        batch_size: Number of patches in a batch.
        steps: Number of training steps in a turn.
        rounds: Number of turns that each contestant takes.
        precision: What this project's code and the ceiling compute in.
        weights: File with the state dict of a `MobileNetV2`, for evaluation; None for training.
    """

    root: Path
    class_folders: Path
    cache_dir: Path
    folder: Path
    accelerator: str
    batch_size: int
    steps: int
    rounds: int
    precision: Precision = "32-true"
    weights: Path | None = None

    @property
    def all_steps(self) -> int:
        """Number of steps of a whole training: the warm-up and all turns."""
        return WARMUP_STEPS + self.steps * self.rounds

    def end_step(self, stopwatch: Stopwatch, step: int, **facts: float) -> bool:
        """Say that a training step is done. If it was the last of a turn, end that turn and wait for the next.

        Args:
            stopwatch: The stopwatch of the contestant.
            step: Number of steps that are done, including those of the warm-up.
            facts: More numbers to report of the turn, by name.

        Returns:
            Whether a turn begins or ends after this step.
        """
        done = step - WARMUP_STEPS
        if done < 0 or done % self.steps:
            return False
        if done > 0:
            stopwatch.stop(self.steps * self.batch_size, **facts)
        if step < self.all_steps:
            stopwatch.start()
        return True

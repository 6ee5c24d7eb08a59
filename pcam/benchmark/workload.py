"""What all contestants of a race have to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pcam.benchmark.race import Stopwatch
from pcam.options import Precision

LR: Final = 0.001
MOMENTUM: Final = 0.95
DROPOUT: Final = 0.5

WARMUP_STEPS: Final = 8
"""Steps before the first turn: buffers are taken, kernels chosen, and with torch.compile made."""


@dataclass(frozen=True)
class Course:
    """What all contestants of a race have to do.

    Args:
        root: Folder with the patches, in any form.
        class_folders: The same patches in class folders, for those that read no other form.
        cache_dir: Folder for the packed stores.
        folder: For what they write.
        accelerator: "cpu" or "cuda".
        batch_size: Patches a batch.
        steps: Steps a turn, in training.
        rounds: Turns.
        precision: What ours and the ceiling compute in.
        weights: State dict of a `MobileNetV2`, for evaluation.
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
        """Steps that a training takes."""
        return WARMUP_STEPS + self.steps * self.rounds

    def end_step(self, stopwatch: Stopwatch, step: int, **facts: float) -> bool:
        """End a turn and begin the next where they meet; a training calls it after each step.

        Args:
            stopwatch: The contestant's.
            step: Steps that are done, those of the warm-up too.
            facts: What else is to be known of the turn.

        Returns:
            Whether they met.
        """
        done = step - WARMUP_STEPS
        if done < 0 or done % self.steps:
            return False
        if done > 0:
            stopwatch.stop(self.steps * self.batch_size, **facts)
        if step < self.all_steps:
            stopwatch.start()
        return True

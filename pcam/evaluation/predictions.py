"""Predictions: what a classifier says of each patch of a split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pcam.atomic import atomic_path


@dataclass(frozen=True)
class Predictions:
    """The classifier's answer for each patch.

    Args:
        ids: Name of each patch.
        labels: Shape (patches,), 0 or 1.
        logits: Shape (patches,), float32.
        groups: The SHA-1 of each patch's pixels in hexadecimal: patches of one group are identical.
    """

    ids: list[str]
    labels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    groups: list[str]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Probabilities of label 1, in float64: in float32 logits above 17 would all become 1 and tie."""
        # Split by sign so that exp never overflows.
        small = np.exp(-np.abs(self.logits.astype(np.float64)))
        return np.where(self.logits >= 0, 1 / (1 + small), small / (1 + small))

    def write(self, path: Path) -> None:
        """Write a CSV with the columns id, label, logit, score and group, at full precision, in the order of the ids.

        Args:
            path: The file; replaced only when the new one is whole.
        """
        table = pd.DataFrame(
            {
                "id": self.ids,
                "label": self.labels,
                "logit": self.logits.astype(np.float64),
                "score": self.scores,
                "group": self.groups,
            }
        )
        with atomic_path(path) as temporary:
            table.sort_values("id").to_csv(temporary, index=False)

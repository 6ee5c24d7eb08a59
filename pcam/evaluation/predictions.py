"""Predictions: what a classifier says of each patch of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logsumexp
from torch import Tensor

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.statistics import independent_units
from pcam.patches import Labels


@dataclass(frozen=True)
class Predictions:
    """The classifier's answer for each patch.

    Args:
        ids: Name of each patch.
        labels: Shape (patches,), 0 or 1.
        logits: Shape (patches,), float32.
        groups: The SHA-1 of each patch's pixels in hexadecimal: patches of one group are identical.
        slides: The slide of each patch, empty where it is not known; None if none is.
    """

    ids: list[str]
    labels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    groups: list[str]
    slides: list[str] | None = None

    @property
    def units(self) -> list[str]:
        """What was drawn independently of each other: the slide of each patch if it is known, else its group."""
        return independent_units(self.groups, self.slides)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Probabilities of label 1, in float64: in float32 logits above 17 would all become 1 and tie."""
        scores: NDArray[np.float64] = expit(self.logits.astype(np.float64))
        return scores

    def tensors(self) -> tuple[Tensor, Labels]:
        """Scores and labels as torchmetrics takes them."""
        return torch.from_numpy(self.scores), torch.from_numpy(self.labels.astype(np.int64))

    def write(self, path: Path) -> None:
        """Write a CSV with the columns id, label, logit, score, group and, where slides are known, slide.

        At full precision, in the order of the ids.

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
            | ({} if self.slides is None else {"slide": self.slides})
        )
        with atomic_path(path) as temporary:
            table.sort_values("id").to_csv(temporary, index=False)


def check_finite(logits: NDArray[np.float32], source: str) -> None:
    """Refuse logits that are not finite, of which no score can be made.

    Args:
        logits: Shape (patches,).
        source: What the message says they are from: the run's folder, and on what.

    Raises:
        UserError: If some are infinite or NaN.
    """
    bad = np.count_nonzero(~np.isfinite(logits))
    if bad:
        raise UserError(
            f"Expected finite logits from {source}, but {bad:,} of {len(logits):,} are not: its training has diverged; "
            f"train it anew with a lower learning rate."
        )


def average_scores(members: Sequence[Predictions]) -> Predictions:
    """Average the scores of several classifiers of the same patches, as an ensemble.

    Scores, not logits: logits of different networks differ in scale, and the most confident would decide alone.

    Args:
        members: Predictions of the same patches in the same order.

    Returns:
        Predictions whose scores are the means.
    """
    logits = np.stack([member.logits.astype(np.float64) for member in members])
    # The log-odds of the mean score; through scores themselves, logits above 37 would become infinite.
    mean = logsumexp(log_expit(logits), axis=0) - logsumexp(log_expit(-logits), axis=0)
    return replace(members[0], logits=mean.astype(np.float32))

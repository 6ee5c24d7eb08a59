"""The metrics of predictions, in float64, over all patches of a split at once and for many resamples at a time.

scikit-learn has most of these metrics, but computes one resample in each call, which would take minutes instead of
seconds. The tests compare with it. A metric that is undefined, as the AUROC of a single class, is NaN.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from pcam.evaluation.statistics import Values, Weights

ROC_GRID: Final = np.linspace(0, 1, 201)
"""The false positive rates at which the bootstrap band of the ROC curve is computed."""

PatchValues = Float64[np.ndarray, " patches"]
"""A number for each patch."""


@dataclass(frozen=True)
class Cuts:
    """The numbers of patches above each possible threshold, in each resample.

    A cut is a place between two neighbouring distinct logits, above all logits, or below all of them. AUROC, average
    precision and the decisions at any threshold follow from the counts at the cuts.

    Args:
        logits: The distinct logits in falling order, shape (cuts - 1,).
        true_positives: The number of patches of label 1 above each cut; the first cut lies above all patches, the last
            one below all.
        false_positives: The number of patches of label 0 above each cut.
    """

    logits: Float64[np.ndarray, " distinct"]
    true_positives: Float64[np.ndarray, "resamples cuts"]
    false_positives: Float64[np.ndarray, "resamples cuts"]

    @classmethod
    def count(cls, labels: PatchValues, logits: PatchValues, weights: Weights) -> "Cuts":
        """Count the patches above each cut.

        Args:
            labels: The label of each patch, 0 or 1.
            logits: The logit of each patch, finite.
            weights: How often each patch counts in each resample.

        Returns:
            The counts at each cut.
        """
        order = np.argsort(-logits, kind="stable")
        falling = logits[order]
        last = np.flatnonzero(np.append(np.diff(falling) != 0, True))  # the last of each group of equal logits
        tumour = weights[:, order] * labels[order]
        normal = weights[:, order] * (1 - labels[order])
        before = np.zeros((len(weights), 1))
        return cls(
            falling[last],
            np.hstack([before, tumour.cumsum(axis=1)[:, last]]),
            np.hstack([before, normal.cumsum(axis=1)[:, last]]),
        )

    @property
    def positives(self) -> Values:
        """The number of patches of label 1 in each resample."""
        return self.true_positives[:, -1]

    @property
    def negatives(self) -> Values:
        """The number of patches of label 0 in each resample."""
        return self.false_positives[:, -1]

    def thresholds(self) -> Float64[np.ndarray, " cuts"]:
        """Compute the threshold of each cut: half-way between the logits beside it; infinite at both ends."""
        edges = np.concatenate([[np.inf], self.logits, [-np.inf]])
        thresholds: Float64[np.ndarray, " cuts"] = (edges[:-1] + edges[1:]) / 2
        return thresholds

    def auroc(self) -> Values:
        """Compute the area under the ROC curve by trapezoids, 0..1, in each resample.

        It is the share of pairs of a tumour and a normal patch in which the tumour patch has the higher logit; a tie
        counts half.
        """
        heights = (self.true_positives[:, 1:] + self.true_positives[:, :-1]) / 2
        return _ratio((np.diff(self.false_positives) * heights).sum(axis=1), self.positives * self.negatives)

    def average_precision(self) -> Values:
        """Compute the average precision, 0..1, in each resample: the mean precision over the patches of label 1.

        It is undefined without patches of label 0, because it could only be 1.
        """
        above = self.true_positives[:, 1:] + self.false_positives[:, 1:]
        precision = np.divide(self.true_positives[:, 1:], above, out=np.zeros_like(above), where=above > 0)
        mean = _ratio((np.diff(self.true_positives) * precision).sum(axis=1), self.positives)
        return np.where(self.negatives > 0, mean, np.nan)

    def sensitivity_at(
        self, false_positive_rates: Float64[np.ndarray, " rates"]
    ) -> Float64[np.ndarray, "resamples rates"]:
        """Compute the height of the ROC curve at given false positive rates, in each resample."""
        rows = zip(self.false_positives, self.true_positives, self.negatives, self.positives, strict=True)
        heights = [
            np.interp(false_positive_rates * negatives, false, true) / positives
            if positives and negatives
            else np.full(len(false_positive_rates), np.nan)
            for false, true, negatives, positives in rows
        ]
        return np.stack(heights)

    def confusion(self, threshold: float) -> Float64[np.ndarray, "resamples 2 2"]:
        """Count patches by label (rows) and decision (columns) at a threshold.

        Args:
            threshold: The logit above which a patch is called tumour.

        Returns:
            The counts in each resample.
        """
        cut = np.searchsorted(-self.logits, -threshold)
        true, false = self.true_positives[:, cut], self.false_positives[:, cut]
        return np.stack([self.negatives - false, false, self.positives - true, true], axis=1).reshape(-1, 2, 2)

    def decisions(self, threshold: float) -> dict[str, Values]:
        """Compute the metrics that depend on a threshold.

        Args:
            threshold: The logit above which a patch is called tumour.

        Returns:
            Each metric, 0..1, in each resample.
        """
        (true_negatives, false_positives), (false_negatives, true_positives) = self.confusion(threshold).transpose(
            1, 2, 0
        )
        sensitivity = _ratio(true_positives, self.positives)
        specificity = _ratio(true_negatives, self.negatives)
        return {
            "accuracy": (true_positives + true_negatives) / (self.positives + self.negatives),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "f1": _ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
            "sensitivity": sensitivity,
            "specificity": specificity,
        }


def _ratio(numerator: Values, denominator: Values) -> Values:
    """Divide two numbers; NaN if the denominator is 0."""
    ratio: Values = np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
    return ratio


def cross_entropy(labels: PatchValues, logits: PatchValues) -> PatchValues:
    """Compute the cross-entropy (negative log-likelihood) of each patch in nats; large logits do not overflow."""
    losses: PatchValues = np.logaddexp(0, logits * (1 - 2 * labels))
    return losses


def measure_logits(labels: NDArray[np.uint8], logits: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Compute what a validation logs, and balanced accuracy, as the field reports, without intervals.

    Args:
        labels: The label of each patch, 0 or 1.
        logits: The logit of each patch.

    Returns:
        Loss in nats; AUROC, average precision, and accuracy and balanced accuracy at a score of 0.5, 0..1. What is
        defined only where both labels occur is NaN elsewhere.
    """
    true, found = labels.astype(np.float64), logits.astype(np.float64)
    cuts = Cuts.count(true, found, np.ones((1, len(true))))
    decisions = cuts.decisions(0.0)
    return {
        "loss": float(cross_entropy(true, found).mean()),
        "auroc": float(cuts.auroc()[0]),
        "average_precision": float(cuts.average_precision()[0]),
        "accuracy": float(decisions["accuracy"][0]),
        "balanced_accuracy": float(decisions["balanced_accuracy"][0]),
    }

"""Calibration: whether scores are probabilities, and the temperature that brings them closer to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq, minimize
from scipy.special import expit

from pcam.evaluation.metrics import PatchValues, cross_entropy
from pcam.evaluation.statistics import INTERVAL_QUANTILES, LEVEL, SEED, chunks, number_units

CALIBRATION_BINS: Final = 15
"""The number of bins of equal width that scores, 0..1, are sorted into.

Source: Guo et al. 2017, "On calibration of modern neural networks", whose experiments have 15.
"""

CALIBRATION_DRAWS: Final = 1000
"""The number of simulated splits with perfectly calibrated scores."""

TEMPERATURES: Final = (0.01, 100.0)
"""The range in which the temperature is searched for; if it would lie outside, it is undefined."""


def fit_temperature(labels: PatchValues, logits: PatchValues) -> float:
    """Find the temperature: the number to divide logits by so that their mean cross-entropy is lowest.

    Args:
        labels: The label of each patch, 0 or 1.
        logits: The logit of each patch of the valid split.

    Returns:
        The temperature, above 1 for a classifier that is overconfident. NaN if there is no minimum in `TEMPERATURES`,
        as with a single class, or if the logits separate the classes or put them in the wrong order.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """

    def slope(inverse: float) -> float:
        """The derivative of the mean cross-entropy, which rises with the inverse temperature: it has one root."""
        return float(((expit(inverse * logits) - labels) * logits).mean())

    coldest, hottest = (1 / temperature for temperature in TEMPERATURES)
    if not slope(hottest) < 0 < slope(coldest):
        return np.nan
    return 1 / float(brentq(slope, hottest, coldest, xtol=1e-12))


def calibration_slope(labels: PatchValues, logits: PatchValues) -> float:
    """Compute the calibration slope: the slope of a logistic regression, with intercept, of the labels on the logits.

    Args:
        labels: The label of each patch, 0 or 1.
        logits: The logit of each patch.

    Returns:
        1 for a calibrated classifier, below 1 for one that is overconfident. NaN if the regression has no minimum:
        with a single class, or if the logits separate the classes.

    Source: Cox 1958, "Two further applications of a model for binary regression".
    """
    tumour, normal = logits[labels == 1], logits[labels == 0]
    if not (len(tumour) and len(normal)) or tumour.min() >= normal.max() or normal.min() >= tumour.max():
        return np.nan

    def loss(line: Float64[np.ndarray, "2"]) -> tuple[float, Float64[np.ndarray, "2"]]:
        predicted = line[0] * logits + line[1]
        residuals = expit(predicted) - labels
        gradient = np.array([(residuals * logits).mean(), residuals.mean()])
        return float(cross_entropy(labels, predicted).mean()), gradient

    return float(minimize(loss, x0=[1.0, 0.0], jac=True, method="BFGS", options={"gtol": 1e-9}).x[0])


@dataclass(frozen=True)
class Calibration:
    """How well scores agree with the share of tumour among the patches that have them.

    Args:
        loss: The binary cross-entropy in nats (the mean negative log-likelihood).
        brier_score: The mean squared error of the scores, 0..1.
        slope: The calibration slope; NaN if undefined.
        counts: The number of patches in each of the `CALIBRATION_BINS` bins.
        mean_scores: The mean score in each bin; NaN in empty bins.
        shares: The share of label 1 in each bin; NaN in empty bins.
        chance_shares: The lowest and the highest share in each bin that a perfectly calibrated score has in 95 % of
            simulated splits.
        error: The expected calibration error, 0..1: |share - mean score| of a bin, averaged over patches.
        chance_error: The mean error of a perfectly calibrated score on the same number of patches. It is above 0,
            because the shares in bins of few patches scatter.
        chance_error_limit: The error that a perfectly calibrated score stays below in 95 % of simulated splits.
    """

    loss: float
    brier_score: float
    slope: float
    counts: Float64[np.ndarray, " bins"]
    mean_scores: Float64[np.ndarray, " bins"]
    shares: Float64[np.ndarray, " bins"]
    chance_shares: Float64[np.ndarray, "2 bins"]
    error: float
    chance_error: float
    chance_error_limit: float

    @classmethod
    def of(cls, labels: PatchValues, logits: PatchValues, groups: Sequence[str]) -> "Calibration":
        """Compute the calibration of scores, and that of simulated scores that are perfectly calibrated.

        The simulation draws labels with the scores as their probabilities, one for each group of identical patches.

        Args:
            labels: The label of each patch, 0 or 1.
            logits: The logit of each patch, finite.
            groups: The group of identical patches that each patch belongs to.

        Returns:
            The calibration.

        Source: Broecker and Smith 2007, "Increasing the reliability of reliability diagrams".
        """
        scores = expit(logits)
        members = np.eye(CALIBRATION_BINS)[np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)]
        counts, expected = members.sum(axis=0), scores @ members
        filled = np.where(counts > 0, counts, np.nan)
        numbers, group_count = number_units(groups)
        rng = np.random.default_rng(SEED)
        simulated = np.concatenate(
            [
                (rng.random((draws, group_count))[:, numbers] < scores).astype(np.float64) @ members
                for draws in chunks(CALIBRATION_DRAWS, len(scores))
            ]
        )
        chance_errors = np.abs(simulated - expected).sum(axis=1) / len(scores)
        return cls(
            loss=float(cross_entropy(labels, logits).mean()),
            brier_score=float(((scores - labels) ** 2).mean()),
            slope=calibration_slope(labels, logits),
            counts=counts,
            mean_scores=expected / filled,
            shares=(labels @ members) / filled,
            chance_shares=np.quantile(simulated, INTERVAL_QUANTILES, axis=0) / filled,
            error=float(np.abs(labels @ members - expected).sum() / len(scores)),
            chance_error=float(chance_errors.mean()),
            chance_error_limit=float(np.quantile(chance_errors, LEVEL)),
        )

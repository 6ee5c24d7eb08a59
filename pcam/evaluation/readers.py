"""What several seeds of an arm say about the arm: its patches and its seeds are both samples.

Seeds are the readers of a multi-reader multi-case analysis: each seed of an arm classifies the same patches, and what
is asked is about seeds and patches that were not drawn. DeLong's variance alone, with seeds pooled or averaged, leaves
out that another seed gives another network.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

LEVEL: Final = 0.95
"""Of intervals; tests are at 5 %."""

AUROC_BOUNDS: Final = (0.0, 1.0)

POWER: Final = 0.8
"""With which the smallest difference that could have been seen is seen."""

Merits = Float64[np.ndarray, "arms seeds"]
"""How good each network is: its AUROC, or a mean over patches, as its loss."""

Covariance = Float64[np.ndarray, "arms seeds arms seeds"]
"""How two of them on the same patches vary together over patches."""


@dataclass(frozen=True)
class Inference:
    """An estimate and how sure it is.

    Args:
        estimate: A mean over seeds, or a difference of two.
        standard_error: Of the estimate.
        degrees_of_freedom: Of Student's t for it; infinite where seeds add nothing to the patches, or there is one.
        bounds: The lowest and the highest value there can be: -1 and 1 for a difference of AUROCs, 0 and 1 for an
            AUROC.
    """

    estimate: float
    standard_error: float
    degrees_of_freedom: float
    bounds: tuple[float, float] = (-1.0, 1.0)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval that covers the true value in a share of `level` of studies; it ends at the bounds."""
        half = float(student.ppf((1 + level) / 2, self.degrees_of_freedom)) * self.standard_error
        lowest, highest = self.bounds
        return max(self.estimate - half, lowest), min(self.estimate + half, highest)

    def p_difference(self) -> float:
        """Two-sided probability of an estimate as far from 0 if the true value were 0."""
        return min(2 * self._beyond(abs(self.estimate)), 1.0)

    def p_equivalence(self, margin: float) -> float:
        """The larger of two one-sided probabilities: that the true value is at or beyond a margin, on either side.

        Source: Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach" (TOST).
        """
        return self._beyond(margin - abs(self.estimate))

    def detectable(self) -> float:
        """The smallest true difference that a study like this one finds (at 5 %) four times out of five."""
        quantiles = student.ppf([(1 + LEVEL) / 2, POWER], self.degrees_of_freedom)
        return float(quantiles.sum()) * self.standard_error

    def _beyond(self, distance: float) -> float:
        if self.standard_error == 0:
            return float(distance <= 0)
        return float(student.sf(distance / self.standard_error, self.degrees_of_freedom))


def infer_arm(aurocs: Float64[np.ndarray, " seeds"], covariance: Float64[np.ndarray, "seeds seeds"]) -> Inference:
    """Estimate an arm's mean AUROC over seeds.

    Args:
        aurocs: Of each seed, on the same patches.
        covariance: Over patches (DeLong's).

    Returns:
        The mean; with one seed, as sure as that one network on other patches.

    Source: Hillis 2007, "A comparison of denominator degrees of freedom methods for multiple observer ROC analysis",
    section 4 (single treatments), for the model of Obuchowski and Rockette 1995.
    """
    seeds = len(aurocs)
    if seeds == 1:
        return Inference(float(aurocs[0]), float(covariance[0, 0]) ** 0.5, np.inf, AUROC_BOUNDS)
    of_seeds = float(aurocs.var(ddof=1))
    shared = max(float(_off_diagonal_mean(covariance)), 0.0)
    mean = _inference(float(aurocs.mean()), of_seeds, seeds * shared, 1 / seeds, seeds - 1)
    return replace(mean, bounds=AUROC_BOUNDS)


def compare_arms(merits: Merits, covariance: Covariance, bounds: tuple[float, float] = (-1.0, 1.0)) -> Inference:
    """Estimate by how much the mean over seeds of one arm is above that of another.

    Args:
        merits: Of the two arms at the same seeds, on the same patches: AUROCs, or means over patches.
        covariance: Over patches (for AUROCs, DeLong's).
        bounds: The lowest and the highest difference there can be.

    Returns:
        The first less the second; with one seed, the paired test of these two networks (for AUROCs, DeLong's).

    Source: Obuchowski and Rockette 1995, "Hypothesis testing of diagnostic accuracy for multiple readers and multiple
    tests: an ANOVA approach with dependent observations"; the degrees of freedom are those of Hillis 2007.
    """
    _, seeds = merits.shape
    difference = float(merits[0].mean() - merits[1].mean())
    first, second, between = covariance[0, :, 0], covariance[1, :, 1], covariance[0, :, 1]
    if seeds == 1:
        variance = float(first[0, 0] + second[0, 0] - 2 * between[0, 0])
        return Inference(difference, max(variance, 0.0) ** 0.5, np.inf, bounds)
    # Mean square of arms by seeds, and what seeds of one arm share beyond seeds of different arms.
    interaction = float((merits[0] - merits[1]).var(ddof=1)) / 2
    same_arm = (_off_diagonal_mean(first) + _off_diagonal_mean(second)) / 2
    shared = max(same_arm - _off_diagonal_mean(between), 0.0)
    return replace(_inference(difference, interaction, seeds * shared, 2 / seeds, seeds - 1), bounds=bounds)


def holm(p_values: Float64[np.ndarray, " questions"]) -> Float64[np.ndarray, " questions"]:
    """Adjust p-values so that all questions together are wrong at most once in twenty studies.

    Args:
        p_values: One a question.

    Returns:
        Adjusted, 0..1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    count = len(p_values)
    order = np.argsort(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate((count - np.arange(count)) * p_values[order]), 1)
    return adjusted


def _inference(estimate: float, seeds: float, patches: float, factor: float, degrees_of_freedom: int) -> Inference:
    """From mean squares of seeds and what patches add to them."""
    total = seeds + patches
    # Hillis's degrees of freedom: many where most of the error is from patches, few where it is from seeds.
    degrees = degrees_of_freedom * (total / seeds) ** 2 if seeds > 0 else np.inf
    return Inference(estimate, (factor * total) ** 0.5, degrees)


def _off_diagonal_mean(matrix: Float64[np.ndarray, "seeds seeds"]) -> float:
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))

"""How sure a mean over several seeds is, and a difference of two such means.

Both the patches and the seeds of an arm are samples: other patches and other seeds would have given other numbers. This
is the situation of a multi-reader multi-case study in radiology, where several readers judge the same cases, so its
analysis is used here, with a seed in the place of a reader. DeLong's variance alone, with the seeds pooled or averaged,
would ignore that another seed gives another network.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from pcam.evaluation.statistics import LEVEL

AUROC_BOUNDS: Final = (0.0, 1.0)

POWER: Final = 0.8
"""The probability with which a test finds the difference that `Inference.detectable` names."""

Merits = Float64[np.ndarray, "arms seeds"]
"""The value of a metric for each network: its AUROC, its loss and so on."""

Covariance = Float64[np.ndarray, "arms seeds arms seeds"]
"""The covariance of the merits of any two networks when the same other patches were drawn for both."""


@dataclass(frozen=True)
class Inference:
    """An estimate and how sure it is.

    Args:
        estimate: A mean over seeds, or the difference of two such means.
        standard_error: The standard error of the estimate, in its unit; NaN if it cannot be estimated.
        degrees_of_freedom: The degrees of freedom of Student's t distribution that the estimate follows; infinite if
            the seeds add nothing to the scatter from the patches, or if there is only one seed.
        bounds: The lowest and the highest value that is possible: -1 and 1 for a difference of AUROCs, 0 and 1 for an
            AUROC, minus and plus infinity for a difference of losses.
    """

    estimate: float
    standard_error: float
    degrees_of_freedom: float
    bounds: tuple[float, float] = (-1.0, 1.0)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The confidence interval at a level between 0 and 1, cut off at the bounds."""
        half = float(student.ppf((1 + level) / 2, self.degrees_of_freedom)) * self.standard_error
        lowest, highest = self.bounds
        return max(self.estimate - half, lowest), min(self.estimate + half, highest)

    def p_difference(self) -> float:
        """The two-sided p-value: the probability of an estimate at least as far from 0 if the true value is 0."""
        return min(2 * self._beyond(abs(self.estimate)), 1.0)

    def p_equivalence(self, margin: float) -> float:
        """The p-value of a test of equivalence: small if the true value is certainly closer to 0 than the margin.

        It is the larger of the p-values of two one-sided tests, one at each end of the margin.

        Args:
            margin: The largest difference that does not matter, above 0, in the unit of the estimate.

        Returns:
            A probability, 0..1.

        Source: Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach" (TOST).
        """
        return self._beyond(margin - abs(self.estimate))

    def detectable(self) -> float:
        """The true difference that a study with this standard error finds, at 5 %, four times out of five."""
        quantiles = student.ppf([(1 + LEVEL) / 2, POWER], self.degrees_of_freedom)
        return float(quantiles.sum()) * self.standard_error

    def _beyond(self, distance: float) -> float:
        if self.standard_error == 0:
            return float(distance <= 0)
        return float(student.sf(distance / self.standard_error, self.degrees_of_freedom))


def infer_arm(
    merits: Float64[np.ndarray, " seeds"],
    covariance: Float64[np.ndarray, "seeds seeds"],
    bounds: tuple[float, float] = AUROC_BOUNDS,
) -> Inference:
    """Estimate the mean of a metric of an arm over its seeds.

    Args:
        merits: The value of the metric for each seed, such as its AUROC, all on the same patches.
        covariance: The covariance of these values over patches (for AUROCs, by DeLong's method).
        bounds: The lowest and the highest value that is possible.

    Returns:
        The mean. Its error counts patches and seeds; with one seed, patches only.

    Source: Hillis 2007, "A comparison of denominator degrees of freedom methods for multiple observer ROC analysis",
    section 4 (single treatments), for the model of Obuchowski and Rockette 1995.
    """
    seeds = len(merits)
    if seeds == 1:
        return Inference(float(merits[0]), float(covariance[0, 0]) ** 0.5, np.inf, bounds)
    of_seeds = float(merits.var(ddof=1))
    shared = max(float(_off_diagonal_mean(covariance)), 0.0)
    mean = _inference(float(merits.mean()), of_seeds, seeds * shared, 1 / seeds, seeds - 1)
    return replace(mean, bounds=bounds)


def compare_arms(merits: Merits, covariance: Covariance, bounds: tuple[float, float] = (-1.0, 1.0)) -> Inference:
    """Estimate the difference between the means of two arms over the same seeds.

    Args:
        merits: The values of a metric for both arms at the same seeds, all on the same patches.
        covariance: The covariance of these values over patches (for AUROCs, by DeLong's method).
        bounds: The lowest and the highest difference that is possible.

    Returns:
        The mean of the first arm minus that of the second. Its error counts patches and seeds; with one seed it is that
        of the paired test of the two networks (for AUROCs, DeLong's test).

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
    """Correct p-values for the number of questions that are asked together.

    Whoever calls adjusted values below 0.05 significant is wrong about any of the questions in at most 5 % of studies.

    Args:
        p_values: The p-value of each question, 0..1.

    Returns:
        The adjusted p-values in the same order, 0..1; none is below its own p-value.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    count = len(p_values)
    order = np.argsort(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate((count - np.arange(count)) * p_values[order]), 1)
    return adjusted


def _inference(estimate: float, seeds: float, patches: float, factor: float, degrees_of_freedom: int) -> Inference:
    """Build an inference from the mean square of the seeds and what the patches add to it."""
    total = seeds + patches
    # Hillis's degrees of freedom: many where most of the error is from patches, few where it is from seeds.
    degrees = degrees_of_freedom * (total / seeds) ** 2 if seeds > 0 else np.inf
    return Inference(estimate, (factor * total) ** 0.5, degrees)


def _off_diagonal_mean(matrix: Float64[np.ndarray, "seeds seeds"]) -> float:
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))

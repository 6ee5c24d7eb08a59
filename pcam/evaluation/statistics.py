"""How sure a number is: resampling of what was drawn independently, and DeLong's test of paired AUROCs.

That is a slide, where slides are known: its patches share a patient and a staining. Else it is a group of identical
patches, and what is said of the patches is said for these slides alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm, rankdata

RESAMPLES: Final = 2000
"""Draws of a bootstrap; the ends of a 95 % interval then vary by a few hundredths of its width with the seed."""

SEED: Final = 0
"""Of every draw here, so that the same predictions give the same interval, and two runs the same resamples."""

_CHUNK_VALUES: Final = 2**21
"""Values of a chunk of draws: 16 MB in float64."""

Weights = Float64[np.ndarray, "resamples patches"]
"""How often each patch counts in each resample."""

Values = Float64[np.ndarray, " resamples"]

Interval = tuple[float, float]


def chunks(draws: int, patches: int) -> Iterator[int]:
    """Split many draws of all patches into numbers of draws that fit in memory together."""
    size = max(1, _CHUNK_VALUES // patches)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def independent_units(groups: Sequence[str], slides: Sequence[str] | None) -> list[str]:
    """Name what was drawn independently of each other.

    Args:
        groups: The group of identical patches that each patch is in.
        slides: The slide of each patch, empty where it is not known; None if none is.

    Returns:
        The slide of each patch, or its group where the slide is not known.
    """
    return list(groups) if slides is None else [slide or group for slide, group in zip(slides, groups, strict=True)]


def number_units(units: Sequence[str]) -> tuple[np.ndarray, int]:
    """Number what patches are in: slides, or groups of identical patches.

    Args:
        units: The unit of each patch.

    Returns:
        Shape (patches,), the number of each patch's unit, from 0; and how many units there are.
    """
    names, numbers = np.unique(np.asarray(units), return_inverse=True)
    return numbers, len(names)


def resample_units(units: Sequence[str]) -> Iterator[Weights]:
    """Draw whole units with replacement, as many as there are, `RESAMPLES` times.

    A slide's patches, and more so identical ones, say less than as many independent ones: drawn one by one, they would
    make intervals too narrow.

    Args:
        units: The unit of each patch, as `independent_units` names it.

    Yields:
        Chunks of the resamples.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8: what is independent is
    what is drawn.
    """
    numbers, count = number_units(units)
    rng = np.random.default_rng(SEED)
    for resamples in chunks(RESAMPLES, len(numbers)):
        drawn = rng.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)
        yield times[:, numbers].astype(np.float64)


def interval(values: Values) -> Interval:
    """The middle 95 % of resampled values.

    Args:
        values: One a resample; NaN where a resample leaves it undefined, as an AUROC of a single class.

    Returns:
        The 2.5th and the 97.5th percentile of those that are defined; NaN if none is.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class DeLong:
    """Whether two AUROCs on the same patches differ.

    Args:
        difference: The first AUROC less the second, -1..1.
        z: The difference in standard errors; NaN if both rank every pair of patches alike.
        p: Two-sided probability of a difference at least as large if both were equally good, 0..1; NaN with `z`.
    """

    difference: float
    z: float
    p: float


def delong_covariance(
    labels: Float64[np.ndarray, " patches"], logits: Float64[np.ndarray, "classifiers patches"], units: Sequence[str]
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Estimate AUROCs on the same patches, and how they vary together; cost n log n in the number of patches.

    Args:
        labels: 0 or 1, at least one of each.
        logits: Of each classifier.
        units: The unit of each patch, as `independent_units` names it. Where each patch is one, this is DeLong's.

    Returns:
        The AUROCs and their covariance matrix, which is NaN where a class has a single unit.

    Source: DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic
    curves", computed as in Sun and Xu 2014, "Fast implementation of DeLong's algorithm"; for units of several patches
    Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data".
    """
    tumour, normal = logits[:, labels == 1], logits[:, labels == 0]
    positives, negatives = tumour.shape[1], normal.shape[1]
    ranks = rankdata(np.concatenate([tumour, normal], axis=1), axis=1)
    # The share of the other class that each patch is on the right side of; a tie counts half.
    right_tumour = (ranks[:, :positives] - rankdata(tumour, axis=1)) / negatives
    right_normal = 1 - (ranks[:, positives:] - rankdata(normal, axis=1)) / positives
    aurocs = right_tumour.mean(axis=1)
    numbers, count = number_units(units)
    of_tumour, of_normal = numbers[labels == 1], numbers[labels == 0]
    tumour_sums = _unit_sums(right_tumour - aurocs[:, None], of_tumour, count) / positives
    normal_sums = _unit_sums(right_normal - aurocs[:, None], of_normal, count) / negatives
    both = _few_units(count) * tumour_sums @ normal_sums.T
    covariance = (
        _few_units(len(np.unique(of_tumour))) * tumour_sums @ tumour_sums.T
        + _few_units(len(np.unique(of_normal))) * normal_sums @ normal_sums.T
        + both
        + both.T
    )
    return aurocs, covariance


def mean_covariance(
    values: Float64[np.ndarray, "classifiers patches"], units: Sequence[str]
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Estimate means over the same patches, as of losses, and how they vary together.

    Args:
        values: Of each classifier and patch.
        units: The unit of each patch, as `independent_units` names it.

    Returns:
        The means and their covariance matrix, which is NaN where there is a single unit.
    """
    means = values.mean(axis=1)
    numbers, count = number_units(units)
    sums = _unit_sums(values - means[:, None], numbers, count) / values.shape[1]
    return means, _few_units(count) * sums @ sums.T


def _unit_sums(values: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Sum each row over the patches of each unit."""
    return np.stack([np.bincount(numbers, row, count) for row in values])


def _few_units(count: int) -> float:
    """What makes up for deviations being from a mean of the same few units; NaN for a single one, which has none."""
    return count / (count - 1) if count > 1 else np.nan


def delong_test(
    labels: Float64[np.ndarray, " patches"],
    first: Float64[np.ndarray, " patches"],
    second: Float64[np.ndarray, " patches"],
    units: Sequence[str],
) -> DeLong:
    """Test whether two classifiers differ in AUROC on the same patches.

    Args:
        labels: 0 or 1.
        first: Logits of one classifier.
        second: Logits of the other.
        units: The unit of each patch, as `independent_units` names it.

    Returns:
        The difference and the test: all NaN without patches of both classes, `z` and `p` where a class has one unit.
    """
    if not 0 < labels.sum() < len(labels):
        return DeLong(np.nan, np.nan, np.nan)
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]), units)
    difference = float(aurocs[0] - aurocs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # Rounding leaves about 1e-17 where both rank alike.
    z = difference / variance**0.5 if variance > 1e-15 else np.nan
    return DeLong(difference, z, float(2 * norm.sf(abs(z))))

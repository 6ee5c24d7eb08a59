"""How sure a number is: resampling of groups of identical patches, and DeLong's test of paired AUROCs."""

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


def group_numbers(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    """Number the groups of identical patches.

    Args:
        groups: The group of each patch.

    Returns:
        Shape (patches,), the number of each patch's group, from 0; and how many groups there are.
    """
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers, len(names)


def resample_groups(groups: Sequence[str]) -> Iterator[Weights]:
    """Draw whole groups of identical patches with replacement, as many as there are, `RESAMPLES` times.

    Identical patches are one observation: drawn one by one, they would make intervals too narrow.

    Args:
        groups: The group of each patch.

    Yields:
        Chunks of the resamples.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8: what is independent is
    what is drawn.
    """
    numbers, count = group_numbers(groups)
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
    labels: Float64[np.ndarray, " patches"], logits: Float64[np.ndarray, "classifiers patches"]
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Estimate AUROCs on the same patches, and how they vary together; cost n log n in the number of patches.

    Takes patches as independent: with many repeats its variances are somewhat too small, unlike the bootstrap's.

    Args:
        labels: 0 or 1, at least two of each.
        logits: Of each classifier.

    Returns:
        The AUROCs and their covariance matrix.

    Source: DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic
    curves"; computed as in Sun and Xu 2014, "Fast implementation of DeLong's algorithm".
    """
    tumour, normal = logits[:, labels == 1], logits[:, labels == 0]
    positives, negatives = tumour.shape[1], normal.shape[1]
    ranks = rankdata(np.concatenate([tumour, normal], axis=1), axis=1)
    # The share of the other class that each patch is on the right side of; a tie counts half.
    right_tumour = (ranks[:, :positives] - rankdata(tumour, axis=1)) / negatives
    right_normal = 1 - (ranks[:, positives:] - rankdata(normal, axis=1)) / positives
    covariance = np.cov(right_tumour) / positives + np.cov(right_normal) / negatives
    return right_tumour.mean(axis=1), np.atleast_2d(covariance)


def mean_covariance(
    values: Float64[np.ndarray, "classifiers patches"],
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Estimate means over the same patches, as of losses, and how they vary together.

    Takes patches as independent, as `delong_covariance` does.

    Args:
        values: Of each classifier and patch; at least two patches.

    Returns:
        The means and their covariance matrix.
    """
    return values.mean(axis=1), np.atleast_2d(np.cov(values)) / values.shape[1]


def delong_test(
    labels: Float64[np.ndarray, " patches"],
    first: Float64[np.ndarray, " patches"],
    second: Float64[np.ndarray, " patches"],
) -> DeLong:
    """Test whether two classifiers differ in AUROC on the same patches.

    Args:
        labels: 0 or 1.
        first: Logits of one classifier.
        second: Logits of the other.

    Returns:
        The difference and the test; all NaN with fewer than two patches of a class.
    """
    if min((labels == 0).sum(), (labels == 1).sum()) < 2:
        return DeLong(np.nan, np.nan, np.nan)
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]))
    difference = float(aurocs[0] - aurocs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # Rounding leaves about 1e-17 where both rank alike.
    z = difference / variance**0.5 if variance > 1e-15 else np.nan
    return DeLong(difference, z, float(2 * norm.sf(abs(z))))

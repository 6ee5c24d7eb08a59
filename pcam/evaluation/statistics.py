"""How sure a number is: the bootstrap over independent units, and DeLong's test of paired AUROCs.

The independent unit is the slide where slides are known, because patches of one slide share a patient and a staining.
Where they are not known it is the group of identical patches, and an interval then holds for other patches of the same
slides only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr

LEVEL: Final = 0.95
"""The confidence level of every interval."""

INTERVAL_QUANTILES: Final = (round((1 - LEVEL) / 2, 6), round((1 + LEVEL) / 2, 6))
"""The quantiles of resampled values between which an interval lies: 0.025 and 0.975, without the rounding error of 1 -
0.95."""

RESAMPLES: Final = 2000
"""The number of resamples of a bootstrap. With 2,000, the ends of a 95 % interval change by a few hundredths of its
width if the seed changes."""

SEED: Final = 0
"""The seed of every random draw in the evaluation: the same predictions always give the same interval, and two
classifiers of the same patches are resampled alike."""

_CHUNK_VALUES: Final = 2**21
"""The number of values in one chunk of draws: 16 MB in float64."""

Weights = Float64[np.ndarray, "resamples patches"]
"""How often each patch counts in each resample."""

Values = Float64[np.ndarray, " resamples"]

Interval = tuple[float, float]


def chunks(draws: int, patches: int) -> Iterator[int]:
    """Split a number of draws into chunks that fit in memory.

    Args:
        draws: The number of draws, each of all patches.
        patches: The number of patches.

    Yields:
        The number of draws in each chunk; together they are `draws`.
    """
    size = max(1, _CHUNK_VALUES // patches)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def independent_units(groups: Sequence[str], slides: Sequence[str] | None) -> list[str]:
    """Name the independent unit that each patch belongs to.

    Args:
        groups: The group of identical patches that each patch belongs to.
        slides: The slide of each patch, empty where it is not known; None if no slide is known.

    Returns:
        The slide of each patch, or its group where the slide is not known.
    """
    return list(groups) if slides is None else [slide or group for slide, group in zip(slides, groups, strict=True)]


def number_units(units: Sequence[str]) -> tuple[np.ndarray, int]:
    """Replace the names of units by numbers.

    Args:
        units: The unit of each patch.

    Returns:
        The number of each patch's unit, counted from 0, shape (patches,); and the number of different units.
    """
    names, numbers = np.unique(np.asarray(units), return_inverse=True)
    return numbers, len(names)


def resample_units(units: Sequence[str]) -> Iterator[Weights]:
    """Draw a bootstrap: whole units with replacement, as many as there are, `RESAMPLES` times.

    Patches of one slide resemble each other, and identical patches even more, so they carry less information than as
    many independent ones. Intervals from drawing patches one by one would be too narrow.

    Args:
        units: The unit of each patch, as `independent_units` names it.

    Yields:
        Chunks of resamples: how often each patch counts in each of them.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 8, which draws the independent units.
    """
    numbers, count = number_units(units)
    rng = np.random.default_rng(SEED)
    for resamples in chunks(RESAMPLES, len(numbers)):
        drawn = rng.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)
        yield times[:, numbers].astype(np.float64)


def interval(values: Values) -> Interval:
    """Compute the 95 % interval of a number from its value in each resample.

    Args:
        values: The value in each resample; NaN where it is undefined, as the AUROC of a resample with a single class.

    Returns:
        The 2.5th and the 97.5th percentile of the defined values; both NaN if there are none.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.nan, np.nan
    low, high = np.quantile(defined, INTERVAL_QUANTILES)
    return float(low), float(high)


@dataclass(frozen=True)
class DeLong:
    """The result of DeLong's test of two AUROCs on the same patches.

    Args:
        difference: The first AUROC minus the second, -1..1.
        z: The difference divided by its standard error; NaN if both classifiers rank every pair of patches alike.
        p: The two-sided p-value, 0..1: the probability of a difference at least as large if both classifiers were
            equally good; NaN if `z` is.
    """

    difference: float
    z: float
    p: float


def delong_covariance(
    labels: Float64[np.ndarray, " patches"], logits: Float64[np.ndarray, "classifiers patches"], units: Sequence[str]
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Compute the AUROCs of several classifiers of the same patches, and the covariance matrix of these AUROCs.

    The cost is n log n in the number of patches. If each patch is a unit of its own, this is DeLong's method.

    Args:
        labels: The label of each patch, 0 or 1; both occur.
        logits: The logit of each patch by each classifier.
        units: The unit of each patch, as `independent_units` names it.

    Returns:
        The AUROCs and their covariance matrix, which is NaN if a class has a single unit.

    Source: DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic
    curves", computed as in Sun and Xu 2014, "Fast implementation of DeLong's algorithm"; for units of several patches
    Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data".
    """
    tumour, normal = logits[:, labels == 1], logits[:, labels == 0]
    positives, negatives = tumour.shape[1], normal.shape[1]
    from scipy.stats import rankdata  # noqa: PLC0415  # takes a second, and scoring does not need it

    ranks = rankdata(np.concatenate([tumour, normal], axis=1), axis=1)
    # For each patch, the share of patches of the other class that it is ranked correctly against; a tie counts half.
    right_tumour = (ranks[:, :positives] - rankdata(tumour, axis=1)) / negatives
    right_normal = 1 - (ranks[:, positives:] - rankdata(normal, axis=1)) / positives
    aurocs = right_tumour.mean(axis=1)
    numbers, count = number_units(units)
    of_tumour, of_normal = numbers[labels == 1], numbers[labels == 0]
    tumour_sums = _unit_sums(right_tumour - aurocs[:, None], of_tumour, count) / positives
    normal_sums = _unit_sums(right_normal - aurocs[:, None], of_normal, count) / negatives
    both = _bessel_correction(count) * tumour_sums @ normal_sums.T
    covariance = (
        _bessel_correction(len(np.unique(of_tumour))) * tumour_sums @ tumour_sums.T
        + _bessel_correction(len(np.unique(of_normal))) * normal_sums @ normal_sums.T
        + both
        + both.T
    )
    return aurocs, covariance


def mean_covariance(
    values: Float64[np.ndarray, "classifiers patches"], units: Sequence[str]
) -> tuple[Float64[np.ndarray, " classifiers"], Float64[np.ndarray, "classifiers classifiers"]]:
    """Compute the means of a value over the same patches, as the loss of several classifiers, and their covariance.

    Args:
        values: The value of each patch for each classifier.
        units: The unit of each patch, as `independent_units` names it.

    Returns:
        The means and their covariance matrix, which is NaN if there is a single unit.
    """
    means = values.mean(axis=1)
    numbers, count = number_units(units)
    sums = _unit_sums(values - means[:, None], numbers, count) / values.shape[1]
    return means, _bessel_correction(count) * sums @ sums.T


def _unit_sums(values: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Sum the values of the patches of each unit, row by row."""
    return np.stack([np.bincount(numbers, row, count) for row in values])


def _bessel_correction(count: int) -> float:
    """Bessel's correction n / (n - 1) of a variance that is estimated from n units; NaN for a single unit."""
    return count / (count - 1) if count > 1 else np.nan


def delong_test(
    labels: Float64[np.ndarray, " patches"],
    first: Float64[np.ndarray, " patches"],
    second: Float64[np.ndarray, " patches"],
    units: Sequence[str],
) -> DeLong:
    """Test whether two classifiers have different AUROCs on the same patches.

    Args:
        labels: The label of each patch, 0 or 1.
        first: The logit of each patch by the first classifier.
        second: The logit of each patch by the second classifier.
        units: The unit of each patch, as `independent_units` names it.

    Returns:
        The difference and its test. Everything is NaN if there is only one class; `z` and `p` are NaN if a class has
        a single unit.
    """
    if not 0 < labels.sum() < len(labels):
        return DeLong(np.nan, np.nan, np.nan)
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]), units)
    difference = float(aurocs[0] - aurocs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # Rounding leaves a variance of about 1e-17 instead of 0 if both classifiers rank all pairs alike.
    z = difference / variance**0.5 if variance > 1e-15 else np.nan
    return DeLong(difference, z, float(2 * ndtr(-abs(z))))

"""What is compared with what: single classifiers, two predictions of the same patches, and several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcam.data.packed import PackedSplit
from pcam.errors import UserError
from pcam.evaluation.measurement import Estimate, Measurement, resampled_auroc
from pcam.evaluation.metrics import Cuts
from pcam.evaluation.predictions import Predictions, average_scores
from pcam.evaluation.seeds import Inference, infer_arm
from pcam.evaluation.statistics import Values, delong_covariance, delong_test, interval
from pcam.models.inference import EvaluationSettings
from pcam.options import SplitName
from pcam.run_folder import RunFolder, are_seeds


@dataclass(frozen=True)
class System:
    """What is measured: the classifier of a run, evaluated with some settings, or an ensemble of several runs.

    Args:
        name: The name in tables and figures.
        run: The run folder that the results are written to.
        settings: How the scores were computed.
        step: The number of optimizer steps behind the weights; 0 for an ensemble.
        data_root: The folder with the patches.
        stores: The packed store of each split.
        predictions: The predictions of each split.
        engine: What computed the scores, with its version.
        is_ensemble: Whether the scores are the means of several runs' scores.
    """

    name: str
    run: RunFolder
    settings: EvaluationSettings
    step: int
    data_root: Path
    stores: Mapping[SplitName, PackedSplit]
    predictions: Mapping[SplitName, Predictions]
    engine: str
    is_ensemble: bool = False

    def output(self, split: SplitName) -> Path:
        """The folder for the results on a split, such as `RUN/evaluation/valid_tta`."""
        suffix = ("_ensemble" if self.is_ensemble else "") + self.settings.suffix
        return self.run.evaluation(split, suffix)


def ensemble_of(members: Sequence[System]) -> System:
    """Combine several systems into one whose scores are the means of theirs.

    Args:
        members: At least one system; all are evaluated with the same settings, on the same patches.

    Returns:
        The ensemble; its results are written to the run folder of the first member.
    """
    first = members[0]
    return replace(
        first,
        name=", ".join([f"ensemble of {len(members)}", *first.settings.words]),
        step=0,
        predictions={
            split: average_scores([member.predictions[split] for member in members]) for split in first.stores
        },
        is_ensemble=True,
    )


@dataclass(frozen=True)
class Comparison:
    """The AUROCs of two classifiers on the same patches, and the difference between them.

    Args:
        first: The AUROC of the first classifier, 0..1, with its 95 % interval.
        second: The AUROC of the second classifier, 0..1, with its 95 % interval.
        difference: The first AUROC minus the second, -1..1, with its 95 % interval.
        z: The difference divided by its standard error (DeLong's test); NaN if it is undefined.
        p: The two-sided p-value of DeLong's test, 0..1: the probability of a difference at least as large if both
            classifiers were equally good; NaN if `z` is.
        units: The number of independent units: of slides where slides are known, else of groups of identical patches.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    z: float
    p: float
    units: int


def compare(first: Predictions, second: Predictions) -> Comparison:
    """Compare the AUROCs of two classifiers of the same patches.

    Intervals are from a bootstrap that draws whole slides where slides are known, and else whole groups of identical
    patches; the p-value is from DeLong's test over the same units. Both are for these two trained networks: another
    seed would have given other networks.

    Args:
        first: The predictions of one classifier.
        second: The predictions of the other, of the same patches in any order.

    Returns:
        The comparison; its numbers are NaN if there is only one class.

    Raises:
        UserError: If the two are not of the same patches.

    Examples:
        >>> import numpy as np
        >>> import pcam
        >>> ids, labels = ["a", "b", "c", "d", "e", "f"], np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)
        >>> good = pcam.Predictions(ids, labels, np.array([-3, -2, -1, 1, 2, 3], dtype=np.float32), groups=ids)
        >>> poor = pcam.Predictions(ids, labels, np.array([-1, 2, -3, 1, -2, 3], dtype=np.float32), groups=ids)
        >>> comparison = pcam.compare(good, poor)
        >>> round(comparison.first.value, 3), round(comparison.second.value, 3), round(comparison.difference.value, 3)
        (1.0, 0.667, 0.333)

    Source: DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic
    curves"; for slides Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data".
    """
    second = _in_order_of(first, second)
    return compare_resampled(first, second, resampled_auroc(first), resampled_auroc(second))


def compare_resampled(
    first: Predictions, second: Predictions, first_resampled: Values, second_resampled: Values
) -> Comparison:
    """Compare the AUROCs of two classifiers, as `compare` does, with resamples that have been computed before.

    Args:
        first: The predictions of one classifier.
        second: The predictions of the other, of the same patches in the same order.
        first_resampled: The AUROC of the first in each resample.
        second_resampled: The AUROC of the second in the same resamples.

    Returns:
        The comparison.
    """
    labels, units = first.labels.astype(np.float64), first.units
    logits = [predictions.logits.astype(np.float64) for predictions in (first, second)]
    once = np.ones((1, len(labels)))
    aurocs = [float(Cuts.count(labels, of_one, once).auroc()[0]) for of_one in logits]
    test = delong_test(labels, logits[0], logits[1], units)
    return Comparison(
        first=Estimate(aurocs[0], interval(first_resampled)),
        second=Estimate(aurocs[1], interval(second_resampled)),
        difference=Estimate(test.difference, interval(first_resampled - second_resampled)),
        z=test.z,
        p=test.p,
        units=len(set(units)),
    )


def _in_order_of(first: Predictions, second: Predictions) -> Predictions:
    """Bring predictions of the same patches into the same order."""
    if first.ids != second.ids:
        places = {patch_id: row for row, patch_id in enumerate(second.ids)}
        missing = [patch_id for patch_id in first.ids if patch_id not in places]
        if missing or len(places) != len(first.ids) or len(second.ids) != len(first.ids):
            raise UserError(
                f"Expected two predictions of the same patches, but found {len(first.ids):,} and "
                f"{len(second.ids):,} of which {len(first.ids) - len(missing):,} have the same id; compare predictions "
                f"of one split of the same data."
            )
        second = second.subset(np.array([places[patch_id] for patch_id in first.ids]))
    different = np.flatnonzero(
        (first.labels != second.labels) | (np.asarray(first.groups) != np.asarray(second.groups))
    )
    if len(different):
        raise UserError(
            f"Expected two predictions of the same patches, but {len(different):,} of {len(first.ids):,} patches have "
            f"another label or other pixels in the second (one of them is {first.ids[different[0]]}); compare "
            f"predictions of one split of the same data."
        )
    return second


@dataclass(frozen=True)
class MeanOverSeeds:
    """The mean of several runs that differ in the seed only.

    Args:
        names: The names of the runs.
        auroc: The mean AUROC; its interval is for other patches and other seeds.
        metrics: The mean of each other metric. That of `accuracy`, at a score of 0.5, is what WILDS reports.
        deviations: The standard deviation of each of these over the seeds.
    """

    names: list[str]
    auroc: Inference
    metrics: dict[str, float]
    deviations: dict[str, float]


def mean_over_seeds(results: Sequence[tuple[System, Measurement]], split: SplitName) -> MeanOverSeeds | None:
    """Average runs that differ in the seed only and are evaluated with the same settings.

    Args:
        results: All systems that were measured, with their metrics.
        split: The split that they were measured on.

    Returns:
        The means of all systems that are no ensembles. None if these are not such runs, or if the split has a single
        class.
    """
    seeds = [(system, measurement) for system, measurement in results if not system.is_ensemble]
    predictions = [system.predictions[split] for system, _ in seeds]
    labels = predictions[0].labels.astype(np.float64)
    if not are_seeds([system.run for system, _ in seeds]) or not 0 < labels.sum() < len(labels):
        return None
    logits = np.stack([predicted.logits.astype(np.float64) for predicted in predictions])
    others = {
        name: np.array([measurement.metrics[name].value for _, measurement in seeds])
        for name in ("accuracy", "balanced_accuracy", "loss")
    }
    return MeanOverSeeds(
        names=[system.name for system, _ in seeds],
        auroc=infer_arm(*delong_covariance(labels, logits, predictions[0].units)),
        metrics={name: float(values.mean()) for name, values in others.items()},
        deviations={name: float(values.std(ddof=1)) for name, values in others.items()},
    )

"""All numbers that are reported of predictions, and what is chosen on the valid split."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64

from pcam.evaluation.calibration import Calibration, fit_temperature
from pcam.evaluation.metrics import ROC_GRID, Cuts, cross_entropy
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import Interval, Values, Weights, interval, resample_units

TARGET_RATE: Final = 0.95
"""The sensitivity that the threshold "sensitivity_95" reaches at least, and "specificity_95" likewise."""


@dataclass(frozen=True)
class Choices:
    """The temperature and the thresholds, which are chosen on the valid split only.

    Args:
        temperature: The number to divide logits by; NaN if undefined.
        thresholds: The logit above which a patch is called tumour, by the threshold's name: "0.5", a score of 0.5,
            which is not chosen on any split; "youden", where sensitivity + specificity is largest; "sensitivity_95",
            where the sensitivity is at least 0.95 and the specificity as large as possible; "specificity_95", the
            other way round. Only "0.5" if the valid split has a single class.

    Examples:
        >>> import numpy as np
        >>> import pcam
        >>> ids, labels = ["a", "b", "c", "d"], np.array([0, 0, 1, 1], dtype=np.uint8)
        >>> valid = pcam.Predictions(ids, labels, np.array([-2, 1, -1, 3], dtype=np.float32), groups=ids)
        >>> pcam.Choices.on(valid).thresholds["0.5"]  # a score of 0.5 is a logit of 0
        0.0

    Source: Youden 1950, "Index for rating diagnostic tests".
    """

    temperature: float
    thresholds: dict[str, float]

    @classmethod
    def on(cls, valid: Predictions) -> "Choices":
        """Choose the temperature and the thresholds.

        Args:
            valid: The predictions of the valid split.

        Returns:
            The choices.
        """
        labels, logits = valid.labels.astype(np.float64), valid.logits.astype(np.float64)
        cuts = Cuts.count(labels, logits, np.ones((1, len(labels))))
        temperature, thresholds = np.nan, {"0.5": 0.0}
        if 0 < labels.sum() < len(labels):
            temperature = fit_temperature(labels, logits)
            sensitivity = cuts.true_positives[0] / cuts.positives
            specificity = 1 - cuts.false_positives[0] / cuts.negatives
            chosen = {
                "youden": np.argmax(sensitivity + specificity),
                "sensitivity_95": np.flatnonzero(sensitivity >= TARGET_RATE)[0],
                "specificity_95": np.flatnonzero(specificity >= TARGET_RATE)[-1],
            }
            thresholds |= {name: float(cuts.thresholds()[cut]) for name, cut in chosen.items()}
        return cls(temperature, thresholds)


class Estimate(NamedTuple):
    """A metric with its 95 % interval.

    Args:
        value: The metric over all patches; NaN if undefined.
        interval: Its 95 % interval, from resampling slides or groups of identical patches; NaN if it is undefined or
            was not computed.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class Measurement:
    """All metrics of the predictions of one split.

    Args:
        metrics: `auroc`; `average_precision`; at a score of 0.5 `accuracy`, `balanced_accuracy`, `f1`, `sensitivity`
            and `specificity`; `loss`, the binary cross-entropy in nats (the mean negative log-likelihood);
            `brier_score`; and, without intervals, `expected_calibration_error` and `calibration_slope`.
        operating_points: The metrics that depend on the threshold, for each threshold.
        confusion: The number of patches by label (rows) and decision (columns), for each threshold.
        calibration: The calibration of the scores as they are.
        rescaled: The calibration of the scores after temperature scaling; None if the temperature is undefined.
        roc_band: The 95 % interval of the sensitivity at each false positive rate of `ROC_GRID`.
        resampled_auroc: The AUROC in each resample. All predictions of a split have the same resamples.
    """

    metrics: dict[str, Estimate]
    operating_points: dict[str, dict[str, Estimate]]
    confusion: dict[str, Float64[np.ndarray, "2 2"]]
    calibration: Calibration
    rescaled: Calibration | None
    roc_band: Float64[np.ndarray, "2 rates"]
    resampled_auroc: Values


def resampled_auroc(predictions: Predictions) -> Values:
    """Compute the AUROC of predictions in each resample.

    Args:
        predictions: The predictions of one split.

    Returns:
        The AUROCs; NaN in resamples with a single class.
    """
    labels, logits = predictions.labels.astype(np.float64), predictions.logits.astype(np.float64)
    found = [Cuts.count(labels, logits, weights).auroc() for weights in resample_units(predictions.units)]
    return np.concatenate(found)


def measure(predictions: Predictions, choices: Choices) -> Measurement:
    """Compute all metrics of predictions, with their intervals.

    Args:
        predictions: The predictions of one split.
        choices: The temperature and the thresholds, chosen on the valid split.

    Returns:
        The metrics.

    Examples:
        >>> import numpy as np
        >>> import pcam
        >>> ids, labels = ["a", "b", "c", "d"], np.array([0, 0, 1, 1], dtype=np.uint8)
        >>> valid = pcam.Predictions(ids, labels, np.array([-2, 1, -1, 3], dtype=np.float32), groups=ids)
        >>> measured = pcam.measure(valid, pcam.Choices.on(valid))
        >>> measured.metrics["auroc"].value, measured.metrics["accuracy"].value
        (0.75, 0.5)
    """
    labels, logits = predictions.labels.astype(np.float64), predictions.logits.astype(np.float64)
    losses, squares = cross_entropy(labels, logits), (predictions.scores - labels) ** 2

    def statistics(weights: Weights) -> tuple[Cuts, dict[str, Values]]:
        cuts, total = Cuts.count(labels, logits, weights), weights.sum(axis=1)
        values = {"auroc": cuts.auroc(), "average_precision": cuts.average_precision()}
        values |= cuts.decisions(0.0) | {"loss": weights @ losses / total, "brier_score": weights @ squares / total}
        for point, threshold in choices.thresholds.items():
            values |= {f"{point}/{name}": measured for name, measured in cuts.decisions(threshold).items()}
        return cuts, values

    cuts, values = statistics(np.ones((1, len(labels))))
    drawn: dict[str, list[Values]] = {name: [] for name in values}
    heights = []
    for weights in resample_units(predictions.units):
        resampled_cuts, resampled = statistics(weights)
        heights.append(resampled_cuts.sensitivity_at(ROC_GRID))
        for name, chunk in resampled.items():
            drawn[name].append(chunk)
    estimates = {name: Estimate(float(values[name][0]), interval(np.concatenate(drawn[name]))) for name in values}
    calibration = Calibration.of(labels, logits, predictions.groups)
    unsure = (np.nan, np.nan)
    return Measurement(
        metrics={name: estimate for name, estimate in estimates.items() if "/" not in name}
        | {
            "expected_calibration_error": Estimate(calibration.error, unsure),
            "calibration_slope": Estimate(calibration.slope, unsure),
        },
        operating_points={
            point: {name: estimates[f"{point}/{name}"] for name in cuts.decisions(0.0)} for point in choices.thresholds
        },
        confusion={point: cuts.confusion(threshold)[0] for point, threshold in choices.thresholds.items()},
        calibration=calibration,
        rescaled=None
        if np.isnan(choices.temperature)
        else Calibration.of(labels, logits / choices.temperature, predictions.groups),
        roc_band=np.array([interval(column) for column in np.concatenate(heights).T]).T,
        resampled_auroc=np.concatenate(drawn["auroc"]),
    )

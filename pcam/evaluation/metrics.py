"""Metrics of a split's predictions: in float64, over all patches at once, and for many resamples at a time.

scikit-learn has most of them, for one resample a call: it would take minutes where this takes seconds. It is the
reference that the tests compare with. What a split leaves undefined, as an AUROC of a single class, is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq, minimize
from scipy.special import expit

from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import SEED, Interval, Values, Weights, chunks, interval, number_units, resample_units

CALIBRATION_BINS: Final = 15
"""Bins of equal width over the score of label 1, 0..1.

Source: Guo et al. 2017, "On calibration of modern neural networks", whose experiments have 15.
"""

CALIBRATION_DRAWS: Final = 1000
"""Simulated splits of a perfectly calibrated score."""

TEMPERATURES: Final = (0.01, 100.0)
"""Where the temperature is looked for; beyond, the valid split leaves it undefined."""

ROC_GRID: Final = np.linspace(0, 1, 201)
"""False positive rates at which the ROC's bootstrap band is measured."""

PatchValues = Float64[np.ndarray, " patches"]


@dataclass(frozen=True)
class Cuts:
    """How many patches lie above each cut between two distinct logits, in each resample.

    Args:
        logits: Shape (cuts - 1,), the distinct logits, falling.
        true_positives: Patches of label 1 above each cut; the first cut is above all patches, the last below.
        false_positives: Patches of label 0 above each cut.
    """

    logits: Float64[np.ndarray, " distinct"]
    true_positives: Float64[np.ndarray, "resamples cuts"]
    false_positives: Float64[np.ndarray, "resamples cuts"]

    @classmethod
    def count(cls, labels: PatchValues, logits: PatchValues, weights: Weights) -> "Cuts":
        """Count.

        Args:
            labels: 0 or 1.
            logits: Finite.
            weights: How often each patch counts in each resample.

        Returns:
            The counts.
        """
        order = np.argsort(-logits, kind="stable")
        falling = logits[order]
        last = np.flatnonzero(np.append(np.diff(falling) != 0, True))  # of each run of equal logits
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
        """Patches of label 1."""
        return self.true_positives[:, -1]

    @property
    def negatives(self) -> Values:
        """Patches of label 0."""
        return self.false_positives[:, -1]

    def thresholds(self) -> Float64[np.ndarray, " cuts"]:
        """The logit of each cut: half-way between its neighbours; infinite at both ends."""
        edges = np.concatenate([[np.inf], self.logits, [-np.inf]])
        thresholds: Float64[np.ndarray, " cuts"] = (edges[:-1] + edges[1:]) / 2
        return thresholds

    def auroc(self) -> Values:
        """The area under the ROC by trapezoids: the share of pairs in order, a tie counting half."""
        heights = (self.true_positives[:, 1:] + self.true_positives[:, :-1]) / 2
        return _ratio((np.diff(self.false_positives) * heights).sum(axis=1), self.positives * self.negatives)

    def average_precision(self) -> Values:
        """The mean precision over the patches of label 1; undefined without label 0, where it could only be 1."""
        above = self.true_positives[:, 1:] + self.false_positives[:, 1:]
        precision = np.divide(self.true_positives[:, 1:], above, out=np.zeros_like(above), where=above > 0)
        mean = _ratio((np.diff(self.true_positives) * precision).sum(axis=1), self.positives)
        return np.where(self.negatives > 0, mean, np.nan)

    def sensitivity_at(
        self, false_positive_rates: Float64[np.ndarray, " rates"]
    ) -> Float64[np.ndarray, "resamples rates"]:
        """The ROC's height at given false positive rates."""
        rows = zip(self.false_positives, self.true_positives, self.negatives, self.positives, strict=True)
        heights = [
            np.interp(false_positive_rates * negatives, false, true) / positives
            if positives and negatives
            else np.full(len(false_positive_rates), np.nan)
            for false, true, negatives, positives in rows
        ]
        return np.stack(heights)

    def confusion(self, threshold: float) -> Float64[np.ndarray, "resamples 2 2"]:
        """Count patches by label (rows) and decision (columns); above the threshold, a logit, is called tumour."""
        cut = np.searchsorted(-self.logits, -threshold)
        true, false = self.true_positives[:, cut], self.false_positives[:, cut]
        return np.stack([self.negatives - false, false, self.positives - true, true], axis=1).reshape(-1, 2, 2)

    def decisions(self, threshold: float) -> dict[str, Values]:
        """Measure the decisions at a threshold, a logit: all in 0..1."""
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
    """Divide; 0 / 0 is undefined, not an error."""
    ratio: Values = np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
    return ratio


def cross_entropy(labels: PatchValues, logits: PatchValues) -> PatchValues:
    """The negative log-likelihood of each patch in nats, for any size of logit."""
    losses: PatchValues = np.logaddexp(0, logits * (1 - 2 * labels))
    return losses


def fit_temperature(labels: PatchValues, logits: PatchValues) -> float:
    """Find what to divide logits by so that their negative log-likelihood is least.

    Args:
        labels: 0 or 1.
        logits: Of the valid split.

    Returns:
        The temperature: above 1 for a classifier that is too sure of itself; NaN if none in `TEMPERATURES` is least,
        as with a single class, or classes that the logits separate or put in the wrong order.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """

    def slope(inverse: float) -> float:
        """The derivative of the likelihood, which rises with the inverse temperature: one root at most."""
        return float(((expit(inverse * logits) - labels) * logits).mean())

    coldest, hottest = (1 / temperature for temperature in TEMPERATURES)
    if not slope(hottest) < 0 < slope(coldest):
        return np.nan
    return 1 / float(brentq(slope, hottest, coldest, xtol=1e-12))


def calibration_slope(labels: PatchValues, logits: PatchValues) -> float:
    """Fit the slope of a logistic regression, with intercept, of the labels on the logits.

    Args:
        labels: 0 or 1.
        logits: Of the split that is measured.

    Returns:
        1 for a calibrated classifier, below 1 for one that is too sure of itself; NaN where there is no least: a
        single class, or classes that the logits separate.

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
    """How far scores are from the share of tumour among the patches that have them.

    Args:
        loss: Binary cross-entropy in nats, the mean negative log-likelihood.
        brier_score: Mean squared error of the scores, 0..1.
        slope: Calibration slope; NaN if undefined.
        counts: Patches in each of the `CALIBRATION_BINS` bins.
        mean_scores: Mean score in each; NaN in empty ones.
        shares: Share of label 1 in each; NaN in empty ones.
        chance_shares: Between which two shares a perfectly calibrated score lies in 95 % of simulated splits.
        error: The expected calibration error: |share - mean score| of a bin, averaged over patches; 0..1.
        chance_error: The error that a perfectly calibrated score shows on as many patches, on average: it is not 0,
            since shares of few patches scatter.
        chance_error_limit: What a perfectly calibrated score stays below in 95 % of simulated splits.
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
    def measure(cls, labels: PatchValues, logits: PatchValues, groups: Sequence[str]) -> "Calibration":
        """Compare scores with shares of tumour in bins, and with a simulated score that is perfectly calibrated.

        The simulation draws labels with the scores as their probabilities, one draw for a group of identical patches.

        Args:
            labels: 0 or 1.
            logits: Finite.
            groups: The group of identical patches that each patch is in.

        Returns:
            The comparison.

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
            chance_shares=np.quantile(simulated, [0.025, 0.975], axis=0) / filled,
            error=float(np.abs(labels @ members - expected).sum() / len(scores)),
            chance_error=float(chance_errors.mean()),
            chance_error_limit=float(np.quantile(chance_errors, 0.95)),
        )


@dataclass(frozen=True)
class Choices:
    """What is chosen on the valid split, and on it alone.

    Args:
        temperature: What to divide logits by; NaN if undefined.
        thresholds: By name, the logit above which a patch is called tumour. "0.5" (a score of 0.5, chosen on no
            split); "youden", where sensitivity + specificity is largest; "sensitivity_95" and "specificity_95", where
            that one is at least 0.95 and the other largest. Only "0.5" if valid has a single class.

    Source: Youden 1950, "Index for rating diagnostic tests".
    """

    temperature: float
    thresholds: dict[str, float]

    @classmethod
    def on(cls, valid: Predictions) -> "Choices":
        """Choose.

        Args:
            valid: Predictions of the valid split.

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
                "sensitivity_95": np.flatnonzero(sensitivity >= 0.95)[0],
                "specificity_95": np.flatnonzero(specificity >= 0.95)[-1],
            }
            thresholds |= {name: float(cuts.thresholds()[cut]) for name, cut in chosen.items()}
        return cls(temperature, thresholds)


class Estimate(NamedTuple):
    """A number and how sure it is.

    Args:
        value: Over all patches; NaN if undefined.
        interval: Its 95 % interval, from resampling slides, or groups of identical patches; NaN if undefined or not
            resampled.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class Measurement:
    """What predictions of a split are worth.

    Args:
        metrics: `auroc`; `average_precision`; at a score of 0.5 `accuracy`, `balanced_accuracy`, `f1`, `sensitivity`
            and `specificity`; `loss`, the binary cross-entropy in nats (the mean negative log-likelihood);
            `brier_score`; and, without intervals, `expected_calibration_error` and `calibration_slope`.
        operating_points: At each threshold, the metrics that depend on it.
        confusion: At each threshold, patches by label (rows) and decision (columns), shape (2, 2).
        calibration: Of the scores as they are.
        rescaled: Of the scores after temperature scaling; None if the temperature is undefined.
        roc_band: The 95 % interval of the sensitivity at each false positive rate of `ROC_GRID`.
        resampled_auroc: The AUROC in each resample: the same resamples for all predictions of a split.
    """

    metrics: dict[str, Estimate]
    operating_points: dict[str, dict[str, Estimate]]
    confusion: dict[str, Float64[np.ndarray, "2 2"]]
    calibration: Calibration
    rescaled: Calibration | None
    roc_band: Float64[np.ndarray, "2 rates"]
    resampled_auroc: Values


def measure(predictions: Predictions, choices: Choices) -> Measurement:
    """Measure predictions.

    Args:
        predictions: Of one split.
        choices: Made on the valid split.

    Returns:
        All numbers that are reported of them.
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
    calibration = Calibration.measure(labels, logits, predictions.groups)
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
        else Calibration.measure(labels, logits / choices.temperature, predictions.groups),
        roc_band=np.array([interval(column) for column in np.concatenate(heights).T]).T,
        resampled_auroc=np.concatenate(drawn["auroc"]),
    )

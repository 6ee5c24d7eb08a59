"""How well a classifier does on each slide, patient and hospital, where the data tell them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pcam.atomic import atomic_path
from pcam.evaluation.calibration import Calibration
from pcam.evaluation.measurement import Choices, Estimate
from pcam.evaluation.metrics import Cuts
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import interval, resample_units
from pcam.options import Origin

MIN_PATCHES: Final = 30
"""Patches that a slide, patient or hospital needs to count for the worst and for the spread: with fewer, the worst is
only the smallest."""

MIN_UNITS: Final = 5
"""Slides that an interval needs: a resample of fewer says little."""


@dataclass(frozen=True)
class OriginResult:
    """How well a classifier does on the patches of one slide, patient or hospital.

    Args:
        name: The name of the slide, patient or hospital.
        patches: The number of its patches.
        slides: The number of its slides; None if slides are not known.
        tumour: The share of tumour among its patches.
        mean_score: The mean of their scores, which is `tumour` if they are calibrated on the whole.
        auroc: NaN if its patches are of one class. The 95 % interval is from resampling its slides; NaN if there are
            fewer than `MIN_UNITS`.
        accuracy: At the threshold chosen on the valid split (Youden's), with an interval in the same way.
        accuracy_at_half: At a score of 0.5, as WILDS reports it.
        loss: The binary cross-entropy in nats.
        calibration_error: The expected calibration error, 0..1.
        chance_error: What that error would be on average if the scores were perfectly calibrated.
    """

    name: str
    patches: int
    slides: int | None
    tumour: float
    mean_score: float
    auroc: Estimate
    accuracy: Estimate
    accuracy_at_half: float
    loss: float
    calibration_error: float
    chance_error: float


@dataclass(frozen=True)
class Spread:
    """How much a metric differs between slides, patients or hospitals.

    Args:
        counted: How many have the metric and `MIN_PATCHES` patches.
        worst: The one with the lowest value; None if none counts.
        deviation: The standard deviation over those that count; NaN if fewer than two do.
    """

    counted: int
    worst: OriginResult | None
    deviation: float

    @classmethod
    def of(cls, results: Sequence[OriginResult], metric: Literal["auroc", "accuracy"]) -> "Spread":
        """Find the worst and the spread.

        Args:
            results: The result of each slide, patient or hospital.
            metric: What is compared.

        Returns:
            The spread.
        """
        values = {
            result.name: (getattr(result, metric).value, result)
            for result in results
            if result.patches >= MIN_PATCHES and not np.isnan(getattr(result, metric).value)
        }
        numbers = [value for value, _ in values.values()]
        worst = min(values.values(), key=lambda pair: pair[0])[1] if values else None
        return cls(len(values), worst, float(np.std(numbers, ddof=1)) if len(numbers) > 1 else np.nan)


def measure_origins(predictions: Predictions, choices: Choices) -> dict[Origin, list[OriginResult]]:
    """Measure a classifier on each slide, patient and hospital, as far as the data tell them.

    Args:
        predictions: The predictions of one split.
        choices: The thresholds, chosen on the valid split.

    Returns:
        The results by name, in alphabetical order; patches whose origin is not known are left out.
    """
    found = {}
    for origin, names in predictions.origins.items():
        of_patch = np.asarray(names)
        found[origin] = [
            _measure(name, predictions.subset(np.flatnonzero(of_patch == name)), choices)
            for name in sorted(set(names) - {""})
        ]
    return found


def _measure(name: str, predictions: Predictions, choices: Choices) -> OriginResult:
    labels, logits = predictions.labels.astype(np.float64), predictions.logits.astype(np.float64)
    threshold = choices.thresholds.get("youden", 0.0)
    cuts = Cuts.count(labels, logits, np.ones((1, len(labels))))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    if len(set(predictions.units)) >= MIN_UNITS:
        resampled = (Cuts.count(labels, logits, weights) for weights in resample_units(predictions.units))
        drawn = [(counted.auroc(), counted.decisions(threshold)["accuracy"]) for counted in resampled]
    aurocs, accuracies = (interval(np.concatenate(values)) for values in zip(*drawn, strict=True)) if drawn else (
        (np.nan, np.nan), (np.nan, np.nan),
    )  # fmt: skip
    calibration = Calibration.of(labels, logits, predictions.groups)
    return OriginResult(
        name=name,
        patches=len(labels),
        slides=None if predictions.slides is None else len(set(predictions.slides) - {""}),
        tumour=float(labels.mean()),
        mean_score=float(predictions.scores.mean()),
        auroc=Estimate(float(cuts.auroc()[0]), aurocs),
        accuracy=Estimate(float(cuts.decisions(threshold)["accuracy"][0]), accuracies),
        accuracy_at_half=float(cuts.decisions(0.0)["accuracy"][0]),
        loss=calibration.loss,
        calibration_error=calibration.error,
        chance_error=calibration.chance_error,
    )


def write_origins(results: Mapping[Origin, Sequence[OriginResult]], output: Path) -> None:
    """Write `by_slide.csv`, `by_patient.csv` and `by_hospital.csv`, as far as they are known, with all numbers.

    Args:
        results: The results of one split.
        output: The folder.
    """
    for stale in output.glob("by_*.*"):  # of an earlier evaluation on other data
        stale.unlink(missing_ok=True)  # another evaluation may have done it
    for origin, of_origin in results.items():
        rows = []
        for result in of_origin:
            row: dict[str, Any] = {origin if key == "name" else key: value for key, value in asdict(result).items()}
            for name in ("auroc", "accuracy"):
                row[name], (row[f"{name}_low"], row[f"{name}_high"]) = row[name]
            rows.append(row)
        with atomic_path(output / f"by_{origin}.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, errors="surrogateescape")


def spread_record(results: Sequence[OriginResult]) -> dict[str, dict[str, Any]]:
    """Say the worst and the spread of each metric, as `metrics.json` has them."""
    record: dict[str, dict[str, Any]] = {}
    for metric in ("auroc", "accuracy"):
        spread = Spread.of(results, metric)
        record[metric] = {
            "counted": spread.counted,
            "worst": None if spread.worst is None else spread.worst.name,
            "worst_value": None if spread.worst is None else getattr(spread.worst, metric).value,
            "standard_deviation": None if np.isnan(spread.deviation) else spread.deviation,
        }
    return record


def origin_figure(results: Sequence[OriginResult], origin: Origin) -> Figure:
    """Draw how much slides, patients or hospitals differ.

    Args:
        results: The results of one split, at least one.
        origin: What they are of.

    Returns:
        A row for each, the lowest accuracy at the top: AUROC and accuracy with their intervals, and how far the mean
        score is from the share of tumour.
    """
    ordered = sorted(results, key=lambda result: -result.accuracy.value)
    places = np.arange(len(ordered))
    figure = Figure(figsize=(10, 1.6 + 0.22 * len(ordered)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, metric in zip(panels, ("auroc", "accuracy"), strict=False):
        values = np.array([getattr(result, metric).value for result in ordered])
        low, high = np.array([getattr(result, metric).interval for result in ordered]).T
        # The interval of a value need not hold it, as in a few resamples of very unlike slides.
        errors = np.maximum([values - low, high - values], 0)
        axes.errorbar(values, places, xerr=np.nan_to_num(errors), fmt="o", markersize=4, capsize=2, elinewidth=1)
    bias = [result.mean_score - result.tumour for result in ordered]
    panels[2].plot(bias, places, "o", markersize=4)
    panels[2].axvline(0, linestyle="--", color="grey")
    headings = ("AUROC", "accuracy at the threshold of valid", "mean score - share of tumour")
    for axes, heading in zip(panels, headings, strict=True):
        axes.set_xlabel(heading)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(
        places,
        [f"{result.name} ({result.patches:,}, {result.tumour:.0%} tumour)" for result in ordered],
        fontsize=8,
        parse_math=False,
    )
    panels[0].set_ylim(-0.8, len(ordered) - 0.2)
    figure.suptitle(f"By {origin}; intervals for other slides, where there are {MIN_UNITS} or more", fontsize=11)
    return figure

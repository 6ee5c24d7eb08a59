"""The curves, histograms and matrices of an evaluation, as matplotlib figures that need no closing."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
    binary_roc,
)

from pcam.evaluation.calibration import Calibration
from pcam.evaluation.measurement import Choices, Measurement
from pcam.evaluation.metrics import ROC_GRID
from pcam.evaluation.predictions import Predictions
from pcam.evaluation.statistics import Interval
from pcam.patches import CLASS_NAMES, Labels

POINT_NAMES: Final = {
    "0.5": "score 0.5",
    "youden": "best Youden on valid",
    "sensitivity_95": "95 % sensitivity on valid",
    "specificity_95": "95 % specificity on valid",
}
"""The names of the operating points in figures and tables."""

POINT_MARKERS: Final = dict(zip(POINT_NAMES, "osv^", strict=True))
CLASS_COLORS: Final = ("tab:blue", "tab:red")


def roc_figure(scores: Tensor, labels: Labels, measurement: Measurement | None = None) -> Figure:
    """Draw the receiver operating characteristic.

    Args:
        scores: Shape (patches,), probabilities of label 1.
        labels: Shape (patches,).
        measurement: The metrics of these scores; adds the bootstrap's band, the operating points and the interval of
            the AUROC to the figure.

    Returns:
        The curve, the chance line, and the AUROC in the title; no curve if there is only one class.
    """
    figure, axes = _square()
    title = f"undefined: only one class ({len(labels):,} patches)"
    if 0 < labels.sum() < len(labels):
        false_positive_rate, true_positive_rate, _ = binary_roc(scores, labels)
        axes.plot(false_positive_rate.cpu(), true_positive_rate.cpu(), label="classifier")
        title = f"AUROC {binary_auroc(scores, labels):.4f} ({len(labels):,} patches)"
        if measurement is not None:
            title = title.replace(" (", f", 95 % interval {interval_words(measurement.metrics['auroc'].interval)} (")
            axes.fill_between(ROC_GRID, *measurement.roc_band, alpha=0.25, linewidth=0, label="95 % band (bootstrap)")
            for name, point in measurement.operating_points.items():
                place = (1 - point["specificity"].value, point["sensitivity"].value)
                marker = POINT_MARKERS[name]
                axes.plot(*place, marker, color="black", markersize=7, fillstyle="none", label=POINT_NAMES[name])
    _finish_roc(axes, f"ROC: {title}")
    return figure


def roc_comparison_figure(systems: Mapping[str, tuple[Predictions, Measurement]]) -> Figure:
    """Draw the ROC curves of several classifiers of the same patches, both classes present.

    Args:
        systems: The predictions of each classifier and their metrics, by its name.

    Returns:
        The curves; the legend lists the AUROCs with their 95 % intervals, the best first.
    """
    figure, axes = _square()
    ordered = sorted(systems.items(), key=lambda system: -system[1][1].metrics["auroc"].value)
    for name, (predictions, measurement) in ordered:
        auroc = measurement.metrics["auroc"]
        scores, labels = predictions.tensors()
        false_positive_rate, true_positive_rate, _ = binary_roc(scores, labels)
        text = f"{name}\nAUROC {auroc.value:.4f} ({interval_words(auroc.interval)})"
        axes.plot(false_positive_rate, true_positive_rate, label=text)
    _finish_roc(axes, f"ROC ({len(labels):,} patches)")
    return figure


def interval_words(interval: Interval) -> str:
    """Write an interval in words, as "0.912 to 0.934"."""
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def precision_recall_figure(scores: Tensor, labels: Labels) -> Figure:
    """Draw precision against recall.

    Args:
        scores: Shape (patches,), probabilities of label 1.
        labels: Shape (patches,).

    Returns:
        The curve, the chance line (the share of label 1), and the average precision in the title; no curve if there
        is only one class.
    """
    figure, axes = _square()
    title = f"undefined: only one class ({len(labels):,} patches)"
    if 0 < labels.sum() < len(labels):
        precision, recall, _ = binary_precision_recall_curve(scores, labels)
        axes.plot(recall.cpu(), precision.cpu(), drawstyle="steps-post", label="classifier")
        title = f"average precision {binary_average_precision(scores, labels):.4f} ({len(labels):,} patches)"
    axes.axhline(labels.float().mean().item(), linestyle="--", color="grey", label="chance")
    axes.set(
        xlabel="recall (sensitivity)",
        ylabel="precision (positive predictive value)",
        title=f"Precision-recall: {title}",
    )
    axes.legend(loc="lower left")
    return figure


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Draw the share of tumour against the score (a reliability diagram), and how many patches have each score.

    Args:
        calibrations: Each calibration under its title, such as "as trained".

    Returns:
        A panel for each calibration. The bars are where a perfectly calibrated score lies in 95 % of simulated splits.
    """
    figure = Figure(figsize=(5.2 * len(calibrations), 6.2), layout="constrained")
    panels = figure.subplots(2, len(calibrations), squeeze=False, sharex=True, sharey="row", height_ratios=[4, 1])
    for (name, calibration), axes, histogram in zip(calibrations.items(), *panels, strict=True):
        low, high = calibration.chance_shares
        middle = (low + high) / 2
        axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
        axes.errorbar(
            calibration.mean_scores,
            middle,
            yerr=(high - low) / 2,
            linestyle="none",
            color="grey",
            capsize=3,
            label="perfectly calibrated (95 %)",
        )
        axes.plot(calibration.mean_scores, calibration.shares, "o-", label="classifier")
        axes.set(
            xlim=(0, 1),
            ylim=(0, 1),
            ylabel="share of tumour",
            title=f"Reliability, {name}\n"
            f"calibration error {calibration.error:.3f} (if perfect {calibration.chance_error:.3f})",
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
        edges = np.linspace(0, 1, len(calibration.counts) + 1)
        histogram.stairs(calibration.counts, edges, fill=True)
        histogram.set(xlabel=f"score ({len(calibration.counts)} bins)", ylabel="patches")
        histogram.grid(alpha=0.3)
    for row in panels:
        for axes in row[1:]:
            axes.set_ylabel("")
    return figure


def score_histogram_figure(predictions: Predictions, choices: Choices) -> Figure:
    """Draw the distribution of the scores of each class.

    Args:
        predictions: The predictions of a split.
        choices: The thresholds, which are drawn as lines.

    Returns:
        Two histograms on a logarithmic axis, on which a few confident mistakes among thousands of patches are visible.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, (name, color) in enumerate(zip(CLASS_NAMES, CLASS_COLORS, strict=True)):
        scores = predictions.scores[predictions.labels == label]
        text = f"{name}: {len(scores):,} patches"
        axes.hist(scores, bins=50, range=(0, 1), histtype="stepfilled", color=color, alpha=0.35, label=text)
        axes.hist(scores, bins=50, range=(0, 1), histtype="step", color=color)
    styles = dict(zip(POINT_NAMES, ["solid", "dashed", "dotted", "dashdot"], strict=True))
    for name, threshold in choices.thresholds.items():
        axes.axvline(float(expit(threshold)), color="black", linestyle=styles[name], label=POINT_NAMES[name])
    axes.set(xlim=(0, 1), yscale="log", ylim=(0.7, None), xlabel="score", ylabel="patches", title="Scores by class")
    figure.legend(loc="outside right upper")
    return figure


def confusion_figure(confusions: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw confusion matrices.

    Args:
        confusions: The number of patches by label (rows) and decision (columns), for each operating point.

    Returns:
        A panel for each operating point, with the counts and their shares of the patches of the label.
    """
    figure = Figure(figsize=(3.1 * len(confusions), 3.4), layout="constrained")
    for axes, (point, confusion) in zip(
        figure.subplots(1, len(confusions), squeeze=False)[0], confusions.items(), strict=True
    ):
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (label, decision), share in np.ndenumerate(shares):
            text = f"{confusion[label, decision]:,.0f}\n{share:.1%}"
            color = "white" if share > 0.5 else "black"
            axes.text(decision, label, text, ha="center", va="center", color=color, fontsize=11)
        axes.set_title(POINT_NAMES[point], fontsize=10)
        axes.set(xticks=[0, 1], yticks=[0, 1], xlabel="called")
        axes.tick_params(length=0)
        axes.set_xticklabels(CLASS_NAMES)
        axes.set_yticklabels(CLASS_NAMES, rotation=90, va="center")
    figure.axes[0].set_ylabel("label")
    return figure


def _finish_roc(axes: Axes, title: str) -> None:
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="chance")
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)")
    axes.set_title(title, fontsize=11)
    axes.legend(loc="lower right", fontsize=9)


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes

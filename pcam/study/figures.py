"""The figures of a study's report. Colours of Okabe and Ito, and a line style each: told apart in grey as well."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pcam.evaluation.figures import interval_words
from pcam.evaluation.metrics import ROC_GRID, Cuts
from pcam.evaluation.seeds import Inference
from pcam.evaluation.statistics import SEED, resample_units
from pcam.study.plan import Published, Question, Reading
from pcam.study.results import RunResult

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Source: Okabe and Ito 2008, "Color universal design"."""

LINE_STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)), (0, (1, 1)))

READING_STYLES: Final[dict[Reading, tuple[str, str]]] = {
    "momentum_0.1": ("#0072B2", "-"),
    "momentum_0.001": ("#D55E00", "--"),
    "reestimated": ("#009E73", "-."),
    "stain_shifted": ("#CC79A7", ":"),
}


def roc_of_arms_figure(arms: Mapping[str, tuple[Sequence[RunResult], Inference]], reading: Reading) -> Figure:
    """Draw the ROC of each arm, the mean over its seeds, with its 95 % band.

    Args:
        arms: Runs and mean AUROC of each arm, by label.
        reading: Which reading.

    Returns:
        The curves; the legend has the AUROCs with their intervals.
    """
    figure = Figure(figsize=(7, 8), layout="constrained")
    axes = figure.subplots()
    for index, (label, (runs, mean)) in enumerate(arms.items()):
        curve, low, high = _roc(runs, reading)
        color = COLORS[index % len(COLORS)]
        axes.fill_between(ROC_GRID, low, high, color=color, alpha=0.15, linewidth=0)
        text = f"{label}: {mean.estimate:.4f} ({interval_words(mean.interval())})"
        axes.plot(ROC_GRID, curve, color=color, linestyle=LINE_STYLES[index % len(LINE_STYLES)], label=text)
    _finish_roc(axes, len(next(iter(arms.values()))[0][0].labels))
    figure.legend(loc="outside lower center", fontsize=8, title="AUROC (95 % interval)")
    return figure


def published_roc_figure(label: str, runs: Sequence[RunResult], published: Published) -> Figure:
    """Draw a published ROC again: ours in each reading, and the published area.

    Args:
        label: Of the arm.
        runs: Its runs.
        published: What was published of it.

    Returns:
        The mean curves over seeds, each with its 95 % band.
    """
    figure = Figure(figsize=(5.5, 6.2), layout="constrained")
    axes = figure.subplots()
    for reading, name in runs[0].reading_names.items():
        color, style = READING_STYLES[reading]
        curve, low, high = _roc(runs, reading)
        aurocs = [run.metrics(reading)["auroc"] for run in runs]
        axes.fill_between(ROC_GRID, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(ROC_GRID, curve, color=color, linestyle=style, label=f"{name}: {np.mean(aurocs):.3f}")
    axes.plot([], [], linestyle="none", label=f"published: {published.auroc}")
    _finish_roc(axes, len(runs[0].labels))
    axes.set_title(f"Published figure {published.roc_figure}: {label}", fontsize=10)
    axes.legend(loc="lower right", title="AUROC", fontsize=8)
    return figure


def loss_figure(label: str, runs: Sequence[RunResult], published: Published | None) -> Figure:
    """Draw the losses of an arm over its training, with the validation loss in each reading.

    Args:
        label: Of the arm.
        runs: Its runs.
        published: What was published of it, if anything.

    Returns:
        Means over seeds, thick, and each seed, thin; the dotted line marks the end of the first pass over the data.
    """
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    _draw_seeds(axes, [run.curves.set_index("step")["train/loss"].dropna() for run in runs], "training", "#777777", "-")
    for reading, name in runs[0].reading_names.items():
        color, style = READING_STYLES[reading]
        _draw_seeds(axes, [run.validation("loss", reading) for run in runs], f"validation, {name}", color, style)
    record = runs[0].record
    axes.axvline(record["train_patches"] / record["batch_size"], color="black", linestyle=":", linewidth=1)
    axes.text(
        record["train_patches"] / record["batch_size"],
        0.02,
        " end of first pass",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        rotation=90,
        ha="right",
    )
    axes.axhline(log(2), color="black", linewidth=0.6)
    axes.text(1, log(2), "ln 2 ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="step", ylabel="loss (nats)", xlim=(0, None), ylim=(0, None))
    number = None if published is None else published.loss_figure
    axes.set_title(f"Published figure {number}: {label}" if number else label, fontsize=10)
    top = max(run.validation("loss", reading).max() for run in runs for reading in run.reading_names)
    if top > 1.5:  # else the early losses of momentum 0.001 flatten all others
        axes.set_ylim(0, 1.5)
        axes.text(0.99, 0.97, f"highest: {top:.1f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def forest_figure(answers: Sequence[tuple[Question, Inference, str]]) -> Figure:
    """Draw the difference that each question is about.

    Args:
        answers: The question, the difference and its label, for each that could be answered.

    Returns:
        Differences with 95 % intervals; grey marks the margin of a question of equivalence.
    """
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(answers)), layout="constrained")
    axes = figure.subplots()
    for row, (question, difference, _) in enumerate(answers):
        low, high = difference.interval()
        if question.margin is not None:
            axes.fill_betweenx([row - 0.4, row + 0.4], -question.margin, question.margin, color="0.85", linewidth=0)
        axes.plot([low, high], [row, row], color=COLORS[0], linewidth=2)
        axes.plot(difference.estimate, row, "o", color=COLORS[0])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(answers)), [label for _, _, label in answers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("difference of AUROC, 95 % interval;\ngrey: margin of equivalence")
    return figure


def _roc(runs: Sequence[RunResult], reading: Reading) -> tuple[NDArray[np.float64], ...]:
    """The mean over seeds of the sensitivity at each false positive rate, and its band over patches and seeds."""
    once = np.ones((1, len(runs[0].labels)))
    mean = np.mean([_heights(run, reading, once)[0] for run in runs], axis=0)
    rng = np.random.default_rng(SEED)
    resampled = []
    for weights in resample_units(runs[0].units):
        heights = np.stack([_heights(run, reading, weights) for run in runs], axis=1)
        drawn = rng.integers(len(runs), size=(len(heights), len(runs)))
        resampled.append(np.take_along_axis(heights, drawn[:, :, None], axis=1).mean(axis=1))
    low, high = np.nanquantile(np.concatenate(resampled), [0.025, 0.975], axis=0)
    return mean, low, high


def _heights(run: RunResult, reading: Reading, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return Cuts.count(run.labels, run.logits(reading), weights).sensitivity_at(ROC_GRID)


def _draw_seeds(axes: Axes, seeds: Sequence["pd.Series[float]"], label: str, color: str, style: str) -> None:
    for series in seeds:
        axes.plot(series.index, series, color=color, linestyle=style, linewidth=0.6, alpha=0.4)
    mean = pd.concat(seeds, axis=1).mean(axis=1)
    axes.plot(mean.index, mean, color=color, linestyle=style, linewidth=1.8, label=label)


def _finish_roc(axes: Axes, patches: int) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(
        xlabel=f"1 - specificity ({patches:,} patches)", ylabel="sensitivity", aspect="equal", xlim=(0, 1), ylim=(0, 1)
    )

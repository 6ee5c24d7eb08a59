"""The figures of a study's report.

Whatever a figure compares differs in colour and in line style, and curves that lie close together carry a letter, so
that nobody needs to see colours to tell them apart.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import log
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pcam.evaluation.figures import interval_words
from pcam.evaluation.metrics import ROC_GRID, Cuts
from pcam.evaluation.seeds import Inference
from pcam.evaluation.statistics import INTERVAL_QUANTILES, SEED, resample_units
from pcam.study.growth import Fit
from pcam.study.plan import METRIC_NAMES, Metric, Published, Question
from pcam.study.readings import Reading
from pcam.study.results import RunResult

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#7A4B00", "#808080")
"""The colours of Okabe and Ito 2008, "Color universal design", with brown and grey instead of their light blue and
yellow: the one is too close to blue, and the other too light for lines."""

LineStyle = str | tuple[int, tuple[int, ...]]

LINE_STYLES: Final[Sequence[LineStyle]] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (3, 1)),
    (0, (1, 1)),
)

READING_MARKERS: Final[dict[Reading, str]] = {
    "momentum_0.1": "o",
    "momentum_0.001": "s",
    "reestimated": "^",
    "stain_shifted": "D",
}

MOST_BANDS: Final = 3
"""Curves up to which their bands are drawn: more of them would only hide each other, and the legend has intervals."""

READING_STYLES: Final[dict[Reading, tuple[str, str]]] = {
    "momentum_0.1": ("#0072B2", "-"),
    "momentum_0.001": ("#D55E00", "--"),
    "reestimated": ("#009E73", "-."),
    "stain_shifted": ("#CC79A7", ":"),
}


class Dots(NamedTuple):
    """Values that a figure compares: those of each seed, and their mean.

    Attributes:
        label: What the legend calls them.
        numbers: One of each seed.
        color: The colour of their marker.
        marker: Its shape, as matplotlib takes it.
    """

    label: str
    numbers: Sequence[float]
    color: str
    marker: str


class ForestRow(NamedTuple):
    """A row of the figure of differences.

    Attributes:
        question: The question.
        difference: The difference that it is about.
        sides: The names of both sides of the difference.
    """

    question: Question
    difference: Inference
    sides: tuple[str, str]


def curve_style(index: int) -> tuple[str, LineStyle]:
    """Choose the colour and the line style of a curve, a pair that comes only once among 64 curves.

    Args:
        index: The number of the curve, from 0.

    Returns:
        The colour and the line style, as matplotlib takes them.
    """
    return COLORS[index % len(COLORS)], LINE_STYLES[(index + index // len(COLORS)) % len(LINE_STYLES)]


def roc_of_arms_figure(arms: Mapping[str, tuple[Sequence[RunResult], Inference]], reading: Reading) -> Figure:
    """Draw the ROC curve of each arm, as the mean over its seeds.

    Args:
        arms: The runs and the mean AUROC of each arm, by its label.
        reading: The reading that is drawn.

    Returns:
        The curves, each with a letter that the legend explains, beside its AUROC with a 95 % interval; and the 95 %
        bands of the curves, if there are at most `MOST_BANDS` arms.
    """
    figure = Figure(figsize=(7, 7.4 + 0.2 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for index, (label, (runs, mean)) in enumerate(arms.items()):
        letter = chr(ord("A") + index % 26)
        color, style = curve_style(index)
        curve, low, high = _roc(runs, reading, with_band=len(arms) <= MOST_BANDS)
        if low is not None and high is not None:
            axes.fill_between(ROC_GRID, low, high, color=color, alpha=0.15, linewidth=0)
        text = f"{letter}: {_plain(label)}, {mean.estimate:.4f} ({interval_words(mean.interval())})"
        axes.plot(ROC_GRID, curve, color=color, linestyle=style, linewidth=1.6, label=text)
        # Each letter further along its curve than the one before, so that close curves have theirs apart.
        place = np.interp(0.3 + 0.5 * (index + 0.5) / len(arms), (ROC_GRID + curve) / 2, ROC_GRID)
        height = np.interp(place, ROC_GRID, curve)
        axes.text(
            place, height, letter, color=color, fontsize=9, fontweight="bold", ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": color, "linewidth": 0.8},
        )  # fmt: skip
    _finish_roc(axes, len(next(iter(arms.values()))[0][0].labels))
    figure.legend(loc="outside lower center", fontsize=8, title="AUROC (95 % interval)", handlelength=4)
    return figure


def published_roc_figure(label: str, runs: Sequence[RunResult], published: Published) -> Figure:
    """Draw the ROC curve of a published figure again: ours in each reading, with the published area in the legend.

    Args:
        label: The label of the arm.
        runs: The runs of the arm.
        published: What was published of it.

    Returns:
        The mean curves over seeds, with their 95 % bands if they are at most `MOST_BANDS`.
    """
    figure = Figure(figsize=(5.5, 6.2), layout="constrained")
    axes = figure.subplots()
    for reading, name in runs[0].reading_names.items():
        color, style = READING_STYLES[reading]
        curve, low, high = _roc(runs, reading, with_band=len(runs[0].reading_names) <= MOST_BANDS)
        aurocs = [run.metrics(reading)["auroc"] for run in runs]
        if low is not None and high is not None:
            axes.fill_between(ROC_GRID, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(ROC_GRID, curve, color=color, linestyle=style, label=f"{name}: {np.mean(aurocs):.3f}")
    axes.plot([], [], linestyle="none", label=f"published: {published.auroc}")
    _finish_roc(axes, len(runs[0].labels))
    axes.set_title(f"Published figure {published.roc_figure}: {_plain(label)}", fontsize=10)
    axes.legend(loc="lower right", title="AUROC", fontsize=8)
    return figure


def loss_figure(
    label: str, runs: Sequence[RunResult], readings: Mapping[Reading, str], published: Published | None
) -> Figure:
    """Draw the losses of an arm over its training, with the validation loss in some readings.

    Args:
        label: The label of the arm.
        runs: The runs of the arm.
        readings: The names of the readings that are drawn.
        published: What was published of it, or None.

    Returns:
        The means over seeds as thick lines, and each seed as a thin one; a dotted line marks the end of the first pass
        over the training patches, a dashed one what was published, and a thin one ln 2, the loss of a network that
        knows nothing.
    """
    figure = Figure(figsize=(6.2, 4.4), layout="constrained")
    axes = figure.subplots()
    _draw_seeds(axes, [run.curves.set_index("step")["train/loss"].dropna() for run in runs], "training", "#777777", "-")
    for reading, name in readings.items():
        color, style = READING_STYLES[reading]
        _draw_seeds(axes, [run.validation("loss", reading) for run in runs], f"validation, {name}", color, style)
    record = runs[0].record
    passed = record["train_patches"] / record["batch_size"]
    axes.axvline(passed, color="black", linestyle=":", linewidth=1, label="end of the first pass")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axhline(log(2), color="black", linewidth=0.6)
    axes.text(1, log(2), "ln 2 ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="step", ylabel="loss (nats)", xlim=(0, None), ylim=(0, None))
    if published is not None and published.loss is not None:
        lowest = f"published, lowest: {published.loss:.3f}"
        axes.axhline(published.loss, color="black", linestyle=(0, (7, 4)), linewidth=1, label=lowest)
    number = None if published is None else published.loss_figure
    axes.set_title(f"Published figure {number}: {_plain(label)}" if number else _plain(label), fontsize=10)
    top = max(run.validation("loss", reading).max() for run in runs for reading in readings)
    if top > 1.5:  # else the early losses of momentum 0.001 flatten all others
        axes.set_ylim(0, 1.5)
        axes.text(0.99, 0.97, f"highest: {top:.1f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def readings_figure(arms: Mapping[str, Sequence[RunResult]]) -> Figure:
    """Draw the loss of the same weights in each of their readings.

    Args:
        arms: The runs of each arm whose batch norm is read in several ways, by its label.

    Returns:
        The losses at the last checkpoint, a row for each arm; a line marks ln 2, the loss of who knows nothing.
    """
    rows = {
        label: [
            Dots(
                name,
                [run.metrics(reading)["loss"] for run in runs],
                READING_STYLES[reading][0],
                READING_MARKERS[reading],
            )
            for reading, name in runs[0].reading_names.items()
        ]
        for label, runs in arms.items()
    }
    figure = Figure(figsize=(6, 1.5 + 0.6 * len(arms)), layout="constrained")
    axes = figure.subplots()
    _draw_dots(axes, rows)
    axes.axvline(log(2), color="black", linewidth=0.8, linestyle="--")
    axes.text(log(2), 1.01, "ln 2", transform=axes.get_xaxis_transform(), fontsize=8, ha="center", va="bottom")
    axes.set_xlabel("loss (nats) of the same weights; lower is better", fontsize=9)
    _dots_legend(figure, axes)
    return figure


def growth_figure(fits: Sequence[Fit]) -> Figure:
    """Draw AUROC against the number of training patches.

    Args:
        fits: The series.

    Returns:
        Each seed as a small marker, their mean as a large one, and the fitted power law as a line.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (fit, marker) in enumerate(zip(fits, cycle(("o", "s", "^", "D", "v", "P")))):
        color, style = curve_style(index)
        sizes = sorted(fit.aurocs)
        for size in sizes:
            numbers = fit.aurocs[size]
            axes.plot([size] * len(numbers), numbers, marker, color=color, markersize=4, fillstyle="none")
        grid = np.geomspace(sizes[0], sizes[-1], 50)
        axes.plot(grid, [fit.predict(size) for size in grid], color=color, linestyle=style, linewidth=1.4)
        means = [float(np.mean(fit.aurocs[size])) for size in sizes]
        axes.plot(sizes, means, marker, color=color, markersize=8, label=_plain(fit.label))
    every = sorted({size for fit in fits for size in fit.aurocs})
    axes.set_xscale("log")
    axes.set_xticks(every, [f"{size:,}" for size in every])
    axes.minorticks_off()
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(xlabel="training patches", ylabel="AUROC; higher is better")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def published_figure(panels: Mapping[Metric, Mapping[str, Sequence[Dots]]]) -> Figure:
    """Draw published values beside ours, on the same axes.

    Args:
        panels: What is drawn of each metric: the published value and ours, by the label of the arm.

    Returns:
        A panel for each metric, one below the other, with a row for each arm.
    """
    rows = [len(panel) for panel in panels.values()]
    figure = Figure(figsize=(6, 0.5 + 0.7 * len(rows) + 0.5 * sum(rows)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=rows)[:, 0]
    for axes, (metric, panel) in zip(all_axes, panels.items(), strict=True):
        _draw_dots(axes, panel)
        unit, better = (" (nats)", "lower") if metric == "loss" else ("", "higher")
        axes.set_xlabel(f"{METRIC_NAMES[metric]}{unit}; {better} is better", fontsize=9)
    _dots_legend(figure, all_axes[0])
    return figure


def _draw_dots(axes: Axes, rows: Mapping[str, Sequence[Dots]]) -> None:
    """Draw each seed as a small hollow marker and the mean as a large one, a row for each arm, the first on top."""
    for row, dots in enumerate(rows.values()):
        axes.axhline(row, color="0.9", linewidth=0.6)
        for place, found in enumerate(dots):
            height = row + 0.2 * (place - (len(dots) - 1) / 2)  # apart, so that none hides another
            style: dict[str, Any] = {
                "color": found.color,
                "marker": found.marker,
                "linestyle": "none",
                "label": found.label,
            }
            axes.plot(found.numbers, [height] * len(found.numbers), markersize=4, fillstyle="none", zorder=2, **style)
            if found.numbers:
                axes.plot(np.mean(found.numbers), height, markersize=9, zorder=3, **style)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.set_yticks(range(len(rows)), [_plain(label) for label in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)


def _dots_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    named = zip(labels, handles, strict=True)
    means = {label: line for label, line in named if isinstance(line, Line2D) and line.get_markersize() > 5}
    figure.legend(means.values(), means.keys(), loc="outside lower center", ncols=3, fontsize=8)


def forest_figure(rows: Sequence[ForestRow]) -> Figure:
    """Draw the difference that each question is about.

    Args:
        rows: The questions that could be answered.

    Returns:
        The differences with their 95 % intervals, on one axis for each metric; grey marks margins of equivalence.
    """
    metrics = list(dict.fromkeys(row.question.metric for row in rows))
    counts = [sum(row.question.metric == metric for row in rows) for metric in metrics]
    figure = Figure(figsize=(8, 0.7 * len(metrics) + 0.75 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(metrics), squeeze=False, height_ratios=counts)[:, 0]
    for axes, metric in zip(all_axes, metrics, strict=True):
        shown = [row for row in rows if row.question.metric == metric]
        for height, row in enumerate(shown):
            low, high = row.difference.interval()
            margin = row.question.margin
            if margin is not None:
                axes.fill_betweenx([height - 0.4, height + 0.4], -margin, margin, color="0.85", linewidth=0)
            axes.plot([low, high], [height, height], color=COLORS[0], linewidth=2)
            axes.plot(row.difference.estimate, height, "o", color=COLORS[0])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        names = ["\nminus ".join(_plain(side) for side in row.sides) for row in shown]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        better = "lower" if metric == "loss" else "higher"
        unit = " (nats)" if metric == "loss" else ""
        axes.set_xlabel(f"difference of {METRIC_NAMES[metric]}{unit}; {better} is better", fontsize=9)
    return figure


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as formulas."""
    return text.replace("$", r"\$")


def _roc(
    runs: Sequence[RunResult], reading: Reading, *, with_band: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Average the sensitivity at each false positive rate over seeds, with its band over patches and seeds."""
    once = np.ones((1, len(runs[0].labels)))
    mean = np.mean([_heights(run, reading, once)[0] for run in runs], axis=0)
    if not with_band:
        return mean, None, None
    rng = np.random.default_rng(SEED)
    resampled = []
    for weights in resample_units(runs[0].units):
        heights = np.stack([_heights(run, reading, weights) for run in runs], axis=1)
        drawn = rng.integers(len(runs), size=(len(heights), len(runs)))
        resampled.append(np.take_along_axis(heights, drawn[:, :, None], axis=1).mean(axis=1))
    low, high = np.nanquantile(np.concatenate(resampled), INTERVAL_QUANTILES, axis=0)
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
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(
        xlabel=f"1 - specificity ({patches:,} patches)", ylabel="sensitivity", aspect="equal", xlim=(0, 1), ylim=(0, 1)
    )

"""The figures of a study's report with their captions, and what they show in words."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pcam.atomic import atomic_path
from pcam.study.analysis import Answer, Results, arm_mean, is_about_lag, shown_readings
from pcam.study.backbones import backbone_pictures
from pcam.study.figures import (
    MOST_BANDS,
    READING_STYLES,
    Dots,
    ForestRow,
    forest_figure,
    growth_figure,
    loss_figure,
    published_figure,
    published_roc_figure,
    readings_figure,
    roc_of_arms_figure,
)
from pcam.study.growth import Fit
from pcam.study.plan import METRIC_NAMES, Metric, Plan
from pcam.study.readings import MAIN_READING, PUBLISHED_READING, READING_NAMES
from pcam.study.results import RunResult
from pcam.study.sentences import interval_words, side_names

PUBLISHED_METRICS: Final[Sequence[Metric]] = ("auroc", "loss", "accuracy")


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: The name of its files, without ending.
        figure: The figure.
        caption: What it shows.
        alternative: The same, with its numbers, for people who cannot see it.
    """

    name: str
    figure: Figure
    caption: str
    alternative: str

    @property
    def path(self) -> str:
        """Its path, relative to the pages."""
        return f"figures/{self.name}.svg"

    def save(self, folder: Path) -> bytes:
        """Write it as SVG and PNG below a folder; return the SVG."""
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": self.name}):  # else matplotlib draws new names of its parts each time
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        path = folder / self.path
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        with atomic_path(path.with_suffix(".png")) as temporary:
            self.figure.savefig(temporary, format="png", dpi=150)
        return buffer.getvalue()


def any_batch_norm(plan: Plan, results: Results) -> bool:
    """Whether the batch norm of any arm that is there is read in several ways."""
    return any(plan.arms[arm].batch_norm_readings for arm in results)


def draw_pictures(plan: Plan, results: Results, answers: Sequence[Answer], growths: Sequence[Fit]) -> list[Picture]:
    """Draw all figures of a report.

    Args:
        plan: The study.
        results: The runs that are done.
        answers: The answers to its questions.
        growths: How AUROC grows with training patches.

    Returns:
        The figures, in the order of the page.
    """
    arms = {plan.arms[arm].label: list(seeds.values()) for arm, seeds in results.items()}
    means = {label: (runs, arm_mean(runs, MAIN_READING)) for label, runs in arms.items()}
    units = "slides" if next(iter(arms.values()))[0].slides_known else "groups of identical patches"
    how = f", batch norm {READING_NAMES[MAIN_READING]}" if any_batch_norm(plan, results) else ""
    bands = f", with 95 % bands from resampling {units} and seeds" if len(arms) <= MOST_BANDS else ""
    aurocs = "; ".join(f"{label} {mean.estimate:.4f}" for label, (_, mean) in means.items())
    pictures = [
        Picture(
            "all_arms",
            roc_of_arms_figure(means, MAIN_READING),
            f"ROC curves of all arms at their last checkpoints{how}: means over seeds{bands}.",
            f"ROC curves. AUROC: {aurocs}.",
        )
    ]
    rows = [
        ForestRow(answer.question, answer.difference, side_names(plan, answer.question))
        for answer in answers
        if answer.difference is not None and isfinite(answer.difference.standard_error)
    ]
    if rows:
        numbers = "; ".join(
            f"{METRIC_NAMES[row.question.metric]} of {' minus '.join(row.sides)} {row.difference.estimate:+.4f} "
            f"({interval_words(row.difference.interval())})"
            for row in rows
        )
        margin = "" if all(row.question.margin is None for row in rows) else "; grey: the margin of equivalence"
        caption = f"The difference that each question is about, with its 95 % interval{margin}."
        pictures.append(Picture("forest", forest_figure(rows), caption, f"{numbers}."))
    if growths:
        caption = (
            "AUROC against the number of training patches. Small markers: each seed; large markers: their mean; lines: "
            "the power law that 1 - AUROC is fitted by."
        )
        numbers = "; ".join(
            f"{fit.label}: "
            + ", ".join(f"{np.mean(found):.3f} of {size:,}" for size, found in sorted(fit.aurocs.items()))
            for fit in growths
        )
        pictures.append(Picture("growth", growth_figure(growths), caption, f"Mean AUROC of patches. {numbers}."))
    lagging = {
        plan.arms[arm].label: list(seeds.values())
        for arm, seeds in results.items()
        if plan.arms[arm].batch_norm_readings
    }
    if lagging and is_about_lag(plan):
        caption = (
            "The validation loss of the same weights with three kinds of batch-norm statistics, at the last "
            "checkpoint. Small markers: each seed; large markers: their mean. A network that knows nothing has ln 2."
        )
        numbers = "; ".join(f"{label}: {_reading_words(plan, runs, 'loss')}" for label, runs in lagging.items())
        pictures.append(Picture("readings", readings_figure(lagging), caption, f"{numbers}."))
    panels = _published_panels(plan, results)
    if panels:
        caption = (
            "What was published and what we found, on the same axes: evaluated as in the published study (the "
            "validation with the lowest loss), and at the last checkpoint. Small markers: each seed; large markers: "
            "their mean."
        )
        numbers = "; ".join(
            f"{METRIC_NAMES[metric]} of {label}: "
            + ", ".join(f"{dots.label} {np.mean(dots.numbers):.3f}" for dots in rows if dots.numbers)
            for metric, panel in panels.items()
            for label, rows in panel.items()
        )
        pictures.append(Picture("published", published_figure(panels), caption, f"{numbers}."))
    pictures += [Picture(*picture) for picture in backbone_pictures(plan, results, means)]
    for arm, seeds in results.items():
        published, label, runs = plan.published.get(arm), plan.arms[arm].label, list(seeds.values())
        if published is not None and published.roc_figure is not None:
            caption = f"Published figure {published.roc_figure} again, at the last checkpoint: {label}."
            figure = published_roc_figure(label, runs, published)
            alternative = f"ROC curves of {label}; {_reading_words(plan, runs, 'auroc')}."
            pictures.append(Picture(f"roc_{arm}", figure, caption, alternative))
        if plan.arms[arm].command == "probe":  # what it logs are strengths of a penalty, or epochs of one layer
            continue
        again = f"Published figure {published.loss_figure} again: l" if published and published.loss_figure else "L"
        caption = f"{again}osses of {label}. Thin lines: each seed; thick lines: their mean."
        alternative = f"Losses of {label} over steps. At the last step: {_reading_words(plan, runs, 'loss')}."
        figure = loss_figure(label, runs, shown_readings(plan, runs[0]), published)
        pictures.append(Picture(f"loss_{arm}", figure, caption, alternative))
    return pictures


def _published_panels(plan: Plan, results: Results) -> dict[Metric, dict[str, list[Dots]]]:
    """Gather the published values of each metric, and ours of the same arms."""
    panels: dict[Metric, dict[str, list[Dots]]] = {metric: {} for metric in PUBLISHED_METRICS}
    for arm, published in plan.published.items():
        runs = list(results.get(arm, {}).values())
        chosen = [run.published_selection(PUBLISHED_READING) for run in runs]
        for metric in PUBLISHED_METRICS:
            value = getattr(published, metric)
            as_published, current = READING_STYLES[PUBLISHED_READING][0], READING_STYLES[MAIN_READING][0]
            rows = [
                Dots("published", [] if value is None else [value], "black", "*"),
                Dots("ours evaluated as published", [choice[metric] for choice in chosen], as_published, "s"),
                Dots("ours at the last checkpoint", [run.metrics(MAIN_READING)[metric] for run in runs], current, "^"),
            ]
            if runs:
                panels[metric][plan.arms[arm].label] = rows
    return panels if any(panels.values()) else {}


def _reading_words(plan: Plan, runs: Sequence[RunResult], metric: Metric) -> str:
    names = shown_readings(plan, runs[0])
    values = {reading: np.mean([run.metrics(reading)[metric] for run in runs]) for reading in names}
    return ", ".join(f"{METRIC_NAMES[metric]} {value:.3f} {names[reading]}" for reading, value in values.items())

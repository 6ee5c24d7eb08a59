"""How well slides are scored, where the truth is known: AUROC of squares and of slides, and the FROC of CAMELYON16."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from pcam.atomic import atomic_path
from pcam.evaluation.metrics import ROC_GRID, Cuts
from pcam.evaluation.statistics import Interval, delong_covariance
from pcam.slides.marked import Marked, any_marked
from pcam.slides.scores import ScoreMap
from pcam.slides.scoring import BLOCK, OVERVIEW
from pcam.slides.slide import SQUARE, Slide

GROWTH: Final = 75.0
"""The micrometres by which the diameter of an annotated area is grown: areas that are no further apart are one lesion.

Source: the evaluation code of CAMELYON16, computeEvaluationMask, which takes what is within 75 um / 2 of an annotation,
fills holes, and connects pixels by their corners too.
"""

ISOLATED_CELLS: Final = 275.0
"""A lesion whose longer axis, after it was grown, is below these micrometres is isolated tumour cells: neither finding
nor missing it counts.

Source: the same, computeITCList: 200 um and the 75 um that it was grown by.
"""

FALSE_POSITIVES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The mean numbers of false positives a slide at which the challenge reads the sensitivity, and takes the mean."""

DETECTION_RADIUS: Final = 6
"""A detection is a square that has the highest score within this many squares, 187 um.

Source: Liu et al. 2017, "Detecting cancer metastases on gigapixel pathology images", section 3: the highest value of
the heat map is reported, all within 6 of its pixels (of 128 pixels of the slide, as here) are set to 0, and so on.
"""

NORMAL_INTERVAL: Final = 1.959964
"""The quantile of the normal distribution that ends a 95 % interval."""


@dataclass(frozen=True)
class SlideTruth:
    """The scores of a slide with what is known of it.

    Args:
        name: The name of the slide.
        labels: Whether each square that was scored has tumour: in one of its pixels, as PatchCamelyon's label has it.
        scores: The score of each.
        has_tumour: Whether any is annotated on the slide.
        false_positives: The scores of detections outside of any lesion.
        lesions: The highest score of a detection in each lesion that counts; 0 if there is none.
        isolated: The number of lesions that are isolated tumour cells.
    """

    name: str
    labels: Bool[np.ndarray, " squares"]
    scores: Float64[np.ndarray, " squares"]
    has_tumour: bool
    false_positives: Sequence[float]
    lesions: Sequence[float]
    isolated: int

    @classmethod
    def of(cls, name: str, scores: ScoreMap, slide: Slide, tumour: Marked | None) -> "SlideTruth":
        """Compare the map of a slide with its annotations.

        Args:
            name: The name of the slide.
            scores: Its map.
            slide: The slide.
            tumour: What is tumour; None if nothing is.
        """
        ratio = SQUARE // OVERVIEW
        rows, columns = scores.shape
        fine = np.zeros((rows * ratio, columns * ratio), dtype=bool) if tumour is None else fine_mask(slide, tumour)
        labels = any_marked(fine, ratio)
        side = math.sqrt(math.prod(slide.scale) * slide.resolution.across * slide.resolution.down) * OVERVIEW
        false_positives, lesions, isolated = match(detections(scores), fine, side, ratio)
        scored = ~np.isnan(scores)
        return cls(
            name,
            labels[scored],
            scores[scored].astype(np.float64),
            bool(fine.any()),
            false_positives,
            lesions,
            isolated,
        )


def fine_mask(slide: Slide, marked: Marked) -> NDArray[np.bool_]:
    """Find where any of 8x8 pixels of 0.972 um is marked: at 7.8 um, the resolution that the challenge evaluates at."""
    ratio = SQUARE // OVERVIEW
    fine = np.zeros((slide.rows * ratio, slide.columns * ratio), dtype=bool)
    for row in range(0, slide.rows, BLOCK):
        for column in range(0, slide.columns, BLOCK):
            height, width = min(BLOCK, slide.rows - row), min(BLOCK, slide.columns - column)
            pixels = marked.mask(column * SQUARE, row * SQUARE, width * SQUARE, height * SQUARE)
            place = (slice(one * ratio, (one + size) * ratio) for one, size in ((row, height), (column, width)))
            fine[tuple(place)] = any_marked(pixels, OVERVIEW)
    return fine


def detections(scores: ScoreMap) -> list[tuple[int, int, float]]:
    """Find the squares whose score is the highest around them: row, column and score of each, the highest first."""
    known = np.nan_to_num(scores, nan=-1)
    free, found = known >= 0, []
    rows, columns = np.unravel_index(np.argsort(-known, axis=None, kind="stable"), known.shape)
    reach = np.arange(-DETECTION_RADIUS, DETECTION_RADIUS + 1)
    disc = reach[:, None] ** 2 + reach**2 <= DETECTION_RADIUS**2
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if known[row, column] < 0:
            break
        if free[row, column]:
            found.append((row, column, float(known[row, column])))
            top, left = max(row - DETECTION_RADIUS, 0), max(column - DETECTION_RADIUS, 0)
            around = free[top : row + DETECTION_RADIUS + 1, left : column + DETECTION_RADIUS + 1]
            first = top - row + DETECTION_RADIUS, left - column + DETECTION_RADIUS
            around &= ~disc[first[0] : first[0] + around.shape[0], first[1] : first[1] + around.shape[1]]
    return found


def match(
    found: Sequence[tuple[int, int, float]], annotated: NDArray[np.bool_], side: float, ratio: int
) -> tuple[list[float], list[float], int]:
    """Match detections with lesions by the challenge's rule.

    Args:
        found: Row, column and score of each detection.
        annotated: What is tumour.
        side: The side of a pixel of it in micrometres.
        ratio: The pixels of it to a square.

    Returns:
        The scores of detections outside of any lesion, the highest in each lesion that counts, and the number of
        lesions that are isolated tumour cells.
    """
    if not annotated.any():
        return [score for *_, score in found], [], 0
    grown = binary_fill_holes(distance_transform_edt(~annotated) < GROWTH / 2 / side)
    lesions, count = label(grown, structure=np.ones((3, 3)))
    isolated = {
        number for number in range(1, count + 1) if _longer_axis(np.argwhere(lesions == number)) * side < ISOLATED_CELLS
    }
    best = dict.fromkeys(set(range(1, count + 1)) - isolated, 0.0)
    false_positives = []
    for row, column, score in found:
        hit = int(lesions[row * ratio + ratio // 2, column * ratio + ratio // 2])
        if not hit:
            false_positives.append(score)
        elif hit in best:
            best[hit] = max(best[hit], score)
    return false_positives, list(best.values()), len(isolated)


def _longer_axis(places: NDArray[np.int64]) -> float:
    """The longer axis of the ellipse that has the same second moments as these pixels, as scikit-image computes it."""
    moments = np.cov(places.T, ddof=0) if len(places) > 1 else np.zeros((2, 2))
    return 4 * math.sqrt(max(float(np.linalg.eigvalsh(moments)[-1]), 0))


def froc(slides: Sequence[SlideTruth]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the FROC: the mean number of false positives a slide and the share of lesions found, by threshold.

    Args:
        slides: At least one.

    Returns:
        Both in rising order; the sensitivity is NaN if there is no lesion.
    """
    false_positives = np.array([score for slide in slides for score in slide.false_positives])
    lesions = np.array([score for slide in slides for score in slide.lesions])
    thresholds = np.unique(np.concatenate([false_positives, lesions[lesions > 0]]))[::-1]
    rates = [0.0, *(np.count_nonzero(false_positives >= one) / len(slides) for one in thresholds)]
    found = [np.nan if not len(lesions) else np.count_nonzero(lesions >= one) / len(lesions) for one in thresholds]
    return np.array(rates), np.array([np.nan if not len(lesions) else 0.0, *found])


@dataclass(frozen=True)
class Evaluation:
    """How well slides are scored.

    Args:
        record: The numbers, as `metrics.json` has them.
        curves: The sensitivity at each false positive rate of `ROC_GRID`, of squares and of slides.
        froc: The FROC.
    """

    record: dict[str, Any]
    curves: dict[str, NDArray[np.float64]]
    froc: tuple[NDArray[np.float64], NDArray[np.float64]]


def evaluate(slides: Sequence[SlideTruth]) -> Evaluation:
    """Measure how well slides are scored.

    Args:
        slides: At least one.

    Returns:
        The numbers. The score of a slide is its highest.
    """
    of_squares = _Ranking.of(
        np.concatenate([slide.labels for slide in slides]).astype(np.float64),
        np.concatenate([slide.scores for slide in slides]),
        [slide.name for slide in slides for _ in range(len(slide.scores))],
    )
    with_tissue = [slide for slide in slides if len(slide.scores)]
    of_slides = _Ranking.of(
        np.array([float(slide.has_tumour) for slide in with_tissue]),
        np.array([slide.scores.max() for slide in with_tissue]),
        [slide.name for slide in with_tissue],
    )
    rates, sensitivities = froc(slides)
    at = np.interp(FALSE_POSITIVES, rates, sensitivities)
    record = {
        "slides": len(slides),
        "slides_with_tumour": sum(slide.has_tumour for slide in slides),
        "squares": len(of_squares.labels),
        "squares_with_tumour": int(of_squares.labels.sum()),
        "lesions": sum(len(slide.lesions) for slide in slides),
        "isolated_tumour_cells": sum(slide.isolated for slide in slides),
        "squares_auroc": _number(of_squares.auroc),
        "squares_auroc_interval": _interval(of_squares.interval),
        "slides_auroc": _number(of_slides.auroc),
        "slides_auroc_interval": _interval(of_slides.interval),
        "froc_sensitivity": {f"{rate:g}": _number(value) for rate, value in zip(FALSE_POSITIVES, at, strict=True)},
        "froc": _number(float(at.mean())),
        "intervals": "95 %, for other slides (DeLong's variance with the slide as the unit)",
    }
    return Evaluation(record, {"squares": of_squares.curve, "slides": of_slides.curve}, (rates, sensitivities))


@dataclass(frozen=True)
class _Ranking:
    """How well scores rank what has tumour above what has none."""

    labels: NDArray[np.float64]
    auroc: float
    interval: Interval
    curve: NDArray[np.float64]

    @classmethod
    def of(cls, labels: NDArray[np.float64], scores: NDArray[np.float64], units: Sequence[str]) -> "_Ranking":
        if not 0 < labels.sum() < len(labels):
            return cls(labels, np.nan, (np.nan, np.nan), np.full(len(ROC_GRID), np.nan))
        aurocs, covariance = delong_covariance(labels, scores[None], units)
        auroc, error = float(aurocs[0]), NORMAL_INTERVAL * float(np.sqrt(np.maximum(covariance[0, 0], 0)))
        curve = Cuts.count(labels, scores, np.ones((1, len(labels)))).sensitivity_at(ROC_GRID)[0]
        low, high = np.clip([auroc - error, auroc + error], 0, 1).tolist()  # NaN for a single slide
        return cls(labels, auroc, (low, high), curve)


def write_evaluation(evaluation: Evaluation, output: Path) -> None:
    """Write `metrics.json`, `froc.png` and `roc.png`.

    Args:
        evaluation: The numbers.
        output: The folder.
    """
    for name, figure in {"froc": _froc_figure(evaluation), "roc": _roc_figure(evaluation)}.items():
        with atomic_path(output / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=150)
    with atomic_path(output / "metrics.json") as path:
        path.write_text(json.dumps(evaluation.record, indent=2) + "\n", encoding="utf-8")


def _froc_figure(evaluation: Evaluation) -> Figure:
    figure = Figure(figsize=(6, 4.5), layout="compressed")
    axes = figure.subplots()
    rates, sensitivities = evaluation.froc
    axes.plot(rates, sensitivities, drawstyle="steps-post")
    axes.plot(
        FALSE_POSITIVES, np.interp(FALSE_POSITIVES, rates, sensitivities), "o", label="where the challenge reads it"
    )
    axes.set_xscale("symlog", linthresh=0.25)
    axes.set_xticks([0, *FALSE_POSITIVES], labels=["0", *(f"{rate:g}" for rate in FALSE_POSITIVES)])
    axes.set(xlim=(0, 10), ylim=(0, 1.02), xlabel="false positives a slide", ylabel="share of lesions found")
    found, lesions = evaluation.record["froc"], evaluation.record["lesions"]
    axes.set_title(f"FROC of {lesions} lesions{'' if found is None else f', mean {found:.3f}'}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _roc_figure(evaluation: Evaluation) -> Figure:
    figure = Figure(figsize=(5, 5), layout="compressed")
    axes = figure.subplots()
    for name, curve in evaluation.curves.items():
        auroc, ends = evaluation.record[f"{name}_auroc"], evaluation.record[f"{name}_auroc_interval"]
        said = "undefined" if auroc is None else f"{auroc:.3f}"
        axes.plot(
            ROC_GRID, curve, label=f"{name}: {said}{'' if ends is None else f' ({ends[0]:.3f} to {ends[1]:.3f})'}"
        )
    axes.plot([0, 1], [0, 1], ":", color="gray", label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="AUROC (95 % interval for other slides)")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _interval(ends: Interval) -> list[float] | None:
    return None if math.isnan(ends[0]) or math.isnan(ends[1]) else list(ends)

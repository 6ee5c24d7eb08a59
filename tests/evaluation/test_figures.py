"""The figures say what they should; how they look is for a person to judge."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from pcam.evaluation.figures import (
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
    roc_comparison_figure,
    roc_figure,
    score_histogram_figure,
)
from pcam.evaluation.measurement import Choices, measure
from tests.evaluation.test_metrics import random_predictions

SCORES = torch.tensor([0.1, 0.4, 0.35, 0.8])
LABELS = torch.tensor([0, 0, 1, 1])


def test_the_roc_figure_has_value_and_chance_line() -> None:
    (axes,) = roc_figure(SCORES, LABELS).axes
    assert axes.get_title() == "ROC: AUROC 0.7500 (4 patches)"  # 3 of 4 pairs are in order
    curve, chance = axes.lines
    assert list(zip(*curve.get_data(), strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert [list(values) for values in chance.get_data()] == [[0, 1], [0, 1]]


def test_the_roc_figure_has_band_interval_and_operating_points() -> None:
    made = random_predictions(200)
    choices = Choices.on(made)
    measured = measure(made, choices)
    (axes,) = roc_figure(*made.tensors(), measured).axes
    low, high = measured.metrics["auroc"].interval
    assert f"95 % interval {low:.3f} to {high:.3f} (200 patches)" in axes.get_title()
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in axes.lines[1:-1]}
    assert list(points) == [
        "score 0.5",
        "best Youden on valid",
        "95 % sensitivity on valid",
        "95 % specificity on valid",
    ]
    assert points["95 % sensitivity on valid"][1] >= 0.95
    assert points["95 % specificity on valid"][0] <= 0.05 + 1e-12
    (band,) = axes.collections
    assert band.get_label() == "95 % band (bootstrap)"


@pytest.mark.parametrize("draw", [roc_figure, precision_recall_figure])
def test_a_single_class_gives_no_curve(draw) -> None:
    (axes,) = draw(SCORES, torch.ones(4, dtype=torch.int64)).axes
    assert "undefined: only one class (4 patches)" in axes.get_title()
    assert [line.get_label() for line in axes.lines] == ["chance"]


def test_the_comparison_lists_the_best_first() -> None:
    systems = {}
    for name, seed, scale in (("worse", 0, 0.5), ("better", 1, 3.0)):
        made = random_predictions(200, seed, scale)
        systems[name] = (made, measure(made, Choices.on(made)))
    (axes,) = roc_comparison_figure(systems).axes
    names = [text.get_text().partition("\n")[0] for text in axes.get_legend().get_texts()]
    assert names == ["better", "worse", "chance"]


def test_the_precision_recall_figure_has_value_and_chance_line() -> None:
    (axes,) = precision_recall_figure(SCORES, torch.tensor([0, 0, 0, 1])).axes
    assert axes.get_title() == "Precision-recall: average precision 1.0000 (4 patches)"
    assert axes.lines[1].get_ydata()[0] == 0.25


def test_the_reliability_figure_has_a_panel_each() -> None:
    made = random_predictions(300)
    measured = measure(made, Choices.on(made))
    assert measured.rescaled is not None
    figure = reliability_figure({"as trained": measured.calibration, "temperature": measured.rescaled})
    left, right, _, _ = figure.axes
    assert left.get_title().startswith("Reliability, as trained\ncalibration error")
    curve = next(line for line in right.lines if line.get_label() == "classifier")
    assert curve.get_ydata() == pytest.approx(measured.rescaled.shares, nan_ok=True)


def test_the_histogram_counts_each_class_and_marks_the_thresholds() -> None:
    made = random_predictions(300)
    choices = Choices.on(made)
    (axes,) = score_histogram_figure(made, choices).axes
    counts = [text for text in axes.get_legend_handles_labels()[1] if "patches" in text]
    tumour = int(made.labels.sum())
    assert counts == [f"normal: {300 - tumour} patches", f"tumour: {tumour} patches"]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx(expit(list(choices.thresholds.values())))


def test_the_confusion_matrix_has_counts_and_shares_of_the_label() -> None:
    figure = confusion_figure({"0.5": np.array([[8.0, 2.0], [1.0, 3.0]]), "youden": np.zeros((2, 2))})
    assert [axes.get_title() for axes in figure.axes] == ["score 0.5", "best Youden on valid"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["8\n80.0%", "2\n20.0%", "1\n25.0%", "3\n75.0%"]

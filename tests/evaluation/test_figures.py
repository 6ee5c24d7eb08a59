"""The figures say what they should; how they look is for a person to judge."""

import torch

from pcam.evaluation.figures import patch_grid, precision_recall_figure, roc_figure

SCORES = torch.tensor([0.1, 0.4, 0.35, 0.8])
LABELS = torch.tensor([0, 0, 1, 1])


def test_the_roc_figure_has_value_and_chance_line() -> None:
    (axes,) = roc_figure(SCORES, LABELS).axes
    assert axes.get_title() == "ROC: AUROC 0.7500 (4 patches)"  # 3 of 4 pairs are in order
    curve, chance = axes.lines
    assert list(zip(*curve.get_data(), strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert [list(values) for values in chance.get_data()] == [[0, 1], [0, 1]]


def test_the_precision_recall_figure_has_value_and_chance_line() -> None:
    (axes,) = precision_recall_figure(SCORES, torch.tensor([0, 0, 0, 1])).axes
    assert axes.get_title() == "Precision-recall: average precision 1.0000 (4 patches)"
    assert axes.lines[1].get_ydata()[0] == 0.25


def test_the_grid_marks_what_is_wrong() -> None:
    patches = torch.zeros(4, 3, 96, 96, dtype=torch.uint8)
    figure = patch_grid(patches, SCORES, LABELS, columns=3)
    assert len(figure.axes) == 6
    titles = [(axes.get_title(), axes.title.get_color()) for axes in figure.axes[:4]]
    assert titles == [
        ("label 0, score 0.10", "black"),
        ("label 0, score 0.40", "black"),
        ("label 1, score 0.35", "red"),
        ("label 1, score 0.80", "black"),
    ]

"""The figures, as matplotlib figures that belong to no window and so need no closing."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_precision_recall_curve,
    binary_roc,
)

from pcam.patches import CENTRE_START, CENTRE_STOP, Labels, Patches


def roc_figure(scores: Tensor, labels: Labels) -> Figure:
    """Draw the receiver operating characteristic.

    Args:
        scores: Shape (patches,), probabilities of label 1.
        labels: Shape (patches,).

    Returns:
        The curve, the chance line, and the AUROC in the title.
    """
    false_positive_rate, true_positive_rate, _ = binary_roc(scores, labels)
    figure, axes = _square()
    axes.plot(false_positive_rate.cpu(), true_positive_rate.cpu(), label="classifier")
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="chance")
    axes.set(
        xlabel="false positive rate (1 - specificity)",
        ylabel="true positive rate (sensitivity)",
        title=f"ROC: AUROC {binary_auroc(scores, labels):.4f} ({len(labels):,} patches)",
    )
    axes.legend(loc="lower right")
    return figure


def precision_recall_figure(scores: Tensor, labels: Labels) -> Figure:
    """Draw precision against recall.

    Args:
        scores: Shape (patches,), probabilities of label 1.
        labels: Shape (patches,).

    Returns:
        The curve, the chance line (the share of label 1), and the average precision in the title.
    """
    precision, recall, _ = binary_precision_recall_curve(scores, labels)
    figure, axes = _square()
    axes.plot(recall.cpu(), precision.cpu(), drawstyle="steps-post", label="classifier")
    axes.axhline(labels.float().mean().item(), linestyle="--", color="grey", label="chance")
    axes.set(
        xlabel="recall (sensitivity)",
        ylabel="precision (positive predictive value)",
        title=f"Precision-recall: average precision {binary_average_precision(scores, labels):.4f} "
        f"({len(labels):,} patches)",
    )
    axes.legend(loc="lower left")
    return figure


def patch_grid(patches: Patches, scores: Tensor, labels: Labels, columns: int = 8) -> Figure:
    """Draw patches with their labels and scores; the square is the centre that the label is about.

    Args:
        patches: Shape (count, 3, 96, 96), uint8.
        scores: Shape (count,), probabilities of label 1.
        labels: Shape (count,).
        columns: Patches a row.

    Returns:
        A grid; the titles of patches that a threshold of 0.5 gets wrong are red.
    """
    rows = -(-len(patches) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.7 * rows), layout="constrained")
    grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    size = CENTRE_STOP - CENTRE_START
    for axes, patch, score, label in zip(grid, patches.cpu(), scores.tolist(), labels.tolist(), strict=False):
        axes.imshow(patch.permute(1, 2, 0).numpy())
        corner = (CENTRE_START - 0.5, CENTRE_START - 0.5)  # the edge of a pixel, not its middle
        axes.add_patch(Rectangle(corner, size, size, fill=False, linewidth=0.8, linestyle=":"))
        wrong = (score > 0.5) != bool(label)
        axes.set_title(f"label {label}, score {score:.2f}", fontsize=8, color="red" if wrong else "black")
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes

"""Pictures of a scored slide: the slide beside its map, and the patches with the highest scores."""

import math
from typing import Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from pcam.evaluation.sheets import patch_grid, shortened
from pcam.patches import PATCH_SIZE
from pcam.slides.scores import SlideScores
from pcam.slides.slide import SQUARE, Slide

PICTURE_SIZE: Final = 2000
"""The number of pixels, at most, of the longer side of the slide in the picture of its map."""

UNSCORED_COLOR: Final = "#f4a582"
"""The colour of squares without a score in the picture: one that the scores' colours do not have."""

MARKED: Final = 5
"""The number of places that the picture of the map marks."""

APART: Final = 6
"""The squares that two marked places are apart, at least, so that they are not all in one."""

BAR_SHARE: Final = 0.25
"""The part of the width of the slide that the scale bar takes, at most."""


def map_figure(scores: SlideScores) -> Figure:
    """Draw a slide, and beside it the map of its scores over the slide in grey.

    Args:
        scores: The scores.

    Returns:
        Two panels with a scale bar, a colour bar, the most suspicious places marked on both, and a legend.
    """
    rows, columns = scores.map.shape
    width, height = (side * length / 1000 for side, length in zip((columns, rows), scores.resolution, strict=True))
    thumbnail = Image.fromarray(scores.overview)
    thumbnail.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    # No higher than matplotlib can draw, however narrow the slide.
    figure = Figure(figsize=(12, min(2 + 5.3 * height / width, 60)), layout="compressed")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    extent = (0, width, height, 0)
    left.imshow(thumbnail, extent=extent)
    # Grey: the stain's purple and pink would mix with the map's colours.
    right.imshow(np.asarray(thumbnail).mean(axis=2), extent=extent, cmap="gray", vmin=0, vmax=255)
    drawn = right.imshow(scores.map, extent=extent, cmap="viridis", vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
    right.set_facecolor(UNSCORED_COLOR)
    unscored = np.ma.masked_where(~np.isnan(scores.map), np.ones(scores.map.shape))
    flat = ListedColormap([UNSCORED_COLOR])
    right.imshow(unscored, extent=extent, cmap=flat, vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=right, label="score", aspect=min(max(20, 20 * height / width), 60))
    bar.ax.axhline(scores.threshold, color="red")
    left.set_title(shortened(scores.slide.name, 60), parse_math=False)
    right.set_title(
        f"Score of tumour in each square of {scores.resolution[0]:.0f} um; threshold {scores.threshold:.3f}"
    )
    places = suspicious_places(scores)
    for axes in (left, right):
        for number, (row, column) in enumerate(places, 1):
            x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
            axes.plot(x, y, "s", markersize=9, markerfacecolor="none", markeredgecolor="red")
            axes.annotate(str(number), (x, y), (6, 6), textcoords="offset points", color="red", fontsize=9)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        _scale_bar(axes, width, height)
    without = Patch(
        facecolor=UNSCORED_COLOR,
        alpha=0.6,
        edgecolor="black",
        label="no score: background without tissue, or the border of one square, which is in the centre of no window",
    )
    figure.legend(handles=[without], loc="outside lower center", fontsize=9, frameon=False)
    return figure


def suspicious_places(scores: SlideScores) -> list[tuple[int, int]]:
    """Find the squares with the highest scores above the threshold that do not lie side by side: row and column."""
    places: list[tuple[int, int]] = []
    for row, column in scores.top(scores.windows):
        if not scores.map[row, column] > scores.threshold or len(places) == MARKED:
            break
        if all(max(abs(row - one), abs(column - other)) >= APART for one, other in places):
            places.append((row, column))
    return places


def top_figure(scores: SlideScores, slide: Slide) -> Figure:
    """Draw the windows with the highest scores, which are decoded once more.

    Args:
        scores: The scores.
        slide: The slide.

    Returns:
        A sheet of patches.

    Raises:
        UserError: If the file is damaged.
    """
    places = scores.top()
    windows = [slide.read((column - 1) * SQUARE, (row - 1) * SQUARE, PATCH_SIZE, PATCH_SIZE) for row, column in places]
    corners = [slide.to_file(column, row) for row, column in places]
    patches = np.stack(windows) if windows else np.empty((0, PATCH_SIZE, PATCH_SIZE, 3), np.uint8)
    return patch_grid(
        torch.from_numpy(patches).permute(0, 3, 1, 2),
        torch.tensor([float(scores.map[place]) for place in places]),
        None,
        ids=[f"x {x:,.0f}, y {y:,.0f}" for x, y in corners],
        title=f"{shortened(scores.slide.name, 60)}: the {len(places)} windows with the highest scores.\n"
        f"Above each: where its square begins, in pixels of the slide's finest version, and its score.",
    )


def _scale_bar(axes: Axes, width: float, height: float) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten in millimetres, in the lower left corner."""
    power = 10 ** math.floor(math.log10(BAR_SHARE * width))
    length = max(step * power for step in (1, 2, 5) if step * power <= BAR_SHARE * width)
    left, bottom = 0.03 * width, height - 0.04 * max(width, height)
    axes.add_patch(Rectangle((left, bottom), length, 0.012 * max(width, height), facecolor="black", edgecolor="white"))
    words = f"{length:g} mm" if length >= 1 else f"{1000 * length:.0f} um"
    axes.annotate(words, (left + length / 2, bottom), (0, 3), textcoords="offset points", ha="center", fontsize=9,
                  bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})  # fmt: skip

"""A larger image, scored on a grid of windows: which windows are tissue, their score map, and a picture of it.

The image is divided into squares of 32x32 pixels. Each square is the centre of one window of 96x96 pixels, which is
what the label of a patch is about, so the map has one pixel for each square.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.special import expit

from pcam.atomic import atomic_path
from pcam.errors import UserError
from pcam.evaluation.large_image import CELL_SIZE, LargeImage, Strip, open_image
from pcam.evaluation.patch_scores import Classify, progress_bar
from pcam.evaluation.sheets import shortened
from pcam.outputs import PNG, TIFF, check_output
from pcam.patches import MICROMETRES_PER_PIXEL, PATCH_SIZE, PatchArray

MINIMUM_SATURATION: Final = 0.07
"""A window is background if its largest saturation, 0..1, is below this.

Source: PatchCamelyon's README, "Patch selection": "slides are converted to HSV, blurred, and patches filtered out if
maximum pixel saturation lies below 0.07 (which was validated to not throw out tumor data in the training set)".
"""

BLUR_SIZE: Final = 5
"""The side in pixels of the mean filter that blurs the saturation; the source does not say how it blurred.

With it, 21 of 10,000 real patches are background, all of them normal; the palest patch with tumour has a saturation of
0.28.
"""

PICTURE_SIZE: Final = 2000
"""The number of pixels, at most, of the longer side of the image in the picture of a score map."""

UNSCORED_COLOR: Final = "#f4a582"
"""The colour of squares without a score in the picture: one that the scores' colours do not have."""

ScoreMap = Float32[np.ndarray, "rows columns"]
"""The score of each square of 32x32 pixels, 0..1; NaN for background and for the border."""


def score_map(strips: Iterable[Strip], classify: Classify, batch_size: int) -> ScoreMap:
    """Score every window of an image that is not background.

    Args:
        strips: The image's rows of squares, from top to bottom, at least three.
        classify: From patches to logits.
        batch_size: The number of windows that are classified at once; these and three strips are in memory.

    Returns:
        The map. Its border is NaN, because no window has it in its centre.
    """
    lines: list[NDArray[np.float32]] = []
    windows = _tissue(strips, lines)
    while batch := list(islice(windows, batch_size)):
        scores = expit(classify(np.stack([window for _, _, window in batch])))
        for (row, column, _), score in zip(batch, scores, strict=True):
            lines[row][column] = score
    return np.stack(lines)


def _tissue(strips: Iterable[Strip], lines: list[NDArray[np.float32]]) -> Iterator[tuple[int, int, PatchArray]]:
    """Find the windows that are not background, with the row and column of the square in their centre.

    Appends an empty line to the map for each strip that it reads.
    """
    band: deque[Strip] = deque(maxlen=3)
    for row, strip in enumerate(strips):
        lines.append(np.full(strip.shape[1] // CELL_SIZE, np.nan, dtype=np.float32))
        band.append(strip)
        if len(band) < 3:
            continue
        pixels = np.concatenate(band)
        saturation = largest_saturation(pixels)
        for column in range(1, len(saturation) - 1):
            if saturation[column - 1 : column + 2].max() >= MINIMUM_SATURATION:
                left = (column - 1) * CELL_SIZE
                # A copy: a view would keep the whole band in memory until its batch is full.
                yield row - 1, column, pixels[:, left : left + PATCH_SIZE].copy()


def largest_saturation(pixels: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, " columns"]:
    """Compute the largest blurred saturation, 0..1, in each column of squares."""
    value = pixels.max(axis=2).astype(np.float32)
    chroma = value - pixels.min(axis=2)
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    blurred = uniform_filter(saturation, BLUR_SIZE, mode="nearest")
    largest: Float32[np.ndarray, " columns"] = blurred.reshape(len(pixels), -1, CELL_SIZE).max(axis=(0, 2))
    return largest


def write_score_map(
    load: Callable[[], Classify], path: Path, output: Path, mpp: float | None, batch_size: int
) -> tuple[int, Path]:
    """Score an image, and write its score map and a picture of it.

    Args:
        load: Makes the function that classifies; called once it is clear that the image can be opened.
        path: The image.
        output: The score map, a float TIFF (.tif or .tiff); the picture lies beside it, with the ending .png.
        mpp: The image's micrometres per pixel; None takes the file's own resolution.
        batch_size: The number of windows that are classified at once.

    Returns:
        The number of windows that were scored, and the picture.

    Raises:
        UserError: If the image cannot be read, or the output is no TIFF or would replace the image.
    """
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(
            f"Expected --output to be a TIFF file (.tif or .tiff) with --tile, but found {output}; rename it."
        )
    picture = output.with_suffix(".png")
    check_output(output, TIFF, [path])
    check_output(picture, PNG, [path])
    image = open_image(path, mpp)
    classify = load()
    with atomic_path(output) as map_path, atomic_path(picture) as picture_path:
        with progress_bar() as progress:
            scores = score_map(progress.track(image.strips(), image.rows, description="Scoring"), classify, batch_size)
        per_centimetre = 1e4 / (CELL_SIZE * MICROMETRES_PER_PIXEL)
        Image.fromarray(scores).save(
            map_path, format="TIFF", resolution_unit=3, x_resolution=per_centimetre, y_resolution=per_centimetre
        )
        overlay_figure(image, scores).savefig(picture_path, format="png", dpi=150, bbox_inches="tight")
    return int(np.count_nonzero(~np.isnan(scores))), picture


def overlay_figure(image: LargeImage, scores: ScoreMap) -> Figure:
    """Draw an image, and beside it the score map over the image in grey.

    Args:
        image: The image.
        scores: Its score map.

    Returns:
        Two panels in millimetres, a colour bar, and a legend of what has no score.
    """
    thumbnail = image.thumbnail(PICTURE_SIZE)
    millimetres = MICROMETRES_PER_PIXEL / 1000
    width, height = image.pixels.width * millimetres, image.pixels.height * millimetres
    cell = CELL_SIZE * millimetres
    # No higher than matplotlib can draw, however narrow the image.
    figure = Figure(figsize=(12, min(2 + 5.3 * height / width, 60)), layout="compressed")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.imshow(thumbnail, extent=(0, width, height, 0))
    # Grey: the stain's purple and pink would mix with the map's colours.
    right.imshow(thumbnail.mean(axis=2), extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=255)
    extent = (0, scores.shape[1] * cell, scores.shape[0] * cell, 0)
    drawn = right.imshow(scores, extent=extent, cmap="viridis", vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
    right.set_facecolor(UNSCORED_COLOR)
    unscored = np.ma.masked_where(~np.isnan(scores), np.ones(scores.shape))
    flat = ListedColormap([UNSCORED_COLOR])
    right.imshow(unscored, extent=extent, cmap=flat, vmin=0, vmax=1, alpha=0.6, interpolation="nearest")
    figure.colorbar(drawn, ax=right, label="score", aspect=min(max(20, 20 * height / width), 60))
    left.set_title(shortened(image.file.path.name, 60), parse_math=False)
    right.set_title(f"Score of tumour in each square of {1000 * cell:.0f} um")
    without = Patch(
        facecolor=UNSCORED_COLOR,
        alpha=0.6,
        edgecolor="black",
        label="no score: background without tissue, or the border of one square, which is in the centre of no window",
    )
    figure.legend(handles=[without], loc="outside lower center", fontsize=9, frameon=False)
    left.set(xlim=(0, width), ylim=(height, 0), xlabel="mm", ylabel="mm")
    right.set_xlabel("mm")
    return figure

"""Sheets of patches: with their labels and scores, and beside the evidence that a network finds in them."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pcam.evaluation.explain import Attributions, centre_share
from pcam.patches import CENTRE_START, CENTRE_STOP, CLASS_NAMES, PATCH_SIZE, Labels, PatchArray, Patches

PIXELS_PER_INCH: Final = 71
"""The scale of a sheet: a patch is 1.35 inches wide, which leaves room for 25 characters of text above it."""

TEXT_SIZE: Final = 7
TITLE_SIZE: Final = 8
"""The sizes of the text above a patch and above all patches, in points."""

LINE_HEIGHT: Final = 11
"""The height of a line of text, in pixels of a patch."""

ID_LENGTH: Final = 25
"""The number of characters of an id that fit above a patch."""

EXPLANATION: Final = (
    "Left the patch, right the evidence in it (HiResCAM; each patch has its own scale). The square is the centre 32x32 "
    "pixels, which decide the label.\nAbove each patch: its id, its label and score (red if wrong at a threshold of "
    "0.5), and the share of the evidence that lies in the centre: 11% (1/9) is chance."
)
"""What the head of a sheet of explanations says."""


def patch_grid(
    patches: Patches,
    scores: Tensor,
    labels: Labels | None,
    columns: int = 8,
    ids: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw patches with their scores, and labels if known; the square is the centre that the label is about.

    Args:
        patches: Shape (count, 3, 96, 96), uint8.
        scores: Shape (count,), probabilities of tumour.
        labels: Shape (count,); None if they are not known.
        columns: The number of patches in a row.
        ids: The id of each patch, of which the end is shown; None shows no ids.
        title: What the head of the sheet says, one or several lines; empty leaves it out.

    Returns:
        The sheet. The text above a patch is red if a threshold of 0.5 gives the wrong class.
    """
    sheet = _Sheet(len(patches), columns, pictures=1, lines=1 if ids is None else 2, title=title)
    known = [None] * len(patches) if labels is None else labels.tolist()
    for index, (patch, score, label) in enumerate(zip(patches.cpu(), scores.tolist(), known, strict=True)):
        words = [] if ids is None else [shortened(ids[index], ID_LENGTH)]
        words.append(", ".join([*([] if label is None else [CLASS_NAMES[label]]), f"score {score:.2f}"]))
        wrong = label is not None and (score > 0.5) != bool(label)
        sheet.add(index, [patch.permute(1, 2, 0).numpy()], words, wrong)
    return sheet.figure()


def overlay_sheet(
    patches: PatchArray,
    attributions: Attributions,
    scores: NDArray[np.float64],
    labels: Sequence[int | None],
    ids: Sequence[str],
    title: str,
    columns: int = 4,
) -> Figure:
    """Draw patches, each beside itself in grey under its attribution; the square is the centre.

    Args:
        patches: Shape (count, 96, 96, 3).
        attributions: The attribution of each patch, red for tumour and blue against it; each has its own scale.
        scores: The score of each patch.
        labels: The label of each patch; None where it is not known.
        ids: The id of each patch, of which the end is shown.
        title: The first line of the sheet.
        columns: The number of patches in a row.

    Returns:
        The sheet, with a key to its colours. The text above a patch is red if a threshold of 0.5 gives the wrong class.
    """
    sheet = _Sheet(len(patches), columns, pictures=2, lines=2, title=f"{title}\n{EXPLANATION}\n")
    smooth = interpolate(attributions.cpu().unsqueeze(1), size=(PATCH_SIZE, PATCH_SIZE), mode="bilinear").squeeze(1)
    peaks = smooth.abs().amax(dim=(1, 2), keepdim=True)
    # Grey alone where there is nothing to show.
    opacity = 0.5 * (peaks > 0).numpy()[..., None]
    blended = _tinted(patches.mean(axis=3, keepdims=True), (smooth / peaks.clamp(min=1e-12)).numpy(), opacity)
    shares = centre_share(attributions).tolist()
    for index, (score, label, share) in enumerate(zip(scores.tolist(), labels, shares, strict=True)):
        words = [] if label is None else [CLASS_NAMES[label]]
        words += [f"score {score:.2f}", "no evidence" if np.isnan(share) else f"{share:.0%} in centre"]
        text = [shortened(ids[index], 2 * ID_LENGTH), ", ".join(words)]
        wrong = label is not None and (score > 0.5) != bool(label)
        sheet.add(index, [patches[index], blended[index]], text, wrong)
    sheet.add_key(_tinted(np.full((1, 1, 1), 200.0), np.linspace(-1, 1, 2 * PATCH_SIZE)[None], 0.5))
    return sheet.figure()


def shortened(patch_id: str, length: int) -> str:
    """Shorten an id to its end, which differs from patch to patch.

    Args:
        patch_id: The id of a patch.
        length: The number of characters that it may have, at least 2.

    Returns:
        The id, or "…" and its end if it is longer.
    """
    return patch_id if len(patch_id) <= length else "…" + patch_id[-(length - 1) :]


def _tinted(
    grey: NDArray[np.float64], evidence: NDArray[np.floating], opacity: NDArray[np.float64] | float
) -> NDArray[np.uint8]:
    """Colour grey pixels by evidence, -1..1: the stain's purple and pink would mix with the colours of the evidence."""
    heat = 255 * colormaps["RdBu_r"](0.5 + 0.5 * evidence)[..., :3]
    tinted: NDArray[np.uint8] = ((1 - opacity) * grey + opacity * heat).astype(np.uint8)
    return tinted


class _Sheet:
    """One image in one pair of axes, because a pair for each patch takes most of a second to draw.

    Args:
        count: The number of patches.
        columns: The number of patches in a row.
        pictures: The number of pictures of each patch, side by side.
        lines: The number of lines of text above each patch.
        title: The lines above all patches; an empty last line makes room for the key.
    """

    def __init__(self, count: int, columns: int, pictures: int, lines: int, title: str) -> None:
        self._columns, self._gap = columns, 8 if pictures > 1 else 4
        self._width, self._heading = pictures * PATCH_SIZE + self._gap, lines * LINE_HEIGHT + 4
        self._head = LINE_HEIGHT * len(title.split("\n")) + 8 if title else 0
        shape = (self._head + -(-count // columns) * (PATCH_SIZE + self._heading), columns * self._width, 3)
        self._page = np.full(shape, 255, dtype=np.uint8)
        self._figure = Figure(figsize=(shape[1] / PIXELS_PER_INCH, shape[0] / PIXELS_PER_INCH))
        self._axes: Axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._text = partial(self._axes.text, parse_math=False)  # a "$" in a file's name is no formula
        for number, line in enumerate(title.split("\n")):
            self._text(self._gap // 2, LINE_HEIGHT * (number + 1), line, ha="left", fontsize=TITLE_SIZE)

    def add(self, index: int, pictures: Sequence[NDArray[np.uint8]], text: Sequence[str], wrong: bool) -> None:
        """Place a patch: its pictures side by side, each with the square of the centre, and its text above."""
        top = self._head + index // self._columns * (PATCH_SIZE + self._heading) + self._heading
        left = index % self._columns * self._width + self._gap // 2
        middle = left + len(pictures) * PATCH_SIZE / 2
        color = "red" if wrong else "black"
        for number, line in enumerate(reversed(text)):
            self._text(middle, top - 3 - number * LINE_HEIGHT, line, color=color, ha="center", fontsize=TEXT_SIZE)
        for number, picture in enumerate(pictures):
            start = left + number * PATCH_SIZE
            self._page[top : top + PATCH_SIZE, start : start + PATCH_SIZE] = picture
            corner = (start + CENTRE_START - 0.5, top + CENTRE_START - 0.5)  # the edge of a pixel, not its middle
            size = CENTRE_STOP - CENTRE_START
            for edge, line_width in (("white", 2), ("black", 0.8)):  # black within white is visible on any stain
                self._axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=edge, linewidth=line_width))

    def add_key(self, colours: NDArray[np.uint8]) -> None:
        """Place the key to the colours in the last line of the title."""
        bottom, width = self._head - 6, colours.shape[1]
        start = self._gap // 2 + PATCH_SIZE
        self._page[bottom - LINE_HEIGHT + 2 : bottom + 1, start : start + width] = colours
        self._text(start - 4, bottom - 1, "against tumour", ha="right", fontsize=TITLE_SIZE)
        self._text(start + width + 4, bottom - 1, "for tumour", ha="left", fontsize=TITLE_SIZE)

    def figure(self) -> Figure:
        """Return the drawn sheet."""
        self._axes.imshow(self._page)
        return self._figure

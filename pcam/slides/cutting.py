"""PatchCamelyon made again: labelled patches from annotated slides, by its label rule and its background rule."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from pcam.atomic import atomic_folder
from pcam.errors import UserError
from pcam.patches import CLASS_NAMES, PATCH_SIZE, PatchArray
from pcam.slides.marked import Marked, any_marked, read_marked
from pcam.slides.scoring import OVERVIEW
from pcam.slides.slide import SQUARE, Slide, open_slide
from pcam.slides.tissue import tissue_squares
from pcam.slides.truth import fine_mask

STEP: Final = PATCH_SIZE // SQUARE
"""The distance between two windows in squares: they lie side by side, and no pixel is in two patches."""


class Cut(NamedTuple):
    """A patch that was cut.

    Args:
        id: The name of its file, below the folder of the split.
        slide: The name of its slide.
        x: The left edge of the patch, in pixels of the slide's finest version.
        y: Its upper edge.
        label: 1 if its centre has tumour.
    """

    id: str
    slide: str
    x: int
    y: int
    label: int


def cut_slides(
    slides: Mapping[Path, Path | None], output: Path, *, balanced: bool, per_slide: int, mpp: float | None, seed: int
) -> tuple[int, int]:
    """Cut patches and write them as class folders, `output/{0,1}/<slide>_<x>_<y>.png`, with `patches.csv`.

    The folder appears under its name only when it is whole.

    Args:
        slides: The file that marks the tumour of each slide; None for a normal one.
        output: The folder of a split; new or empty.
        balanced: Whether to drop patches of the larger class at random until both have as many.
        per_slide: The number of patches that are cut from a slide at most, at random places: of each class if
            `balanced`, else of both as they come.
        mpp: The micrometres per pixel of the slides; None takes those that their files say.
        seed: The seed of every draw, at least 0.

    Returns:
        The number of patches of each class.

    Raises:
        UserError: If `output` is not empty, a slide cannot be read, or a class has no patch.
    """
    rows: list[Cut] = []
    with atomic_folder(output, "for the patches") as temporary:
        for label in range(len(CLASS_NAMES)):
            (temporary / str(label)).mkdir(parents=True)
        for number, (path, truth) in enumerate(track(slides.items(), "Cutting", total=len(slides))):
            slide = open_slide(path, mpp)
            marked = None if truth is None else read_marked(truth, slide)
            rng = np.random.default_rng([seed, number])
            for row, patch in _patches(slide, marked, balanced, per_slide, rng):
                Image.fromarray(patch).save(temporary / row.id)
                rows.append(row)
        if balanced:
            rows = _balance(rows, temporary, np.random.default_rng([seed, len(slides)]))
        counts = (sum(row.label == 0 for row in rows), sum(row.label == 1 for row in rows))
        if not all(counts):
            raise UserError(
                f"Expected patches of both classes, but found {counts[0]:,} normal ones and {counts[1]:,} with tumour "
                f"in {len(slides)} slides; name slides that have both, or another --truth."
            )
        with (temporary / "patches.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerows([Cut._fields, *rows])
    return counts


def _patches(
    slide: Slide, tumour: Marked | None, balanced: bool, per_slide: int, rng: np.random.Generator
) -> Iterator[tuple[Cut, NDArray[np.uint8]]]:
    """Cut the patches of a slide, at places in random order, without those that are background."""
    labels = np.zeros((slide.rows, slide.columns), dtype=bool)
    if tumour is not None:
        labels = any_marked(fine_mask(slide, tumour), SQUARE // OVERVIEW)
    left = [per_slide] * len(CLASS_NAMES)
    centres = [(row, column) for row in range(1, slide.rows - 1, STEP) for column in range(1, slide.columns - 1, STEP)]
    for row, column in rng.permutation(np.array(centres)).tolist():
        label = int(labels[row, column])
        if not left[label]:
            continue
        patch = slide.read((column - 1) * SQUARE, (row - 1) * SQUARE, PATCH_SIZE, PATCH_SIZE)
        if not tissue_squares(patch).any():
            continue
        for each in [label] if balanced else range(len(left)):
            left[each] -= 1
        corner = slide.to_file(column - 1, row - 1)
        x, y = (round(place + offset) for place, offset in zip(corner, slide.offset, strict=True))
        yield Cut(f"{label}/{slide.path.stem}_{x}_{y}.png", slide.path.name, x, y, label), patch


def sample_windows(slide: Slide, count: int, seed: int) -> PatchArray:
    """Draw windows of tissue, which lie side by side, at random.

    Args:
        slide: The slide.
        count: How many, at most.
        seed: The seed of the draw.

    Returns:
        The windows; fewer than `count` if the slide has no more.
    """
    windows = [patch for _, patch in _patches(slide, None, False, count, np.random.default_rng(seed))]
    return np.stack(windows) if windows else np.empty((0, PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)


def _balance(rows: list[Cut], folder: Path, rng: np.random.Generator) -> list[Cut]:
    """Drop patches of the larger class, and their files, until both classes have as many."""
    of_class = [[row for row in rows if row.label == label] for label in range(len(CLASS_NAMES))]
    fewest = min(map(len, of_class))
    kept: set[Cut] = set()
    for group in of_class:
        kept |= {group[index] for index in rng.permutation(len(group))[:fewest]}
    for row in rows:
        if row not in kept:
            (folder / row.id).unlink()
    return [row for row in rows if row in kept]

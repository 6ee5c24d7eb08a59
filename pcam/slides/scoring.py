"""From a slide to its scores, block by block: threads decode what comes next while the network computes."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from pcam.atomic import atomic_path
from pcam.errors import StoppedError, UserError
from pcam.options import ThresholdName
from pcam.patches import PATCH_SIZE, PatchArray
from pcam.slides.image_reader import Pixels
from pcam.slides.marked import Marked, any_marked, read_marked
from pcam.slides.openslide_reader import WHITE
from pcam.slides.scores import ScoreMap, SlideScores
from pcam.slides.slide import SQUARE, Slide, open_slide
from pcam.slides.thresholds import chosen_threshold
from pcam.slides.tissue import PALEST, Squares, saturation, tissue_squares
from pcam.trained import BATCH_SIZE, TrainedRun

BLOCK: Final = 32
"""The side of a block in squares: 1 mm. With one square more on each side it is decoded as one piece."""

OVERVIEW: Final = 8
"""How many times coarser than what is scored the overview of a slide is: four pixels to a square."""

PYRAMID: Final = 4
"""A file has an overview of its own if it has a version that is at least this many times coarser than what is scored.
Of others, all blocks are decoded, and the overview is made of these."""

THREADS: Final = 2
"""The number of threads that decode, and of blocks for each of them that are decoded ahead of the network."""

SECONDS_BETWEEN_SAVES: Final = 30.0
"""What a process that is killed loses, at most."""

Classify = Callable[[PatchArray], NDArray[np.float32]]
"""A function from patches to their logits."""

Report = Callable[[int, int, int], None]
"""A function that is told of progress: the blocks that are done, the number of all, and the windows that are scored."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Block(NamedTuple):
    """A part of the squares of a slide.

    Args:
        row: The first row of squares.
        column: The first column.
        rows: The number of rows.
        columns: The number of columns.
    """

    row: int
    column: int
    rows: int
    columns: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The part of the map that it is."""
        return slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)

    def around(self, unit: int = SQUARE) -> tuple[int, int, int, int]:
        """Left, top, width and height of it with one square more on each side, in units of which a square has some."""
        return (
            (self.column - 1) * unit,
            (self.row - 1) * unit,
            (self.columns + 2) * unit,
            (self.rows + 2) * unit,
        )


@dataclass
class State:
    """What is known of a slide that is being scored.

    Args:
        map: The scores so far.
        overview: The slide, 8 times coarser; white where it is not known yet.
        blocks: The number of blocks that are done, in their order.
        seconds: How long that took.
    """

    map: ScoreMap
    overview: Pixels
    blocks: int = 0
    seconds: float = 0.0

    @classmethod
    def load(cls, path: Path, key: Mapping[str, Any]) -> "State | None":
        """Read what a run that was stopped has left, if it was of the same slide and classifier."""
        try:
            with path.open("rb") as file, np.load(file) as found:
                if json.loads(str(found["key"])) != key:
                    return None
                return cls(found["map"], found["overview"], int(found["blocks"]), float(found["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def save(self, path: Path, key: Mapping[str, Any]) -> None:
        """Write it, for the next run to go on from."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=json.dumps(key), map=self.map, overview=self.overview, blocks=self.blocks,
                     seconds=self.seconds)  # fmt: skip


def score_slide(
    run: TrainedRun,
    path: Path | str,
    *,
    mpp: float | None = None,
    tissue: Path | str | None = None,
    threshold: ThresholdName | float = "specificity_95",
    tta: bool | None = None,
    batch_size: int = BATCH_SIZE,
) -> SlideScores:
    """Score every square of a slide that is tissue.

    Args:
        run: The classifier.
        path: A whole-slide file of a scanner, or an image (PNG, TIFF or JPEG).
        mpp: Its micrometres per pixel, 0.01 to 10; null takes the resolution that the file says.
        tissue: A file that marks what is tissue: GeoJSON, annotations of ASAP, or a mask; null finds it.
        threshold: The score above which a square is called tumour, 0..1, or the name of one that was chosen on the
            valid split: "youden", "sensitivity_95" or "specificity_95".
        tta: Whether to average over the eight symmetries of the square; null does as the run was loaded.
        batch_size: The number of windows that are classified at once.

    Returns:
        The scores.

    Raises:
        UserError: If the slide cannot be read or does not say its resolution, or the threshold is not known.
    """
    slide = open_slide(Path(path), mpp)
    marked = None if tissue is None else read_marked(Path(tissue), slide, tumour=False)
    limit = chosen_threshold(run, threshold, tta) if isinstance(threshold, str) else float(threshold)

    def classify(patches: PatchArray) -> NDArray[np.float32]:
        return run.logits(patches, tta=tta, batch_size=batch_size)

    return score(slide, classify, limit, marked, batch_size)


def score(
    slide: Slide,
    classify: Classify,
    threshold: float,
    tissue: Marked | None = None,
    batch_size: int = BATCH_SIZE,
    *,
    unfinished: Path | None = None,
    key: Mapping[str, Any] | None = None,
    report: Report = lambda done, blocks, windows: None,
) -> SlideScores:
    """Score every square of an open slide that is tissue.

    Args:
        slide: The slide.
        classify: From patches to logits.
        threshold: The score above which a square is called tumour.
        tissue: What is tissue; None finds it by PatchCamelyon's rule.
        batch_size: The number of windows that are classified at once.
        unfinished: The file that keeps what is done if scoring is stopped, and that a stopped one goes on from; None
            keeps nothing.
        key: What the scores depend on: what was kept under another key is not gone on from.
        report: Is told of progress.

    Returns:
        The scores.
    """
    key = key or {}
    blocks = list(_blocks(slide))
    state = None if unfinished is None else State.load(unfinished, key)
    if state is None:
        ratio = SQUARE // OVERVIEW
        overview = np.full((slide.rows * ratio, slide.columns * ratio, 3), WHITE, dtype=np.uint8)
        state = State(np.full((slide.rows, slide.columns), np.nan, dtype=np.float32), overview)
    start, saved = time.monotonic() - state.seconds, time.monotonic()
    try:
        for done, windows in _advance(slide, blocks, classify, tissue, batch_size, state):
            state.blocks, state.seconds = done, time.monotonic() - start
            report(done, len(blocks), windows)
            if unfinished is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                state.save(unfinished, key)
                saved = time.monotonic()
    except (StoppedError, KeyboardInterrupt):
        if unfinished is not None and state.blocks:
            state.save(unfinished, key)
        raise
    except UserError:  # the slide cannot be read: there is nothing to go on with
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        raise
    return SlideScores(
        slide.path,
        state.map,
        (SQUARE * slide.scale[0] * slide.resolution.across, SQUARE * slide.scale[1] * slide.resolution.down),
        slide.offset,
        (SQUARE * slide.scale[0], SQUARE * slide.scale[1]),
        threshold,
        state.overview,
        time.monotonic() - start,
    )


def has_overview(slide: Slide) -> bool:
    """Whether a file has a version that is so coarse that looking at it costs little."""
    return slide.level(OVERVIEW)[1][0] >= PYRAMID * slide.level()[1][0]


def _advance(
    slide: Slide,
    blocks: Sequence[Block],
    classify: Classify,
    tissue: Marked | None,
    batch_size: int,
    state: State,
) -> Iterator[tuple[int, int]]:
    """Score the blocks that are not done, and yield the numbers of blocks and windows that are.

    A batch may have windows of several blocks, and those of one block may be in several batches: windows wait in a
    queue, and the blocks before its first one are done.
    """
    first, looked_at = state.blocks, state.blocks
    waiting: deque[tuple[int, int, int, PatchArray]] = deque()
    state.map[_after(blocks, first, state.map)] = np.nan  # scores of a block that was not finished
    windows = int(np.count_nonzero(~np.isnan(state.map)))
    look = _Look(slide, tissue)
    for found in _ahead(look, blocks[first:]):
        block = blocks[looked_at]
        if found.overview is not None:
            left, top, width, height = block.around(SQUARE // OVERVIEW)
            state.overview[top : top + height, left : left + width] = found.overview
        if found.pixels is not None:
            for row, column in np.argwhere(found.tissue).tolist():
                y, x = row * SQUARE, column * SQUARE
                # A copy: a view would keep the whole block in memory until its batch is full.
                window = found.pixels[y : y + PATCH_SIZE, x : x + PATCH_SIZE].copy()
                waiting.append((looked_at, block.row + row, block.column + column, window))
        looked_at += 1
        last = looked_at == len(blocks)
        while len(waiting) >= batch_size or (last and waiting):
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            logits = classify(np.stack([window for *_, window in batch]))
            rows, columns = [row for _, row, _, _ in batch], [column for _, _, column, _ in batch]
            state.map[rows, columns] = expit(logits.astype(np.float64))
            windows += len(batch)
            yield waiting[0][0] if waiting else looked_at, windows
        yield waiting[0][0] if waiting else looked_at, windows


def _after(blocks: Sequence[Block], first: int, scores: ScoreMap) -> NDArray[np.bool_]:
    after = np.zeros(scores.shape, dtype=bool)
    for block in blocks[first:]:
        after[block.place] = True
    return after


class _Found(NamedTuple):
    """What was found in a block: its tissue, its pixels if there is any, and its part of the overview if it is new."""

    tissue: Squares
    pixels: Pixels | None
    overview: Pixels | None


class _Look:
    """Looks at a block: at its part of a coarse version first, if the file has one, and decodes it if it may be tissue.

    Args:
        slide: The slide.
        tissue: What is tissue; None finds it.
    """

    def __init__(self, slide: Slide, tissue: Marked | None) -> None:
        self._slide = slide
        self._tissue = tissue
        self._has_overview = has_overview(slide)

    def __call__(self, block: Block) -> _Found:
        nothing = np.zeros((block.rows, block.columns), dtype=bool)
        overview = None
        if self._has_overview:
            overview = self._slide.read(*block.around(SQUARE // OVERVIEW), shrink=OVERVIEW)
        if self._tissue is not None:
            marked = self._tissue.mask(
                block.column * SQUARE, block.row * SQUARE, block.columns * SQUARE, block.rows * SQUARE
            )
            tissue = any_marked(marked, SQUARE)
            if overview is not None and not tissue.any():
                return _Found(nothing, None, overview)
        elif overview is not None and saturation(overview).max() < PALEST:
            return _Found(nothing, None, overview)
        pixels = self._slide.read(*block.around())
        if overview is None:
            overview = np.asarray(Image.fromarray(pixels).reduce(OVERVIEW))
        found = tissue_squares(pixels) if self._tissue is None else tissue
        return _Found(found, pixels if found.any() else None, overview)


def _blocks(slide: Slide) -> Iterator[Block]:
    """Divide the squares that are in the centre of a window into blocks, row by row."""
    for row in range(1, slide.rows - 1, BLOCK):
        for column in range(1, slide.columns - 1, BLOCK):
            yield Block(row, column, min(BLOCK, slide.rows - 1 - row), min(BLOCK, slide.columns - 1 - column))


def _ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Apply a function to items in threads, a few items ahead of what is asked for, and yield the results in order."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        results = deque(pool.submit(function, item) for item in items[: 2 * THREADS])
        for item in [*items[2 * THREADS :], *[None] * len(results)]:
            yield results.popleft().result()
            if item is not None:
                results.append(pool.submit(function, item))
    finally:
        pool.shutdown(cancel_futures=True)

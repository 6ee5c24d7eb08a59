"""Who takes part in the race over a slide: this project, its network alone, and a plain loop over windows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from pcam.benchmark.race import Stopwatch
from pcam.data.packed import PackedSplit
from pcam.extras import import_extra
from pcam.memory import keep_freed_memory
from pcam.patches import PATCH_SIZE, PatchArray
from pcam.slides.openslide_reader import WHITE
from pcam.slides.scoring import score
from pcam.slides.slide import SQUARE, open_slide
from pcam.trained import TrainedRun

MPP: Final = 0.243
"""The micrometres per pixel of the slides that are measured on: those of CAMELYON16."""

ZOOM: Final = 4
"""Pixels of such a slide to one of a patch, in each direction."""

LOOPED: Final = 100
"""The number of windows in a turn of the plain loop, which is slow."""


def write_slide(store: PackedSplit, tissue: int, side: int, path: Path) -> None:
    """Write a pyramidal TIFF in which patches lie side by side, in a square in the middle of white.

    Args:
        store: The patches; repeated as often as needed.
        tissue: The side of the square in pixels of the slide.
        side: The side of the slide in pixels.
        path: The file.
    """
    pyvips = import_extra("pyvips", "slides")
    count = tissue // (ZOOM * PATCH_SIZE)
    patches = store.patches[:][np.arange(count**2) % len(store)].reshape(count, count, PATCH_SIZE, PATCH_SIZE, 3)
    pixels = patches.swapaxes(1, 2).reshape(count * PATCH_SIZE, count * PATCH_SIZE, 3)
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation="srgb").zoom(ZOOM, ZOOM)
    margin = (side - image.width) // 2
    whole = image.embed(margin, margin, side, side, background=[WHITE] * 3).copy(xres=1000 / MPP, yres=1000 / MPP)
    whole.tiffsave(str(path), tile=True, pyramid=True, tile_width=256, tile_height=256, compression="jpeg", Q=90,
                   resunit="cm")  # fmt: skip


def slide_ours(run: Path, path: Path, batch_size: int, rounds: int, stopwatch: Stopwatch) -> None:
    """Score a slide as the command `slide` does.

    Args:
        run: The run folder.
        path: The slide.
        batch_size: Number of windows in a batch.
        rounds: Number of turns.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    trained = TrainedRun.load(run, device="cpu")
    trained.logits(_windows(path)[:batch_size], batch_size=batch_size)  # prepares the network
    for _ in range(rounds):
        stopwatch.start()
        found = score(open_slide(path), lambda patches: trained.logits(patches, batch_size=batch_size), 0.5,
                      batch_size=batch_size)  # fmt: skip
        stopwatch.stop(found.windows)


def slide_ceiling(run: Path, path: Path, batch_size: int, rounds: int, stopwatch: Stopwatch) -> None:
    """Classify the same windows again and again, which lie in memory: the machine's limit.

    Args:
        run: The run folder.
        path: The slide that the windows are from.
        batch_size: Number of windows in a batch.
        rounds: Number of turns.
        stopwatch: Measures each turn.
    """
    keep_freed_memory()
    trained, windows = TrainedRun.load(run, device="cpu"), _windows(path)
    trained.logits(windows[:batch_size], batch_size=batch_size)
    for _ in range(rounds):
        stopwatch.start()
        trained.logits(windows, batch_size=batch_size)
        stopwatch.stop(len(windows))


def slide_plain(run: Path, path: Path, rounds: int, stopwatch: Stopwatch) -> None:
    """Read and classify one window after the other, as a plain loop does.

    Args:
        run: The run folder.
        path: The slide.
        rounds: Number of turns.
        stopwatch: Measures each turn.
    """
    openslide = import_extra("openslide", "slides")
    network, slide = TrainedRun.load(run, device="cpu").network, openslide.OpenSlide(path)
    level = slide.get_best_level_for_downsample(ZOOM)
    places = _places(path)[:LOOPED]
    for number in range(rounds + 1):  # the first does not count
        if number:
            stopwatch.start()
        for column, row in places:
            corner = ZOOM * SQUARE * (column - 1), ZOOM * SQUARE * (row - 1)
            window = np.array(slide.read_region(corner, level, (PATCH_SIZE, PATCH_SIZE)).convert("RGB"))
            with torch.inference_mode():
                network(torch.from_numpy(window).permute(2, 0, 1)[None]).sigmoid()
        if number:
            stopwatch.stop(len(places))


def _places(path: Path) -> Sequence[tuple[int, int]]:
    """The column and row of the squares in the middle part of a slide."""
    slide = open_slide(path)
    width = min(slide.columns - 2, 16)
    first = (slide.columns - width) // 2, (slide.rows - width) // 2
    return [(first[0] + column, first[1] + row) for row in range(width) for column in range(width)]


def _windows(path: Path) -> PatchArray:
    slide = open_slide(path)
    windows = [
        slide.read(SQUARE * (column - 1), SQUARE * (row - 1), PATCH_SIZE, PATCH_SIZE) for column, row in _places(path)
    ]
    return np.stack(windows)

"""A slide at 0.972 um per pixel, whatever its file: its size, its place in the file, and any part of its pixels.

It is divided into squares of 32x32 pixels. Each square is the centre of one window of 96x96 pixels, which is what the
label of a patch is about.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from pcam.errors import UserError
from pcam.patches import CENTRE_START, CENTRE_STOP, MICROMETRES_PER_PIXEL, PATCH_SIZE
from pcam.slides.image_reader import ImageReader, Pixels, find_image
from pcam.slides.openslide_reader import OpenSlideReader, format_of
from pcam.slides.resolution import COARSEST, FINEST, Resolution, require_resolution

SQUARE: Final = CENTRE_STOP - CENTRE_START
"""The side of a square in pixels of 0.972 um: a third of the side of a window, and the step from one to the next."""

TOLERANCE: Final = 0.5 / PATCH_SIZE
"""Two resolutions are one if they differ by no more than this part: half a pixel in a window's side is less than a
file's rounding of its resolution may do."""

MOST_ENLARGED: Final = 1.25
"""The most that a slide may be enlarged: details that were not scanned cannot be had back."""

LANCZOS_REACH: Final = 3
"""The pixels to each side, of those that come out, that Lanczos' filter takes into account."""

MOST_READ: Final = 2**25
"""The pixels of a file, at most, that are decoded for one piece; a larger part of a slide is read in several pieces."""

MOST_PADDED: Final = 1.5
"""The pixels by which a smaller version of a slide may miss the shape of the full one: its size was rounded."""


class Reader(Protocol):
    """What reads the pixels of one file, as they are stored."""

    levels: list[tuple[int, int]]
    bounds: tuple[int, int, int, int]
    objective_power: str | None

    def stated_resolutions(self) -> list[Resolution]:
        """Read what the file says of its resolution."""

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """Decode a part of a version of the slide."""


@dataclass(frozen=True)
class Slide:
    """A slide at 0.972 um per pixel. Make one with `open_slide`.

    Args:
        path: Its file.
        reader: What reads the file.
        resolution: The micrometres per pixel of the file's finest version, and what says so.
        scale: The pixels of the finest version that one pixel of 0.972 um is wide and high.
        width: The number of pixels of 0.972 um across the part that was scanned.
        height: Their number down.
    """

    path: Path
    reader: Reader
    resolution: Resolution
    scale: tuple[float, float]
    width: int
    height: int

    @property
    def rows(self) -> int:
        """The number of whole squares in the height."""
        return self.height // SQUARE

    @property
    def columns(self) -> int:
        """The number of whole squares in the width."""
        return self.width // SQUARE

    @property
    def offset(self) -> tuple[int, int]:
        """Where the part that was scanned begins, in pixels of the finest version: left, top."""
        return self.reader.bounds[:2]

    def read(self, left: int, top: int, width: int, height: int, shrink: int = 1) -> Pixels:
        """Decode a part of the slide.

        It is taken from the version of the file that is next above the resolution that is asked for, and resampled to
        it with Lanczos' filter; not resampled if it has this resolution already. Several threads may do so at once.

        Args:
            left: The first column, in pixels of `shrink` x 0.972 um.
            top: The first row.
            width: The number of columns, none of which lies outside.
            height: The number of rows.
            shrink: How many times coarser than 0.972 um the result is to be.

        Returns:
            Shape (height, width, 3), values 0..255.

        Raises:
            UserError: If the file is damaged.
        """
        level, downsample = self.level(shrink)
        factors = [scale * shrink / one for scale, one in zip(self.scale, downsample, strict=True)]
        if width * height * math.prod(factors) > MOST_READ and max(width, height) > 1:
            half = max(width, height) // 2
            if width >= height:
                parts = [(left, top, half, height), (left + half, top, width - half, height)]
            else:
                parts = [(left, top, width, half), (left, top + half, width, height - half)]
            return np.concatenate([self.read(*part, shrink) for part in parts], axis=1 if width >= height else 0)
        spans = []
        for start, length, factor, offset, one, limit in zip(
            (left, top), (width, height), factors, self.offset, downsample, self.reader.levels[level], strict=True
        ):
            first = start * factor + offset / one
            if factor == 1:
                first = min(max(round(first), 0), limit - length)
            last = min(first + length * factor, limit)
            margin = 0 if factor == 1 else math.ceil(LANCZOS_REACH * max(factor, 1)) + 1
            begin, end = max(math.floor(first) - margin, 0), min(math.ceil(last) + margin, limit)
            spans.append((begin, end - begin, first - begin, last - begin))
        (x, columns, *across), (y, rows, *down) = spans
        pixels = self.reader.read(level, x, y, columns, rows)
        if factors == [1, 1]:
            return pixels
        resized = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.LANCZOS, box=(across[0], down[0], across[1], down[1])
        )
        return np.asarray(resized)

    def level(self, shrink: int = 1) -> tuple[int, tuple[float, float]]:
        """Choose the version of the file that is next above a resolution.

        Args:
            shrink: How many times coarser than 0.972 um the resolution is.

        Returns:
            The number of the version, and how many times coarser than the finest it is across and down.
        """
        fitting = [
            (number, downsample)
            for number, downsample in _downsamples(self.reader.levels)
            if all(one <= side * shrink * (1 + TOLERANCE) for one, side in zip(downsample, self.scale, strict=True))
        ]
        return fitting[-1] if fitting else (0, (1.0, 1.0))

    def to_file(self, columns: float, rows: float) -> tuple[float, float]:
        """Turn a place in squares from the corner of the map into pixels of the file's finest version.

        It is counted from the corner of the part that was scanned, as QuPath shows the slide.
        """
        return columns * SQUARE * self.scale[0], rows * SQUARE * self.scale[1]


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide.

    Args:
        path: A whole-slide file of a scanner or a tiled TIFF, which OpenSlide reads, or another image (PNG, TIFF or
            JPEG), which pyvips reads. The contents of the file tell which.
        mpp: Its micrometres per pixel, 0.01 to 10; None takes the resolution that the file says.

    Returns:
        The slide.

    Raises:
        UserError: If it cannot be read, does not say its resolution, was scanned too coarsely, or is smaller than a
            window.
    """
    if mpp is not None and not FINEST <= mpp <= COARSEST:
        raise UserError(
            f"Expected --mpp from {FINEST} to {COARSEST:g} um per pixel, because microscopes see nothing finer and "
            f"cells are lost in anything coarser, but found {mpp:g}; correct it."
        )
    if not path.is_file():
        raise UserError(f"Expected a slide or an image at {path}, but there is no such file; correct the path.")
    reader = _open(path)
    if not math.prod(reader.levels[0]):
        raise UserError(f"Expected a slide in {path}, but it has no pixels; copy it again from where it came from.")
    if mpp is None:
        resolution = require_resolution(path, reader.stated_resolutions(), reader.objective_power)
    else:
        resolution = Resolution(mpp, mpp, "mpp")
    sides = resolution.across, resolution.down
    if max(sides) > MOST_ENLARGED * MICROMETRES_PER_PIXEL:
        raise UserError(
            f"Expected a scan of at most {MOST_ENLARGED * MICROMETRES_PER_PIXEL:.3g} um per pixel, as patches have "
            f"{MICROMETRES_PER_PIXEL} um, but {path} has {max(sides):.4g} by its {resolution.source}; take a finer "
            f"version, or correct --mpp."
        )
    across, down = (MICROMETRES_PER_PIXEL / side for side in sides)
    for _, (one, other) in _downsamples(reader.levels):
        if abs(one / across - 1) <= TOLERANCE and abs(other / down - 1) <= TOLERANCE:
            across, down = one, other  # this version is taken as it is
    width, height = int(reader.bounds[2] / across + 1e-6), int(reader.bounds[3] / down + 1e-6)
    if min(width, height) < PATCH_SIZE:
        raise UserError(
            f"Expected a slide of at least {PATCH_SIZE}x{PATCH_SIZE} pixels at {MICROMETRES_PER_PIXEL} um each, but "
            f"{path} has {width}x{height} of them; choose another, or correct --mpp."
        )
    return Slide(path, reader, resolution, (across, down), width, height)


def _open(path: Path) -> Reader:
    found = format_of(path)
    if found not in (None, "generic-tiff"):
        return OpenSlideReader(path)
    image = find_image(path)
    # OpenSlide would take 16-bit or transparent pixels of a plain TIFF for 8-bit RGB, and any page for the slide.
    if found is not None and image.is_tiled_rgb():
        reader = OpenSlideReader(path, image)
        if reader.levels[0] == (image.tags()[Base.ImageWidth], image.tags()[Base.ImageLength]):
            return reader
    return ImageReader(image)


def _downsamples(levels: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[float, float]]]:
    """Compute how many times coarser each version is, by its size, whatever the file says.

    Versions that have no pixels, or another shape than the finest, are left out.
    """
    width, height = levels[0]
    found = []
    for number, (across, down) in enumerate(levels):
        if not across or not down:
            continue
        error = abs(height - down * width / across) / (width / across)  # in pixels of the smaller version
        if error <= MOST_PADDED * max(1, down / across):
            found.append((number, (width / across, height / down)))
    return sorted(found, key=lambda one: one[1][0])


def stamp(path: Path) -> list[str | int]:
    """Name a file with its size and its time in nanoseconds, so that another file in its place has another stamp."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]

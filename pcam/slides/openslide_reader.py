"""Whole-slide files of scanners, and tiled TIFFs, read through OpenSlide."""

from pathlib import Path
from typing import Final

import numpy as np

from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.slides.image_reader import ImageFile, Pixels
from pcam.slides.resolution import Resolution, of_numbers

WHITE: Final = 255
"""The value of what was not scanned, and of the tiles that a sparse TIFF leaves out: the background of a slide."""


def format_of(path: Path) -> str | None:
    """The format of a file by the name that OpenSlide has for it: "aperio", "generic-tiff"; None if it has none."""
    openslide = import_extra("openslide", "slides")
    found: str | None = openslide.OpenSlide.detect_format(path)
    return found


class OpenSlideReader:
    """Reads a whole-slide file of a scanner, or a tiled TIFF in 8-bit RGB.

    Args:
        path: The file. Of formats of several files it is the one that OpenSlide is given, such as `slide.mrxs`.
        image: The page of a plain TIFF; None for files of scanners.

    Attributes:
        levels: The width and height of each version of the slide in pixels, the finest first.
        bounds: The part that was scanned: left, top, width and height in pixels of the finest version.
        objective_power: The magnification of the objective, as the file says it; None if it does not.

    Raises:
        UserError: If the file cannot be read.
    """

    def __init__(self, path: Path, image: ImageFile | None = None) -> None:
        openslide = import_extra("openslide", "slides")
        self._path, self._image = path, image
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise self._unreadable(error) from error
        self._properties = dict(self._slide.properties)
        self.levels: list[tuple[int, int]] = list(self._slide.level_dimensions)
        self.bounds = self._bounds()
        self.objective_power: str | None = self._properties.get("openslide.objective-power")

    def stated_resolutions(self) -> list[Resolution]:
        """Read what the file says of its resolution: by its maker's notes, or by the tags of a plain TIFF."""
        if self._image is not None:
            return self._image.stated_resolutions()
        properties = self._properties
        return of_numbers(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"), "openslide.mpp")

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """Decode a part of a version of the slide; several threads may do so at once.

        Args:
            level: The number of the version.
            left: The first column, in pixels of this version.
            top: The first row.
            width: The number of columns, none of which lies outside.
            height: The number of rows.

        Returns:
            Shape (height, width, 3), values 0..255. What was not scanned is white.

        Raises:
            UserError: If the file is damaged.
        """
        openslide = import_extra("openslide", "slides")
        (full_width, full_height), (level_width, level_height) = self.levels[0], self.levels[level]
        corner = round(left * full_width / level_width), round(top * full_height / level_height)
        try:
            region = np.asarray(self._slide.read_region(corner, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise self._unreadable(error) from error
        opaque = region[..., 3:]
        if opaque.min() == 255:
            return region[..., :3]
        share = opaque / np.float32(255)
        blended: Pixels = np.rint(region[..., :3] * share + WHITE * (1 - share)).astype(np.uint8)
        return blended

    def _bounds(self) -> tuple[int, int, int, int]:
        width, height = self.levels[0]
        try:
            left, top, across, down = (
                int(self._properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")
            )
        except (KeyError, ValueError):
            return 0, 0, width, height
        inside = 0 <= left < width and 0 <= top < height and across > 0 and down > 0
        return (left, top, min(across, width - left), min(down, height - top)) if inside else (0, 0, width, height)

    def _unreadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(
            f"Expected a whole-slide file in {self._path}, but it cannot be read ({reason}); copy it again from where "
            f"it came from."
        )

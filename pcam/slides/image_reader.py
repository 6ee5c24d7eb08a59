"""Images that OpenSlide does not take, PNG, JPEG and plain TIFF, read through pyvips: their pages and pixels."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import UInt8
from PIL.ExifTags import Base

from pcam.data.layouts.tiff import CODECS, UNCOMPRESSED, Tags, missing_parts, read_pages
from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.slides.resolution import Resolution, of_jpeg, of_png, of_tiff

Kind = Literal["jpeg", "png", "tiff"]

SIGNATURES: Final[dict[bytes, Kind]] = {
    b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png",
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}  # fmt: skip
"""How files of each kind begin. "+" instead of "*" is BigTIFF."""

REDUCED_OR_MASK: Final = 0b101
"""The bits of NewSubfileType for a page that is a smaller version of another one, or a mask of it.

Source: TIFF 6.0, section 8, NewSubfileType.
"""

RGB: Final = 2
YCBCR: Final = 6
"""TIFF's PhotometricInterpretation of colours, the second as JPEG stores them.

Source: TIFF 6.0, section 8, PhotometricInterpretation.
"""

MOST_PIXELS: Final = 2**32
"""The pixels, at most, of an image without tiles: pyvips decodes such a one as a whole, to a temporary file."""

Pixels = UInt8[np.ndarray, "height width 3"]
"""A part of a slide: RGB, values 0..255."""


@dataclass(frozen=True)
class ImageFile:
    """The pixels of an image in its file.

    Args:
        path: The file.
        kind: Its format.
        pages: The tags of the pages of a TIFF; empty for others.
        page: The number of the page in a TIFF.
    """

    path: Path
    kind: Kind
    pages: Sequence[Tags] = field(default=(), repr=False)
    page: int = 0

    def tags(self) -> Tags:
        """The tags of the page; none if the file is no TIFF."""
        return self.pages[self.page] if self.pages else {}

    def stated_resolutions(self) -> list[Resolution]:
        """Read what the file says of its resolution."""
        if self.kind == "tiff":
            return of_tiff(self.pages[0], self.tags())
        return of_png(self.path) if self.kind == "png" else of_jpeg(self.path)

    def is_tiled_rgb(self) -> bool:
        """Whether it is a page of a TIFF in tiles of 8-bit RGB, without an alpha channel."""
        tags = self.tags()
        bits, photometric = tags.get(Base.BitsPerSample), tags.get(Base.PhotometricInterpretation)
        return Base.TileWidth in tags and bits == (8, 8, 8) and photometric in (RGB, YCBCR)

    def pixels(self) -> Any:
        """Open the image, which is decoded where it is read.

        Returns:
            A `pyvips.Image` with the bands that the file has, as they are stored: no note to turn it is followed.

        Raises:
            UserError: If it cannot be read.
        """
        pyvips = import_extra("pyvips", "slides")
        try:
            sparse = bool(missing_parts(self.tags()).any())
            if not sparse:
                return self._load()
        except (pyvips.Error, ArithmeticError, TypeError, ValueError) as error:  # the tags may be anything
            raise self.unreadable(error) from error
        raise UserError(
            f"Expected an image (PNG, TIFF or JPEG) in {self.path}, but it is a sparse TIFF, some of whose strips or "
            f"tiles are not stored, which are read of tiles in 8-bit RGB only; write it again as a whole."
        )

    def _load(self) -> Any:
        """Open the image so that damaged pixels are an error, and odd tags are not."""
        if self.kind != "tiff":
            return self._load_strictly("warning")
        # Of damaged pixels in JPEG libtiff only warns. But it also warns of tags that it does not know, and of a NUL in
        # a text: where it warns before the first pixel, its warnings do not count.
        pyvips = import_extra("pyvips", "slides")
        try:
            pyvips.Region.new(self._load_strictly("warning", access="sequential")).fetch(0, 0, 1, 1)
        except pyvips.Error as error:
            if self._missing_codec(error) is not None:
                raise
            return self._load_strictly("error")
        return self._load_strictly("warning")

    def _load_strictly(self, fail_on: Literal["error", "warning"], access: str = "random") -> Any:
        pyvips = import_extra("pyvips", "slides")
        # Not by its name, in which pyvips would take "[page=1]" for options.
        with self.path.open("rb") as stream:
            source = pyvips.Source.new_from_descriptor(stream.fileno())
        load = getattr(pyvips.Image, f"{self.kind}load_source")
        options = {"page": self.page} if self.kind == "tiff" else {}
        return load(source, access=access, fail_on=fail_on, **options)

    def unreadable(self, error: Exception) -> UserError:
        """Say why the image cannot be read, and what to do."""
        codec = self._missing_codec(error)
        if codec is not None:
            return UserError(
                f"Expected an image (PNG, TIFF or JPEG) in {self.path}, but it is a TIFF compressed with {codec}, "
                f"which pyvips does not decode here; save it as PNG or LZW TIFF."
            )
        return _unreadable(self.path, error)

    def _missing_codec(self, error: Exception) -> str | None:
        """Name the compression that an error says pyvips was built without."""
        built_without = re.search("not configured|not implemented|built without", str(error))
        return CODECS.get(self.tags().get(Base.Compression, UNCOMPRESSED)) if built_without else None


class ImageReader:
    """Reads an image in 8-bit RGB.

    Args:
        file: The image. An alpha channel is dropped if it is opaque everywhere.

    Attributes:
        levels: Its width and height in pixels; it has no smaller versions.
        bounds: The part that was scanned, all of it: left, top, width and height in pixels.
        objective_power: The magnification of the objective, which these files do not say.

    Raises:
        UserError: If the image cannot be read, or is not 8-bit RGB.
    """

    objective_power: str | None = None

    def __init__(self, file: ImageFile) -> None:
        pixels = file.pixels()
        _require_size(file, pixels)
        _require_rgb(file, pixels)
        self._file, self._pixels = file, pixels[0:3]
        self.levels: list[tuple[int, int]] = [(pixels.width, pixels.height)]
        self.bounds: tuple[int, int, int, int] = (0, 0, pixels.width, pixels.height)

    def stated_resolutions(self) -> list[Resolution]:
        """Read what the file says of its resolution."""
        return self._file.stated_resolutions()

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """Decode a part of the image; several threads may do so at once.

        Args:
            level: The number of the version, which is 0.
            left: The first column.
            top: The first row.
            width: The number of columns, none of which lies outside.
            height: The number of rows.

        Returns:
            Shape (height, width, 3), values 0..255.

        Raises:
            UserError: If the file is damaged.
        """
        pyvips = import_extra("pyvips", "slides")
        try:
            content = pyvips.Region.new(self._pixels).fetch(left, top, width, height)
        except pyvips.Error as error:
            raise self._file.unreadable(error) from error
        return np.frombuffer(content, dtype=np.uint8).reshape(height, width, 3)


def find_image(path: Path) -> ImageFile:
    """Find out which format a file has, and which page of a TIFF is its image.

    Args:
        path: A PNG, TIFF or JPEG file. Of a TIFF of several pages, the largest is taken that is not marked as a smaller
            version of another one.

    Returns:
        The image.

    Raises:
        UserError: If it is no such file, or does not say which page is meant.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        kind = next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), None)
        if kind is None:
            raise ValueError("it is no image of a known format")
        if kind != "tiff":
            return ImageFile(path, kind)
        pages = read_pages(path)
        if not all(Base.ImageWidth in tags and Base.ImageLength in tags for tags in pages) or not pages:
            raise ValueError("a page is missing, or does not say its size")
        sizes = {
            number: (int(tags[Base.ImageWidth]), int(tags[Base.ImageLength]))
            for number, tags in enumerate(pages)
            if not tags.get(Base.NewSubfileType, 0) & REDUCED_OR_MASK
        }
    except Exception as error:  # Pillow raises many kinds for damaged tags
        raise _unreadable(path, error) from error
    if not sizes:
        raise UserError(
            f"Expected a page in full resolution in {path}, but found only pages that are marked as smaller versions "
            f"of another one ({len(pages)}); take the file that it was made from."
        )
    largest = max(sizes.values(), key=lambda size: size[0] * size[1])
    chosen = [number for number, size in sizes.items() if size == largest]
    if len(chosen) > 1:
        raise UserError(
            f"Expected one image in {path}, but found {len(chosen)} pages of {largest[0]}x{largest[1]} pixels; save "
            f"the one that is meant as a file of its own."
        )
    return ImageFile(path, kind, pages, chosen[0])


def _require_size(file: ImageFile, pixels: Any) -> None:
    """Refuse what would fill the disk when it is decoded."""
    if Base.TileWidth not in file.tags() and pixels.width * pixels.height > MOST_PIXELS:
        raise UserError(
            f"Expected an image of at most {MOST_PIXELS:,} pixels without tiles, but {file.path} has {pixels.width}x"
            f"{pixels.height}; write it as a tiled TIFF."
        )


def _require_rgb(file: ImageFile, pixels: Any) -> None:
    """Refuse what is not 8-bit RGB, or is transparent somewhere."""
    pyvips = import_extra("pyvips", "slides")
    if file.pages and pixels.get("n-pages") != len(file.pages):
        raise _unreadable(
            file.path, ValueError(f"the tags of {len(file.pages)} of its {pixels.get('n-pages')} pages can be read")
        )
    if pixels.bands not in (3, 4) or pixels.format != "uchar" or pixels.interpretation not in ("srgb", "rgb"):
        raise UserError(
            f"Expected an image in 8-bit RGB, but {file.path} has {pixels.bands} channels of type {pixels.format} "
            f"({pixels.interpretation}); convert it."
        )
    if pixels.bands == 4:
        try:
            opaque = file.pixels()[3].min() == 255
        except pyvips.Error as error:
            raise file.unreadable(error) from error
        if not opaque:
            raise UserError(
                f"Expected an image in 8-bit RGB, but {file.path} has pixels that are transparent; convert it."
            )


def _unreadable(path: Path, error: Exception) -> UserError:
    # libtiff says the same of each tile or strip that is damaged.
    lines = dict.fromkeys(line.strip() for line in str(error).splitlines())
    reason = textwrap.shorten(" ".join(lines), 200)
    return UserError(f"Expected an image (PNG, TIFF or JPEG) in {path}, but it cannot be read ({reason}); replace it.")

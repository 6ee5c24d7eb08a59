"""A larger image than a patch: which of its file's pages is scored, at which resolution, and its pixels strip by strip.

The image is divided into squares of 32x32 pixels. Each square is the centre of one window of 96x96 pixels, which is
what the label of a patch is about.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL.ExifTags import Base

from pcam.data.layouts.tiff import CODECS, UNCOMPRESSED, Tags, missing_parts, read_pages
from pcam.errors import UserError
from pcam.evaluation.resolution import COARSEST, FINEST, Resolution, of_jpeg, of_png, of_tiff, require_resolution
from pcam.extras import import_extra
from pcam.patches import CENTRE_START, CENTRE_STOP, MICROMETRES_PER_PIXEL, PATCH_SIZE

CELL_SIZE: Final = CENTRE_STOP - CENTRE_START
"""The distance between two windows in pixels: the side of a square, a third of the side of a window."""

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

WHITE: Final = 255
"""The value of the tiles that a sparse TIFF leaves out: the background of a stained slide."""

Strip = UInt8[np.ndarray, "32 width 3"]
Thumbnail = UInt8[np.ndarray, "height width 3"]


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

    def pixels(self) -> Any:
        """Open the image, which is decoded from top to bottom when it is read, and can be read once.

        Returns:
            A `pyvips.Image` with the bands that the file has, as they are stored: no note to turn it is followed.

        Raises:
            UserError: If it cannot be read.
        """
        pyvips = import_extra("pyvips", "tile")
        try:
            missing = missing_parts(self.tags())
            pixels = self._load(sparse=bool(missing.any()))
            if not missing.any():
                return pixels
            if Base.TileWidth in self.tags():
                return self._fill(pixels, missing)
        except (pyvips.Error, ArithmeticError, TypeError, ValueError) as error:  # the tags may be anything
            raise self.unreadable(error) from error
        raise UserError(
            f"Expected an image (PNG, TIFF or JPEG) in {self.path}, but it is a sparse TIFF, some of whose strips are "
            f"not stored, which pyvips reads of tiles only; write it again as a whole."
        )

    def rgb(self) -> Any:
        """Open the image as `pixels`, without an alpha channel."""
        return self.pixels()[0:3]

    def _load(self, sparse: bool) -> Any:
        """Open the image so that damaged pixels are an error, and odd tags are not."""
        if self.kind != "tiff":
            return self._load_strictly("warning")
        # Of damaged pixels in JPEG libtiff only warns. But it also warns of tiles that were not written, of tags that
        # it does not know, and of a NUL in a text: where it warns before the first pixel, its warnings do not count.
        pyvips = import_extra("pyvips", "tile")
        try:
            pyvips.Region.new(self._load_strictly("warning")).fetch(0, 0, 1, 1)
        except pyvips.Error as error:
            if self._missing_codec(error) is not None:
                raise
            return self._load_strictly("error")
        return self._load_strictly("error" if sparse else "warning")

    def _load_strictly(self, fail_on: Literal["error", "warning"]) -> Any:
        pyvips = import_extra("pyvips", "tile")
        # Not by its name, in which pyvips would take "[page=1]" for options.
        with self.path.open("rb") as stream:
            source = pyvips.Source.new_from_descriptor(stream.fileno())
        load = getattr(pyvips.Image, f"{self.kind}load_source")
        options = {"page": self.page} if self.kind == "tiff" else {}
        return load(source, access="sequential", fail_on=fail_on, **options)

    def _fill(self, pixels: Any, missing: NDArray[np.bool_]) -> Any:
        """Make the tiles white that were never written."""
        pyvips = import_extra("pyvips", "tile")
        width, height = self.tags()[Base.TileWidth], self.tags()[Base.TileLength]
        columns, rows = -(-pixels.width // width), -(-pixels.height // height)
        # There are more than these many tiles where each channel is stored for itself.
        mask = missing.reshape(-1, rows * columns).any(axis=0).astype(np.uint8) * 255
        tiles = pyvips.Image.new_from_memory(mask.tobytes(), columns, rows, 1, "uchar").zoom(width, height)
        return tiles.crop(0, 0, pixels.width, pixels.height).ifthenelse([WHITE] * pixels.bands, pixels)

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


@dataclass(frozen=True)
class LargeImage:
    """An image at 0.972 um per pixel, which is read strip by strip.

    Args:
        file: Where it is stored.
        pixels: The image as a `pyvips.Image`, which decodes it when it is read.
    """

    file: ImageFile
    pixels: Any
    """A `pyvips.Image`."""

    @property
    def rows(self) -> int:
        """The number of whole squares in the height."""
        return int(self.pixels.height) // CELL_SIZE

    @property
    def columns(self) -> int:
        """The number of whole squares in the width."""
        return int(self.pixels.width) // CELL_SIZE

    def strips(self) -> Iterator[Strip]:
        """Decode the rows of squares from top to bottom. This works once, because a file is read forwards only.

        Yields:
            Shape (32, 32 columns, 3), values 0..255.

        Raises:
            UserError: If the file is damaged.
        """
        pyvips = import_extra("pyvips", "tile")
        region, width = pyvips.Region.new(self.pixels), self.columns * CELL_SIZE
        for row in range(self.rows):
            try:
                strip = region.fetch(0, row * CELL_SIZE, width, CELL_SIZE)
            except pyvips.Error as error:
                raise self.file.unreadable(error) from error
            yield np.frombuffer(strip, dtype=np.uint8).reshape(CELL_SIZE, width, 3)

    def thumbnail(self, size: int) -> Thumbnail:
        """Decode the image once more, from its file, as a picture.

        Args:
            size: The number of pixels, at most, of its longer side.

        Returns:
            Shape (height, width, 3), values 0..255.

        Raises:
            UserError: If the file is damaged.
        """
        pyvips = import_extra("pyvips", "tile")
        try:
            thumbnail = self.file.rgb().thumbnail_image(size, height=size, size="down", no_rotate=True)
            pixels: Thumbnail = thumbnail.numpy()
        except pyvips.Error as error:
            raise self.file.unreadable(error) from error
        return pixels


def open_image(path: Path, mpp: float | None) -> LargeImage:
    """Open an image and resize it to 0.972 um per pixel.

    Args:
        path: A PNG, TIFF or JPEG file in 8-bit RGB. An alpha channel is dropped if it is opaque everywhere. Of a TIFF
            of several pages, the largest is taken that is not marked as a smaller version of another one.
        mpp: Its micrometres per pixel, 0.01 to 10; None takes the resolution that the file says.

    Returns:
        The image.

    Raises:
        UserError: If it cannot be read, does not say its resolution, or is smaller than a window.
    """
    if mpp is not None and not FINEST <= mpp <= COARSEST:
        raise UserError(
            f"Expected --mpp from {FINEST} to {COARSEST:g} um per pixel, because microscopes see nothing finer and "
            f"cells are lost in anything coarser, but found {mpp:g}; correct it."
        )
    if not path.is_file():
        raise UserError(f"Expected an image (PNG, TIFF or JPEG) at {path}, but there is no such file; correct --input.")
    file = _find_image(path)
    pixels = file.pixels()
    _require_rgb(file, pixels)
    pixels = pixels[0:3]
    across, down = (mpp, mpp) if mpp is not None else require_resolution(path, file.stated_resolutions())[:2]
    scales = across / MICROMETRES_PER_PIXEL, down / MICROMETRES_PER_PIXEL
    # Half a pixel in a window's side is less than a file's rounding of its resolution may do.
    if max(abs(scale - 1) for scale in scales) * PATCH_SIZE > 0.5:
        pixels = pixels.resize(scales[0], vscale=scales[1])
    if min(pixels.width, pixels.height) < PATCH_SIZE:
        raise UserError(
            f"Expected an image of at least {PATCH_SIZE}x{PATCH_SIZE} pixels at {MICROMETRES_PER_PIXEL} um each, but "
            f"{path} has {pixels.width}x{pixels.height} of them; choose another, or correct --mpp."
        )
    return LargeImage(file, pixels)


def _find_image(path: Path) -> ImageFile:
    """Find out which format a file has, and which page of a TIFF is its image."""
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


def _require_rgb(file: ImageFile, pixels: Any) -> None:
    """Refuse what is not 8-bit RGB, or is transparent somewhere."""
    pyvips = import_extra("pyvips", "tile")
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

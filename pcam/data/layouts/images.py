"""Patches as image files."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pcam.data.files import require_file
from pcam.data.layouts.form import Portion, Split
from pcam.data.layouts.tiff import CODECS, UNCOMPRESSED, missing_parts, read_pages
from pcam.errors import UserError
from pcam.options import IMAGE_SUFFIXES
from pcam.patches import PATCH_SIZE, PatchArray

FORMATS: Final = ("JPEG", "PNG", "TIFF", "WEBP")
"""What is decoded, by Pillow's names. Of other formats Pillow does not tell whether it has cut their bits to 8."""


def is_image(name: str) -> bool:
    """Say whether a file is an image by its name, and is not one of the hidden files that macOS keeps beside images.

    Args:
        name: The file's name, without its folder.

    Returns:
        Whether it is.
    """
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """List the images in a folder.

    Args:
        folder: The folder; what lies in folders below it does not count.

    Returns:
        Name and status of each, in the order of their names.

    Raises:
        UserError: If one is no file: a link to nothing, a folder or a named pipe.
    """
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                try:
                    status = entry.stat()
                except OSError:
                    status = None
                if status is None or not stat.S_ISREG(status.st_mode):
                    status = require_file(Path(entry.path), "an image")  # which says what it is instead
                images.append((entry.name, status))
    return sorted(images)


def read_image(path: Path, *, drop_alpha: bool = False) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: A JPEG, PNG, TIFF or WebP file of 96x96 pixels in 8-bit RGB. An alpha channel is dropped if it is opaque
            everywhere.
        drop_alpha: Whether it is dropped in any case.

    Returns:
        Shape (96, 96, 3), values 0..255, as they are stored: a note to turn the picture is not followed.

    Raises:
        UserError: If the file cannot be read, or is of another size or kind.
    """
    require_file(path, "an image")  # to open a named pipe would wait for ever
    return decode_image(path, str(path), drop_alpha=drop_alpha)


def decode_image(source: Path | io.BytesIO, where: str, *, drop_alpha: bool = False) -> NDArray[np.uint8]:
    """Decode one image, as `read_image`, from a file or from memory.

    Args:
        source: The image.
        where: What messages call it.
        drop_alpha: Whether an alpha channel is dropped even where it is not opaque.

    Returns:
        Shape (96, 96, 3), values 0..255.

    Raises:
        UserError: If the image cannot be read, or is of another size or kind.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            _require_patch(image, where)
            if isinstance(image, TiffImageFile):
                image.getexif()[Base.Orientation] = 1  # else Pillow turns the pixels of TIFF, and of TIFF only
            transparent = image.info.get("transparency")
            pixels = np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files; fuzzing has found six
        raise UserError(f"Expected an image in {where}, but {_why_not(source, error)}.") from error
    opaque = pixels[..., 3:].min(initial=255) == 255 and not (
        isinstance(transparent, tuple) and (pixels == np.array(transparent)).all(axis=-1).any()
    )
    if not opaque and not drop_alpha:
        raise UserError(
            f"Expected patches in 8-bit RGB, but {where} has pixels that are transparent; convert it or remove it."
        )
    return np.ascontiguousarray(pixels[..., :3])


def _require_patch(image: Image.Image, where: str) -> None:
    """Refuse what would not be decoded to the pixels of one patch as they are stored."""
    width, height = image.size
    bits, channels = {8}, len(image.getbands())
    if isinstance(image, TiffImageFile):
        width, height = image.tag_v2[Base.ImageWidth], image.tag_v2[Base.ImageLength]  # `size` may be turned
        bits = set(image.tag_v2.get(Base.BitsPerSample, (1,)))
        channels = image.tag_v2.get(Base.SamplesPerPixel, channels)
    elif isinstance(image, PngImageFile) and image.tile and str(image.tile[0].args).endswith("16B"):
        bits = {16}
    if (width, height) != (PATCH_SIZE, PATCH_SIZE):
        raise UserError(
            f"Expected patches of {PATCH_SIZE}x{PATCH_SIZE} pixels, but {where} has {width}x{height}; remove it or cut "
            f"it to size."
        )
    found = None
    if image.mode not in {"RGB", "RGBA"}:
        found = f"mode '{image.mode}'"
    elif bits != {8}:
        found = f"{max(bits)} bits for each channel"
    elif channels != len(image.getbands()):
        found = f"{channels} channels"
    if found is not None:
        raise UserError(f"Expected patches in 8-bit RGB, but {where} has {found}; convert it or remove it.")
    # Where no offset is, Pillow would read the file's own header.
    if isinstance(image, TiffImageFile) and missing_parts(image.tag_v2).any():
        raise UserError(
            f"Expected an image in {where}, but it is a sparse TIFF, some of whose tiles or strips are not stored; "
            f"write it again as a whole, or remove it."
        )
    if getattr(image, "is_animated", False):
        raise UserError(
            f"Expected one image in {where}, but found {getattr(image, 'n_frames', 2)} (animation or pages); keep the "
            f"one that is meant, or remove it."
        )


def _why_not(source: Path | io.BytesIO, error: Exception) -> str:
    """Say why an image cannot be read, and what to do."""
    codec = CODECS.get(_compression(source))
    if codec is not None:
        return f"it is a TIFF compressed with {codec}, which Pillow does not decode here; save it as PNG or LZW TIFF"
    reason = "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
    return f"it cannot be read ({reason}); replace it or remove it"


def _compression(source: Path | io.BytesIO) -> int:
    """Read the number of a TIFF's compression; 0 if it is not to be found."""
    try:
        return int(read_pages(source)[0].get(Base.Compression, UNCOMPRESSED))
    except Exception:  # as in `decode_image`, and of damage that is in the tags themselves
        return 0


@dataclass(frozen=True)
class ImageFiles(Portion):
    """Image files that are not decoded yet.

    Args:
        root: The folder.
        names: The files, as paths below it.
        drop_alpha: Whether an alpha channel is dropped even where it is not opaque.
    """

    root: Path
    names: Sequence[str]
    drop_alpha: bool = False

    def decode(self) -> PatchArray:
        """Decode each file."""
        return np.stack([read_image(self.root / name, drop_alpha=self.drop_alpha) for name in self.names])


@dataclass(frozen=True, kw_only=True)
class ImageSplit(Split):
    """A split whose patches are image files, one each.

    Args:
        root: The folder.
        names: The file of each patch, as a path below it.
        drop_alpha: Whether an alpha channel is dropped even where it is not opaque.
    """

    root: Path
    names: Sequence[str]
    drop_alpha: bool = False

    def portions(self, count: int) -> Iterator[ImageFiles]:
        """Go through the files."""
        for start in range(0, len(self.names), count):
            yield ImageFiles(self.root, self.names[start : start + count], self.drop_alpha)


def pixel_hash(patch: NDArray[np.uint8]) -> bytes:
    """Hash the pixels of a patch: identical pixels have the same hash, which is also the id that Kaggle gave the patch.

    Args:
        patch: Shape (96, 96, 3).

    Returns:
        The SHA-1 of its 27,648 bytes.
    """
    return hashlib.sha1(np.ascontiguousarray(patch).data, usedforsecurity=False).digest()

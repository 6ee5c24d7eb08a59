"""Patches as image files."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pcam.data.layouts.form import Portion, Split
from pcam.errors import UserError
from pcam.patches import PATCH_SIZE, PatchArray

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})
"""Compared in lower case."""


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not that of what macOS keeps beside one."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def image_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """List the images in a folder.

    Args:
        folder: The folder; what lies in folders below it does not count.

    Returns:
        Name and status of each, by name.

    Raises:
        UserError: If one is a link to nothing.
    """
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                try:
                    images.append((entry.name, entry.stat()))
                except FileNotFoundError as error:
                    raise UserError(
                        f"Expected an image in {entry.path}, but it is a link to nothing; mend it or remove it."
                    ) from error
    return sorted(images)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: A JPEG, PNG or TIFF file of 96x96 pixels in 8-bit RGB.

    Returns:
        Shape (96, 96, 3), values 0..255, as they are stored: a camera's note to turn the picture is not followed.

    Raises:
        UserError: If the file cannot be read, or is of another size or mode.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | io.BytesIO, where: str) -> NDArray[np.uint8]:
    """Decode one image, as `read_image`, from a file or from memory.

    Args:
        source: The image.
        where: What messages call it.

    Returns:
        Shape (96, 96, 3), values 0..255.

    Raises:
        UserError: If the image cannot be read, or is of another size or mode.
    """
    try:
        with Image.open(source) as image:
            if image.size != (PATCH_SIZE, PATCH_SIZE):
                raise UserError(
                    f"Expected patches of {PATCH_SIZE}x{PATCH_SIZE} pixels, but {where} has "
                    f"{image.width}x{image.height}; remove it or cut it to size."
                )
            if image.mode != "RGB":
                raise UserError(
                    f"Expected patches in 8-bit RGB, but {where} has mode '{image.mode}'; convert it or remove it."
                )
            if getattr(image, "is_animated", False):
                raise UserError(
                    f"Expected one image in {where}, but found {getattr(image, 'n_frames', 2)} (animation or pages); "
                    f"keep the one that is meant, or remove it."
                )
            return np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files; fuzzing has found six
        reason = "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(
            f"Expected an image in {where}, but it cannot be read ({reason}); replace it or remove it."
        ) from error


@dataclass(frozen=True)
class ImageFiles(Portion):
    """Image files that are not decoded yet.

    Args:
        root: The folder.
        names: The files, as paths below it.
    """

    root: Path
    names: Sequence[str]

    def decode(self) -> PatchArray:
        """Decode each file."""
        return np.stack([read_image(self.root / name) for name in self.names])


@dataclass(frozen=True, kw_only=True)
class ImageSplit(Split):
    """A split whose patches are image files, one each.

    Args:
        root: The folder.
        names: The file of each patch, as a path below it.
    """

    root: Path
    names: Sequence[str]

    def portions(self, count: int) -> Iterator[ImageFiles]:
        """Go through the files."""
        for start in range(0, len(self.names), count):
            yield ImageFiles(self.root, self.names[start : start + count])


def pixel_hash(patch: NDArray[np.uint8]) -> bytes:
    """Hash the pixels of a patch: identical pixels have the same hash, which is also the id that Kaggle gave the patch.

    Args:
        patch: Shape (96, 96, 3).

    Returns:
        The SHA-1 of its 27,648 bytes.
    """
    return hashlib.sha1(np.ascontiguousarray(patch).data, usedforsecurity=False).digest()

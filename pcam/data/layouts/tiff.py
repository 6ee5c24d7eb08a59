"""The tags of TIFF files: what each page is, how it is compressed, and which parts of it were never written."""

import io
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

CODECS: Final = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA",
    34934: "JPEG XR", 22610: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
"""Compressions of TIFF that Pillow and pyvips never decode, or only if they were built so, by their numbers.

Source: libtiff 4.7, tiff.h; Aperio's and Hamamatsu's files for 33003, 33005 and 22610.
"""

Tags = Mapping[int, Any]
"""The values of one page's tags by their numbers, as Pillow decodes them."""

UNCOMPRESSED: Final = 1
"""The number for no compression, which is also the default."""


def read_pages(source: Path | io.BytesIO) -> list[Tags]:
    """Read the tags of all pages of a TIFF, without its pixels.

    Args:
        source: A TIFF or BigTIFF file, or one in memory.

    Returns:
        The tags of each page. Pages that follow a damaged one are missing.

    Raises:
        Exception: Of many kinds, if the file is no TIFF or is damaged.
    """
    pages: list[Tags] = []
    seen = set()
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that are odd, such as a software's name of two parts
        stream.seek(0)
        start = stream.read(8)
        header = start + stream.read(8) if start[2] == 43 else start
        position = ImageFileDirectory_v2(header).next
        while position and position not in seen:
            seen.add(position)
            directory = ImageFileDirectory_v2(header)
            stream.seek(position)
            directory.load(stream)
            pages.append(directory)
            position = directory.next
    return pages


def missing_parts(tags: Tags) -> NDArray[np.bool_]:
    """Find the tiles or strips of a sparse TIFF that were never written.

    Args:
        tags: The tags of a page.

    Returns:
        For each tile or strip, in the order of the file, whether it is missing.
    """
    lists = [tags[tag] for tag in (Base.TileOffsets, Base.StripOffsets) if tag in tags]
    if tags.get(Base.Compression, UNCOMPRESSED) != UNCOMPRESSED:  # else some programs leave the lengths out
        lists += [tags[tag] for tag in (Base.TileByteCounts, Base.StripByteCounts) if tag in tags]
    return (np.array(lists) == 0).any(axis=0) if lists else np.zeros(0, dtype=bool)

"""How many micrometres a pixel of a scan is, by what its file says.

A resolution without a unit, of a screen or of a printer is none: no window may be cut at a scale that was guessed.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from xml.etree import ElementTree

from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pcam.data.layouts.tiff import Tags
from pcam.errors import UserError

FINEST: Final = 0.01
"""The fewest micrometres per pixel of a scan: no light microscope shows anything smaller than about 0.1 um."""

COARSEST: Final = 10.0
"""The most micrometres per pixel of a scan: a nucleus of a cell is not larger. A screen's 72 dpi are 353 um."""

TOLERANCE: Final = 0.02
"""Two statements of a file agree if they differ by no more than this part: files round to whole dots per inch."""

MICROMETRES: Final = {
    "pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0, "inch": 25400.0,
}  # fmt: skip
"""The length of each unit that OME-XML and ImageJ name. Others, such as "pixel", are no lengths."""

TIFF_UNITS: Final = {2: 25400.0, 3: 1e4}
"""TIFF's ResolutionUnit in micrometres: inch and centimetre. 1 is no unit.

Source: TIFF 6.0, section 8, ResolutionUnit; Exif has the same numbers.
"""

INCH: Final = 2
"""TIFF's ResolutionUnit if the tag is absent (the same source)."""


class Resolution(NamedTuple):
    """What one part of a file says of its resolution.

    Args:
        across: The width of a pixel in micrometres.
        down: The height of a pixel in micrometres.
        source: The part of the file that says so, as messages name it.
    """

    across: float
    down: float
    source: str


def require_resolution(path: Path, stated: Sequence[Resolution], objective_power: str | None = None) -> Resolution:
    """Take the resolution that a file says.

    Args:
        path: The file.
        stated: What its parts say.
        objective_power: The magnification of the objective, if the file says it. It is no resolution, as 40x is 0.23 um
            with one scanner and 0.25 um with another, but it helps who looks the resolution up.

    Returns:
        The first that is one of a scan, from 0.01 to 10 um per pixel.

    Raises:
        UserError: If there is none, or if two contradict each other.
    """
    of_scan = [each for each in stated if all(FINEST <= side <= COARSEST for side in (each.across, each.down))]
    if not of_scan:
        found = ", ".join(f"{each.across:.4g} um per pixel by its {each.source}" for each in stated)
        raise UserError(
            f"Expected {path} to say how many micrometres a pixel is, but found no resolution"
            f"{f' of a scan ({found})' if found else ''}"
            f"{f' (only its objective, {objective_power}x)' if objective_power else ''}; give it with --mpp."
        )
    first = of_scan[0]
    for other in of_scan[1:]:
        agrees = math.isclose(first.across, other.across, rel_tol=TOLERANCE)
        if not (agrees and math.isclose(first.down, other.down, rel_tol=TOLERANCE)):
            raise UserError(
                f"Expected {path} to say one resolution, but found {first.across:.4g} um per pixel by its "
                f"{first.source} and {other.across:.4g} by its {other.source}; give the right one with --mpp."
            )
    return first


def of_numbers(across: Any, down: Any, source: str) -> list[Resolution]:
    """Read micrometres per pixel that a file gives as such, in numbers or in text.

    Args:
        across: The width of a pixel.
        down: The height of a pixel.
        source: The part of the file that says so.

    Returns:
        The resolution; empty if one of them is no length.
    """
    return _resolution(_number(across), _number(down), source)


def of_png(path: Path) -> list[Resolution]:
    """Read the resolution of a PNG (chunk pHYs); an aspect ratio, which has no unit, is none."""
    try:
        with path.open("rb") as stream, PngImageFile(stream) as image:  # not Image.open, which refuses large images
            dots = image.info.get("dpi")
    except Exception:  # Pillow raises many kinds for what is odd, though pyvips may read the pixels all the same
        return []
    return [] if dots is None else _per_unit(dots[0], dots[1], TIFF_UNITS[INCH], "chunk pHYs")


def of_jpeg(path: Path) -> list[Resolution]:
    """Read the resolution of a JPEG: of its JFIF header, where an aspect ratio is none, and of its Exif tags."""
    try:
        with path.open("rb") as stream, JpegImageFile(stream) as image:  # not Image.open, as above
            unit = TIFF_UNITS.get(image.info.get("jfif_unit", 0) + 1)  # JFIF: 0 is no unit, 1 an inch, 2 a centimetre
            across, down = image.info.get("jfif_density", (0, 0))
            exif = dict(image.getexif())
    except Exception:  # as above
        return []
    stated = [] if unit is None else _per_unit(float(across), float(down), unit, "JFIF header")
    return stated + _of_tags(exif, "Exif tags")


def of_tiff(first: Tags, page: Tags) -> list[Resolution]:
    """Read the resolution of a page of a TIFF.

    It may be in the tags, in Aperio's or ImageJ's description of the page, or in the OME-XML of the first page.

    Args:
        first: The tags of the file's first page.
        page: The tags of the page itself.

    Returns:
        What each of these says.
    """
    description = _description(page)
    if description.startswith("ImageJ="):
        fields = dict(line.partition("=")[::2] for line in description.splitlines())
        unit = _micrometres(fields.get("unit", ""))
        unit_down = _micrometres(fields.get("yunit", fields.get("unit", "")))
        if unit is not None and unit_down is not None:
            # ImageJ gives the tags their unit here, which TIFF's ResolutionUnit has no number for.
            across, down = _number(page.get(Base.XResolution)), _number(page.get(Base.YResolution))
            return _resolution(_divide(unit, across), _divide(unit_down, down), "ImageJ unit")
    stated = []
    for value in re.findall(r"(?:^|\|)\s*MPP\s*=\s*([^|;\s]*)", description):
        stated += _resolution(_number(value), _number(value), "MPP of Aperio")
    return stated + _of_ome(_description(first), page) + _of_tags(page, "tag XResolution")


def _of_ome(description: str, page: Tags) -> list[Resolution]:
    """Read the PhysicalSizeX and PhysicalSizeY that OME-XML gives the images of a page's size."""
    if "<OME" not in description or "<!DOCTYPE" in description:  # a document type could define endless entities
        return []
    try:
        root = ElementTree.fromstring(description.rstrip("\0 \r\n"))  # noqa: S314  (it defines no entities)
    except ElementTree.ParseError:
        return []
    stated = []
    size = str(page.get(Base.ImageWidth)), str(page.get(Base.ImageLength))
    for image in root.iterfind(".//{*}Pixels"):
        if (image.get("SizeX"), image.get("SizeY")) == size:
            stated += _resolution(_physical_size(image, "X"), _physical_size(image, "Y"), "OME-XML")
    return stated


def _physical_size(image: ElementTree.Element, axis: Literal["X", "Y"]) -> float:
    unit = _micrometres(image.get(f"PhysicalSize{axis}Unit", "µm"))  # which is the unit if none is given
    return math.nan if unit is None else unit * _number(image.get(f"PhysicalSize{axis}"))


def _of_tags(tags: Tags, source: str) -> list[Resolution]:
    unit = TIFF_UNITS.get(tags.get(Base.ResolutionUnit, INCH))
    if unit is None:
        return []
    return _per_unit(_number(tags.get(Base.XResolution)), _number(tags.get(Base.YResolution)), unit, source)


def _per_unit(across: float, down: float, micrometres: float, source: str) -> list[Resolution]:
    """Turn pixels per unit into micrometres per pixel."""
    return _resolution(_divide(micrometres, across), _divide(micrometres, down), source)


def _resolution(across: float, down: float, source: str) -> list[Resolution]:
    """Keep what is a length: neither zero, nor infinite, nor no number."""
    usable = all(math.isfinite(side) and side > 0 for side in (across, down))
    return [Resolution(across, down, source)] if usable else []


def _divide(length: float, pixels: float) -> float:
    return length / pixels if pixels else 0.0


def _number(value: Any) -> float:
    """Read a number of a tag or a text; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan


def _micrometres(unit: str) -> float | None:
    """Find the length of a unit, whose "µ" ImageJ escapes and others write as the Greek letter."""
    return MICROMETRES.get(unit.strip().replace("\\u00B5", "µ").replace("\u03bc", "µ"))


def _description(tags: Tags) -> str:
    """Read a page's description, which OME-TIFF has in UTF-8 and Pillow decodes as Latin-1."""
    text = tags.get(Base.ImageDescription, "")
    if not isinstance(text, str):
        return ""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text

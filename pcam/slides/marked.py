"""Areas of a slide that a file marks: annotations of ASAP (XML), GeoJSON of QuPath, or a mask image."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from jaxtyping import Bool

from pcam.errors import UserError
from pcam.extras import import_extra
from pcam.slides.image_reader import find_image
from pcam.slides.slide import Slide

Mask = Bool[np.ndarray, "height width"]
"""Whether each pixel of 0.972 um is marked."""

ENDINGS: Final = (".xml", ".geojson", ".json", "_mask.tif", "_mask.tiff", ".tif", ".tiff", "_mask.png", ".png")
"""What the name of the file for a slide has after the slide's own, in lower case."""

TUMOUR_GROUPS: Final = frozenset({"_0", "_1", "tumor", "tumour", "metastases", "metastasis", "none"})
EXCLUDED_GROUPS: Final = frozenset({"_2", "exclusion", "ignore*", "normal"})
"""ASAP's groups and QuPath's classes of annotations, in lower case: what is tumour, and what is cut out of it.

What has no group is "none"; "ignore*" is a class that QuPath comes with.

Source: CAMELYON16's and CAMELYON17's README: _0 and _1 are tumour and _2 are normal parts within it; metastases and
normal.
"""


class Marked(Protocol):
    """Areas of a slide that a file marks."""

    def mask(self, left: int, top: int, width: int, height: int) -> Mask:
        """Find which pixels of a part of the slide are marked.

        Args:
            left: The first column, in pixels of 0.972 um.
            top: The first row.
            width: The number of columns.
            height: The number of rows.
        """


@dataclass(frozen=True)
class Polygon:
    """A polygon.

    Args:
        ring: Its corners in pixels of 0.972 um, x and y of each.
        holes: The corners of each of its holes.
        marks: Whether it marks what is inside it, or cuts it out of others.
    """

    ring: Sequence[tuple[float, float]]
    holes: Sequence[Sequence[tuple[float, float]]] = ()
    marks: bool = True


class MarkedPolygons:
    """Areas that polygons mark; those that cut out are applied last.

    Args:
        polygons: The polygons.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        self._polygons = sorted(polygons, key=lambda polygon: not polygon.marks)
        self._boxes = [np.array([np.min(one.ring, axis=0), np.max(one.ring, axis=0)]) for one in self._polygons]

    def mask(self, left: int, top: int, width: int, height: int) -> Mask:
        """Find which pixels are marked, by the place of their middle; see `Marked`."""
        marked = np.zeros((height, width), dtype=bool)
        for polygon, (first, last) in zip(self._polygons, self._boxes, strict=True):
            if last[0] < left or last[1] < top or first[0] > left + width or first[1] > top + height:
                continue
            marked[_inside([polygon.ring, *polygon.holes], left, top, width, height)] = polygon.marks
        return marked


def _inside(rings: Sequence[Sequence[tuple[float, float]]], left: int, top: int, width: int, height: int) -> Mask:
    """Find the pixels whose middle is inside an odd number of rings: to the right of an odd number of their sides."""
    sides = np.zeros((height, width + 1), dtype=np.int32)
    for ring in rings:
        corners = np.array(ring) - (left + 0.5, top + 0.5)
        ends = np.stack([corners, np.roll(corners, -1, axis=0)])
        upper, lower = np.take_along_axis(ends, np.argsort(ends[..., 1:], axis=0), axis=0)
        first, last = (np.clip(np.ceil(end[:, 1]), 0, height).astype(int) for end in (upper, lower))
        counts = last - first
        side = np.repeat(np.arange(len(corners)), counts)
        rows = first[side] + np.arange(len(side)) - np.repeat(np.cumsum(counts) - counts, counts)
        slopes = (lower - upper)[side]
        columns = upper[side, 0] + (rows - upper[side, 1]) * slopes[:, 0] / slopes[:, 1]
        np.add.at(sides, (rows, np.clip(np.ceil(columns), 0, width).astype(int)), 1)
    inside: Mask = sides.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


class MarkedImage:
    """Areas that an image marks: where it is not 0.

    Args:
        path: A TIFF or PNG of the shape of the slide, at any resolution.
        slide: The slide.

    Raises:
        UserError: If it cannot be read, or has another shape.
    """

    def __init__(self, path: Path, slide: Slide) -> None:
        self._file, self._slide = find_image(path), slide
        self._pixels = self._file.pixels()[0] != 0
        size = self._pixels.width, self._pixels.height
        self._factors = [full / own for full, own in zip(slide.reader.levels[0], size, strict=True)]
        if not math.isclose(*self._factors, rel_tol=0.02):
            across, down = slide.reader.levels[0]
            raise UserError(
                f"Expected a mask of the shape of its slide ({across}x{down} pixels) in {path}, but found {size[0]}x"
                f"{size[1]}; take the mask of {slide.path.name}."
            )

    def mask(self, left: int, top: int, width: int, height: int) -> Mask:
        """Find which pixels are marked; see `Marked`."""
        pyvips = import_extra("pyvips", "slides")
        spans = []
        for start, length, scale, offset, factor, limit in zip(
            (left, top), (width, height), self._slide.scale, self._slide.offset, self._factors,
            (self._pixels.width, self._pixels.height), strict=True,
        ):  # fmt: skip
            places = (offset + scale * (start + np.arange(length) + 0.5)) / factor
            spans.append(np.clip(places.astype(int), 0, limit - 1))
        columns, rows = spans
        area = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        try:
            content = pyvips.Region.new(self._pixels).fetch(*map(int, area))
        except pyvips.Error as error:
            raise self._file.unreadable(error) from error
        values = np.frombuffer(content, dtype=np.uint8).reshape(int(area[3]), int(area[2]))
        marked: Mask = values[np.ix_(rows - rows[0], columns - columns[0])] != 0
        return marked


def any_marked(mask: Mask, side: int) -> Mask:
    """Find the squares of a number of pixels a side of which any pixel is marked.

    Args:
        mask: Whether each pixel is marked; whole squares.
        side: The side of a square in pixels.
    """
    height, width = mask.shape
    squares = mask.reshape(height // side, side, width // side, side)
    found: Mask = np.asarray(squares.any(axis=(1, 3)))
    return found


def find_marked(place: Path, slide: Path) -> Path | None:
    """Find the file that marks areas of a slide.

    Args:
        place: The file itself, or a folder of files that are named as the slides are.
        slide: The file of the slide.

    Returns:
        The file; None if the folder has none for this slide.

    Raises:
        UserError: If there is neither file nor folder.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"Expected a file or folder with marked areas at {place}, but found nothing; correct the path.")
    names = {path.name.lower(): path for path in sorted(place.iterdir()) if path.is_file()}
    candidates = [names.get(slide.stem.lower() + ending) for ending in ENDINGS]
    return next((path for path in candidates if path is not None and not path.samefile(slide)), None)


def read_marked(path: Path, slide: Slide, *, tumour: bool = True) -> Marked:
    """Read the areas of a slide that a file marks.

    Args:
        path: Annotations of ASAP (.xml), in pixels of the finest version of the whole slide; GeoJSON (.geojson or
            .json), as QuPath writes it, in pixels from the corner of what QuPath shows; or a mask.
        slide: The slide.
        tumour: Whether the areas are to be tumour: then a group (of ASAP) or class (of QuPath) that is neither tumour
            nor cut out of it is refused. Otherwise areas of any group are marked, normal ones too, but for those of
            "_2", "exclusion" and "ignore*", which are cut out.

    Returns:
        The areas.

    Raises:
        UserError: If it cannot be read, has areas outside of the slide, or of an unknown group.
    """
    ending = path.suffix.lower()
    if ending not in (".xml", ".geojson", ".json"):
        return MarkedImage(path, slide)
    try:
        found = _asap(path, slide) if ending == ".xml" else _geojson(json.loads(path.read_bytes()), slide)
        polygons = [replace(polygon, marks=_marks(group, path, tumour)) for polygon, group in found]
    except UserError:
        raise
    except Exception as error:  # what is no XML or GeoJSON fails in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Expected {'annotations of ASAP' if ending == '.xml' else 'polygons in GeoJSON'} in {path}, but it cannot "
            f"be read as such ({type(error).__name__}: {reason:.200}); save it again."
        ) from error
    for polygon in polygons:
        x, y = np.array(polygon.ring).T
        if x.max() < 0 or y.max() < 0 or x.min() > slide.width or y.min() > slide.height:
            corner = tuple(round(value) for value in (x.min() * slide.scale[0], y.min() * slide.scale[1]))
            raise UserError(
                f"Expected areas within {slide.path.name}, but {path} has one that begins at {corner}, outside of it; "
                f"take the file of this slide, in pixels of its finest version."
            )
    return MarkedPolygons(polygons)


def _marks(group: str, path: Path, tumour: bool) -> bool:
    """Say whether areas of a group are marked, or cut out of others; refuse a group that may be either."""
    if tumour and group.lower() not in TUMOUR_GROUPS | EXCLUDED_GROUPS:
        raise UserError(
            f"Expected groups of annotations that are tumour ({', '.join(sorted(TUMOUR_GROUPS))}) or normal "
            f"({', '.join(sorted(EXCLUDED_GROUPS))}) in {path}, but found '{group}'; rename it in the program that "
            f"wrote the file, or leave it out."
        )
    return group.lower() not in (EXCLUDED_GROUPS if tumour else EXCLUDED_GROUPS - {"normal"})


def _asap(path: Path, slide: Slide) -> Iterator[tuple[Polygon, str]]:
    """Read the annotations of ASAP, with the group of each.

    A file that defines entities is refused: they could be endless.
    """
    root = import_extra("defusedxml.ElementTree", "slides").parse(path).getroot()
    annotations = root.findall(".//Annotation")
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"its first element is {root.tag}")
    for annotation in annotations:
        found = sorted(annotation.iter("Coordinate"), key=lambda one: float(one.get("Order", 0)))
        corners = [(float(one.attrib["X"]), float(one.attrib["Y"])) for one in found]
        yield Polygon(_ring(corners, slide, slide.offset)), annotation.get("PartOfGroup", "None")


def _geojson(found: Any, slide: Slide, group: str = "None") -> Iterator[tuple[Polygon, str]]:
    """Read polygons in GeoJSON, with the class that QuPath gave each."""
    if isinstance(found, list):
        for one in found:
            yield from _geojson(one, slide, group)
        return
    kind = found["type"]
    if kind == "FeatureCollection":
        yield from _geojson(found["features"], slide)
    elif kind == "Feature":
        given = (found.get("properties") or {}).get("classification") or "None"
        name = given if isinstance(given, str) else given.get("name") or ": ".join(given.get("names") or []) or "None"
        yield from _geojson(found["geometry"], slide, name)
    elif kind == "GeometryCollection":
        yield from _geojson(found["geometries"], slide, group)
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [found["coordinates"]] if kind == "Polygon" else found["coordinates"]:
            ring, *holes = (_ring([corner[:2] for corner in one], slide, (0, 0)) for one in polygon)
            yield Polygon(ring, holes), group
    else:
        raise ValueError(f"a {kind} has no area")


def _ring(corners: Sequence[Sequence[float]], slide: Slide, offset: tuple[int, int]) -> list[tuple[float, float]]:
    """Turn corners in pixels of the file's finest version into pixels of 0.972 um."""
    if len(corners) < 3:
        raise ValueError(f"a polygon has {len(corners)} corners")
    ring = [((x - offset[0]) / slide.scale[0], (y - offset[1]) / slide.scale[1]) for x, y in corners]
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is no finite number")
    return ring

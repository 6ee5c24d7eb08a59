"""The scores of a slide: their map, the regions above the threshold, and the numbers that sum it up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import find_objects, label
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from pcam.slides.image_reader import Pixels
from pcam.slides.outlines import Ring, outline
from pcam.slides.tissue import Squares

TOP: Final = 24
"""The number of squares with the highest scores that are shown, and whose mean score is reported."""

CLASSIFICATION: Final = {"name": "Tumor", "color": [200, 0, 0]}
"""QuPath's own class of tumour, and its colour there."""

ScoreMap = Float32[np.ndarray, "rows columns"]
"""The score of each square of 31.1 um, 0..1; NaN for background and for the border."""


@dataclass(frozen=True)
class Region:
    """Squares above the threshold that are connected by their sides.

    Args:
        row: The first row of the map that has some of it.
        column: The first column.
        squares: Which squares belong to it, from there on.
        scores: The scores of these squares.
        area: Its area in mm2.
        length: Its greatest diameter in mm.
    """

    row: int
    column: int
    squares: Squares
    scores: Float32[np.ndarray, " squares"]
    area: float
    length: float

    def rings(self) -> list[Ring]:
        """Its outline and those of its holes, in squares from the corner of the map."""
        return [[(column + self.column, row + self.row) for column, row in ring] for ring in outline(self.squares)]


@dataclass(frozen=True)
class SlideScores:
    """The scores of a slide. `score_slide` makes them.

    Args:
        slide: The file of the slide.
        map: The score of each square, shape (rows, columns); NaN for background, and for the border of one square,
            which is in the centre of no window.
        resolution: The width and height of a square in micrometres.
        offset: Where the first square begins, in pixels of the file's finest version (level 0): left, top. It is (0, 0)
            but for formats that say which part of the slide was scanned.
        square: The width and height of a square in pixels of level 0.
        threshold: The score above which a square is called tumour.
        overview: The slide, 8 times coarser than what was scored, shape (height, width, 3).
        seconds: How long scoring took.
    """

    slide: Path
    map: ScoreMap = field(repr=False)
    resolution: tuple[float, float]
    offset: tuple[int, int]
    square: tuple[float, float]
    threshold: float
    overview: Pixels = field(repr=False)
    seconds: float

    @property
    def windows(self) -> int:
        """The number of windows that were scored: the squares that are tissue."""
        return int(np.count_nonzero(~np.isnan(self.map)))

    @cached_property
    def regions(self) -> list[Region]:
        """The regions above the threshold, the largest first."""
        numbers, _ = label(self.map > self.threshold)
        found = []
        for number, (rows, columns) in enumerate(find_objects(numbers), 1):
            squares = numbers[rows, columns] == number
            scores = self.map[rows, columns][squares]
            area = len(scores) * self.resolution[0] * self.resolution[1] / 1e6
            found.append(Region(rows.start, columns.start, squares, scores, area, self._length(squares)))
        return sorted(found, key=lambda region: -region.area)

    def _length(self, squares: Squares) -> float:
        """The greatest distance in mm between two corners of squares of a region."""
        corners = np.argwhere(squares)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        places = corners.reshape(-1, 2)[:, ::-1] * np.array(self.resolution) / 1000
        return float(pdist(places[ConvexHull(places).vertices]).max())

    def top(self, count: int = TOP) -> list[tuple[int, int]]:
        """The rows and columns of the squares with the highest scores, the highest first."""
        order = np.argsort(-np.nan_to_num(self.map, nan=-1), axis=None, kind="stable")[: min(count, self.windows)]
        return [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, self.map.shape), strict=True)]

    def summary(self) -> dict[str, float | int | None]:
        """The numbers of a slide, as `slides.csv` has them; None where nothing is tissue."""
        of_square = self.resolution[0] * self.resolution[1] / 1e6
        highest = [float(self.map[place]) for place in self.top()]
        above = int(np.count_nonzero(self.map > self.threshold))
        return {
            "maximum": highest[0] if highest else None,
            f"mean_of_top_{TOP}": float(np.mean(highest)) if highest else None,
            "threshold": self.threshold,
            "area_above_threshold_mm2": above * of_square,
            "tissue_area_mm2": self.windows * of_square,
            "regions": len(self.regions),
            "largest_region_length_mm": max((region.length for region in self.regions), default=0.0),
            "windows": self.windows,
            "seconds": round(self.seconds, 1),
        }

    def to_geojson(self, what: Literal["squares", "regions"] = "regions") -> dict[str, Any]:
        """Write what is above the threshold as GeoJSON that QuPath opens.

        Args:
            what: "squares": each as a detection with its score as a measurement, which QuPath shows as a measurement
                map; or "regions": each as an annotation with its area, length, mean and maximum score.

        Returns:
            A feature collection. Its coordinates are pixels of level 0, from the corner of what QuPath shows: of the
            part that was scanned, if the file says which that is.
        """
        if what == "squares":
            places = np.argwhere(self.map > self.threshold).tolist()
            features = [
                self._feature("detection", [_square(row, column)], {"Score": float(self.map[row, column])})
                for row, column in places
            ]
        else:
            features = [
                self._feature(
                    "annotation",
                    region.rings(),
                    {
                        "Area mm^2": region.area,
                        "Length mm": region.length,
                        "Mean score": float(region.scores.mean()),
                        "Maximum score": float(region.scores.max()),
                    },
                )
                for region in self.regions
            ]
        return {"type": "FeatureCollection", "features": features}

    def _feature(self, kind: str, rings: Sequence[Ring], measurements: dict[str, float]) -> dict[str, Any]:
        across, down = self.square
        coordinates = [[[round(column * across, 2), round(row * down, 2)] for column, row in ring] for ring in rings]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": coordinates},
            "properties": {
                "objectType": kind,
                "classification": CLASSIFICATION,
                "measurements": {name: round(value, 6) for name, value in measurements.items()},
            },
        }


def _square(row: int, column: int) -> Ring:
    return [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1), (column, row)]

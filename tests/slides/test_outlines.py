"""Outlines of regions, against shapely."""

import numpy as np
import pytest
import shapely
from scipy.ndimage import label

from pcam.slides.outlines import outline


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_an_outline_is_the_union_of_its_squares(share: float) -> None:
    squares = np.random.default_rng(0).random((30, 40)) < share
    numbers, count = label(squares)
    for number in range(1, count + 1):
        region = numbers == number
        ring, *holes = outline(region)
        polygon = shapely.Polygon(ring, holes)
        boxes = [shapely.box(column, row, column + 1, row + 1) for row, column in np.argwhere(region)]
        assert polygon.is_valid
        assert polygon.equals(shapely.union_all(boxes))


def test_a_hole_that_touches_the_ring_at_a_corner_is_a_ring_of_its_own() -> None:
    region = np.ones((3, 3), dtype=bool)
    region[0, 0] = region[1, 1] = False
    ring, hole = outline(region)
    assert ring[0] == ring[-1]
    assert sorted(hole[:-1]) == [(1, 1), (1, 2), (2, 1), (2, 2)]

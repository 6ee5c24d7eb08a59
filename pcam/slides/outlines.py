"""The outlines of connected squares, as polygons with holes."""

from collections import defaultdict

import numpy as np

from pcam.slides.tissue import Squares

Ring = list[tuple[float, float]]
"""Corners of a polygon, column and row of each; the last is the first again."""


def outline(region: Squares) -> list[Ring]:
    """Trace the outline of squares that are connected by their sides.

    Args:
        region: Which squares belong to it.

    Returns:
        The ring around it, then one around each hole. Holes may touch the ring at a corner, as polygons may.
    """
    ends = _edges(region)
    rings = []
    while ends:
        start = next(iter(ends))
        ring, point, heading = [start], start, None
        while True:
            # Where two squares meet at a corner only, going on with the other square makes the hole between them a ring
            # of its own. That is to turn left, as the squares are on the right.
            leaving = ends[point]
            steps = {(after[0] - point[0], after[1] - point[1]): after for after in leaving}
            left = (heading[1], -heading[0]) if heading else next(iter(steps))
            step = left if left in steps else next(iter(steps))
            after = steps[step]
            leaving.remove(after)
            if not leaving:
                del ends[point]
            if step == heading:
                ring.pop()
            ring.append(after)
            point, heading = after, step
            if point == start:
                break
        rings.append([(float(column), float(row)) for column, row in ring])
    return sorted(rings, key=_area, reverse=True)


def _edges(region: Squares) -> defaultdict[tuple[int, int], list[tuple[int, int]]]:
    """List the sides between squares of the region and others, by their first corner; the region is on their right."""
    padded = np.pad(region, 1)
    ends = defaultdict(list)
    sides = [((-1, 0), (0, 0), (0, 1)), ((0, 1), (0, 1), (1, 1)), ((1, 0), (1, 1), (1, 0)), ((0, -1), (1, 0), (0, 0))]
    for (down, across), first, last in sides:
        neighbour = padded[1 + down : len(padded) - 1 + down, 1 + across : padded.shape[1] - 1 + across]
        for row, column in np.argwhere(region & ~neighbour).tolist():
            ends[column + first[1], row + first[0]].append((column + last[1], row + last[0]))
    return ends


def _area(ring: Ring) -> float:
    """The area of a ring, negative if it is around a hole."""
    columns, rows = np.array(ring).T
    return float((columns[:-1] * rows[1:] - columns[1:] * rows[:-1]).sum() / 2)

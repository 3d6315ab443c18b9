"""Where the labels of points go, so that they cover neither each other nor the points."""

import math
from collections.abc import Iterator, Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

GAP = 5.0  # between a point's centre and its nearest label, in the unit of the points
ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 67, 293, 113, 247)  # degrees: beside the point first
RINGS = 24


def place(points: Sequence[Point], widths: Sequence[float], height: float, bounds: Box) -> list[Point]:
    """Centres of the labels, one a point, each at the free place nearest to its point.

    Greedy: a label never moves once placed. Where no place is free, the one that covers least is taken.

    Args:
        points: centres of the markers.
        widths, height: size of each label.
        bounds: labels stay inside.
    """
    taken = [around(point, 2 * GAP, 2 * GAP) for point in points]
    centres = []
    for point, width in zip(points, widths, strict=True):
        best, least = point, math.inf
        for candidate in _candidates(point, width, height):
            centre = _inside(candidate, width, height, bounds)
            box = around(centre, width, height)
            cost = sum(overlap(box, other) for other in taken)
            if cost < least:
                best, least = centre, cost
            if cost == 0:
                break
        centres.append(best)
        taken.append(around(best, width, height))
    return centres


def around(centre: Point, width: float, height: float) -> Box:
    x, y = centre
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _candidates(point: Point, width: float, height: float) -> Iterator[Point]:
    """Centres on ellipses around the point, such that the label's edge is about one, two, ... steps away."""
    for ring in range(RINGS):
        gap = GAP + 1 + ring * height / 2
        for angle in ANGLES:
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            yield point[0] + cos * (width / 2 + gap), point[1] + sin * (height / 2 + gap)


def _inside(centre: Point, width: float, height: float, bounds: Box) -> Point:
    """The centre, moved no more than it takes for the label to be within the bounds."""
    left, bottom, right, top = bounds
    x, y = centre
    return max(left + width / 2, min(x, right - width / 2)), max(bottom + height / 2, min(y, top - height / 2))

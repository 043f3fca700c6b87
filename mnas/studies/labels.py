"""Where names stand beside points, so that they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray


def spread(places: list[float], gap: float) -> list[float]:
    """The places in their order, moved as little as it takes to lie this far apart: what is too
    close becomes a group with equal distances around its own mean."""
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _low(groups[-1], places, gap) - gap < _high(
            groups[-2], places, gap
        ):
            last = groups.pop()
            groups[-1] += last
    found = list(places)
    for group in groups:
        low = _low(group, places, gap)
        for number, i in enumerate(group):
            found[i] = low + number * gap
    return found


def _low(group: list[int], places: list[float], gap: float) -> float:
    return sum(places[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _high(group: list[int], places: list[float], gap: float) -> float:
    return _low(group, places, gap) + gap * (len(group) - 1)


def beside_diagonal(x: list[float], y: list[float], gap: float) -> list[tuple[float, float, bool]]:
    """Of points around x = y: where the name of each stands, and whether to the left of its point.
    Points above the diagonal or at its upper end have theirs to the left, lower ones to the right,
    where no other points are."""
    middle = (min(*x, *y) + max(*x, *y)) / 2  # of the axes, which are alike
    found = {}
    for left in (True, False):
        side = [i for i in range(len(x)) if (x[i] > middle or y[i] > x[i]) is left]
        for i, place in zip(side, spread([y[i] for i in side], gap), strict=True):
            found[i] = (x[i], place, left)
    return [found[i] for i in range(len(x))]


Box = tuple[float, float, float, float]  # left, bottom, right, top
DIRECTIONS = [
    angle * math.pi / 8 for angle in (0, 8, 1, -1, 7, 9, 2, -2, 6, 10, 3, -3, 5, 11, 4, 12)
]
RINGS = 24  # distances
HALF = np.array([-0.5, -0.5, 0.5, 0.5])  # a point as a box


def beside_points(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
    gap: float,
) -> list[Box]:
    """Of names of these sizes (width, height): the boxes where they stand beside their points. Each
    in turn takes the nearest place, in one of 16 directions and so many distances, where neither it
    nor the line from its point to it lies over what is taken, over another name or its line, or out
    of bounds; where there is none, the place where it lies over least: over marks rather than over
    names."""
    found, lines = np.empty((0, 4)), np.empty((0, 4))
    marks = np.array([*taken], float).reshape(-1, 4)
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best, least = None, math.inf
        for ring, direction in product(range(RINGS), DIRECTIONS):
            away = gap * (1 + ring)
            middle = (
                x + math.cos(direction) * (away + width / 2),
                y + math.sin(direction) * (away + height / 2),
            )
            box = (
                *(middle[0] - width / 2, middle[1] - height / 2),
                *(middle[0] + width / 2, middle[1] + height / 2),
            )
            line = to_box((x, y), box, gap)
            outside = width * height - _common(np.array(box), np.array([bounds])).sum()
            names = _over([box], np.vstack([found, lines]), gap / 3) + _over(line, found, 0.5)
            over = _over([box], marks, gap / 3) + 99 * (names + outside)
            if over < least - 1e-6:
                best, least = (box, line), over
            if over < 1e-6:
                break
        assert best is not None
        found, lines = np.vstack([found, best[0]]), np.vstack([lines, *best[1]])
    return [tuple(box) for box in found.tolist()]


def to_box(point: tuple[float, float], box: Box, gap: float) -> list[Box]:
    """The straight line from a point to the nearest place of a box, as small boxes, but for its
    beginning, where the point's own mark is; none where the box is near."""
    x, y = point
    end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
    length = math.hypot(end[0] - x, end[1] - y)
    if length < 2.5 * gap:
        return []
    shares = np.arange(1.5 * gap, length - gap / 2, gap / 2) / length
    return [(*at, *at) for at in ((x + s * (end[0] - x), y + s * (end[1] - y)) for s in shares)]


def _over(boxes: Sequence[Box], others: NDArray[np.float64], margin: float) -> float:
    """The area that boxes, made larger by a margin, have in common with others; of others that are
    points, their number."""
    if not len(others) or not boxes:
        return 0.0
    wide = np.array(boxes) + np.array([-margin, -margin, margin, margin])
    return float(sum(_common(box, others + HALF).sum() for box in wide))


def _common(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return sides.clip(0).prod(1)

"""Where names stand beside points, so that they can be read."""

from __future__ import annotations


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

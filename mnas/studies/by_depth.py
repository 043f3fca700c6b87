"""tau among networks of one depth: where an order is good, and where it could be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnas.studies import ranking, statistics
from mnas.studies.rankings import Judged, Recipe, Row

SCORE = "partly smoothed loss"
LEAST = 10  # networks


def by_depth(found: Sequence[Recipe], of: Judged) -> list[Row]:
    """A row for each depth of which there are enough networks, and each recipe: tau among these,
    mean over seeds with Student's interval, beside that of one training of each (ceiling). None for
    a space whose networks have one depth."""
    strata, rows = of.networks.strata, []
    depths, counts = np.unique(strata, return_counts=True)
    if len(depths) == 1:
        return []
    for depth in depths[counts >= LEAST].tolist():
        networks, numbers = of.networks[strata == depth], of.numbers[strata == depth]
        own = {"depth": depth, "networks": len(numbers), "ceiling": networks.ceiling().tau}
        for recipe in found:
            taus = [ranking.tau(one.scores[SCORE][numbers], networks.truth) for one in recipe.seeds]
            interval = list(statistics.interval(np.array(taus)))
            rows.append({**own, "recipe": recipe.name, "score": SCORE, "tau": interval})
    return rows

"""Bias against variance: what averaging over seeds removes, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mnas.studies import ranking
from mnas.studies.rankings import Judged, Recipe, Row
from mnas.studies.together import mean_of
from mnas.studies.uncertainty import SCORES

NUMBERS = ("one", "alike", "all", "between")


def by_seed(found: Sequence[Recipe], of: Judged) -> list[Row]:
    """A row for each recipe of two seeds or more, score and number: `one`, of a supernet, mean over
    seeds; `all`, of the mean of all seeds' scores, each on one scale; `between`, of a supernet's
    scores with another's, mean over pairs; `alike`, of a supernet against the mean of all trainings
    but one, as the ceiling is judged, mean over which. What keeps `all` from the ceiling is bias
    that seeds share; what keeps `between` from 1 is variance, of scoring too."""
    rows, truth, strata = [], of.networks.truth, of.networks.strata
    runs = of.networks.runs
    truths = [np.delete(runs, run, 1).mean(1) for run in range(runs.shape[1])]
    numbers = {"tau": ranking.tau, "within": lambda a, b: ranking.tau_within(a, b, strata)}
    for recipe in found:
        if len(recipe.seeds) < 2:
            continue
        for score in SCORES:
            scores = [one.scores[score] for one in recipe.seeds]
            own, whole = [s[of.numbers] for s in scores], mean_of(scores)[of.numbers]
            pairs = list(combinations(own, 2))
            for metric, number in numbers.items():
                rows.append(
                    {
                        **{"recipe": recipe.name, "score": score, "metric": metric},
                        "seeds": [one.seed for one in recipe.seeds],
                        "one": float(np.mean([number(s, truth) for s in own])),
                        "all": number(whole, truth),
                        "alike": float(np.mean([number(s, two) for s in own for two in truths])),
                        "between": float(np.mean([number(*pair) for pair in pairs])),
                    }
                )
    return rows

"""How far supernets over- or underrate a candidate at a position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnas.studies import ranking, statistics
from mnas.studies.rankings import Array, Judged, Recipe, Row


def overrated(found: Sequence[Recipe], of: Judged, score: str = "loss") -> list[Row]:
    """By position and candidate, how far supernets of a recipe overrate (above 0) or underrate it.

    Score and truth (as the logarithm of the error) are each brought to mean 0 and deviation 1 over
    the judged networks; the effects of candidates are least squares on one-hot candidates, with
    mean 0 at each position. overrated: the supernet's effect minus the truth's, mean over seeds
    with Student's interval."""
    paths = of.table.distinct.paths[of.numbers]
    truth = _of_candidates(paths, -np.log(100 - of.networks.truth))
    rows = []
    for recipe in found:
        own = np.array(
            [_of_candidates(paths, one.scores[score][of.numbers]) for one in recipe.seeds]
        )
        for position, candidate in np.ndindex(truth.shape):
            of_seeds = own[:, position, candidate]
            gap = statistics.interval(of_seeds - truth[position, candidate])
            rows.append(
                {
                    **{"recipe": recipe.name, "position": position, "candidate": candidate},
                    "truth": float(truth[position, candidate]),
                    "supernet": float(of_seeds.mean()),
                    "overrated": list(gap),
                }
            )
    return rows


def _of_candidates(paths: NDArray[np.int64], values: Array) -> Array:
    """(positions, candidates)."""
    values = (values - values.mean()) / (values.std() or 1.0)
    weights, *_ = np.linalg.lstsq(ranking.one_hot(paths), values, rcond=None)
    effects = np.zeros((paths.shape[1], paths.max() + 1))
    effects[:, 1:] = weights[1:].reshape(paths.shape[1], -1)
    return effects - effects.mean(1, keepdims=True)

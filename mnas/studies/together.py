"""Estimators made of estimators: several supernets as one, as what one resolution or length
overrates another may not; and one with what a network's description says for nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnas.studies import baselines
from mnas.studies.compared import LOST
from mnas.studies.rankings import Ranking, Recipe

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Together(Ranking):
    """Rankings of one seed. training and scoring: the sums of theirs, training once of a supernet
    that several have scored; rows: none of its own."""

    parts: list[Ranking] = field(default_factory=list)

    @property
    def machines(self) -> list[str]:
        return [machine for one in self.parts for machine in one.machines]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return {"together": [one.recipe for one in self.parts]}

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of distinct networks (distinct,) by name, those that all parts have: the mean over parts,
        each brought to mean 0 and deviation 1 over the networks that all of them have scored; NaN
        for others. No accuracy is used."""
        names = [name for name in self.parts[0].scores if all(name in p.scores for p in self.parts)]
        return {name: mean_of([one.scores[name] for one in self.parts]) for name in names}

    @cached_property
    def predicted(self) -> Array:
        """The mean of the parts' smoothed logarithms of the loss, each on one scale (distinct,)."""
        return mean_of([one.predicted for one in self.parts])


@dataclass(frozen=True)
class WithPrior(Ranking):
    """A ranking whose scores have some of what is free added. prior: weights by name, of
    `baselines`. correct: none, as scores are no longer of images alone."""

    of: Ranking | None = None
    prior: Mapping[str, float] = field(default_factory=dict)

    @property
    def machines(self) -> list[str]:
        return self._of.machines

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return {**self._of.recipe, "prior": baselines.said(self.prior)}

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of distinct networks (distinct,) by name: score and prior are each brought to mean 0 and
        deviation 1 over the networks that are scored. No accuracy is used."""
        return {name: self._added(values, 1) for name, values in self._of.scores.items()}

    @cached_property
    def predicted(self) -> Array:
        """Smoothed logarithms of the loss, brought to one scale, less the prior (distinct,)."""
        return self._added(self._of.predicted, -1)

    @property
    def _of(self) -> Ranking:
        assert self.of is not None  # dataclasses want a default behind those of Ranking
        return self.of

    def _added(self, values: Array, sign: float) -> Array:
        scored = ~np.isnan(values)
        free = baselines.weighted(self._of.table.distinct, self.prior, scored)
        return mean_of([values]) + sign * free


def with_prior(recipe: Recipe, prior: Mapping[str, float]) -> Recipe:
    """The recipe once more, each score with the weighted sum of what is free added.

    Raises ValueError for what the space does not have."""
    baselines.check(recipe.seeds[0].table.distinct, prior)
    seeds: list[Ranking] = [
        WithPrior(one.path, one.settings, one.training, one.rows, one.scoring, None, one, prior)
        for one in recipe.seeds
    ]
    return Recipe(f"{recipe.name}, prior {baselines.said(prior)}", seeds)


def as_one(recipes: Sequence[Recipe], paths: Collection[Path]) -> Recipe:
    """The mean of the scores of recipes in some folders, for each seed that all of these have.

    Raises ValueError for folders of fewer than two recipes, and for no seed in common."""
    parts = {
        recipe.name: {one.seed: one for one in recipe.seeds if one.path in paths}
        for recipe in recipes
    }
    parts = {name: seeds for name, seeds in parts.items() if seeds}
    if len(parts) < 2:
        raise ValueError(
            f"what is to be taken together is of {len(parts)} recipe of a supernet; expected two "
            "recipes at least"
        )
    shared = sorted(set.intersection(*map(set, parts.values())))
    if not shared:
        raise ValueError(f"{'; '.join(parts)} have no seed in common; expected one at least")
    of_seeds = [_of_seed([seeds[seed] for seeds in parts.values()]) for seed in shared]
    return Recipe(_name(list(parts)), of_seeds)


def _of_seed(parts: list[Ranking]) -> Together:
    first = parts[0]
    trained = {one.settings.get("checkpoint_sha256", one.path): one.training for one in parts}
    macs = [training["macs"] for training in trained.values()]
    training = {
        "config": {"seed": first.seed},
        "macs": None if None in macs else sum(macs),
        "seconds": sum(training["seconds"] for training in trained.values()),
    }
    scoring = {key: sum(one.scoring[key] for one in parts) for key in first.scoring}
    settings = {"space": first.settings["space"], "resolution": None}
    return Together(first.path, settings, training, [], scoring, None, parts)


def _name(names: Sequence[str]) -> str:
    """What they share once, where they differ in one thing."""
    pieces = [name.split(", ") for name in names]
    if len({len(one) for one in pieces}) == 1:
        columns = [list(dict.fromkeys(column)) for column in zip(*pieces, strict=True)]
        if sum(len(column) > 1 for column in columns) == 1:
            return ", ".join(" + ".join(column) for column in columns)
    return " + ".join(names)


def mean_of(values: Sequence[Array]) -> Array:
    """Of parts, each brought to one scale; a network whose loss is not finite in one stays last."""
    stacked = np.array(values)  # (parts, distinct)
    of = stacked[:, ~np.isnan(stacked).any(0)]
    if not of.shape[1]:
        return np.full(stacked.shape[1], np.nan)
    of = np.where(np.abs(of) < LOST / 10, of, np.nan)  # networks are means of up to four paths
    deviation = np.nanstd(of, 1, keepdims=True)
    # One that ranks nothing, whose differences are those of rounding.
    deviation[deviation <= 1e-9 * np.nanmax(np.abs(of), 1, keepdims=True, initial=0)] = 1
    return ((stacked - np.nanmean(of, 1, keepdims=True)) / deviation).mean(0)

"""Rankings of several supernets beside each other: recipes over seeds, at their cost, beside what
is free and what trained networks give. Everything is made from rows that `mnas rank` has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnas import reference
from mnas.reference import Table
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import baselines, compared, compute, ranking, recipe_names, scored, statistics
from mnas.studies.ranking import Networks, Quality

if TYPE_CHECKING:
    from mnas.space.search_space import SearchSpace

Array = NDArray[np.float64]
Row = dict[str, Any]
METRICS = Quality._fields
TESTED = ("within", "equal", "tau")  # by Welch's interval
NOT_OF_RECIPE = (
    *("seed", "threads", "limit_test", "keep_memory", "keep_checkpoints"),
    *("validate_every", "bn"),  # of the run's own validation
)
SCORED = ("images", "bn_images", "average")  # settings of mnas rank that are of a recipe
LABELS = (20, 50, 100, 200)  # trained networks beside a supernet
DRAWS = 100  # of these networks
PRIOR = 10.0  # penalty where a supernet says what to expect: best of 0.1 to 30 on the choosing half


@cache
def _space(name: str) -> SearchSpace:
    """Made once: it takes seconds, and paths are the same at any resolution."""
    from mnas import spaces

    return spaces.get(name)


@dataclass(frozen=True)
class Ranking:
    """A folder of `mnas rank`. training: what `compute.of_run` gave. rows: one a path.
    correct (paths, images): whether it was right, where that was kept."""

    path: Path
    settings: dict[str, Any]
    training: dict[str, Any]
    rows: list[Row]
    scoring: dict[str, float]
    correct: scored.Bits | None = None

    @property
    def seed(self) -> int:
        return self.training["config"]["seed"]

    @property
    def machines(self) -> list[str]:
        """What seconds of training are of; other work may have run there, too."""
        environment = self.training.get("environment") or {}
        cores = f"{environment.get('threads', '?')} of {environment.get('cores', '?')} cores"
        return [f"{environment.get('processor', 'unknown')}, {cores}"]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What must be equal for two runs to differ in their seed alone."""
        config, settings = self.training["config"], self.settings
        own = {key: value for key, value in config.items() if key not in NOT_OF_RECIPE}
        scores = {f"scored {key}": settings.get(key) for key in SCORED}
        return {key: value for key, value in {**own, **scores}.items() if value is not None}

    @cached_property
    def table(self) -> Table:
        return reference.get(self.settings["space"])

    @cached_property
    def paths(self) -> list[tuple[int, ...]]:
        parse = _space(self.settings["space"]).parse
        return [parse(row["arch"]) for row in self.rows]

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of distinct networks (distinct,) by name; NaN where there is none."""
        of_paths = compared.of_paths(self.table, self.rows, self.paths)
        return {name: self.table.averaged(values) for name, values in of_paths.items()}

    @cached_property
    def predicted(self) -> Array:
        """The logarithm of the loss of every distinct network, scored or not, by the linear model
        that smooths it (distinct,): the mean over all paths."""
        return self.table.averaged(compared.smoothed(self.table, self.rows, self.paths))


def read(path: Path) -> Ranking:
    """Raises FolderError for what is no folder of `mnas rank`, is damaged, or is of a space without
    published accuracies."""
    folder = Folder(path, scored.FORMAT)

    def of(name: str, kind: type) -> dict[str, Any]:
        found = strict_json.parse(folder.read(name), dict, path / name)
        strict_json.checked(found, kind, path / name)
        return found

    def lines(name: str, kind: type) -> list[Row]:
        return strict_json.parse_lines(folder.read(name), kind, path / name)

    settings = of("settings.json", scored.Settings)
    if settings["space"] not in reference.TABLES:
        raise FolderError(
            f"{path} is a ranking of space {settings['space']}; expected one with published "
            f"accuracies: {', '.join(reference.TABLES)}"
        )
    if "supernet.json" not in folder.names():
        raise FolderError(
            f"{path} has no supernet.json, which says how its supernet was trained; repeat the "
            "command of mnas rank that made it, which scores nothing anew"
        )
    rows, chunks = lines("rows.jsonl", scored.Row), lines("chunks.jsonl", scored.Chunk)
    if len(rows) < settings["networks"]:
        raise FolderError(
            f"{path} has {len(rows)} of {settings['networks']} paths; repeat its command, which "
            "goes on"
        )
    correct = scored.read_correct(folder, len(rows))
    training = of("supernet.json", compute.Training)
    return Ranking(path, settings, training, rows, scored.summed(chunks), correct)


@dataclass(frozen=True)
class Recipe:
    """Rankings that differ in their seed alone."""

    name: str
    seeds: list[Ranking]

    def cost(self, table: Table) -> Row:
        """Means over seeds. In full trainings: training, scoring, total; None where unknown."""
        full, of = compute.full_training(table), {}
        macs = [one.training["macs"] for one in self.seeds]
        of["training"] = None if None in macs else float(np.mean(macs)) / full
        of["scoring"] = float(np.mean([one.scoring["macs"] for one in self.seeds])) / full
        of["total"] = None if of["training"] is None else of["training"] + of["scoring"]
        of["machines"] = sorted({machine for one in self.seeds for machine in one.machines})
        of["training_seconds"] = float(np.mean([one.training["seconds"] for one in self.seeds]))
        of["scoring_seconds"] = float(np.mean([one.scoring["seconds"] for one in self.seeds]))
        return of


def recipes(rankings: Sequence[Ranking]) -> list[Recipe]:
    """Grouped, in the order in which they come first; names say in what they differ.

    Raises ValueError for rankings of different spaces, and for two of one seed of a recipe."""
    if len({one.settings["space"] for one in rankings}) > 1:
        raise ValueError(
            "rankings are of spaces "
            f"{', '.join(sorted({one.settings['space'] for one in rankings}))}; expected one"
        )
    groups: list[list[Ranking]] = []
    for one in rankings:
        group = next((g for g in groups if g[0].recipe == one.recipe), None)
        if group is None:
            groups.append([one])
            continue
        twin = next((other for other in group if other.seed == one.seed), None)
        if twin is not None:
            raise ValueError(
                f"{twin.path} and {one.path} are of one recipe and seed {one.seed}; leave one out"
            )
        group.append(one)
    names = recipe_names.names([group[0].recipe for group in groups])
    return [
        Recipe(name, sorted(group, key=lambda one: one.seed))
        for name, group in zip(names, groups, strict=True)
    ]


@dataclass(frozen=True)
class Judged:
    """The networks of a half that every ranking has scored, and what is known of them without one.

    numbers: which distinct networks; fitted: those of the other half, for linear models. curves: of
    the linear model by the number of trained networks, of tau and of tau within depth."""

    table: Table
    half: str
    numbers: NDArray[np.int64]
    fitted: NDArray[np.int64]
    curves: dict[str, ranking.Exchange] = field(default_factory=dict)

    @cached_property
    def everything(self) -> Networks:
        distinct = self.table.distinct
        return Networks(distinct.accuracies, baselines.depth(distinct), distinct.macs)

    @cached_property
    def networks(self) -> Networks:
        return self.everything[self.numbers]


def judged(
    rankings: Sequence[Ranking], half: str, draws: int = 200, without: Sequence[Ranking] = ()
) -> Judged:
    """without: rankings whose networks are left out, as they have been looked at.

    Raises ValueError for too few networks in common, and for another space to leave out."""
    table = rankings[0].table
    for one in without:
        if (space := one.settings["space"]) != table.name:
            raise ValueError(f"{one.path} is of {space}; expected {table.name}")
    known = _scored(rankings).all(0)
    if without:
        known &= ~_scored(without).any(0)
    numbers, fitted = compared.networks_of(half, len(table.distinct), known)
    return judged_on(table, half, numbers, fitted, draws)


def _scored(rankings: Sequence[Ranking]) -> NDArray[np.bool_]:
    """By each score of each (scores, distinct)."""
    return ~np.isnan(np.array([values for one in rankings for values in one.scores.values()]))


def judged_on(
    table: Table,
    half: str,
    numbers: NDArray[np.int64],
    fitted: NDArray[np.int64],
    draws: int = 200,
) -> Judged:
    """Distinct networks by number, with the curves of linear models fitted to others."""
    found = Judged(table, half, numbers, fitted)
    every = found.everything
    for metric in ("tau", "within"):
        found.curves[metric] = ranking.exchange(
            table.distinct.paths,
            every.runs,
            every.strata,
            fitted,
            numbers,
            within=metric == "within",
            draws=draws,
        )
    return found


def free(of: Judged, prior: Mapping[str, float] | None = None) -> list[Row]:
    """The ceiling, and what needs no training, weighted too. tau_range, within_range: of
    the ceiling, the middle 95 % over networks drawn anew."""
    ceiling = {"score": "one training (ceiling)", **of.networks.ceiling()._asdict()}
    random, drawn = np.random.default_rng(ranking.HALVES_SEED), []
    for _ in range(DRAWS):
        some = random.integers(len(of.numbers), size=len(of.numbers))
        drawn.append(of.networks[some].ceiling())
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    for metric in ("tau", "within"):
        ceiling[f"{metric}_range"] = ends[:, METRICS.index(metric)].tolist()
    rows = [ceiling]
    scores = baselines.baselines(of.table.distinct)
    if prior:
        scores[f"prior {baselines.said(prior)}"] = baselines.weighted(
            of.table.distinct, prior, of.numbers
        )
    for name, values in scores.items():
        rows.append({"score": name, **of.networks.quality(values[of.numbers])._asdict()})
    return [{**row, "worth": list(of.curves["tau"].worth(row["tau"]))} for row in rows]


def trained(of: Judged) -> list[Row]:
    """The linear model by the number of networks that it is fitted to: means over draws, with their
    middle 95 %. cost: in full trainings."""
    rows = []
    for place, size in enumerate(of.curves["tau"].sizes.tolist()):
        row: Row = {"networks": size, "cost": compute.trained_networks(of.table, size)}
        for metric, curve in of.curves.items():
            low, high = np.quantile(curve.taus[:, place], [0.025, 0.975])
            row[metric] = [float(curve.taus[:, place].mean()), float(low), float(high)]
        rows.append(row)
    return rows


def with_trained(
    one: Ranking, of: Judged, number: int, draws: int = DRAWS, penalty: float = PRIOR
) -> Quality:
    """A supernet and so many networks, each trained once: the linear model of their log error, with
    the supernet's smoothed loss as a further feature without a penalty. Means over draws of the
    networks and trainings."""
    random = np.random.default_rng(ranking.HALVES_SEED)
    design, prior = ranking.one_hot(of.table.distinct.paths), one.predicted
    runs, found = of.everything.runs, []
    for _ in range(draws):
        some = random.choice(of.fitted, number, replace=False)
        errors = np.log(100 - runs[some, random.integers(runs.shape[1])])
        scores = -ranking.ridge(design, some, errors, penalty, free=prior)
        on = of.numbers[~np.isin(of.numbers, some)]  # of --half both, not those it was fitted to
        found.append(of.everything[on].quality(scores[on]))
    return Quality(*np.mean(found, 0).tolist())


def qualities(found: Iterable[Recipe], of: Judged, labels: Sequence[int] = LABELS) -> list[Row]:
    """A row for each recipe and score: each number over seeds, mean with Student's interval, and
    what the mean tau is worth; cost in full trainings."""
    rows = []
    for recipe in found:
        cost = recipe.cost(of.table)
        of_scores = {
            name: [of.networks.quality(one.scores[name][of.numbers]) for one in recipe.seeds]
            for name in recipe.seeds[0].scores
            if all(name in one.scores for one in recipe.seeds)  # older rankings have fewer
        }
        for number in labels:
            if number <= len(of.fitted):
                name = f"smoothed loss + {number} trained"
                of_scores[name] = [with_trained(one, of, number) for one in recipe.seeds]
        for name, values in of_scores.items():
            number = int(name.split("+ ")[1].split()[0]) if "+" in name else 0
            more = compute.trained_networks(of.table, number)
            total = None if cost["total"] is None else cost["total"] + more
            row: Row = {"recipe": recipe.name, "score": name}
            row["seeds"] = [one.seed for one in recipe.seeds]
            for metric, of_seeds in zip(METRICS, np.transpose(values), strict=True):
                row[metric] = list(statistics.interval(of_seeds))
                row[f"{metric}_of_seeds"] = of_seeds.tolist()
            row["worth"] = list(of.curves["tau"].worth(row["tau"][0]))
            rows.append({**row, **cost, "trained": more, "total": total})
    return rows


def differences(rows: Sequence[Row]) -> list[Row]:
    """Each pair of recipes by the same score: how much the first is above the second, with Welch's
    interval over seeds. word: "different" where the interval leaves out 0, "not told apart", or
    "one seed", which has no interval."""
    found = []
    for first, second in combinations(rows, 2):
        if first["score"] != second["score"]:
            continue
        for metric in TESTED:
            pair = (row[f"{metric}_of_seeds"] for row in (first, second))
            mean, low, high = statistics.difference(*pair)
            word = "not told apart" if low <= 0 <= high else "different"
            word = "one seed" if np.isnan(low) else word
            found.append(
                {
                    **{"recipe": first["recipe"], "less": second["recipe"]},
                    **{"score": first["score"], "metric": metric},
                    **{"mean": mean, "low": low, "high": high, "word": word},
                }
            )
    return found

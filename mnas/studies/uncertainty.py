"""How sure the numbers of rankings are, and paired differences of rankings.

Three things could have been others: the seeds of supernets, the networks that are compared, and the
images that they are scored on. Each interval lets one of them vary and holds the two others fixed;
none holds for all at once. Intervals over networks and images are the number itself and 1.96
standard deviations of a bootstrap's draws around it: a draw of images has their noise twice and
ranks worse than all images, so that its own middle would lie too low."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnas.studies import ranking, statistics
from mnas.studies.rankings import METRICS, TESTED, Judged, Recipe
from mnas.studies.recipe_names import said

Array = NDArray[np.float64]
Row = dict[str, Any]
Drawn = Mapping[tuple[str, str], Array]
DRAWS = 100
SCORES = ("loss", "top-1", "smoothed loss", "partly smoothed loss")
OF_RULE = frozenset(
    {"rule", "sampler", "random_paths", "teacher", "teacher_sha256", "temperature"}
    | {"distill_weight", "drop", "ghost", "rank_weight", "decay_smallest", "decay_largest"}
    | {"momentum_groups"}
)
WITHIN = (  # of one ranking: scores, and what the first has more than the second
    ("loss", "loss, one path", "mean over the paths of a network", "one of its paths"),
    ("loss", "top-1", "by loss", "by top-1"),
    ("smoothed loss", "loss", "smoothed by a linear model", "the loss itself"),
    ("partly smoothed loss", "smoothed loss", "partly smoothed", "smoothed"),
)


def over_networks(found: Iterable[Recipe], of: Judged, draws: int = DRAWS) -> Drawn:
    """By recipe and score, (seeds, draws, TESTED): numbers on networks drawn anew (bootstrap). A
    draw has the same networks everywhere, so that differences are paired."""
    random, number = np.random.default_rng(ranking.HALVES_SEED), len(of.numbers)
    drawn = random.integers(number, size=(draws, number))
    networks = [of.networks[some] for some in drawn]
    columns = [METRICS.index(metric) for metric in TESTED]
    wanted = {*SCORES, *(score for pair in WITHIN for score in pair[:2])}
    return {
        (recipe.name, score): np.array(
            [
                [
                    of_draw.quality(one.scores[score][of.numbers][some])
                    for some, of_draw in zip(drawn, networks, strict=True)
                ]
                for one in recipe.seeds
            ]
        )[..., columns]
        for recipe in found
        for score in sorted(wanted)
        if all(score in one.scores for one in recipe.seeds)
    }


def over_images(recipe: Recipe, of: Judged, draws: int = DRAWS) -> Array | None:
    """(seeds, draws, TESTED) by top-1 on validation images drawn anew, the same for all networks
    and seeds; None where a ranking has not kept which images were right."""
    if any(one.correct is None for one in recipe.seeds):
        return None
    correct = [one.correct for one in recipe.seeds if one.correct is not None]
    images, random = correct[0].shape[1], np.random.default_rng(ranking.HALVES_SEED)
    often = random.multinomial(images, np.full(images, 1 / images), size=draws) / images
    columns, found = [METRICS.index(metric) for metric in TESTED], []
    for one, right in zip(recipe.seeds, correct, strict=True):  # (paths, images)
        top1 = np.full((draws, len(of.table)), np.nan)
        top1[:, [of.table.rows[path] for path in one.paths]] = often @ right.T
        found.append(
            [of.networks.quality(of.table.averaged(values)[of.numbers]) for values in top1]
        )
    return np.array(found)[..., columns]


def intervals(
    found: Iterable[Recipe], of: Judged, rows: Sequence[Row], drawn: Drawn, draws: int = DRAWS
) -> list[Row]:
    """A row for each recipe, score and number: its mean over seeds, and [low, high] over seeds,
    over networks, and over images; None where there is none. rows: of `rankings.qualities`."""
    made = []
    known = {(row["recipe"], row["score"]): row for row in rows}
    for recipe in found:
        images = over_images(recipe, of, draws)
        for score in SCORES:
            for place, metric in enumerate(TESTED):
                row = known[recipe.name, score]
                mean, *seeds = row[metric]
                of_networks = drawn[recipe.name, score][..., place].mean(0)
                of_images = None
                if score == "top-1" and images is not None:
                    of_images = _around(mean, images[..., place].mean(0))
                made.append(
                    {
                        **{"recipe": recipe.name, "score": score, "metric": metric},
                        **{"mean": mean, "seeds": None if np.isnan(seeds[0]) else seeds},
                        **{"networks": _around(mean, of_networks), "images": of_images},
                    }
                )
    return made


def _around(value: float, draws: Array) -> list[float]:
    half = 1.96 * float(draws.std(ddof=1))
    return [value - half, value + half]


def paired(found: Sequence[Recipe], rows: Sequence[Row], drawn: Drawn) -> list[Row]:
    """Differences seed by seed: of two scores of a ranking, and of two recipes that differ in one
    setting, by the same score.

    what, first, less: the setting, and the two, in words. same_supernets: whether they are scores
    of the same weights. over_seeds: Student's interval of the differences of pairs, networks held
    fixed; None of one seed. over_networks: 1.96 deviations of the differences in a bootstrap,
    seeds held fixed. word: "different" where the interval over seeds leaves out 0; of one seed of
    the same supernets where that over networks does. Of one seed of supernets that were trained
    apart nothing is said: how much another training moves them is not in it."""
    known = {(row["recipe"], row["score"]): row for row in rows}
    made = []
    for what, words, ends, seeds, same in _pairs(found):
        if not all(end in known and end in drawn for end in ends):
            continue
        at = [[known[end]["seeds"].index(seed) for seed in seeds] for end in ends]
        for place, metric in enumerate(TESTED):
            first, second = (
                np.array(known[end][f"{metric}_of_seeds"])[some]
                for end, some in zip(ends, at, strict=True)
            )
            mean, low, high = statistics.interval(first - second)
            gaps = drawn[ends[0]][at[0], :, place] - drawn[ends[1]][at[1], :, place]
            networks = _around(mean, gaps.mean(0))
            over_seeds = None if np.isnan(low) else [low, high]
            low, high = over_seeds or networks
            word = "not told apart" if low <= 0 <= high else "different"
            if over_seeds is None:
                word = f"{word} (one seed: over networks)" if same else "one seed"
            made.append(
                {
                    **{"what": what, "first": words[0], "less": words[1]},
                    **{"recipe": ends[0][0], "score": ends[0][1], "metric": metric},
                    **{"same_supernets": same, "seeds": list(seeds), "mean": mean},
                    **{"over_seeds": over_seeds, "over_networks": networks},
                    "word": word,
                }
            )
    return made


Pair = tuple[str, tuple[str, str], tuple[tuple[str, str], tuple[str, str]], list[int], bool]


def _pairs(found: Sequence[Recipe]) -> Iterator[Pair]:
    """What differs, both in words, recipe and score of both, the seeds they share, and whether
    these are the same supernets."""
    for recipe in found:
        seeds = [one.seed for one in recipe.seeds]
        for first, second, *words in WITHIN:
            ends = (recipe.name, first), (recipe.name, second)
            yield f"score, {recipe.name}", (words[0], words[1]), ends, seeds, True
    for one, other in combinations(found, 2):
        what = _differing(one, other)
        of_seed = [{ranking.seed: ranking for ranking in of.seeds} for of in (one, other)]
        shared = sorted(of_seed[0].keys() & of_seed[1].keys())
        if what is None or not shared:
            continue
        digests = [[of[s].settings.get("checkpoint_sha256") for s in shared] for of in of_seed]
        same = digests[0] == digests[1] and None not in digests[0]
        for score in SCORES:
            yield what[0], what[1], ((one.name, score), (other.name, score)), shared, same


def _differing(one: Recipe, other: Recipe) -> tuple[str, tuple[str, str]] | None:
    """As `differing`; several supernets taken together differ from each of them in the others."""
    settings = [of.seeds[0].recipe for of in (one, other)]
    priors = [of.get("prior", "none") for of in settings]
    first, second = ({k: v for k, v in of.items() if k != "prior"} for of in settings)
    if priors[0] != priors[1]:
        return ("prior", (priors[0], priors[1])) if first == second else None
    if first in second.get("together", ()) or second in first.get("together", ()):
        return "supernets", (one.name, other.name)
    return differing(first, second)


def differing(one: Row, other: Row) -> tuple[str, tuple[str, str]] | None:
    """The one setting in which two recipes differ, and both values in words; a rule, its sampler
    and its options are one. None where they differ in more."""
    keys = sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
    if keys and OF_RULE.issuperset(keys):
        shown = [", ".join(said(k, of[k]) for k in keys if k in of) for of in (one, other)]
        shown = [words or "a path a step" for words in shown]
        return "rule", (shown[0], shown[1])
    if len(keys) != 1:
        return None
    (key,) = keys
    names = {"policy": "momentum off the path", "scored bn_images": "BatchNorm statistics"}
    what = names.get(key, key.removeprefix("scored ").replace("_", " "))
    return what, (said(key, one.get(key)), said(key, other.get(key)))

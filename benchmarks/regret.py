"""What a search of `nb_macro` loses beside the best published accuracy, by how networks are drawn
and scored. Protocol: docs/protocol-ranking.md, Changes. Neither part needs a GPU.

- `python -m benchmarks.regret score RUN --data-root DIR`: scores of all 3,969 networks by a trained
  supernet, half an hour of one core; the same command goes on after it was stopped
- `python -m benchmarks.regret search`: searches these scores and the published accuracies, a
  minute; writes rows, table and picture to results/search/
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

import mnas
from benchmarks.page import groups
from mnas import reference
from mnas.reference import Table
from mnas.storage import strict_json
from mnas.studies import ranking
from mnas.studies.plotting import figure
from mnas.studies.scored import Scores
from mnas.training import runtime
from mnas.training.saved import open_run

RESULTS = Path("results/search")
RANKING = Path("results/ranking/nb_macro_fair_6_epochs_16px_seed0")
RANKED = "supernet, 2,000 images"
ORDER = (
    *("supernet", RANKED, "published", "none"),
    *("score", "score,cost"),
    *("random", "tpe", "nsga2", "all"),
)  # of rows in tables
IMAGES, BN_IMAGES = 500, 250
AIMS = ("score,cost", "score")
SAMPLERS = ("random", "tpe", "nsga2")
SEEDS, TRIALS = 5, 500
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the networks, those with the fewest MACs; 1: all
TARGET = 0.3  # points of accuracy
Values = NDArray[np.float64]
Rows = list[dict[str, Any]]


def stands_for(table: Table) -> list[tuple[int, ...]]:
    """The path that each distinct network is scored by: of its paths the one with identities
    last, which is the largest."""
    paths = table.paths.tolist()
    best: list[tuple[int, ...]] = [()] * len(table.distinct)
    for path, network in zip(paths, table.network.tolist(), strict=True):
        best[network] = max(best[network], tuple(path))
    return best


def score(directory: Path, data_root: Path, out: Path) -> None:
    """Scores of every distinct network, written chunk by chunk."""
    runtime.configure_runtime(1)
    run = open_run(directory, None)
    paths = sorted(stands_for(reference.get(run.config["space"])))
    resolution = run.config.get("resolution")
    data = runtime.load_data(
        run.config["dataset"], data_root, run.config.get("limit_train"), resolution=resolution
    )
    weights = (directory / "checkpoint.pt").read_bytes()
    settings = {
        "space": run.config["space"],
        "dataset": run.config["dataset"],
        "resolution": resolution,
        "checkpoint_sha256": hashlib.sha256(weights).hexdigest(),
        "networks": len(paths),
        "seed": None,
        "images": IMAGES,
        "bn_images": BN_IMAGES,
        "threads": 1,
    }
    split = runtime.for_training(data.validation.first(IMAGES))
    bn_images = runtime.in_memory_order(data.train.images[:BN_IMAGES])
    out.mkdir(parents=True, exist_ok=True)
    scores = Scores(out, settings)
    scores.score(run.supernet(), paths, split, bn_images)


@functools.cache
def space_of(table: Table) -> mnas.SearchSpace:
    """One for all searches: it knows what its networks cost."""
    return mnas.spaces.get(table.name)


def searched(
    table: Table, values: Values, sampler: str, seed: int, aims: str, most: int | None = None
) -> list[int]:
    """The distinct networks that a search of at most 500 scores has scored, values (distinct,)
    being their scores. most: a budget of MACs."""
    space = space_of(table)

    def of_paths(paths: list[tuple[int, ...]]) -> list[float]:
        return [float(values[table.network[table.rows[path]]]) for path in paths]

    found = mnas.search(
        space, of_paths, trials=TRIALS, sampler=sampler, seed=seed, aims=aims, max_macs=most
    )
    return sorted({int(table.network[table.rows[one.path]]) for one in found.networks})


def smoothed(table: Table, values: Values, scored: Sequence[int]) -> Values:
    """The linear model of ranking.py, fitted to the logarithm of errors or losses: values
    (distinct,), negative, of which those of the scored networks are used. The scores of all."""
    design = ranking.one_hot(stands_for(table))
    rows = np.asarray(scored)
    return -ranking.ridge(design, rows, np.log(-values[rows]))


def budgets(table: Table) -> list[int]:
    """The most MACs of each share."""
    macs = table.distinct.macs
    return [int(np.quantile(macs, share, method="lower")) for share in SHARES]


def regret(table: Table, scores: Values, known: Sequence[int], most: int) -> float:
    """The best published accuracy within a budget of MACs less that of the known network with the
    best score within it, a mean where several have it; in points. NaN where none is known."""
    truth, macs = table.distinct.accuracies.mean(1), table.distinct.macs
    some = np.asarray([n for n in known if macs[n] <= most], int)
    if not len(some):
        return float("nan")
    picked = some[scores[some] == scores[some].max()]
    return float(truth[macs <= most].max() - truth[picked].mean())


def rows_of(table: Table, source: str, values: Values, known: Rows) -> Iterator[Rows]:
    """Rows of each search that has none among the known ones: one for each way to pick and budget.
    A search for score and cost serves all budgets; one for the score alone is made within each.
    values (distinct,): scores, higher is better, below 0."""
    done = {(row["source"], row["aims"], row["sampler"], row["seed"]) for row in known}
    for aims, sampler, seed in itertools.product(AIMS, SAMPLERS, range(SEEDS)):
        if (source, aims, sampler, seed) in done:
            continue
        rows: Rows = []
        keys: dict[str, Any] = {"source": source, "aims": aims, "sampler": sampler, "seed": seed}
        each = [((share,), most) for share, most in zip(SHARES, budgets(table), strict=True)]
        for shares, most in each if aims == "score" else [(SHARES, None)]:
            scored = searched(table, values, sampler, seed, aims, most)
            keys["scored"] = len(scored)
            rows += picked(table, values, scored, "best score", shares, **keys)
            model = smoothed(table, values, scored)
            rows += picked(table, model, range(len(values)), "linear model", shares, **keys)
        yield rows


def picked(
    table: Table,
    scores: Values,
    some: Sequence[int],
    pick: str,
    shares: Sequence[float] = SHARES,
    **keys: str | int,
) -> Iterator[dict[str, Any]]:
    """A row for each budget."""
    for share, most in zip(SHARES, budgets(table), strict=True):
        if share in shares:
            lost = regret(table, scores, some, most)
            yield {**keys, "pick": pick, "share": share, "max_macs": most, "regret": lost}


def of_ranked(table: Table, folder: Path) -> Iterator[Rows]:
    """The same without a search, from the random paths that `mnas rank` has scored: 500 of them a
    seed, drawn without replacement, so that seeds overlap."""
    settings = strict_json.parse((folder / "settings.json").read_bytes(), dict, folder)
    scored, space = Scores(folder, settings).rows, mnas.spaces.get(table.name)
    network = table.network[[table.rows[space.parse(row["arch"])] for row in scored]]
    loss = np.array([row["val_loss"] for row in scored])
    for seed in range(SEEDS):
        some = np.random.default_rng(seed).choice(len(scored), TRIALS, replace=False)
        values = np.full(len(table.distinct), np.nan)
        for one in np.unique(network[some]):
            values[one] = -loss[some][network[some] == one].mean()
        known = np.flatnonzero(~np.isnan(values)).tolist()
        keys = {"source": RANKED, "aims": "none", "sampler": "random", "seed": seed}
        keys["scored"] = len(known)
        yield [
            *picked(table, values, known, "best score", **keys),
            *picked(
                table, smoothed(table, values, known), range(len(values)), "linear model", **keys
            ),
        ]


def without_search(table: Table, values: Values) -> Rows:
    """The best of all scores of a supernet, and the largest network."""
    keys = {"source": "supernet", "aims": "none", "sampler": "all", "seed": 0}
    keys["scored"] = len(values)
    best = picked(table, values, range(len(values)), "best score", **keys)
    keys = {"source": "none", "aims": "none", "sampler": "none", "seed": 0, "scored": 0}
    macs = table.distinct.macs.astype(float)
    return [*best, *picked(table, macs, range(len(values)), "most MACs", **keys)]


def search(out: Path) -> None:
    """Rows of all searches, those of published accuracies first; table and picture. The same
    command goes on after it was stopped."""
    table, file = reference.get("nb_macro"), out / "regret.jsonl"
    found = strict_json.parse_lines(file.read_bytes(), dict, file) if file.exists() else []

    def add(rows: Iterable[Rows]) -> None:
        for some in rows:
            found.extend(some)
            file.write_text(strict_json.lines(found))

    add(rows_of(table, "published", table.distinct.accuracies.mean(1) - 100, found))
    if all(row["source"] != RANKED for row in found):
        add(of_ranked(table, RANKING))
    draw(out)
    values = -losses(table, out / "scores")
    add(rows_of(table, "supernet", values, found))
    if all(row["sampler"] != "all" for row in found):
        add([without_search(table, values)])
    draw(out)


def losses(table: Table, folder: Path) -> Values:
    """Of each distinct network, in nats, as `score` has written them."""
    settings = strict_json.parse((folder / "settings.json").read_bytes(), dict, folder)
    rows, space = Scores(folder, settings).rows, mnas.spaces.get(table.name)
    if len(rows) != len(table.distinct):
        raise SystemExit(f"{len(rows)} of {len(table.distinct)} scored; go on with score")
    found = np.empty(len(rows))
    for row in rows:
        found[table.network[table.rows[space.parse(row["arch"])]]] = row["val_loss"]
    return found


def draw(out: Path) -> None:
    """The table and the picture of the rows."""
    rows = strict_json.parse_lines((out / "regret.jsonl").read_bytes(), dict, out / "regret.jsonl")
    keys = ("source", "aims", "sampler", "pick")
    rows.sort(key=lambda row: [ORDER.index(row[key]) for key in keys[:3]])
    named = {0.25: "least quarter", 0.5: "half", 0.75: "three quarters", 1.0: "all"}
    cells = []
    for key, some in groups(rows, *keys).items():
        lost = [[row["regret"] for row in some if row["share"] == share] for share in SHARES]
        scored = np.mean([row["scored"] for row in some])
        cells.append((*key, f"{scored:.0f}", *map(spread, lost)))
    headers = ("scores", "aims", "sampler", "pick", "networks scored", *named.values())
    text = tabulate(cells, headers, tablefmt="github", disable_numparse=True)
    (out / "regret.md").write_text(
        "# Regret of search on nb_macro\n"
        "Points of published accuracy below the best network within a budget of MACs, which holds "
        f"that share of the networks; mean and standard deviation of {SEEDS} seeds, "
        f"{TRIALS} draws each. For the score alone a search is made within each budget; *networks "
        f"scored* is the mean of these. Made by `python -m benchmarks.regret search`.\n\n{text}\n"
    )
    of_all = groups([row for row in rows if row["share"] == 1.0], *keys)
    with figure(out / "regret.png", width=9.5, height=6.6) as (ax,):
        for line, ((source, aims, sampler, pick), some) in enumerate(of_all.items()):
            values = [row["regret"] for row in some]
            color = {"published": "C1", "none": "C2"}.get(source, "C0")
            ax.plot(values, [line] * len(values), "o", color=color, alpha=0.4, markersize=4)
            ax.plot(np.mean(values), line, "|", color=color, markersize=12, markeredgewidth=2)
            alone = " for the score alone" if aims == "score" else ""
            of_line = f"{source}, {sampler}{alone}, {pick}" if source != "none" else pick
            ax.text(
                -0.01, line, of_line, ha="right", va="center", transform=ax.get_yaxis_transform()
            )
        ax.axvline(TARGET, color="0.4", linestyle="--")
        ax.text(TARGET, -0.9, f" asked: {TARGET} at most", color="0.4", va="center")
        means = {key: np.mean([row["regret"] for row in some]) for key, some in of_all.items()}
        drawn = [key for key in means if key[0].startswith("supernet") and key[2] in SAMPLERS]
        ours = min(drawn, key=means.__getitem__)
        ax.set_title(
            f"At most {TRIALS} scores of a supernet:\n{ours[2]} for {ours[1]}, {ours[3]},\n"
            f"loses least, {means[ours]:.2f} points",
            loc="left",
            fontsize="medium",
        )
        ax.set(yticks=[], ylim=(len(of_all) - 0.5, -1.4))
        ax.set_xlabel("regret, points (dot: a seed; bar: mean)")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regret", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = parser.add_subparsers(dest="part", required=True)
    of_score = parts.add_parser("score")
    of_score.add_argument("run", type=Path, help="run directory of a supernet of nb_macro")
    of_score.add_argument("--data-root", type=Path, default=Path("data"))
    parts.add_parser("search")
    parts.add_parser("draw", help="table and picture alone, from the rows")
    args = parser.parse_args()
    if args.part == "score":
        score(args.run, args.data_root, RESULTS / "scores")
    else:
        {"search": search, "draw": draw}[args.part](RESULTS)


if __name__ == "__main__":
    main()

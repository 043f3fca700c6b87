"""The page of a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnas.studies import messages, statistics
from mnas.studies.pages import over, shown
from mnas.studies.results import KINDS, NO_LOSS, Arm, Study, Summary, summary
from mnas.studies.web import charts
from mnas.studies.web.parts import Cell, Chart, Page, Section, Table, View, name, number


def of_study(study: Study) -> Page:
    found = summary(study)
    sections = [_networks(study), _frontier(study), _estimators(study, found)]
    if study.curves:
        sections.append(_curves(study))
    about = study.about["environment"]
    footer = [
        f"Made from the rows of {study.name} by mnas report --out. Accuracies are on the test set, "
        f"curves on validation; intervals are 95 % {over(found['intervals_of_images'])}; tau is "
        "Kendall's tau-b, 1 for the same order, 0 for no relation.",
        f"{about['processor'] or 'Unknown processor'}, torch {about['torch']}. Failed runs: "
        f"{found['failed_runs']}; seeds left out: {found['seeds_left_out']}.",
    ]
    return Page(f"{study.title}: what weight sharing predicts", _lead(found), sections, footer)


def _lead(found: Summary) -> str:
    tau = shown(found["tau_mean"], *found["tau_ci"])
    said = (
        f"A supernet orders these {found['networks']} networks with a tau of {tau} to their order "
        "from scratch"
    )
    if found["ceiling_mean"] is not None:
        ceiling = shown(found["ceiling_mean"], *found["ceiling_ci"])
        said += f"; training each network once from scratch reaches {ceiling}"
    return (
        f"{said}. The network that it picks is {found['regret_mean']:.3f} points below the best, a "
        f"random one {found['regret_of_chance']:.3f}."
    )


@dataclass(frozen=True)
class Score:
    """What networks are compared by. values: of an arm, (seeds, networks). gap: of a difference."""

    label: str
    what: str
    unit: str
    gap: str
    digits: int
    values: Callable[[Arm], Any]
    least: bool = False
    "Lower is better."


TOP1 = Score("test top-1", charts.TOP1, "%", "points", 2, lambda arm: arm.test)
LOSS = Score("test loss", "test loss, nats", "nats", "nats", 4, lambda arm: -arm.loss, True)


def scores(study: Study) -> list[Score]:
    """Loss only where all runs have one, and not all the same."""
    losses = np.concatenate([LOSS.values(study.arms[kind]) for kind, _ in KINDS])
    return [TOP1, *([LOSS] if losses.max() < NO_LOSS and np.ptp(losses) > 0 else [])]


def networks(study: Study, score: Score = TOP1) -> list[dict[str, Any]]:
    """Name, costs, and score with its interval of both weights, of each network."""
    found = []
    for i, arch in enumerate(study.archs):
        params, macs = study.costs[arch]
        row: dict[str, Any] = {"network": arch, "params": params, "macs": macs}
        for kind, label in (("supernet", "inherited"), ("scratch", "scratch")):
            mean, low, high = statistics.interval(score.values(study.arms[kind])[:, i])
            low, high = _ends(mean, low, high)
            row |= {label: mean, f"{label}_low": low, f"{label}_high": high}
        found.append(row)
    return found


def _ends(mean: float, low: float | None, high: float | None) -> tuple[float, float]:
    """Of a bar: the mean itself where there is no interval."""
    missing = low is None or high is None or np.isnan(low)
    return (mean, mean) if missing else (float(low), float(high))


def _networks(study: Study) -> Section:
    first, *others = (_view(study, score) for score in scores(study))
    return Section(
        "Networks",
        messages.scatter(study),
        [f"{messages.accuracy(study)}. On the dashed line both are equal."],
        first.table,
        first.charts,
        first.label,
        others,
    )


def _view(study: Study, score: Score) -> View:
    rows, form = networks(study, score), f".{score.digits}f"
    counts = [len(study.arms[kind].seeds) for kind, _ in KINDS]
    body = [
        [
            name(row["network"]),
            *(
                number(row[kind], form, row[f"{kind}_low"], row[f"{kind}_high"])
                for kind in ("inherited", "scratch")
            ),
            number(row["scratch"] - row["inherited"], f"+{form}"),
            number(row["params"], ",.0f"),
            number(row["macs"], ",.0f"),
        ]
        for row in rows
    ]
    heads = [
        "network",
        f"inherited, {score.unit} (n = {counts[0]})",
        f"from scratch, {score.unit} (n = {counts[1]})",
        f"scratch − inherited, {score.gap}",
        "parameters",
        "MACs",
    ]
    runs = [
        {"network": arch, "weights": label, "seed": seed, "value": float(value)}
        for kind, label in KINDS
        for seed, values in zip(study.arms[kind].seeds, score.values(study.arms[kind]), strict=True)
        for arch, value in zip(study.archs, values, strict=True)
    ]
    best = sorted(rows, key=lambda row: row["scratch"], reverse=not score.least)
    lower = " (lower is better)" if score.least else ""
    return View(
        score.label,
        Table(f"Mean {score.label}{lower} with its 95 % interval over seeds", heads, body),
        [
            Chart(charts.scatter(rows, score.what, form), "Inherited against from scratch"),
            Chart(
                charts.seeds(runs, [row["network"] for row in best], score.what, form),
                "Every run, the best network first",
            ),
        ],
    )


def _frontier(study: Study) -> Section:
    rows = [
        {
            **{key: row[key] for key in ("network", "params", "macs")},
            "weights": label,
            "accuracy": row[kind],
            "low": row[f"{kind}_low"],
            "high": row[f"{kind}_high"],
        }
        for row in networks(study)
        for kind, label in zip(("inherited", "scratch"), charts.WEIGHTS, strict=True)
    ]
    number_of_best = len(
        charts.front([row for row in rows if row["weights"] == "from scratch"], "macs")
    )
    return Section(
        "Frontier",
        f"{number_of_best} of {len(study.archs)} networks are on the frontier of accuracy and MACs",
        ["The line joins networks from scratch that no cheaper one equals."],
        None,
        [
            Chart(charts.frontier(rows, "macs", "multiply-accumulates"), "By multiply-accumulates"),
            Chart(charts.frontier(rows, "params", "parameters"), "By parameters"),
        ],
    )


SAME, TO_TEST, OTHER = "same images", "validation → test", "other images"
MEASURES = {SAME: "tau", TO_TEST: "tau_validation_to_test", OTHER: "tau_other_images"}
"Keys of the taus of a line of a summary."
BY_LOSS = {"with mean top-1": "tau_by_loss", "with mean loss": "tau_of_loss"}
"Of networks that are scored by loss."


def _estimators(study: Study, found: Summary) -> Section:
    lines = sorted(found["estimators"], key=lambda line: line["compute"])
    first, *others = (
        _ranking(lines, score, MEASURES if score is TOP1 else BY_LOSS) for score in scores(study)
    )
    return Section(
        "Ranking",
        messages.frontier(found),
        [
            "Ways to rank the networks, the cheapest first. Compute and seconds are those of "
            "training, relative to one run from scratch of each network; scratch is that run. On "
            "the same images, what these say by chance counts as agreement; validation → test is "
            "what a user of a supernet gets, who has no test set to choose on; other images: the "
            "mean of that and of the other way round."
        ],
        first.table,
        first.charts,
        first.label,
        others,
    )


def _ranking(lines: list[dict[str, Any]], score: Score, measures: dict[str, str]) -> View:
    body = [
        [
            name(line["name"]),
            number(line["seeds"], ".0f"),
            *(tau(line, key) for key in measures.values()),
            *([] if score.least else [number(line["regret_mean"], ".3f")]),
            number(line["compute"], ".3f"),
            number(line["seconds"], ".2f"),
        ]
        for line in lines
    ]
    regret = [] if score.least else ["regret, points"]
    heads = ["estimator", "n", *measures, *regret, "compute", "seconds"]
    rows = [
        {
            **{"name": line["name"], "series": label, "value": mean, "low": low, "high": high},
            "note": f"compute {line['compute']:.2f}, seconds {line['seconds']:.2f}",
        }
        for line in lines
        for label, key in measures.items()
        for mean, low, high in [of_tau(line, key)]
    ]
    how = "Kendall's tau of each way to score the networks with their order from scratch"
    by = " by loss" if score.least else ""
    return View(
        score.label,
        Table(f"Kendall's tau{by} with the mean from scratch, and what it costs", heads, body),
        [
            Chart(
                charts.dots(
                    rows,
                    [line["name"] for line in lines],
                    tuple(measures),
                    f"{how}{by}.",
                    f"Kendall's tau{by}",
                ),
                f"Tau{by} with its 95 % interval, the cheapest first",
            )
        ],
    )


def of_tau(line: dict[str, Any], key: str) -> tuple[float, float | None, float | None]:
    """The mean of an estimator's tau and its interval. key: its name in summary.json."""
    low, high = line[f"{key}_ci"]
    return line["tau_mean" if key == "tau" else key], low, high


def tau(line: dict[str, Any] | None, key: str) -> Cell:
    """In a table; a dash where there is no such estimator."""
    if line is None:
        return number(None, ".2f")
    mean, *ends = of_tau(line, key)
    return number(mean, ".2f", *ends)


def _curves(study: Study) -> Section:
    made = []
    for kind, label in KINDS:
        by: dict[tuple[str, float], list[float]] = {}
        for row in study.curves:
            if row["kind"] == kind:
                by.setdefault((row["arch"], row["epoch"]), []).append(100 - 100 * row["val_top1"])
        rows = [
            {
                "network": arch,
                "epoch": epoch,
                "error": float(np.mean(errors)),
                "sd": float(np.std(errors, ddof=1)) if len(errors) > 1 else 0.0,
                "runs": len(errors),
            }
            for (arch, epoch), errors in by.items()
        ]
        if rows:
            made.append(
                Chart(charts.curves(rows, study.archs, label), f"Validation error, {label}")
            )
    return Section(
        "Curves",
        messages.curves(study),
        ["A click on a name below a heading shows that network alone."],
        None,
        made,
    )

"""The page of a study, and that of several."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnas.studies import messages, statistics
from mnas.studies.estimators import estimator
from mnas.studies.pages import shown
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
        "curves on validation; intervals are 95 % over seeds; tau is Kendall's tau-b, 1 for the "
        "same order, 0 for no relation.",
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


def _scores(study: Study) -> list[Score]:
    """Loss only where all runs have one, and not all the same."""
    losses = np.concatenate([LOSS.values(study.arms[kind]) for kind, _ in KINDS])
    return [TOP1, *([LOSS] if losses.max() < NO_LOSS and np.ptp(losses) > 0 else [])]


def _of_networks(study: Study, score: Score = TOP1) -> list[dict[str, Any]]:
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
    first, *others = (_view(study, score) for score in _scores(study))
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
    rows, form = _of_networks(study, score), f".{score.digits}f"
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
        for row in _of_networks(study)
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


def _estimators(study: Study, found: Summary) -> Section:
    lines = sorted(found["estimators"], key=lambda line: line["compute"])
    body = [
        [
            name(line["name"]),
            number(line["seeds"], ".0f"),
            number(line["tau_mean"], ".2f", *line["tau_ci"]),
            number(line["tau_other_pictures"], ".2f", *line["tau_other_pictures_ci"]),
            number(line["regret_mean"], ".3f"),
            number(line["compute"], ".3f"),
            number(line["seconds"], ".2f"),
        ]
        for line in lines
    ]
    heads = ["estimator", "n", "tau", "tau on other images", "regret, points", "compute", "seconds"]
    series = ("same images", "other images")
    rows = [
        {
            "name": line["name"],
            "series": label,
            "value": line[key],
            "low": line[f"{ends}_ci"][0],
            "high": line[f"{ends}_ci"][1],
            "note": f"compute {line['compute']:.2f}, seconds {line['seconds']:.2f}",
        }
        for line in lines
        for label, key, ends in zip(
            series, ("tau_mean", "tau_other_pictures"), ("tau", "tau_other_pictures"), strict=True
        )
    ]
    about = "Kendall's tau of each way to score the networks with their order from scratch."
    return Section(
        "Ranking",
        messages.frontier(found),
        [
            "Ways to rank the networks, the cheapest first. Compute and seconds are those of "
            "training, relative to one run from scratch of each network; scratch is that run. On "
            "the same images, what these say by chance counts as agreement."
        ],
        Table("Kendall's tau with the mean from scratch, and what it costs", heads, body),
        [
            Chart(
                charts.dots(
                    rows,
                    [line["name"] for line in lines],
                    series,
                    about,
                    "Kendall's tau",
                ),
                "Tau with its 95 % interval, the cheapest first",
            )
        ],
    )


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


def overview(studies: list[Study], out: Path) -> Page:
    """Several studies beside each other, with links to their own reports, if these are there."""
    found = [summary(study) for study in studies]
    body, rows = [], []
    for study, numbers in zip(studies, found, strict=True):
        own = study.path / "report.html"
        link = Path(os.path.relpath(own, out.parent)).as_posix() if own.exists() else ""
        seeds = numbers["supernet_seeds"] + numbers["scratch_seeds"]
        ceiling = numbers["ceiling_ci"] or (None, None)
        body.append(
            [
                name(study.name, link),
                number(numbers["networks"], ".0f"),
                Cell(f"{numbers['supernet_seeds']} + {numbers['scratch_seeds']}", str(seeds)),
                number(numbers["inherited_mean"], ".2f"),
                number(numbers["scratch_mean"], ".2f"),
                number(numbers["tau_mean"], ".2f", *numbers["tau_ci"]),
                number(numbers["ceiling_mean"], ".2f", *ceiling),
                number(numbers["regret_mean"], ".3f"),
                number(numbers["regret_of_chance"], ".3f"),
            ]
        )
        rows += _taus(study, numbers)
    heads = ["study", "networks", "seeds", "inherited, %"]
    heads += ["from scratch, %", "tau", "tau of one run", "regret, points", "of a random pick"]
    names = [study.name for study in studies]
    less = sum(
        numbers["ceiling_mean"] is not None and numbers["tau_mean"] < numbers["ceiling_mean"]
        for numbers in found
    )
    about = "Kendall's tau in every study: a supernet, one run from scratch, number of parameters."
    title = (
        f"In {less} of {len(studies)} studies a supernet's mean tau is below that of one run from "
        "scratch of each network"
    )
    return Page(
        "What inherited weights predict",
        "Supernets, and the same networks trained from scratch: how well the accuracy that a "
        f"network has with shared weights tells its accuracy alone. {title}.",
        [
            Section(
                "Ranking",
                title,
                [
                    "Seeds: supernets, and runs from scratch of each network. Intervals are 95 % "
                    "over seeds. Counting parameters costs no training."
                ],
                Table("Studies; a click on a heading sorts", heads, body),
                [Chart(charts.dots(rows, names, SERIES, about, "Kendall's tau"))],
            ),
            Section(
                "Accuracy",
                "Where sharing shifts accuracy: inherited against from scratch",
                ["On the dashed line both are equal."],
                None,
                [
                    Chart(
                        charts.scatter(_of_networks(study)),
                        f"{study.title}: {messages.scatter(study)}",
                    )
                    for study in studies
                ],
                TOP1.label,
                [View(LOSS.label, None, by_loss)] if (by_loss := _by_loss(studies)) else [],
            ),
        ],
        ["Made from the rows of the studies by mnas report --out."],
    )


def _by_loss(studies: list[Study]) -> list[Chart]:
    return [
        Chart(charts.scatter(_of_networks(study, LOSS), LOSS.what, ".4f"), study.title)
        for study in studies
        if LOSS in _scores(study)
    ]


SERIES = ("supernet", "one run from scratch", "parameters")


def _taus(study: Study, numbers: Summary) -> list[dict[str, Any]]:
    found = []
    for series, key in zip(SERIES, ("supernet", "scratch", "parameters"), strict=True):
        line = estimator(numbers, key)
        if line is not None:
            low, high = line["tau_ci"]
            note = f"compute {line['compute']:.2f}"
            row = {"name": study.name, "series": series, "value": line["tau_mean"]}
            found.append({**row, "low": low, "high": high, "note": note})
    return found

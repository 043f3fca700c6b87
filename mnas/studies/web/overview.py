"""The page of several studies beside each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mnas.studies import messages
from mnas.studies.estimators import estimator
from mnas.studies.pages import over
from mnas.studies.results import Study, Summary, summary
from mnas.studies.web import charts
from mnas.studies.web.parts import Cell, Chart, Page, Section, Table, View, name, number
from mnas.studies.web.studies import BY_LOSS, LOSS, MEASURES, TOP1, networks, of_tau, scores, tau

SERIES = {
    "supernet": "supernet",
    "scratch": "one run from scratch",
    "parameters": "parameters",
}
"Names of estimators, and what they are called here."


def page(studies: list[Study], out: Path) -> Page:
    """With links to the studies' own reports, if these are there. out: the file that it will be."""
    found = [summary(study) for study in studies]
    less = sum(
        numbers["ceiling_mean"] is not None and numbers["tau_mean"] < numbers["ceiling_mean"]
        for numbers in found
    )
    title = (
        f"In {less} of {len(studies)} studies a supernet's mean tau is below that of one run from "
        "scratch of each network"
    )
    of_images = sum(numbers["intervals_of_images"] for numbers in found)
    first, *others = _rankings(studies, found, out)
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
                    f"{over(of_images, len(studies))}. Validation → test is what a user of a "
                    "supernet gets, who has no test set to choose on. Counting parameters costs no "
                    "training."
                ],
                first.table,
                first.charts,
                first.label,
                others,
            ),
            _accuracy(studies, found),
        ],
        ["Made from the rows of the studies by mnas report --out."],
    )


def _rankings(studies: list[Study], found: list[Summary], out: Path) -> list[View]:
    by_top1 = {f"supernet, {label}": ("supernet", key) for label, key in MEASURES.items()}
    by_top1 |= {SERIES[name]: (name, "tau") for name in ("scratch", "parameters")}
    by_loss = {
        f"{label}, {how}": (name, key)
        for name, label in SERIES.items()
        for how, key in BY_LOSS.items()
    }
    with_loss = [
        (study, numbers)
        for study, numbers in zip(studies, found, strict=True)
        if LOSS in scores(study)
    ]
    both = [(TOP1, list(zip(studies, found, strict=True)), by_top1, "tau")]
    if with_loss:
        both.append((LOSS, with_loss, by_loss, "tau_by_loss"))
    views = []
    for score, pairs, columns, key in both:
        body = []
        for study, numbers in pairs:
            lines = [(estimator(numbers, name), key) for name, key in columns.values()]
            body.append([*_name(study, numbers, out), *(tau(*pair) for pair in lines)])
        by = " by loss" if score is LOSS else ""
        about = f"Kendall's tau{by} in every study: a supernet, one run from scratch, parameters."
        dots = charts.dots(
            [row for pair in pairs for row in _taus(*pair, key)],
            [study.name for study, _ in pairs],
            tuple(SERIES.values()),
            about,
            f"Kendall's tau{by} with mean top-1 from scratch",
        )
        caption = f"Kendall's tau{by}; a click on a heading sorts"
        table = Table(caption, ["study", "seeds", *columns], body)
        views.append(View(score.label, table, [Chart(dots)]))
    return views


def _name(study: Study, numbers: Summary, out: Path) -> list[Cell]:
    own = study.path / "report.html"
    link = Path(os.path.relpath(own, out.parent)).as_posix() if own.exists() else ""
    seeds = numbers["supernet_seeds"], numbers["scratch_seeds"]
    return [name(study.name, link), Cell(f"{seeds[0]} + {seeds[1]}", str(sum(seeds)))]


def _taus(study: Study, numbers: Summary, key: str) -> list[dict[str, Any]]:
    found = []
    for estimated, series in SERIES.items():
        line = estimator(numbers, estimated)
        if line is not None:
            mean, low, high = of_tau(line, key)
            note = f"compute {line['compute']:.2f}"
            row = {"name": study.name, "series": series, "value": mean}
            found.append({**row, "low": low, "high": high, "note": note})
    return found


def _accuracy(studies: list[Study], found: list[Summary]) -> Section:
    body = [
        [
            name(study.name),
            number(numbers["inherited_mean"], ".2f"),
            number(numbers["scratch_mean"], ".2f"),
            number(numbers["regret_mean"], ".3f"),
            number(numbers["regret_of_chance"], ".3f"),
        ]
        for study, numbers in zip(studies, found, strict=True)
    ]
    heads = ["study", "inherited, %", "from scratch, %", "regret, points", "of a random pick"]
    by_loss = [
        Chart(charts.scatter(networks(study, LOSS), LOSS.what, ".4f"), study.title)
        for study in studies
        if LOSS in scores(study)
    ]
    return Section(
        "Accuracy",
        "Where sharing shifts accuracy: inherited against from scratch",
        [
            "Means over networks and seeds. Regret: what is lost by taking the network that scores "
            "best on validation. In the charts, both are equal on the dashed line."
        ],
        Table("Mean test top-1, and what the pick of a supernet loses", heads, body),
        [
            Chart(charts.scatter(networks(study)), f"{study.title}: {messages.scatter(study)}")
            for study in studies
        ],
        TOP1.label,
        [View(LOSS.label, None, by_loss)] if by_loss else [],
    )

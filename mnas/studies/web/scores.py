"""The page of a supernet's scores beside published accuracies, as `mnas rank` keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mnas import reference, spaces
from mnas.storage import strict_json
from mnas.storage.files import Folder, FolderError
from mnas.studies import compared, ranking, scored
from mnas.studies.baselines import depth
from mnas.studies.web import charts
from mnas.studies.web.parts import Chart, Page, Section, Table, name, number

NO_LOSS = 1e6  # nats: above are those that were not finite, which no axis can show
HALVES = ("choosing", "reporting", "both")


def page(path: Path) -> Page:
    """Only networks of the half that was compared are shown, so that nobody looks at the other.

    Raises FolderError for a folder without published accuracies, or not compared yet."""
    folder = Folder(path, scored.FORMAT)
    settings = strict_json.parse(folder.read("settings.json"), dict, path / "settings.json")
    rows = scored.Scores(path, settings).rows
    half = next((half for half in HALVES if f"{half}.jsonl" in folder.listed()), None)
    if half is None or settings["space"] not in reference.TABLES:
        raise FolderError(
            f"{path} has no scores beside published accuracies; expected those of "
            f"{' or '.join(reference.TABLES)}, compared by tools/rank.py"
        )
    file = f"{half}.jsonl"
    lines = strict_json.parse_lines(folder.read(file), dict, path / file)
    table = reference.get(settings["space"])
    space = spaces.get(settings["space"])
    paths = [space.parse(row["arch"]) for row in rows]
    loss = -table.averaged(compared.of_paths(table, rows, paths)["loss"])
    shown = [i for i in _judged(len(loss), half) if loss[i] < NO_LOSS]  # and is a number
    distinct, depths = table.distinct, depth(table.distinct)
    points = [
        {
            "network": space.format(tuple(distinct.paths[i].tolist())),
            "loss": float(loss[i]),
            "accuracy": float(distinct.accuracies[i].mean()),
            "depth": f"{depths[i]} blocks" if depths.any() else "all",
            "macs": int(distinct.macs[i]),
        }
        for i in shown
    ]
    order = sorted({point["depth"] for point in points}, key=lambda said: (len(said), said))
    # Of estimates, none of the ceiling: the supernet's own and the best that needs no weights.
    own = next(line for line in lines if line["score"] == "supernet, loss")
    free = [
        line for line in lines if "supernet" not in line["score"] and "ceiling" not in line["score"]
    ]
    best = max(free, key=lambda line: line["within"])
    title = f"{settings['space']}: a supernet beside published accuracies"
    finding = (
        f"Among networks of equal depth the supernet's loss has tau {own['within']:.2f}; the best "
        f"score that needs no weights ({best['score']}) has {best['within']:.2f}"
    )
    return Page(
        title,
        f"{finding}.",
        [
            Section("Scores", finding, [], _table(lines), [Chart(_taus(lines), "Kendall's tau")]),
            Section(
                "Networks",
                f"{len(points)} networks, inherited loss against published accuracy",
                ["A click on a depth shows networks of that depth alone."],
                None,
                [Chart(charts.published(points, order))],
            ),
        ],
        [
            f"Made from the rows of {path.resolve().name} by mnas report --out; definitions are in "
            f"docs/ranking.md. Networks: the half for {half}.",
            f"Published accuracies: {table.citation}.",
        ],
    )


def _judged(networks: int, half: str) -> Any:
    choosing, reporting = ranking.halves(networks)
    return {"choosing": choosing, "reporting": reporting, "both": np.arange(networks)}[half]


def _table(lines: list[dict[str, Any]]) -> Table:
    body = [
        [
            name(line["score"]),
            number(line["within"], ".3f", *line.get("within_interval", ())),
            number(line["tau"], ".3f", *line.get("tau_interval", ())),
            *(number(line[key], ".2f") for key in ("equal", "top10", "top50")),
        ]
        for line in lines
    ]
    heads = ["score", "tau within depth", "tau", "regret, equal MACs", "regret, top 10"]
    caption = "Agreement with published accuracies; regret in points of published accuracy"
    return Table(caption, [*heads, "regret, top 50"], body)


def _taus(lines: list[dict[str, Any]]) -> dict[str, Any]:
    series = {"within depth": "within", "all networks": "tau"}
    rows = []
    for line in lines:
        for label, key in series.items():
            low, high = line.get(f"{key}_interval", (None, None))
            row = {"name": line["score"], "series": label, "value": line[key]}
            rows.append({**row, "low": low, "high": high, "note": f"n = {line['networks']}"})
    about = "Kendall's tau of each score with the published accuracies."
    order = [line["score"] for line in lines]
    return charts.dots(rows, order, tuple(series), about, "Kendall's tau")

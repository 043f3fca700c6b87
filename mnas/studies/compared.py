"""Scores of a supernet beside published accuracies, baselines and the ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnas.reference import Table
from mnas.studies import ranking
from mnas.studies.baselines import baselines, depth
from mnas.studies.ranking import Networks

LOST = 1e9  # nats: a loss that is not finite
LEAST = 20  # networks, to say anything of their order
REST = 0.3  # of what smoothing takes away; best of 0.1 to 0.5 on the choosing half, two seeds
HEADERS = (
    "score",
    "tau within depth",
    "regret, equal MACs",
    "tau",
    "regret, top 10",
    "regret, top 50",
    "worth networks",
)


def of_paths(table: Table, rows: list[dict[str, Any]], paths: list[tuple[int, ...]]) -> Scores:
    """Scores of all rows of a table by name (n,), NaN where there is none: the loss, negative;
    top-1; the loss smoothed: a linear model of its logarithm, fitted to the supernet's own; that
    and a part of what is not linear in it; the loss of one path of each network, drawn from those
    that have one; and, where rows have it, the divergence from the network with all candidates on,
    negative."""
    where = [table.rows[path] for path in paths]
    names = ("loss", "top-1", "smoothed loss", "partly smoothed loss", "loss, one path")
    found = {name: np.full(len(table), np.nan) for name in names}
    found["loss"][where] = -np.minimum(_losses(rows), LOST)
    found["top-1"][where] = [row["val_top1"] for row in rows]
    smooth = smoothed(table, rows, paths)[where]
    found["smoothed loss"][where] = -smooth
    found["partly smoothed loss"][where] = -(smooth + REST * (_logarithms(rows) - smooth))
    if all(row.get("val_kl") is not None for row in rows):
        found["KL to all candidates"] = np.full(len(table), np.nan)
        found["KL to all candidates"][where] = [-row["val_kl"] for row in rows]
    drawn = np.random.default_rng(ranking.HALVES_SEED).permutation(where)
    _, first = np.unique(table.network[drawn], return_index=True)
    found["loss, one path"][drawn[first]] = found["loss"][drawn[first]]
    return found


def smoothed(
    table: Table, rows: list[dict[str, Any]], paths: list[tuple[int, ...]]
) -> NDArray[np.float64]:
    """The logarithm of the loss of all rows of a table (n,), by a linear model fitted to those of
    some paths."""
    where = [table.rows[path] for path in paths]
    return ranking.ridge(ranking.one_hot(table.paths), where, _logarithms(rows))


def _logarithms(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    return np.log(np.clip(_losses(rows), 1 / LOST, LOST))


def _losses(rows: list[dict[str, Any]]) -> NDArray[np.float64]:
    """A loss that is not finite, written as null, ranks last."""
    return np.array([np.inf if row["val_loss"] is None else row["val_loss"] for row in rows])


Scores = Mapping[str, NDArray[np.float64]]


def compare(
    table: Table, scores: Scores, half: str, of: str = "supernet, "
) -> list[dict[str, Any]]:
    """Quality of each score on the networks of a half ("choosing", "reporting" or "both") of which
    there is a score, the mean over their paths; of the baselines on the same networks; and of one
    training. The exchange rate is by linear models fitted to networks of the other half. of: what
    stands before the names of scores.

    Raises ValueError for too few networks."""
    distinct = table.distinct
    averaged = {name: table.averaged(values) for name, values in scores.items()}
    known = ~np.isnan(np.array(list(averaged.values()))).any(0)
    judged, fitted = networks_of(half, len(distinct), known)
    networks = Networks(distinct.accuracies, depth(distinct), distinct.macs)
    of_half = networks[judged]
    curve = ranking.exchange(distinct.paths, networks.runs, networks.strata, fitted, judged)
    rows = [{"score": "one training (ceiling)", **_of(of_half.ceiling(), curve)}]
    for name, values in averaged.items():
        quality = of_half.quality(values[judged])
        overall, within = ranking.of_networks(values[judged], of_half)
        noise = {"tau_interval": overall, "within_interval": within}
        rows.append({"score": f"{of}{name}", **_of(quality, curve), **noise})
    for name, values in baselines(distinct).items():
        rows.append({"score": name, **_of(of_half.quality(values[judged]), curve)})
    return [{**row, "networks": len(judged), "half": half} for row in rows]


def networks_of(
    half: str, number: int, known: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct networks of a half that are known (number,), and those of the other half, known or
    not, that linear models are fitted to.

    Raises ValueError for too few."""
    choosing, reporting = ranking.halves(number)
    everything = np.arange(number)
    judged, fitted = {
        "choosing": (choosing, reporting),
        "reporting": (reporting, choosing),
        "both": (everything, everything),
    }[half]
    judged = judged[known[judged]]
    if len(judged) < LEAST:
        raise ValueError(
            f"{len(judged)} networks of the half {half!r} have a score; expected {LEAST} at least: "
            "raise --networks, or leave out fewer with --without"
        )
    return judged, fitted


def _of(quality: ranking.Quality, curve: ranking.Exchange) -> dict[str, Any]:
    return {**quality._asdict(), "worth": list(curve.worth(quality.tau))}


def page(title: str, rows: list[dict[str, Any]], costs: str) -> str:
    """The comparison as Markdown. costs: as a text."""
    from tabulate import tabulate

    cells = [
        (
            row["score"],
            _with(row["within"], row.get("within_interval")),
            f"{row['equal']:.2f}",
            _with(row["tau"], row.get("tau_interval")),
            f"{row['top10']:.2f}",
            f"{row['top50']:.2f}",
            networks_shown(row["worth"]),
        )
        for row in rows
    ]
    table = tabulate(cells, HEADERS, tablefmt="github", disable_numparse=True)
    return (
        f"# {title}\n"
        f"{rows[0]['networks']:,} distinct networks (half: {rows[0]['half']}). Regret in points of "
        "published accuracy; intervals of tau: other networks drawn (95 %); of the number of "
        "networks that a linear model needs for the same tau: draws of these. Definitions: "
        "docs/ranking.md.\n\n"
        f"{table}\n\n"
        f"{costs}"
    )


def _with(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def networks_shown(worth: list[float]) -> str:
    """What a score is worth, with its interval. Fewer networks than linear models were fitted to
    are not told apart: a score may be worth none."""
    shown = [
        "more" if np.isinf(end) else f"{'≤ ' if end <= ranking.SIZES[0] else ''}{end:.0f}"
        for end in worth
    ]
    if shown[1] == "more":
        return "more than any"
    value = "more than any" if shown[0] == "more" else shown[0]
    return f"{value} [{shown[1]}, {shown[2]}]"

"""Tables and figure of rankings beside each other, from the rows of `mnas.studies.rankings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mnas.studies.compared import networks_shown
from mnas.studies.pages import markdown, shown
from mnas.studies.plotting import MARKERS, bars, figure

Row = dict[str, Any]
PANELS = (("tau", "Kendall's tau, all networks"), ("within", "Kendall's tau within equal depth"))
COLOURS = ("C0", "C1", "C3", "C5", "C4", "C8", "C6")  # the palette without its palest greys
DIGITS = {"within": 3, "equal": 2, "tau": 3, "top10": 2, "top50": 2}
HEADERS = {
    **{"within": "tau within depth", "equal": "regret, equal MACs", "tau": "tau"},
    **{"top10": "regret, top 10", "top50": "regret, top 50"},
}


@dataclass(frozen=True)
class Found:
    """The rows of a comparison, and what they are of."""

    title: str
    half: str
    networks: int
    free: Sequence[Row]
    trained: Sequence[Row]
    supernets: Sequence[Row]
    alone: Sequence[Row]
    differences: Sequence[Row]
    effects: Sequence[Row]
    candidates: Sequence[str]


def page(found: Found) -> str:
    """All tables as Markdown."""
    return f"""# {found.title}: rankings beside each other
{found.networks:,} distinct networks (half: {found.half}), those that all rankings have scored.
{message(found)} Numbers are means over seeds with Student's 95 % interval; costs are in full
trainings (50 epochs of the largest network; docs/ranking.md). Made by `mnas rank compare`.

![tau against compute](tau.png)

## Supernets
{_supernets(found)}

## Without a supernet
{_free(found)}

{_trained(found)}

## Networks by themselves
On those of the networks above that have a score, as many as the table says; cost and seconds are of
all that were scored, not only of these.

{_alone(found)}

## What recipes cost
{_costs(found)}

## Differences of recipes
Welch's 95 % interval over seeds, with networks held fixed.

{_differences(found)}

## What is over- and underrated
Effects of candidates on the score (loss) less those on the truth, both in standard deviations over
networks and with mean 0 at each position: above 0 a supernet overrates the candidate. All at once;
truth: its own effect.

{_effects(found)}
"""


def _supernets(found: Found) -> str:
    body = [
        [
            row["recipe"],
            row["score"],
            str(len(row["seeds"])),
            *(shown(*row[metric], DIGITS[metric]) for metric in HEADERS),
            networks_shown(row["worth"]),
            _number(row["total"]),
        ]
        for row in found.supernets
    ]
    headers = ["recipe", "score", "seeds", *HEADERS.values(), "worth networks", "cost"]
    return markdown(body, headers)


def _free(found: Found) -> str:
    body = [
        [
            row["score"],
            *(f"{row[metric]:.{DIGITS[metric]}f}" for metric in HEADERS),
            networks_shown(row["worth"]),
        ]
        for row in found.free
    ]
    return markdown(body, ["score", *HEADERS.values(), "worth networks"])


def _alone(found: Found) -> str:
    body = [
        [
            row["score"],
            str(len(row["seeds"])),
            str(row["networks"]),
            *(shown(*row[metric], DIGITS[metric]) for metric in HEADERS),
            networks_shown(row["worth"]),
            str(row["scored"]),
            _number(row["total"]),
            f"{row['seconds']:,.0f}",
        ]
        for row in found.alone
    ]
    headers = ["score", "seeds", "networks", *HEADERS.values(), "worth networks"]
    return markdown(body, [*headers, "scored", "cost", "s"]) if body else "None."


def _trained(found: Found) -> str:
    body = [
        [
            str(row["networks"]),
            *(shown(*row[m], 3) for m in ("tau", "within")),
            _number(row["cost"]),
        ]
        for row in found.trained
    ]
    return markdown(body, ["networks trained once", "tau", "tau within depth", "cost"])


def _costs(found: Found) -> str:
    of = {row["recipe"]: row for row in found.supernets}
    body = [
        [
            name,
            *(_number(row[part]) for part in ("training", "scoring")),
            *(f"{row[f'{part}_seconds']:,.0f}" for part in ("training", "scoring")),
        ]
        for name, row in of.items()
    ]
    return markdown(body, ["recipe", "training", "scoring", "training, s", "scoring, s"])


def _differences(found: Found) -> str:
    body = [
        [
            f"{row['recipe']} − {row['less']}",
            row["score"],
            HEADERS[row["metric"]],
            shown(row["mean"], row["low"], row["high"], 3),
            row["word"],
        ]
        for row in found.differences
    ]
    return (
        markdown(body, ["recipes", "score", "number", "difference", ""]) if body else "One recipe."
    )


def _effects(found: Found) -> str:
    names = list(dict.fromkeys(row["recipe"] for row in found.effects))
    places: dict[tuple[int, int], list[Row]] = {}
    for row in found.effects:
        places.setdefault((row["position"], row["candidate"]), []).append(row)
    body = [
        [
            str(position + 1),
            found.candidates[candidate],
            f"{of[0]['truth']:+.2f}",
            *(shown(*row["overrated"], 2) for row in of),
        ]
        for (position, candidate), of in places.items()
    ]
    return markdown(body, ["position", "candidate", "truth", *names])


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def best(found: Found) -> Row | None:
    """The supernet's score without trained networks that has the highest tau at a known cost."""
    rows = [row for row in found.supernets if not row["trained"] and row["total"] is not None]
    return max(rows, key=lambda row: row["tau"][0], default=None)


def message(found: Found) -> str:
    """What the figure says, in a sentence."""
    row = best(found)
    if row is None:
        return "What a supernet costs here is unknown."
    networks = row["worth"][0]
    worth = f"{networks:.0f} trained networks" if np.isfinite(networks) else "any linear model"
    return f"A supernet for {row['total']:.2g} of a full training ranks as well as {worth}."


def draw(found: Found, file: Path) -> None:
    """tau, and tau within depth, against compute."""
    with figure(file, 2, width=5.6, height=4.6) as axes:
        for ax, (metric, label) in zip(axes, PANELS, strict=True):
            _panel(ax, found, metric)
            ax.set_ylabel(label)
            ax.set_xlabel("compute, in full trainings of the largest network")
        axes[0].figure.suptitle(message(found), fontsize=12, fontweight="bold")
        axes[0].set_title(f"{found.title}, {found.networks:,} networks", fontsize=9)
        axes[1].set_title(f"half: {found.half}; bars: 95 % over seeds", fontsize=9)


def _panel(ax: Any, found: Found, metric: str) -> None:
    rows = [row for row in found.supernets if row["total"] is not None]
    costs = [row["total"] for row in (*rows, *found.alone)]
    left = min([*costs, found.trained[0]["cost"]]) / 12
    right = found.trained[-1]["cost"] * 2
    ax.set_xscale("log")
    ax.set_xlim(left / 1.5, right)
    ceiling, *scores = found.free
    low, high = ceiling[f"{metric}_range"]
    ax.axhspan(low, high, color="0.85", zorder=0)
    middle = (low + high) / 2
    ax.text(left * 40, middle, "one training of each network", fontsize=8, va="center")
    shown_rows = (*rows, *found.trained[1:], *found.alone)
    floor = min(row[metric][0] for row in shown_rows) - 0.12
    inside = [row for row in scores if row[metric] > floor]
    for row, y in zip(inside, _apart([s[metric] for s in inside], 0.022), strict=True):
        ax.plot([left / 1.5, left], [row[metric]] * 2, color="black", linewidth=1.5)
        ax.text(left * 1.15, y, row["score"], fontsize=7.5, va="center")
    below = [f"{row['score']} {row[metric]:.2f}" for row in scores if row not in inside]
    if below:
        text = "below: " + ", ".join(below)
        ax.text(0.01, 0.01, text, fontsize=7.5, va="bottom", transform=ax.transAxes)
    ax.set_ylim(floor, high + 0.04)

    x, (y, lows, highs) = (
        [r["cost"] for r in found.trained],
        np.transpose([r[metric] for r in found.trained]),
    )
    ax.plot(x, y, color="black", linewidth=1.2)
    ax.fill_between(x, lows, highs, color="black", alpha=0.1, linewidth=0)
    middle = next(n for n, r in enumerate(found.trained) if r["networks"] >= 70)
    ax.annotate(
        "linear model on\nN trained networks",
        (x[middle], y[middle]),
        (10, -34),
        textcoords="offset points",
        fontsize=8,
    )
    _supernet_points(ax, rows, metric)
    _alone_points(ax, found.alone, metric)


def _alone_points(ax: Any, rows: Sequence[Row], metric: str) -> None:
    """Each with its own name; hollow where it is of fewer networks than the others."""
    most = max((row["networks"] for row in rows), default=0)
    for row in rows:
        mean, low, high = row[metric]
        ax.errorbar(
            row["total"],
            mean,
            bars([mean], [low], [high]),
            fmt="o",
            color="0.3",
            markerfacecolor="0.3" if row["networks"] == most else "white",
            markersize=4,
            elinewidth=0.7,
            capsize=2,
        )
        few = "" if row["networks"] == most else f" ({row['networks']} networks)"
        place = {"xytext": (5, -3), "textcoords": "offset points"}
        ax.annotate(f"{row['score']}{few}", (row["total"], mean), fontsize=7, color="0.3", **place)


def _supernet_points(ax: Any, rows: Sequence[Row], metric: str) -> None:
    """A recipe is a colour, a score a marker; recipes of equal cost stand side by side. That with
    the best score is shown with trained networks, too."""
    plain = list(dict.fromkeys(row["score"] for row in rows if not row["trained"]))
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    costs = {row["recipe"]: row["total"] for row in rows if not row["trained"]}
    place, last = {}, 0.0
    for name in sorted(names, key=lambda n: costs[n]):
        place[name] = last = max(costs[name], 1.3 * last)
    leader = max((row for row in rows if not row["trained"]), key=lambda row: row["tau"][0])[
        "recipe"
    ]
    labelled: set[str] = set()
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        own = [row for row in rows if row["recipe"] == name]
        points = [(row["score"], row[metric]) for row in own if not row["trained"]]
        ax.plot([place[name]] * 2, _ends([p[1][0] for p in points]), color=colour, linewidth=0.8)
        for score, (mean, low, high) in points:
            ax.errorbar(
                place[name],
                mean,
                bars([mean], [low], [high]),
                fmt=MARKERS[plain.index(score) % len(MARKERS)],
                color=colour,
                markersize=5,
                elinewidth=0.7,
                capsize=2,
                label=None if score in labelled else score,
            )
            labelled.add(score)
        more = [row for row in own if row["trained"]]
        if more and name == leader:
            x, y = [row["total"] for row in more], [row[metric][0] for row in more]
            ax.plot(x, y, color=colour, linewidth=1, marker=".", linestyle="--")
            ax.annotate(
                f"{name},\nsmoothed + N trained",
                (x[0], y[0]),
                (-6, -4),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
                ha="right",
                va="center",
            )
        ax.annotate(
            name,
            (place[name], min(mean for _, (mean, _, _) in points)),
            (4, -8 - 9 * _row(place, name)),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
            ha="left",
        )
    ax.legend(fontsize=7.5, loc="lower right", title="supernet, score", title_fontsize=7.5)


def _row(place: dict[str, float], name: str) -> int:
    """Names of neighbours in cost stand in lines of their own, below each other."""
    order = sorted(place, key=lambda other: -place[other])
    return order.index(name) % 4


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Heights of labels in the order of the values, no two nearer than the gap."""
    order, placed = np.argsort(values), np.array(values, float)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    return placed.tolist()

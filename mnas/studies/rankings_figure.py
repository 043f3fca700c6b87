"""The figure of rankings beside each other: tau against compute."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnas.studies.labels import Box, beside_points
from mnas.studies.plotting import COLOURS, QUIET, bars, figure
from mnas.studies.rankings_page import Found, Row, best, message

PANELS = (("tau", "Kendall's tau, all networks"), ("within", "Kendall's tau within equal depth"))
EPOCHS = re.compile(r", ([\d.e+-]+) epochs")  # in the name of a recipe
PRIOR = re.compile(r", prior .*")  # the same in all names that have one
FILLED, OPEN = "partly smoothed loss", "loss"  # scores of supernets that are drawn
LETTERS = 9.5  # points
WRAP = 30  # letters
SPAN = 0.6  # of tau: what is further below the ceiling is named in a line of text


class Point(NamedTuple):
    """A ranking. name, short: of what it is, and within that, such as epochs. cost: in full
    trainings, 0 where nothing is computed. value: mean, low, high. colour, look: of its mark. open:
    the mean of the same supernets' plain loss."""

    name: str
    short: str
    cost: float
    value: Sequence[float]
    colour: str
    look: str
    open: float | None = None


def draw(found: Found, file: Path) -> None:
    """tau, and tau within depth, against compute, below each other. Where all networks have one
    depth, the two are the same, and one is drawn."""
    ceiling = found.free[0]
    panels = PANELS[: 1 if ceiling["within"] == ceiling["tau"] else 2]
    with figure(file, len(panels), 11, 5.6, message(found), in_row=1) as axes:
        axes[0].set_title(
            f"{found.title}, {found.networks:,} networks, half: {found.half}; bars: 95 % over "
            f"seeds. Supernets: {FILLED} (filled) and {OPEN} (open); numbers: epochs",
            fontsize=10.5,
        )
        axes[-1].set_xlabel("compute, in full trainings of the largest network")
        for ax, (_, label) in zip(axes, panels, strict=True):
            ax.set_ylabel(label)
        drawn = [_panel(ax, found, metric) for ax, (metric, _) in zip(axes, panels, strict=True)]
        axes[0].figure.canvas.draw()  # the layout decides where the points are
        for ax, what in zip(axes, drawn, strict=True):
            _names(ax, *what)


def points(found: Found, metric: str) -> list[Point]:
    """What has a known cost: rows without a supernet, networks alone, and one of each recipe."""
    made = [
        Point(row["score"], "", row.get("cost") or 0.0, _ends(row[metric]), "black", "D")
        for row in found.free[1:]
    ]
    most = max((row["networks"] for row in found.alone), default=0)
    for row in found.alone:
        few = "" if row["networks"] == most else f" ({row['networks']} networks)"
        made.append(Point(row["score"] + few, "", row["total"], row[metric], "0.35", "s"))
    recipes: dict[str, dict[str, Row]] = {}
    for row in found.supernets:
        if row["total"] is not None and not row["trained"]:
            recipes.setdefault(row["recipe"], {})[row["score"]] = row
    used: list[float] = []
    families = {name: _family(name) for name in recipes}
    colours = _colours(found)
    for name, scores in recipes.items():
        family = families[name]
        several = list(families.values()).count(family) > 1
        row = scores.get(FILLED) or next(iter(scores.values()))
        plain = scores.get(OPEN, row)[metric][0]
        used.append(row["total"])
        equal = sum(abs(np.log(row["total"] / other)) < 0.02 for other in used) - 1
        cost = row["total"] * 1.06**equal  # recipes of equal cost stand side by side
        colour = colours[name]
        short = EPOCHS.search(name)[1] if several else ""
        shown = family if several else PRIOR.sub(" + prior", name)
        made.append(Point(shown, short, cost, row[metric], colour, "o", plain))
    return made


def _family(name: str) -> str:
    """Of a recipe: the same for those that differ in their epochs alone."""
    return PRIOR.sub(" + prior", EPOCHS.sub("", name))


def _colours(found: Found) -> dict[str, str]:
    """By the name of a recipe; a family has one."""
    known = [r["recipe"] for r in found.supernets if r["total"] is not None and not r["trained"]]
    families = list(dict.fromkeys(map(_family, known)))
    return {name: COLOURS[families.index(_family(name)) % len(COLOURS)] for name in known}


def _ends(value: Any) -> Sequence[float]:
    """Mean, low, high; of a number, no interval."""
    return value if isinstance(value, (list, tuple)) else (value, np.nan, np.nan)


def _panel(ax: Any, found: Found, metric: str) -> tuple[Sequence[Point], Sequence[Line], float]:
    """Everything but names; returns what is to be named, and the left end of the axis."""
    made = points(found, metric)
    costs = [point.cost for point in made if point.cost] + [row["cost"] for row in found.trained]
    left = min(costs) / 30
    ax.set_xscale("log")
    ax.set_xlim(left, max(costs) * 3)
    low, high = found.free[0][f"{metric}_range"]
    ax.axhspan(low, high, color="0.88", zorder=0)
    x, y = found.trained[-1]["cost"], (low + high) / 2
    ceiling = ax.text(x * 2.6, y, "one training of each network", ha="right", va="center")
    ceiling.set_fontsize(LETTERS)
    lowest = [p.value[0] if p.open is None else p.open for p in made if p.cost]
    lowest += [row[metric][0] for row in found.trained[2:]]
    floor = max(min(lowest) - 0.06, high - SPAN)
    series = [_series(found, metric), _trained(found, metric)]
    curves = [line for line in series if line]
    top = max(high, *(p.value[0] for p in made), *(y for line in curves for y in line.y)) + 0.03
    below = [f"{p.name} {p.value[0]:.2f}" for p in made if p.value[0] < floor]
    text = textwrap.fill("below: " + ", ".join(below), 60) if below else ""
    ax.text(0.01, 0.012, text, fontsize=LETTERS, va="bottom", transform=ax.transAxes)
    room = 0.04 * len(text.splitlines()) * (top - floor)  # a line's share of the panel's height
    ax.set_ylim(floor - room, top)
    series.append(_worth(found) if metric == "tau" else None)
    for line, style in zip(series, ("-", "--", ":"), strict=True):
        if line is None:
            continue
        ax.plot(line.x, line.y, color=line.colour, linewidth=1.6, linestyle=style, zorder=2)
        if line.band is not None:
            ax.fill_between(line.x, *line.band, color=line.colour, alpha=0.08, linewidth=0)
        elif style == "--":
            ax.plot(line.x, line.y, ".", color=line.colour, markersize=8)
    inside = [point for point in made if point.value[0] >= floor]
    for point in inside:
        _mark(ax, point, left)
    for family in _families(inside):
        x, y = zip(*((p.cost, p.value[0]) for p in family), strict=True)
        ax.plot(x, y, color=family[0].colour, linewidth=1.2, zorder=3)
    return inside, [line for line in series if line], left


def _families(inside: Sequence[Point]) -> list[list[Point]]:
    """Supernets that differ in their epochs alone, the shortest first."""
    names = dict.fromkeys(point.name for point in inside if point.short)
    return [
        sorted((p for p in inside if p.name == name), key=lambda p: float(p.short))
        for name in names
    ]


class Line(NamedTuple):
    """A curve with its name, which stands at the point number `at`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    at: int
    band: tuple[Sequence[float], Sequence[float]] | None = None


def _series(found: Found, metric: str) -> Line:
    """The linear model by the number of networks that it is fitted to."""
    y, low, high = np.transpose([row[metric] for row in found.trained])
    at = next(n for n, row in enumerate(found.trained) if row["networks"] >= 70)
    x = [row["cost"] for row in found.trained]
    return Line("linear model on N trained networks", x, y, "black", at, (low, high))


def _trained(found: Found, metric: str) -> Line | None:
    """The supernet with the best score, with trained networks beside it."""
    leader = best(found)
    if leader is None:
        return None
    rows = [r for r in found.supernets if r["trained"] and r["recipe"] == leader["recipe"]]
    if not rows:
        return None
    names = [row["score"].split("+ ")[1].split()[0] for row in rows]
    name = f"best supernet, smoothed + {names[0]} to {names[-1]} trained networks"
    x, y = [row["total"] for row in rows], [row[metric][0] for row in rows]
    return Line(name, x, y, _colours(found)[leader["recipe"]], 0)


def _worth(found: Found) -> Line | None:
    """From the best supernet to as many trained networks as have its tau: what the title says, so
    that it needs no name."""
    leader = best(found)
    if leader is None or not np.isfinite(leader["worth"][0]):
        return None
    costs = [row["cost"] / row["networks"] for row in found.trained]  # of a network
    x = np.geomspace(leader["total"], leader["worth"][0] * costs[0], 9).tolist()
    return Line("", x, [leader["tau"][0]] * len(x), QUIET, 0)


def _x(point: Point, left: float) -> float:
    """What costs nothing stands at the left end of the axis."""
    return point.cost or left * 1.25


def _mark(ax: Any, point: Point, left: float) -> None:
    (mean, low, high), x = point.value, _x(point, left)
    if not point.cost:
        ax.plot([left, x], [mean, mean], color=point.colour, linewidth=2)
        return
    ends = bars([mean], [low], [high])
    ax.errorbar(x, mean, ends, fmt="", color=point.colour, elinewidth=0.9, zorder=2)
    look = {"color": point.colour, "marker": point.look, "markersize": 7}
    ax.plot(x, mean, markeredgecolor="white", zorder=4, **look)
    if point.short:
        beside = {"textcoords": "offset points", "ha": "right", "va": "bottom", "zorder": 5}
        look = {"color": point.colour, "fontsize": LETTERS - 1, "fontweight": "bold"}
        ax.annotate(point.short, (x, mean), (-3, 2), **beside, **look)
    if point.open is not None and point.open != mean:
        ax.plot(x, point.open, "o", color=point.colour, markersize=5, zorder=3, mfc="white")


def _names(ax: Any, inside: Sequence[Point], series: Sequence[Line], left: float) -> None:
    """The name of each point and curve beside it, where it lies over nothing."""
    fig = ax.figure
    renderer, scale = fig.canvas.get_renderer(), fig.dpi / 72

    def at(x: float, y: float) -> tuple[float, float]:
        return tuple(ax.transData.transform((x, y)))

    last = [family[-1] for family in _families(inside)]
    named = [
        (f"{p.name}, by epochs" if p.short else p.name, at(_x(p, left), p.value[0]), p.colour)
        for p in inside
        if not p.short or p in last
    ]
    named += [
        (line.name, at(line.x[line.at], line.y[line.at]), line.colour)
        for line in series
        if line.name
    ]
    taken = [text.get_window_extent(renderer).extents for text in ax.texts if text.get_text()]
    for line in series:
        taken += _boxes([at(x, y) for x, y in zip(line.x, line.y, strict=True)])
    for point in inside:
        x, y = at(_x(point, left), point.value[0])
        half = 4 * scale
        taken.append((x - half, y - half, x + half, y + half))
        ends = [at(1, value)[1] for value in (*point.value, point.open) if value is not None]
        taken.append((x - 1, np.nanmin(ends), x + 1, np.nanmax(ends)))
    words = [textwrap.fill(name, WRAP) for name, *_ in named]
    sizes = []
    for word in words:
        text = ax.text(0.5, 0.5, word, fontsize=LETTERS, transform=ax.transAxes)
        extent = text.get_window_extent(renderer)
        sizes.append((extent.width, extent.height))
        text.remove()
    places = beside_points([p for _, p, _ in named], sizes, taken, ax.bbox.extents, 6 * scale)
    for word, (_, (x, y), colour), box in zip(words, named, places, strict=True):
        _write(ax, word, (x, y), colour, box, scale)


def _boxes(corners: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """A curve as points that lie close to each other."""
    for (x0, y0), (x1, y1) in pairwise(corners):
        for share in np.linspace(0, 1, max(2, int(np.hypot(x1 - x0, y1 - y0) / 4))):
            x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
            yield (x - 1, y - 1, x + 1, y + 1)


def _write(
    ax: Any, word: str, point: tuple[float, float], colour: str, box: Box, scale: float
) -> None:
    near = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    invert = ax.transAxes.inverted().transform
    x, y = invert((box[0], box[1]))
    text = ax.text(x, y, word, fontsize=LETTERS, color=colour, va="bottom", transform=ax.transAxes)
    text.set_in_layout(False)
    if np.hypot(near[0] - point[0], near[1] - point[1]) > 15 * scale:
        ends = np.transpose([invert(point), invert(near)])
        ax.plot(*ends, color=QUIET, linewidth=0.7, transform=ax.transAxes, zorder=1)


def effects(found: Found, file: Path) -> None:
    """What is over- and underrated: a map of position and candidate for each recipe."""
    of: dict[str, list[Row]] = {}
    for row in found.effects:
        of.setdefault(row["recipe"], []).append(row)
    # Of the typical recipe: one that did not train would make all others pale.
    largest = float(
        np.median([max(abs(row["overrated"][0]) for row in rows) for rows in of.values()])
    )
    width = 9.5 if len(of) == 1 else 4.8
    with figure(file, len(of), width, 2.3, effects_message(found)) as axes:
        for ax, (name, rows) in zip(axes, of.items(), strict=True):
            shape = (len(found.candidates), 1 + max(row["position"] for row in rows))
            gaps = np.zeros(shape)
            for row in rows:
                mean, low, high = row["overrated"]
                at = (row["candidate"], row["position"])
                gaps[at] = mean
                sure = low > 0 or high < 0  # False where there is no interval
                pale = abs(mean) < 0.6 * largest
                look = {"color": "black" if pale else "white", "ha": "center", "va": "center"}
                weight = "bold" if sure else "normal"
                ax.text(at[1], at[0], f"{100 * mean:+z.0f}", fontsize=9, fontweight=weight, **look)
            ax.imshow(gaps, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
            ax.set_title(textwrap.fill(name, 44), fontsize=10)
            ax.set_xticks(range(shape[1]), range(1, shape[1] + 1))
            ax.set_xlabel("position", fontsize=9.5)
            ax.set_yticks(range(shape[0]), found.candidates, fontsize=9.5)
            ax.grid(visible=False)
            ax.tick_params(length=0)


def effects_message(found: Found) -> str:
    """What the map says: where recipes are wrong most, by their median, which one that did not
    train does not decide."""
    places: dict[tuple[int, int], list[float]] = {}
    for row in found.effects:
        places.setdefault((row["position"], row["candidate"]), []).append(row["overrated"][0])
    middle = {place: float(np.median(gaps)) for place, gaps in places.items()}
    (position, candidate), gap = max(middle.items(), key=lambda item: abs(item[1]))
    word = "overrate" if gap > 0 else "underrate"
    several = " (median of recipes)" if len({row["recipe"] for row in found.effects}) > 1 else ""
    return (
        f"Supernets {word} {found.candidates[candidate]} at position {position + 1} most, by "
        f"{abs(gap):.2f} standard deviations{several}. Map: hundredths; bold: 95 % over seeds "
        "leaves out 0."
    )

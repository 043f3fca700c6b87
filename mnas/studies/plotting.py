"""How figures look: a title that says what they show, colours that read on white without help of a
legend, letters that can be read at half of the size, and a marker of its own for each series."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

from mnas.studies.labels import spread

MARKERS = "osD^vPX*<>hd"
# Those of the HTML reports on white: inherited, from scratch, and others.
COLOURS = ("#0b6bb8", "#c4500b", "#1d7f52", "#9b3f8f", "#8a6d00", "#5b4bb5", "#b3261e", "#2b7f8c")
COLOURS += ("#6b7280", "#4c5a18", "#d6336c", "#0b1f3a")
QUIET = "#57606a"
STYLE = {
    "figure.dpi": 150,
    "savefig.facecolor": "white",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "figure.constrained_layout.use": True,
}
LETTER = 0.105  # inches: the mean width of a letter of a title


def bars(means: Any, lows: Any, highs: Any) -> Any:
    """Lengths of error bars, down and up. A missing end gives none, nor one on the wrong side of
    its mean, as a bootstrap's may be."""
    mean, low, high = (np.array(values, float) for values in (means, lows, highs))
    return np.clip(np.nan_to_num(np.stack([mean - low, high - mean])), 0, None)


def error_axis(ax: Any, errors: Any, axis: Any = None) -> None:
    """Where the errors differ by more than a factor of 3 their axis (the vertical one unless given)
    is logarithmic, so that a bad run or the first epoch does not squeeze what is of interest; not
    with an error of 0, which has no place there."""
    low, high = np.min(errors), np.max(errors)
    if not 0 < 3 * low < high:
        return
    axis = axis or ax.yaxis
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def series(number: int) -> dict[str, Any]:
    """Colour and marker of a series by its number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def lines(ax: Any, names: list[str]) -> None:
    """A line for each name, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def strip(
    ax: Any,
    at: float,
    number: int,
    runs: Any,
    mean: float,
    low: float | None,
    high: float | None,
    **more: Any,
) -> None:
    """On a line: runs as small marks, equal ones over each other, and below them their mean with
    its interval. number: of the series."""
    look, stacked = series(number), {}
    for value in np.asarray(runs, float).ravel():
        place = stacked[round(value, 6)] = stacked.get(round(value, 6), -1) + 1
        ax.plot(
            value, at - 0.05 - 0.045 * place, markersize=5, alpha=0.45, markeredgewidth=0, **look
        )
    ends = bars([mean], [low], [high])
    fmt = look.pop("marker")
    ax.errorbar(
        mean, at + 0.07, xerr=ends, fmt=fmt, markersize=7, capsize=4, linewidth=2, **look, **more
    )


def legend(ax: Any, columns: int = 3, **more: Any) -> None:
    """Above the axes, in rows of so many, where no data are."""
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.2,
        handletextpad=0.3,
        columnspacing=1.5,
        **{"borderpad": 0.2, **more},
    )


def at_ends(ax: Any, x: float, ends: dict[str, float], lines_each: int = 1) -> None:
    """The name of each line at its right end, in its colour, far enough apart to be read."""
    low, high = ax.get_ylim()
    log = ax.get_yscale() == "log"
    heights = [math.log10(y) if log else y for y in ends.values()]
    span = (math.log10(high) - math.log10(low)) if log else high - low
    points = ax.get_position().height * ax.figure.get_figheight() * 72
    places = spread(heights, 14 * lines_each / points * span)
    for number, (name, place) in enumerate(zip(ends, places, strict=True)):
        ax.annotate(
            name,
            (x, 10**place if log else place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[number % len(COLOURS)],
            annotation_clip=False,
        )


@contextlib.contextmanager
def figure(
    file: Path,
    number: int = 1,
    width: float = 3.6,
    height: float = 3.0,
    title: str = "",
    in_row: int = 3,
) -> Iterator[list[Any]]:
    """Axes, so many in a row, of this width and height in inches; the figure is written to the file
    at the end. title: what it says, above all."""
    columns = min(number, in_row)
    rows = math.ceil(number / columns)
    with plt.style.context(STYLE):
        drawn, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False
        )
        try:
            for unused in axes.flat[number:]:
                unused.remove()
            if title:
                wrapped = textwrap.fill(title, int(width * columns / LETTER))
                drawn.suptitle(wrapped, x=0.01, ha="left", fontsize=13, fontweight="bold")
            yield list(axes.flat)[:number]
            file.parent.mkdir(parents=True, exist_ok=True)
            # No version and no date in the file: the same rows give the same image.
            # Tight: what is longer than its axis, as a label, is not cut.
            drawn.savefig(file, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08)
        finally:
            plt.close(drawn)

"""How figures look: matplotlib's colour-blind palette on white, so that they read in a dark page
too, and a marker of its own for each series, so that they read without colour."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

MARKERS = "osD^vPX*<>hd"
STYLE = {
    "figure.dpi": 150,
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 9,
    "figure.constrained_layout.use": True,
}


def bars(means: Any, lows: Any, highs: Any) -> Any:
    """Lengths of error bars, down and up. A missing end gives none, nor one on the wrong side of
    its mean, as a bootstrap's may be."""
    mean, low, high = (np.array(values, float) for values in (means, lows, highs))
    return np.clip(np.nan_to_num(np.stack([mean - low, high - mean])), 0, None)


def error_axis(ax: Any, errors: Any) -> None:
    """Where the errors differ by more than a factor of 3 the vertical axis is logarithmic, so that
    a bad run or the first epoch does not squeeze what is of interest; not with an error of 0, which
    has no place there."""
    low, high = np.min(errors), np.max(errors)
    if not 0 < 3 * low < high:
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


@contextlib.contextmanager
def figure(
    file: Path, number: int = 1, width: float = 3.6, height: float = 3.0
) -> Iterator[list[Any]]:
    """Axes, three in a row, of this width and height in inches; the figure is written to the file
    at the end."""
    columns = min(number, 3)
    rows = math.ceil(number / columns)
    with plt.style.context(["tableau-colorblind10", STYLE]):
        drawn, axes = plt.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False
        )
        try:
            for unused in axes.flat[number:]:
                unused.remove()
            yield list(axes.flat)[:number]
            file.parent.mkdir(parents=True, exist_ok=True)
            # No version and no date in the file: the same rows give the same image.
            drawn.savefig(file, metadata={"Software": None})
        finally:
            plt.close(drawn)

"""The picture of a search: what networks score at what they cost, and the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mnas.studies.plotting import figure

if TYPE_CHECKING:
    from mnas.networks.search import Found, Search

NEAR = 0.5  # points of accuracy that the title gives up for a lower cost
AXES = {
    "macs": ("multiply-accumulates an image, millions", "M MACs", 1e6),
    "params": ("parameters, millions", "M parameters", 1e6),
    "latency": ("latency of a forward pass, ms", "ms", 1.0),
}


def picture(file: Path, found: Search, by: str) -> None:
    """All networks that were scored, the front marked. Scores are shares of validation images, 0 to
    1; by: the cost of the front."""
    label, _, unit = AXES[by]

    def at(networks: tuple[Found, ...]) -> tuple[list[float], list[float]]:
        return [getattr(n, by) / unit for n in networks], [100 * n.score for n in networks]

    with figure(file, width=5.2, height=3.6) as (ax,):
        ax.plot(*at(found.networks), "o", color="C7", alpha=0.5, markersize=4, label="scored")
        ax.plot(*at(found.front), "D-", color="C0", drawstyle="steps-post", label="front")
        ax.set(xlabel=label, ylabel="validation top-1, %")
        ax.set_title(message(found, by), loc="left", fontsize="medium")
        ax.legend(loc="lower right")


def message(found: Search, by: str) -> str:
    """What the front says: the best score, and the least cost near it."""
    _, name, unit = AXES[by]
    best = found.front[-1]
    near = next(n for n in found.front if 100 * (best.score - n.score) <= NEAR)
    costs = [getattr(n, by) / unit for n in (best, near)]
    said = f"Best of {len(found.networks):,}: {100 * best.score:.1f} % at {costs[0]:.3g} {name}"
    if near is best:
        return said
    return f"{said};\n{100 * near.score:.1f} % costs {100 * costs[1] / costs[0]:.0f} % of that"

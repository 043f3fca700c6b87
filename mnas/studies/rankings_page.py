"""Tables of rankings beside each other, from the rows of `mnas.studies.rankings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnas.studies.by_depth import LEAST
from mnas.studies.by_seed import NUMBERS
from mnas.studies.compared import networks_shown
from mnas.studies.pages import markdown, shown
from mnas.studies.uncertainty import DRAWS

Row = dict[str, Any]
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
    intervals: Sequence[Row] = ()
    paired: Sequence[Row] = ()
    command: str = "mnas rank compare"
    depths: Sequence[Row] = ()
    seeds: Sequence[Row] = ()


def page(found: Found) -> str:
    """All tables as Markdown."""
    return f"""# {found.title}: rankings beside each other
{found.networks:,} distinct networks (half: {found.half}), those that all rankings have scored.
{message(found)} Numbers are means over seeds with Student's 95 % interval; costs are in full
trainings (50 epochs of the largest network; docs/ranking.md). Made by
`{found.command}`.

![tau against compute](tau.png)

## Supernets
{_supernets(found)}

## Without a supernet
{_free(found)}

{_trained(found)}

## Among networks of one depth
tau by the partly smoothed loss.

{by_depth(found.depths)}

## Bias and variance
*One*: of a supernet, mean over seeds. *All*: of the mean of all seeds' scores. *Between*: of one
seed's order with another's. *Alike*: of one, against the mean of two trainings, as the ceiling is
judged. What keeps *all* from the ceiling is shared by all seeds: bias.

{by_seed(found.seeds)}

## Networks by themselves
On those of the networks above that have a score, as many as the table says; cost and seconds are of
all that were scored, not only of these.

{_alone(found)}

## What recipes cost
{_costs(found)}

## Differences of recipes
Welch's 95 % interval over seeds, with networks held fixed.

{_differences(found)}

## What one setting brings
Pairs that differ in one setting, seed by seed: first minus second, with Student's 95 % interval
over the differences of seeds (networks and images held fixed); behind it 1.96 standard deviations
over networks drawn anew (seeds and images held fixed). Bold: the interval over seeds leaves out 0;
of one seed of the same supernet, that over networks; one seed trained apart twice is never bold. Of
regret, less is better.

{_paired(found)}

## How sure these numbers are
Each interval lets one thing vary. Over seeds: other supernets, the same networks and images
(Student, 95 %). Over networks: others drawn, the same supernets and images. Over images: other
validation images drawn, the same for all networks and seeds, with the supernets, the networks and
what statistics are recalibrated on held fixed (top-1 alone, of which the bits are kept). The last
two are 1.96 standard deviations of {DRAWS} draws around the number.

{_intervals(found)}

## What is over- and underrated
![over- and underrated candidates by position](effects.png)

Effects of candidates on the score (loss) minus those on the truth, both in standard deviations over
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


def by_depth(rows: Sequence[Row]) -> str:
    if not rows:
        return f"All networks have one depth, or no depth has {LEAST} networks."
    of: dict[tuple[int, int, float], dict[str, str]] = {}
    for row in rows:
        key = row["depth"], row["networks"], row["ceiling"]
        of.setdefault(key, {})[row["recipe"]] = shown(*row["tau"], 2)
    body = [[str(d), str(n), f"{c:z.2f}", *cells.values()] for (d, n, c), cells in of.items()]
    return markdown(body, ["depth", "networks", "one training", *next(iter(of.values()))])


def by_seed(rows: Sequence[Row]) -> str:
    of: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        cells = of.setdefault((row["recipe"], row["score"], str(len(row["seeds"]))), [])
        cells += [f"{row[key]:z.3f}" for key in NUMBERS]
    if not of:
        return "No recipe has two seeds."
    numbers = [f"{name}, {of}" for name in ("tau", "within depth") for of in NUMBERS]
    return markdown(
        [[*k, *cells] for k, cells in of.items()], ["recipe", "score", "seeds", *numbers]
    )


def _costs(found: Found) -> str:
    of = {row["recipe"]: row for row in found.supernets}
    body = [
        [
            name,
            *(_number(row[part]) for part in ("training", "scoring")),
            *(f"{row[f'{part}_seconds']:,.0f}" for part in ("training", "scoring")),
            "; ".join(row["machines"]),
        ]
        for name, row in of.items()
    ]
    headers = ["recipe", "training", "scoring", "training, s", "scoring, s", "trained on"]
    return markdown(body, headers)


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


def _paired(found: Found) -> str:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found.paired:
        supernets = "the same" if row["same_supernets"] else "trained apart"
        key = (row["what"], f"{row['first']} − {row['less']}", supernets)
        key += (", ".join(map(str, row["seeds"])), "" if "score" in row["what"] else row["score"])
        digits = DIGITS[row["metric"]]
        ends = row["over_seeds"] or (None, None)
        text = shown(row["mean"], *ends, digits)
        text = f"**{text}**" if row["word"].startswith("different") else text
        lines.setdefault(key, {})[row["metric"]] = f"{text}; {_ends(row['over_networks'], digits)}"
    if not lines:
        return "No two rankings differ in one setting."
    metrics = [metric for metric in HEADERS if metric in next(iter(lines.values()))]
    body = [[*key, *(cells[metric] for metric in metrics)] for key, cells in lines.items()]
    headers = ["setting", "first − second", "supernets", "seeds", "score"]
    return markdown(body, [*headers, *(HEADERS[metric] for metric in metrics)])


def _intervals(found: Found) -> str:
    body = []
    for row in found.intervals:
        digits = DIGITS[row["metric"]]
        ends = [row[of] for of in ("seeds", "networks", "images")]
        body.append(
            [
                *(row["recipe"], row["score"], HEADERS[row["metric"]]),
                f"{row['mean']:z.{digits}f}",
                *(_ends(e, digits) for e in ends),
            ]
        )
    over = ("over seeds", "over networks", "over images")
    return markdown(body, ["recipe", "score", "number", "mean", *over])


def _ends(ends: Sequence[float] | None, digits: int) -> str:
    return f"[{ends[0]:z.{digits}f}, {ends[1]:z.{digits}f}]" if ends else "–"


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
    worth = "better than any linear model of trained networks"
    if np.isfinite(row["worth"][0]):
        worth = f"as well as a linear model of {networks_shown(row['worth'])} trained networks"
    seeds = "" if len(row["seeds"]) > 1 else " (one seed)"
    score = f"{row['recipe']}: {row['score']}, for {row['total']:.2g} of a full training,"
    return f"{score} ranks {worth}{seeds}."

"""Rankings of `mnas rank alone` beside those of supernets, made from their rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnas import reference, spaces
from mnas.reference import Table
from mnas.storage import strict_json
from mnas.storage.files import Folder
from mnas.storage.strict_json import FolderError
from mnas.studies import alone, compared, statistics
from mnas.studies.compute import full_training
from mnas.studies.rankings import METRICS, Judged, judged_on

Array = NDArray[np.float64]
NOT_OF_RECIPE = ("start_seed", "threads")
Row = dict[str, Any]


@dataclass(frozen=True)
class Alone:
    """A folder of `mnas rank alone`."""

    path: Path
    settings: dict[str, Any]
    rows: list[Row]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What must be equal for two of them to differ in their seed alone."""
        return {key: value for key, value in self.settings.items() if key not in NOT_OF_RECIPE}

    @cached_property
    def table(self) -> Table:
        return reference.get(self.settings["space"])

    @cached_property
    def scores(self) -> dict[str, Array]:
        """Of distinct networks (distinct,) by name; NaN where there is none. Of short trainings
        also the loss that a linear model of their own losses gives, for every network."""
        space = spaces.get(self.settings["space"], self.settings["resolution"])
        paths = [space.parse(row["arch"]) for row in self.rows]
        found = alone.of_paths(self.table, self.settings, self.rows, paths)
        if self.settings["score"] == "short":
            losses = [{"val_loss": row["values"]["val_loss"]} for row in self.rows]
            name = f"{alone.label(self.settings)}, smoothed loss"
            found[name] = -compared.smoothed(self.table, losses, paths)
        return {name: self.table.averaged(values) for name, values in found.items()}


def is_alone(path: Path) -> bool:
    """Whether a directory is a folder of `mnas rank alone`."""
    with contextlib.suppress(FolderError):
        return bool(Folder(path, alone.FORMAT).listed())
    return False


def read(path: Path) -> Alone:
    """Raises FolderError for a damaged folder, and for one with networks missing."""
    folder = Folder(path, alone.FORMAT)
    settings = strict_json.parse(folder.read("settings.json"), dict, path / "settings.json")
    kind = alone.ShortSettings if settings.get("score") == "short" else alone.Settings
    strict_json.checked(settings, kind, path / "settings.json")
    rows = strict_json.parse_lines(folder.read("rows.jsonl"), alone.Row, path / "rows.jsonl")
    found = Alone(path, settings, rows)
    asked = (settings["networks"], settings["seed"] or 0, settings["some"])
    expected = len(alone.networks(found.table, *asked))
    if len(rows) < expected:
        raise FolderError(
            f"{path} has {len(rows)} of {expected} networks; repeat its command, which goes on"
        )
    return found


def qualities(found: Sequence[Alone], of: Judged, draws: int = 200) -> list[Row]:
    """A row for each recipe and score: each number over seeds of the start, mean with Student's
    interval, on those of the judged networks that have a score; how many these are; what the mean
    tau is worth; and what all networks that were scored cost, in full trainings and seconds.

    Raises ValueError for another space, two of one recipe and seed, and too few networks."""
    groups: list[list[Alone]] = []
    for one in found:
        if one.settings["space"] != of.table.name:
            raise ValueError(
                f"{one.path} is of space {one.settings['space']}; expected {of.table.name}"
            )
        group = next((g for g in groups if g[0].recipe == one.recipe), None)
        if group is None:
            groups.append([one])
            continue
        seed = one.settings["start_seed"]
        twin = next((other for other in group if other.settings["start_seed"] == seed), None)
        if twin is not None:
            raise ValueError(
                f"{twin.path} and {one.path} are of one recipe and seed {seed}; leave one out"
            )
        group.append(one)
    rows = []
    for group, more in zip(groups, _apart([group[0] for group in groups]), strict=True):
        for name in group[0].scores:
            row = _quality(group, name, of, draws)
            rows.append({**row, "score": name + more})
    return rows


def _apart(recipes: Sequence[Alone]) -> list[str]:
    """What stands behind the names of each recipe, so that no two have the same: the settings in
    which those of one name differ."""
    found = []
    for one in recipes:
        same = [o.recipe for o in recipes if alone.label(o.settings) == alone.label(one.settings)]
        keys = sorted({key for other in same for key in {**one.recipe, **other}})
        varied = [key for key in keys if len({repr(other.get(key)) for other in same}) > 1]
        words = (f", {key.replace('_', ' ')} {str(one.recipe.get(key))[:8]}" for key in varied)
        found.append("".join(words))
    return found


def _quality(group: Sequence[Alone], name: str, of: Judged, draws: int) -> Row:
    known = ~np.isnan([one.scores[name][of.numbers] for one in group]).any(0)
    if known.sum() < compared.LEAST:
        raise ValueError(
            f"{known.sum()} of the compared networks have a score in {group[0].path}; expected "
            f"{compared.LEAST} at least"
        )
    on = of
    if not known.all():
        on = judged_on(of.table, of.half, of.numbers[known], of.fitted, draws)
    values = [on.networks.quality(one.scores[name][on.numbers]) for one in group]
    row: Row = {"score": name, "seeds": [one.settings["start_seed"] for one in group]}
    for metric, of_seeds in zip(METRICS, np.transpose(values), strict=True):
        row[metric] = list(statistics.interval(of_seeds))
        row[f"{metric}_of_seeds"] = of_seeds.tolist()
    row["worth"] = list(on.curves["tau"].worth(row["tau"][0]))
    for key in ("work", "seconds"):
        row[key] = float(np.mean([sum(line[key] for line in one.rows) for one in group]))
    row["total"] = row.pop("work") / full_training(of.table)
    return {**row, "networks": len(on.numbers), "scored": len(group[0].rows)}

"""What a network's description alone says of its rank: what every estimate has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnas.reference import Table

Array = NDArray[np.float64]

EXPANSION = (0, 3, 6)  # of the candidates of NAS-Bench-Macro
STAGES = ((64, (0, 1)), (128, (2, 3, 4)), (256, (5, 6, 7)))  # width, layers
STAGE_WEIGHTS = (3, 2, 1)
OF_LARGER = 0.3
STEM, HEAD = 32, 1280  # channels behind a ReLU, on the whole image and at its end


def depth(table: Table) -> NDArray[np.int64]:
    """How many blocks a network has beside identities (networks,): what "at equal depth" means. 0
    for spaces in which no layer can be absent."""
    if table.name != "nb_macro":
        return np.zeros(len(table), np.int64)
    return (table.paths > 0).sum(1)


def baselines(table: Table) -> dict[str, Array]:
    """Scores (networks,) that need no weights, by name."""
    scores = {"MACs": table.macs, "parameters": table.params}
    if table.name == "nb_macro":
        scores = {
            "depth": depth(table),
            **scores,
            "ReLUs": relus(table.paths),
            "depth by stage": depth_by_stage(table.paths),
        }
    else:
        scores["log widths"] = np.log(table.paths + 1).sum(1)  # digits are shares of the largest
    return {name: np.asarray(values, float) for name, values in scores.items()}


def weighted(table: Table, weights: Mapping[str, float], among: NDArray[Any]) -> Array:
    """The weighted sum of some of these scores (networks,), each brought to mean 0 and deviation 1
    over a choice of networks, of which there is a mask or numbers."""
    known = baselines(table)
    total = np.zeros(len(table))
    for name, weight in weights.items():
        some = known[name][among]
        total += weight * (known[name] - some.mean()) / (some.std() or 1.0)
    return total


def check(table: Table, weights: Mapping[str, float]) -> None:
    """Raises ValueError for a name that the space does not have."""
    known = baselines(table)
    for name in weights:
        if name not in known:
            raise ValueError(
                f"{name} is no score without a run of {table.name}; expected {', '.join(known)}"
            )


def said(weights: Mapping[str, float]) -> str:
    """As 0.25 depth - 0.5 ReLUs."""
    (first, weight), *more = weights.items()
    rest = (f" {'-' if weight < 0 else '+'} {abs(weight):g} {name}" for name, weight in more)
    return f"{weight:g} {first}" + "".join(rest)


def relus(paths: NDArray[np.int64], image: int = 32) -> NDArray[np.int64]:
    """Numbers that a network of NAS-Bench-Macro hands through a ReLU for an image (networks,)."""
    total = np.full(len(paths), STEM * image**2)
    inputs, side = STEM, image
    for width, layers in STAGES:
        for number in layers:
            outside = side if number > layers[0] else side // 2  # the first layer has a stride of 2
            hidden = np.array(EXPANSION)[paths[:, number]] * inputs
            total += hidden * (side**2 + outside**2)
            inputs, side = width, outside
    return total + HEAD * side**2


def depth_by_stage(paths: NDArray[np.int64]) -> Array:
    """Depth of NAS-Bench-Macro in which a block of the first stage counts 3, of the second 2, of
    the third 1, and of the larger kind 1.3 times as much (networks,). The weights were found on the
    published accuracies: a score with hindsight."""
    of_layer = np.repeat(STAGE_WEIGHTS, [len(layers) for _, layers in STAGES])
    return ((paths > 0) + OF_LARGER * (paths == 2)) @ of_layer

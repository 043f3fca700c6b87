"""What an estimate of networks costs: multiply-accumulates x images, seconds, full trainings.

A training pass counts as three forward passes: the gradients of activations and those of weights
take as many multiply-accumulates each. Optimizer, normalisation and data are not counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from mnas.networks.cost import cost, extremes, shared_macs
from mnas.space.sampler import SAMPLERS

if TYPE_CHECKING:
    from mnas.reference import Table
    from mnas.space.search_space import Path, SearchSpace
    from mnas.training.saved import SavedRun

TRAINING = 3  # forward passes that a training pass counts as
FULL_EPOCHS, FULL_IMAGES = 50, 50_000  # of a full training of the largest network
ALL = 20_000  # paths at most for which a mean is over all of them
DRAWS = 3_000  # of steps, where it is not


class Config(Struct):
    """What readers of a supernet's training need of its settings, which are more."""

    seed: int
    epochs: float
    sampler: str
    rule: str = "single_path"
    resolution: int | None = None


class Training(Struct):
    """What they need of what `of_run` gives."""

    config: Config
    seconds: Annotated[float, Meta(ge=0)]
    macs: Annotated[float, Meta(gt=0)] | None


def full_training(table: Table) -> float:
    """Multiply-accumulates x images of training the largest network of a published table, at the
    resolution of the table."""
    return float(TRAINING * FULL_EPOCHS * FULL_IMAGES * table.macs.max())


def trained_networks(table: Table, number: float) -> float:
    """What training so many networks of a table costs on average, in full trainings."""
    return float(number * table.distinct.macs.mean() / table.macs.max())


def macs_of_step(space: SearchSpace, config: dict[str, Any]) -> float | None:
    """Expected multiply-accumulates of one image's forward passes in a step of a supernet run: of
    all paths that the rule runs, what they share up to a choice counted once where the rule shares
    it. None where a step is not made of paths of the space alone (path_dropout, distilled), or runs
    wider candidates than the path has (masked execution).

    config: settings of the run. Exact for one path a step in spaces of at most 20,000 paths; else
    the mean over 3,000 steps of the run's kind of sampler."""
    rule = config.get("rule", "single_path")
    if config["execution"] != "sliced":
        return None
    if rule in ("single_path", "dynamic"):
        return _mean(space, config)
    if rule == "fair":
        return max(map(len, space.decisions)) * _mean(space, config)
    if rule in ("sandwich", "ranked"):
        smallest, largest = extremes(space)
        drawn = SAMPLERS[config["sampler"]](space, 0)
        steps = (
            [largest, smallest, *(next(drawn) for _ in range(config["random_paths"]))]
            for _ in range(DRAWS)
        )
        return fmean(shared_macs(space, paths) for paths in steps)
    return None


def _mean(space: SearchSpace, config: dict[str, Any]) -> float:
    """Of one path: either sampler gives every value of a decision equally often."""
    lengths = [len(decision) for decision in space.decisions]
    paths: Sequence[Path] | Any
    if prod(lengths) <= ALL:
        paths = product(*map(range, lengths))
    else:
        drawn = SAMPLERS[config["sampler"]](space, 0)
        paths = (next(drawn) for _ in range(DRAWS))
    return fmean(cost(space, path).macs for path in paths)


def of_run(run: SavedRun) -> dict[str, Any]:
    """How a supernet was trained and what that took. seconds: on the machine of `environment`, with
    the threads of `config`. macs: multiply-accumulates x images of all steps; None where unknown
    (`macs_of_step`), and in a run that is not finished."""
    seconds, steps, macs = run.directory.seconds(), None, None
    if run.directory.finished:
        steps = run.directory.summary().get("steps")
    of_step = macs_of_step(run.space, run.config)
    if steps and of_step is not None:
        macs = TRAINING * of_step * run.config["batch_size"] * steps
    return {
        "config": run.config,
        "environment": run.directory.environment(),
        "steps": steps,
        "seconds": seconds,
        "macs": macs,
    }


def shown(training: dict[str, Any], scoring: Mapping[str, float], threads: int, full: float) -> str:
    """What training a supernet (`of_run`) and scoring its paths (sums over chunks) took, as
    Markdown. full: MACs x images of a full training."""
    from tabulate import tabulate

    lines = [
        (f"training, {training['steps'] or '?'} steps", training, training["config"]["threads"]),
        (f"scoring, {scoring['paths']:,.0f} paths", scoring, threads),
    ]
    body = [
        [what, f"{of['seconds']:,.0f}", str(used), *_macs(of["macs"], full)]
        for what, of, used in lines
    ]
    headers = ["cost", "seconds", "threads", "MACs x images", "full trainings"]
    table = tabulate(body, headers, tablefmt="github", disable_numparse=True)
    return (
        f"{table}\n\n"
        f"A training pass counts as {TRAINING} forward passes; a full training is {FULL_EPOCHS} "
        f"epochs of {FULL_IMAGES:,} images of the largest network. Prefixes that scored paths "
        f"share are counted once: 1/{scoring['macs_alone'] / scoring['macs']:.2f} of each path "
        "alone.\n"
    )


def _macs(macs: float | None, full: float) -> tuple[str, str]:
    return ("unknown", "unknown") if macs is None else (f"{macs:.3g}", f"{macs / full:.2g}")

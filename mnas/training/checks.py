"""What a trainer is given, and what a rule reports to it, checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mnas.space.search_space import Path, SearchSpace
from mnas.training.batches import Batches
from mnas.training.data import Split
from mnas.training.processes import Processes
from mnas.training.rules import Report


class DivergedError(ArithmeticError):
    """The loss became NaN or infinite."""


def check_splits(space: SearchSpace, train: Split | Batches, validation: Split) -> None:
    """Raise ValueError unless the networks of the space can learn them, on one device. Of batches
    that are loaded it is seen only then what they are."""
    if isinstance(train, Batches) and not isinstance(train, (Split, *_NO_BATCHES)):
        check_split("the validation split", validation, space)
        return
    for name, split in (("train", train), ("validation", validation)):
        check_split(f"the {name} split", split, space)
    places = {str(t.device) for s in (train, validation) for t in (s.images, s.labels)}
    if len(places) > 1:
        raise ValueError(
            f"the splits are on {', '.join(sorted(places))}; expected one device: call "
            "Split.to(device)"
        )


_NO_BATCHES = (tuple, Mapping, str, bytes, Tensor)  # though one can go through them


def check_split(name: str, split: Split, space: SearchSpace) -> None:
    """Raise ValueError unless the networks of the space can learn the split."""
    if not isinstance(split, Split):
        raise ValueError(f"{name} is a {type(split).__name__}; expected a mnas.data.Split")
    if not len(split):
        raise ValueError(f"{name} is empty; expected one image at least")
    space.check_images(split.images, name)
    if len(space.output_shape) != 1:
        raise ValueError(
            f"networks of space {space.name} put out (B, {space.output_shape}); expected (B, "
            "classes)"
        )
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= space.output_shape[0]:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{name} has the label {wrong}, the networks of space {space.name} have "
            f"{space.output_shape[0]} logits; expected labels from 0 to below that"
        )


def checked_paths(space: SearchSpace, paths: Any) -> list[Path]:
    """The paths to watch. Raises ValueError unless they are some, each once."""
    if not isinstance(paths, (list, tuple)):
        raise ValueError(f"watched is a {type(paths).__name__}; expected a list of paths")
    checked = [space.check(path) for path in paths]
    if not checked or len(set(checked)) < len(checked):
        raise ValueError(
            f"watched are {len(checked)} paths, {len(set(checked))} different; expected some, "
            "each once"
        )
    return checked


def check_state(
    state: Mapping[str, Any], own: Mapping[str, Any], each: int | None, steps: int
) -> None:
    """Raise ValueError for what a trainer would load in silence. own: its own state. each: the
    paths that it trains in a step; None if that is unknown. steps: of the whole training."""
    if not isinstance(state, Mapping):
        raise ValueError(f"it is a {type(state).__name__}, expected what Trainer.state_dict gives")
    for name, value in own.items():
        if name not in state:
            raise ValueError(f"it lacks {name!r}, expected {', '.join(own)}")
        kind = Mapping if isinstance(value, Mapping) else type(value)
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise ValueError(
                f"its {name!r} is a {type(state[name]).__name__}, expected a {kind.__name__}"
            )
    for name in own.keys() & {"images", "batch_size", "batches"}:
        if state[name] != own[name]:
            raise ValueError(f"its {name!r} is {state[name]}, expected {own[name]}")
    step, last = state["step"], state["scheduler"].get("last_epoch")
    total = state["scheduler"].get("total_steps", steps)  # not every schedule has it
    if not 0 <= step <= steps or total != steps:
        raise ValueError(f"it is at step {step} of {total}, expected one of {steps}")
    updates = sum(state["updates"].values())
    if last != step or (each is not None and updates != each * step):
        raise ValueError(
            f"it is at step {step}, with a scheduler at {last} and {updates} updates of its "
            f"networks, expected {'equal numbers' if each == 1 else f'{each} updates a step'}"
        )
    if set(state["sampler"]) != set(own["sampler"]):
        raise ValueError(
            f"it is of a sampler with {sorted(state['sampler'])}, expected one with "
            f"{sorted(own['sampler'])}"
        )
    for saved, group in zip(
        state["optimizer"]["param_groups"], own["optimizer"]["param_groups"], strict=True
    ):
        for name in group.keys() & {"momentum", "betas", "eps", "weight_decay", "max_lr"}:
            if saved[name] != group[name]:
                raise ValueError(f"its optimizer has {name} {saved[name]}, expected {group[name]}")


def agreed(
    report: Report, space: SearchSpace, processes: Processes, rule: str, step: int
) -> tuple[list[tuple[str, float]], float, float]:
    """The losses of a step by architecture, their total, and the factor of its learning rate, the
    same in all processes: means of theirs, but the losses of own paths one by one.

    Raises DivergedError if one is not finite.
    """
    own = [(space.format(path), loss.item()) for path, loss in report.losses]
    found, totals, factors = zip(
        *processes.gathered((own, report.total.item(), report.lr)), strict=True
    )
    if processes.own_paths:
        losses = [loss for of_one in found for loss in of_one]
    else:
        losses = [
            (of_all[0][0], _mean([value for _, value in of_all]))
            for of_all in zip(*found, strict=True)
        ]
    paths = [(f"path {arch}", value) for arch, value in losses]
    for where, value in [*paths, (f"rule {rule}", _mean(totals))]:
        if not math.isfinite(value):
            raise DivergedError(
                f"loss is {value} at step {step} on {where}; lower --lr (another --out)"
            )
    return losses, _mean(totals), _mean(factors)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""How far weights move that no step meant to move: frozen, and under stock momentum and decay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import one_run

if TYPE_CHECKING:
    from mnas.data import Data

POLICIES = ("frozen", "torch")
EVERY = 10  # steps a row


def kept(directory: Path, config: dict[str, Any], data: Data, seeds: int) -> list[dict[str, Any]]:
    """The rows of `measure`, from DIRECTORY/drift.jsonl if it has those of the same settings."""
    from mnas.files import parse

    settings = {"seeds": seeds, "every": EVERY, **config}
    folder = common.rows_folder(directory)
    with common.user_input():
        if "drift.jsonl" in folder.names():
            about = parse(folder.read("drift-config.json"), dict, directory / "drift-config.json")
            if {key: value for key, value in about.items() if key != "environment"} == settings:
                return common.recorded(directory, "drift")
    rows = measure(config, data, seeds)
    common.record(directory, "drift", rows, **settings)
    return rows


def measure(config: dict[str, Any], data: Data, seeds: int) -> list[dict[str, Any]]:
    """Rows of the mean length of a step (root mean square over entries) in what the sampled path uses and in what it
    does not, over EVERY steps, in the first epoch of a supernet run of these settings; fewer if it diverges."""
    common.configure_runtime(config["threads"], config["keep_memory"])
    rows = []
    for seed in range(seeds):
        for policy in POLICIES:
            rows += _measure({**config, "mode": "supernet", "seed": seed, "policy": policy}, data)
    return rows


def _measure(config: dict[str, Any], data: Data) -> list[dict[str, Any]]:
    import torch

    from mnas.masking import ActiveSet, Region
    from mnas.train import DivergedError

    trainer = one_run.trainer_of(config, data)
    merged = [p for p in trainer.module.parameters() if ActiveSet.of(p) and ActiveSet.of(p).regions]
    rows, lengths = [], {"active": 0.0, "inactive": 0.0}
    while not trainer.finished and trainer.step < trainer.steps_per_epoch:
        before = [p.detach().clone() for p in merged]
        try:
            trainer.advance()
        except DivergedError:
            break
        squares, numbers = {"active": 0.0, "inactive": 0.0}, {"active": 0, "inactive": 0}
        for parameter, old in zip(merged, before, strict=True):
            active_set = ActiveSet.of(parameter)
            owned, used = torch.zeros_like(old, dtype=torch.bool), torch.zeros_like(old, dtype=torch.bool)
            for region in active_set.regions:
                region.view(owned).fill_(True)
            for region in {s for record in active_set.snapshot().records for s in record if isinstance(s, Region)}:
                region.view(used).fill_(True)
            moved = (parameter.detach() - old).double().square()
            for name, where in (("active", used), ("inactive", owned & ~used)):
                squares[name] += float(moved[where].sum())
                numbers[name] += int(where.sum())
        for name in lengths:
            lengths[name] += (squares[name] / max(1, numbers[name])) ** 0.5 / EVERY
        if trainer.step % EVERY == 0:
            rows.append({"policy": config["policy"], "seed": config["seed"], "step": trainer.step, **lengths})
            lengths = dict.fromkeys(lengths, 0.0)
    return rows

"""Drift of inactive weights in a step: exactly frozen, and under stock momentum and decay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.errors import user_input
from mnas.studies.pages import record, recorded, rows_folder
from mnas.training import one_run, runtime

if TYPE_CHECKING:
    from mnas.training.data import Data

POLICIES = ("frozen", "torch")
EVERY = 10  # steps a row


def kept(directory: Path, config: dict[str, Any], data: Data, seeds: int) -> list[dict[str, Any]]:
    """The rows of `measure`, from DIRECTORY/drift.jsonl if it has those of the same settings."""
    from mnas.storage.strict_json import parse

    settings = {"seeds": seeds, "every": EVERY, **config}
    folder = rows_folder(directory)
    with user_input():
        if "drift.jsonl" in folder.names():
            about = parse(folder.read("drift-config.json"), dict, directory / "drift-config.json")
            if {key: value for key, value in about.items() if key != "environment"} == settings:
                return recorded(directory, "drift")
    rows = measure(config, data, seeds)
    record(directory, "drift", rows, **settings)
    return rows


def measure(config: dict[str, Any], data: Data, seeds: int) -> list[dict[str, Any]]:
    """Rows of the mean length of a step (root mean square over entries) in what the sampled path
    uses and in what it does not, over EVERY steps, in the first epoch of a supernet run of these
    settings; fewer if it diverges."""
    runtime.configure_runtime(config["threads"], config["keep_memory"])
    rows = []
    for seed in range(seeds):
        for policy in POLICIES:
            rows += _measure({**config, "mode": "supernet", "seed": seed, "policy": policy}, data)
    return rows


def _measure(config: dict[str, Any], data: Data) -> list[dict[str, Any]]:
    from mnas.training.trainer import DivergedError

    trainer = one_run.trainer_of(config, data)
    choices, paths, forward = trainer.module.choices, [], trainer.forward
    trainer.forward = lambda images, path: paths.append(path) or forward(images, path)
    merged = [parameter for choice in choices for parameter in choice.parameters()]
    rows, lengths = [], {"active": 0.0, "inactive": 0.0}
    while not trainer.finished and trainer.step < trainer.steps_per_epoch:
        before = [p.detach().clone() for p in merged]
        try:
            trainer.advance()
        except DivergedError:
            break
        chosen = zip(choices, trainer.space.key(paths[-1]), strict=True)
        used = {id(p) for choice, index in chosen for p in choice.parameters_of(index)}
        squares, numbers = {"active": 0.0, "inactive": 0.0}, {"active": 0, "inactive": 0}
        for parameter, old in zip(merged, before, strict=True):
            name = "active" if id(parameter) in used else "inactive"
            squares[name] += float((parameter.detach() - old).double().square().sum())
            numbers[name] += parameter.numel()
        for name in lengths:
            lengths[name] += (squares[name] / max(1, numbers[name])) ** 0.5 / EVERY
        if trainer.step % EVERY == 0:
            rows.append(
                {
                    "policy": config["policy"],
                    "seed": config["seed"],
                    "step": trainer.step,
                    **lengths,
                }
            )
            lengths = dict.fromkeys(lengths, 0.0)
    return rows

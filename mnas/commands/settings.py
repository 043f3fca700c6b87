"""The settings of a run as `mnas train` records them: what was asked for, with defaults, checked
against each other and against the space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mnas.errors import Failure, user_input
from mnas.training import inherited, one_run, runtime
from mnas.training.one_run import DEFAULTS, OWN

if TYPE_CHECKING:
    from mnas import SearchSpace

UNWRITTEN: dict[str, tuple[Any, str]] = {
    "rule": ("single_path", "--rule"),
    "device": ("cpu", "--device"),
    "keep_checkpoints": (1, "--keep-checkpoints"),
    "processes": (1, "torchrun --nproc_per_node"),
    "paths_per_rank": (False, "--paths-per-rank"),
}
"""Settings that are in config.json only where they have another value, because runs from before
there were these settings go on; and what sets them."""


def threads(jobs: int) -> int:
    """Of each run, where so many train at a time on this machine."""
    return max(1, runtime.default_threads() // jobs)


def defaults(mode: str, rule: str | None) -> dict[str, Any]:
    """The settings that nobody asked for, without threads."""
    from mnas.training.registry import RULES

    found = {**DEFAULTS[mode]}
    if mode == "supernet" and rule is not None:
        found["sampler"] = RULES[rule].sampler or found["sampler"]
    return found


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The settings checked against each other and against the space; `random` becomes the network
    it drew."""
    import torch

    import mnas

    runtime.device(config.get("device", "cpu"))
    for key in UNWRITTEN.keys() - {"rule"}:
        if config.get(key) == UNWRITTEN[key][0]:
            config.pop(key, None)
    scratch, several = config["mode"] == "scratch", config.get("processes", 1) > 1
    if "paths_per_rank" in config and (scratch or not several):
        raise Failure(
            "--paths-per-rank is for --mode supernet under torchrun --nproc_per_node=N; leave it "
            "out",
            2,
        )
    if several and config.get("arch") == "all":
        raise Failure("--arch all is for one process; leave out torchrun, --jobs trains several", 2)
    if not scratch and config.get("arch"):
        raise Failure(
            f"--arch {config['arch']} is for --mode scratch; a supernet trains every network",
            status=2,
        )
    other = "supernet" if scratch else "scratch"
    for key in OWN[other].keys() - DEFAULTS[config["mode"]].keys():
        if key in config and key != "start":
            raise Failure(f"--{key} {config[key]} is for --mode {other}; leave it out", status=2)
    kept = config.get("keep_checkpoints", 1)
    if scratch and kept > 1:
        raise Failure(f"--keep-checkpoints {kept} is for --mode supernet; leave it out", 2)
    if kept > math.ceil(config["epochs"]):
        raise Failure(
            f"--keep-checkpoints {kept} of {config['epochs']:g} epochs; expected one after each at "
            "most",
            status=2,
        )
    if config.get("group") == ():
        raise Failure("--group is empty; expected DECISION=VALUE, as choice0=conv5x5", status=2)
    if scratch and "group" in config:
        raise Failure(
            f"--group {' '.join(config['group'])} is for --mode supernet; leave it out", status=2
        )
    with user_input():
        space = one_run.space_of(config)
        if "group" in config:
            config["group"] = list(space.group)
        if config.get("execution") == "masked":
            mnas.Supernet(space, "masked")  # raises where that does not exist
        if scratch and config["arch"] is None:
            raise Failure(
                f"--arch is missing; expected all, random or {space.describe()}", status=2
            )
        if scratch and config["arch"] == "random":
            config["arch"] = space.format(
                space.sample(torch.Generator().manual_seed(config["seed"]))
            )
        elif scratch and config["arch"] == "all":
            space.names()  # raises where there are too many
        elif scratch:
            config["arch"] = space.format(space.parse(config["arch"]))
    if config.get("start"):
        config["start"] = str(config["start"])
        archs: list[str | None] = [config.get("arch")]
        if archs == ["all"]:
            archs = [*space.names()]
        for arch in archs:
            one_run.begun_with(config, space, arch)  # raises where it has not what is wanted
    _resolve_rule(config, space)
    return config


def _resolve_rule(config: dict[str, Any], space: SearchSpace) -> None:
    """The rule and all its options, checked; nothing of them in the settings for single_path, as in
    runs from before there were rules."""
    from mnas.training.registry import RULES, bound, checked_options, owners

    rule = config.pop("rule", "single_path")
    for option in {name: None for known in RULES.values() for name in known.options}:
        if option in config and option not in RULES[rule].options:
            flag, names = "--" + option.replace("_", "-"), " or ".join(owners(option))
            raise Failure(f"{flag} {config[option]} is for --rule {names}; leave it out", status=2)
    if rule == "single_path":
        return
    config["rule"] = rule
    if "teacher" in RULES[rule].options:
        if "teacher" not in config:
            raise Failure("--teacher is missing; expected the directory of a finished run", 2)
        config["teacher"] = str(config["teacher"])
    with user_input():
        options = one_run.rule_options(config)
        bound(rule, space, config.get("sampler"), options, alone=config["mode"] == "scratch")
        checked = checked_options(rule, options)
    if "teacher" in checked:
        digest = inherited.digest(checked.pop("teacher"))
        if config.setdefault("teacher_sha256", digest) != digest:
            raise Failure(
                f"--teacher {config['teacher']} holds other weights than when the run was begun; "
                "restore them",
                status=2,
            )
    config |= checked

"""What a study trains: its recipes, its arms, and training rules as arms at equal seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnas.studies.results import FIRST_SCRATCH_SEED

if TYPE_CHECKING:
    from mnas.space.search_space import SearchSpace
    from mnas.training.one_run import Run

Settings = dict[str, Any]

# Chosen on validation accuracy of single seeds; docs/method.md.
MIL9: Settings = {"batch_size": 64, "lr": 0.15, "precision": "bf16"}
MIL9_SUPERNET = MIL9 | {"epochs": 15, "sampler": "fair"}
RECIPES: dict[tuple[str, str], dict[str, Settings]] = {
    ("mil4", "short"): {"supernet": {"epochs": 4}, "scratch": {"epochs": 2}},
    ("mil4", "long"): {
        "supernet": {"epochs": 20, "augment": "shift", "precision": "bf16", "validate_every": 5},
        "scratch": {"epochs": 10, "augment": "shift", "precision": "bf16", "validate_every": 5},
    },
    ("mil9", "short"): {"supernet": MIL9_SUPERNET, "scratch": MIL9 | {"epochs": 2}},
    # The same supernet, and a truth for which two epochs may have been too short.
    ("mil9", "long"): {
        "supernet": MIL9_SUPERNET,
        "scratch": MIL9 | {"epochs": 8, "validate_every": 4},
    },
}
FINE_TUNING = {"lr": 0.01}

STEP_COSTS: dict[str, dict[str, float]] = {
    "mil4": {"fair": 1.99, "sandwich": 2.61, "path_dropout": 1.29, "ranked": 2.61, "dynamic": 1.01},
    "mil9": {"fair": 2.94, "sandwich": 2.67, "path_dropout": 1.44, "ranked": 2.72, "dynamic": 1.01},
}
"""Seconds of a step of each rule in steps of a single path, by space: medians of
results/benchmarks/rules.jsonl, under the batch and precision of the space's recipe."""


@dataclass(frozen=True, eq=False)
class Plan:
    """An arm of the study: one way of training, on several seeds. kind: "supernet" or "scratch".
    config: settings of tools/train.py. after: the supernet arm whose networks it begins with.
    step_cost: of a step, in steps of a single path."""

    name: str
    kind: str
    config: Settings
    after: str | None = None
    step_cost: float = 1.0

    @property
    def about(self) -> Settings:
        """As study.json has it."""
        cost = {} if self.step_cost == 1 else {"step_cost": self.step_cost}
        return {**self.config, "after": self.after, **cost}

    def runs(self, root: Path, archs: list[str], seeds: int) -> list[Run]:
        from mnas.training.one_run import Run

        found = []
        for seed in range(seeds):
            config = {**self.config, "mode": self.kind, "seed": seed}
            if self.kind == "supernet":
                config["watched"] = archs
                found.append(
                    Run(root / self.name / f"seed{seed}", config, f"{self.name} seed {seed}")
                )
                continue
            if self.after:
                config["start"] = str(root / self.after / f"seed{seed}")
            config["seed"] += FIRST_SCRATCH_SEED
            for arch in archs:
                path = root / self.name / f"{arch}-seed{config['seed']}"
                found.append(
                    Run(path, {**config, "arch": arch}, f"{self.name} {arch} seed {config['seed']}")
                )
        return found


def step_costs(wanted: Sequence[str], space: SearchSpace) -> dict[str, float]:
    """The rules of --rules, each with the cost of its step in steps of a single path: NAME for a
    measured one, NAME=COST for one's own.

    Raises ValueError for a rule that is none, that the space cannot have, or without a cost."""
    from mnas.training.recipe import LARGEST
    from mnas.training.registry import RULES, bound

    arms = [name for name, rule in RULES.items() if "teacher" not in rule.options]
    found: dict[str, float] = {}
    for word in wanted:
        name, given, number = word.partition("=")
        if name not in arms:
            raise ValueError(f"--rules {word} is unknown; expected some of {', '.join(arms)}")
        bound(name, space)  # raises where the space cannot have it
        known = {"single_path": 1.0, **STEP_COSTS.get(space.name, {})}
        try:
            cost = float(number) if given else known[name]
        except KeyError:
            raise ValueError(
                f"what a step of rule {name} costs in space {space.name} was not measured; "
                f"expected --rules {name}=COST, in steps of a single path"
            ) from None
        except ValueError:
            cost = math.nan
        if not 0 < cost <= LARGEST:
            raise ValueError(
                f"--rules {word} has no cost of a step; expected a number above 0 after =, in "
                "steps of a single path"
            )
        found[name] = cost
    return found


def of_rules(costs: dict[str, float], supernet: Settings) -> list[Plan]:
    """An arm for each rule but single_path, which the arm `supernet` is.

    Equal seconds are equal numbers of single-path steps: epochs divided by the cost of a step. A
    clock in place of that would end each run elsewhere."""
    from mnas.training.registry import RULES, checked_options

    found = []
    for rule, cost in costs.items():
        if rule == "single_path":
            continue
        config = {**supernet, "rule": rule, **checked_options(rule, {})}
        config["sampler"] = RULES[rule].sampler or supernet["sampler"]
        config["epochs"] = supernet["epochs"] / cost
        found.append(Plan(f"rule-{rule}", "supernet", config, step_cost=cost))
    return found

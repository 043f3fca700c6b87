"""What a step of each training rule costs, in steps of a single path: the part `rules` of
tools/benchmark.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

import mnas
from benchmarks.suites import SGD, Case, Side, analytic, images
from mnas import SearchSpace, spaces
from mnas.networks import extremes
from mnas.space.sampler import FairSampler
from mnas.space.search_space import Path
from mnas.training.registry import RULES, Bound, bound
from mnas.training.rules import Report, Step

PROGRESS = (1 / 6, 3 / 6, 5 / 6)  # path dropout runs less and less; three thirds of a training
DRAWS = 30  # sandwiches whose products are counted


class Apart(Step):
    """A step whose paths share no prefix."""

    def logits(self, paths: Sequence[Path]) -> list[Tensor]:
        return [y for path in paths for y in super(Apart, self).logits([path])]


def rule_step(
    space: SearchSpace,
    rule: Bound,
    batch: int,
    bf16: bool,
    steps: int,
    kind: type[Step] = Step,
) -> Side:
    """So many whole steps, reset, rule and optimizer; the seconds of one. Paths are dealt, so that
    as many steps as a decision has values run each of its values equally often."""
    net = mnas.Supernet(space).train()
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, **SGD)
    x, y = images(space, batch)
    sampler, at = FairSampler(space, 0), itertools.cycle(PROGRESS)
    step = kind(net, x, y, sampler, F.cross_entropy, 0.0, net, bf16=bf16)

    def run() -> list[float]:
        begun = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            report: Report = rule(replace(step, progress=next(at)))
            with report.scaled(optimizer):
                optimizer.step()
        return [(time.perf_counter() - begun) / steps]

    return run


def of_space(space: SearchSpace, batch: int, bf16: bool) -> dict[str, Side]:
    """A side for each rule."""
    sides: dict[str, Side] = {}
    deal = max(map(len, space.decisions))
    for name, known in RULES.items():
        options = {}
        if "teacher" in known.options:
            options["teacher"] = mnas.standalone(space, extremes(space).largest).eval()
        steps = {"fair": 1, "path_dropout": len(PROGRESS)}.get(name, deal)
        sides[name] = rule_step(space, bound(name, space, None, options), batch, bf16, steps)
    return sides


def sandwiches(space: SearchSpace, batch: int, bf16: bool, paths: int) -> dict[str, Side]:
    """With shared prefixes and without, of the same paths in a round."""
    rule = bound("sandwich", space, None, {"random_paths": paths})
    return {
        "sandwich": rule_step(space, rule, batch, bf16, 1),
        "sandwich apart": rule_step(space, rule, batch, bf16, 1, kind=Apart),
    }


def shared(space: SearchSpace, random_paths: int) -> float:
    """Multiply-accumulates of a sandwich as a tree of paths over those of its paths one by one; the
    mean over many."""
    net, sampler = mnas.Supernet(space).eval(), FairSampler(space, 0)
    smallest, largest = extremes(space)
    ratios = [
        analytic(
            net,
            [largest, smallest, *(next(sampler) for _ in range(random_paths))],
            images(space, 1)[0],
        )
        for _ in range(DRAWS)
    ]
    return round(sum(ratios) / len(ratios), 4)


def rules(quick: bool) -> Iterator[Case]:
    """Every rule in steps of a single path, under batch and precision of the space's recipe; the
    sandwich with shared prefixes and without."""
    wanted: tuple[tuple[str, Callable[[], SearchSpace], int, bool, tuple[int, ...], int], ...] = (
        ("mil4", spaces.mil4, 128, False, (2,), 30),
        ("mil9", spaces.mil9, 64, True, (2,), 12),
        ("plain(8)", lambda: spaces.plain(candidates=8), 64, False, (2, 14), 20),
    )
    for name, make, batch, bf16, random_paths, rounds in wanted[: 1 if quick else None]:
        space = make()
        labels = {"space": name, "batch": batch, "precision": "bf16" if bf16 else "fp32"}
        if name != "plain(8)":
            sides = of_space(space, batch, bf16)
            facts = {by: {"paths": RULES[by].paths(space, **_defaults(by))} for by in sides}
            yield Case({**labels, "sides": "rules"}, sides, 3 if quick else rounds, facts)
        for number in random_paths:
            sides = sandwiches(space, batch, bf16, number)
            about = {"sides": "prefixes", "random_paths": number}
            about["analytic"] = shared(space, number)
            yield Case({**labels, **about}, sides, 3 if quick else 2 * rounds)


def _defaults(rule: str) -> dict[str, object]:
    return {name: value for name, value in RULES[rule].options.items() if name != "teacher"}

"""What tools/benchmark.py measures: cases, each with sides that are compared in one interleaved
run."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import mnas
from benchmarks.yardsticks import Modular, NaiveMerged
from mnas import SearchSpace, spaces
from mnas.space import prefix
from mnas.space.search_space import Path as SpacePath
from mnas.training import runtime

ROOT = Path(__file__).parents[1]
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
MACRO = ("00000000", "11111111", "22212220")
CANDIDATES = (2, 4, 8, 16, 32, 64)
WARM_UP = 3  # rounds: they make optimizer state, and fill caches
Row = dict[str, Any]
Side = Callable[[], list[float]]
"""Does the work once; returns its seconds, by phase if it has several."""


@dataclass
class Case:
    """labels: say what is compared, in every row. facts: of a side, in its rows."""

    labels: Row
    sides: dict[str, Side]
    rounds: int
    facts: dict[str, Row] = field(default_factory=dict)
    warm_up: int = WARM_UP

    def rows(self, chooser: random.Random) -> Iterator[Row]:
        """Every side once a round, in random order."""
        for number in range(-self.warm_up, self.rounds):
            for by in chooser.sample(list(self.sides), len(self.sides)):
                seconds = [round(s, 7) for s in self.sides[by]()]
                if number >= 0:
                    yield {
                        **self.labels,
                        "round": number,
                        "by": by,
                        "seconds": seconds,
                        **self.facts.get(by, {}),
                    }


def images(space: SearchSpace, number: int, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    x = torch.randn(number, *space.input_shape)
    return runtime.in_memory_order(x, channels_last), torch.randint(10, (number,))


def training_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *arguments: Any,
    precision: str = "fp32",
) -> Side:
    """The phases are reset, forward, backward and optimizer."""
    module.train()

    def run() -> list[float]:
        times = [time.perf_counter()]
        optimizer.zero_grad()
        times.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = module(x, *arguments)
        loss = F.cross_entropy(logits.float(), y)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]

    return run


def implementations(space: SearchSpace, path: SpacePath, batch: int) -> dict[str, Side]:
    """A training step of one path, by implementation."""
    x, y = images(space, batch)

    def stock(module: nn.Module, *arguments: Any) -> Side:
        return training_step(module, torch.optim.SGD(module.parameters(), **SGD), x, y, *arguments)

    def ours(execution: str) -> Side:
        net = mnas.Supernet(space, execution)
        return training_step(net, mnas.MaskedOptimizer(torch.optim.SGD, net, **SGD), x, y, path)

    made = {
        "standalone": stock(mnas.standalone(space, path)),
        "modular": stock(Modular(space), path),
    }
    made["sliced"] = ours("sliced")
    try:
        made["masked"] = ours("masked")
        made["naive"] = stock(NaiveMerged(space), path)
    except ValueError:  # no candidate encloses the others
        pass
    return made


def step(quick: bool) -> Iterator[Case]:
    """A training step, by implementation."""
    for name, batches, rounds in (
        ("mil4", (64, 256), 60),
        ("mil9", (64, 256), 20),
        ("nb_macro", (64, 256), 8),
    ):
        space = spaces.get(name)
        paths = (
            [tuple(map(int, digits)) for digits in MACRO]
            if name == "nb_macro"
            else list(space.paths())
        )
        for path, batch in itertools.product(paths, batches):
            if quick and (name, batch) != ("mil4", 64):
                continue
            labels = {"space": name, "arch": space.format(path), "batch": batch}
            yield Case(labels, implementations(space, path, batch), 4 if quick else rounds)


def scaling(quick: bool) -> Iterator[Case]:
    """The path of the second candidates, 5x5, in spaces of more and more; all sizes are one
    case."""
    sides, facts = {}, {}
    for number in CANDIDATES[:: 5 if quick else 1]:
        made = implementations(spaces.plain(candidates=number), (1, 1), 64)
        for by in ("modular", "sliced", "masked", "naive"):
            name = f"{by} {number}"
            sides[name], facts[name] = made[by], {"peak_bytes": peak_bytes(made[by])}
    yield Case({"space": "plain", "batch": 64}, sides, 3 if quick else 40, facts)


def peak_bytes(side: Side) -> int:
    """The most that torch's allocator holds during a training step, above what it held before:
    weights, optimizer state and the batch are there already, gradients are not."""
    for _ in range(WARM_UP):
        side()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        side()
    # The step begins with letting go of the old gradients: that is not among the events.
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return max(
        itertools.accumulate(
            event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())
        )
    )


def evaluate(quick: bool) -> Iterator[Case]:
    """Scores of all paths; analytic: multiply-accumulates of the tree over those of the loop."""
    subspace = [(0, 0, 0, *rest) for rest in itertools.product(range(3), repeat=5)]
    cases: tuple[tuple[str, SearchSpace, list[SpacePath] | None, int], ...] = (
        ("mil4", spaces.mil4(), None, 1000),
        ("mil9", spaces.mil9(), None, 1000),
        ("plain(8)", spaces.plain(candidates=8), None, 1000),
        ("nb_macro, 243 paths", spaces.nb_macro(), subspace, 20),
    )
    for name, space, chosen, number in cases:
        if quick and name != "mil9":
            continue
        paths = chosen or list(space.paths())
        net = mnas.Supernet(space).eval()
        x, y = images(space, 100 if quick else number)
        sides = {"shared": timed(partial(mnas.evaluate_paths, net, paths, x, y))}
        sides["loop"] = timed(
            lambda net=net, paths=paths, x=x, y=y: [one_by_one(net, path, x, y) for path in paths]
        )
        labels = {
            "space": name,
            "paths": len(paths),
            "images": len(x),
            "analytic": round(analytic(net, paths, x), 4),
        }
        yield Case(labels, sides, 2 if quick else 7)


def one_by_one(net: mnas.Supernet, path: SpacePath, x: Tensor, y: Tensor) -> mnas.Score:
    return mnas.evaluate(mnas.export(net, path), x, y)


def analytic(net: mnas.Supernet, paths: list[SpacePath], x: Tensor) -> float:
    keys = [net.space.key(path) for path in paths]
    tree = prefix.tree(net.model, keys, lambda choice, index: choice.candidate(index))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for _ in prefix.walk(tree, x[:1]):
            pass
    return counter.get_total_flops() / 2 / sum(mnas.cost(net.space, path).macs for path in paths)


def timed(work: Callable[[], Any]) -> Side:
    def run() -> list[float]:
        begun = time.perf_counter()
        work()
        return [time.perf_counter() - begun]

    return run


def mixture(quick: bool) -> Iterator[Case]:
    """Eight kernels of a 16 to 32 layer on 14x14, forward and backward, with gradients for the
    coefficients."""

    def build() -> nn.Module:
        kernels = {f"c{i}": nn.Conv2d(16, 32, k, padding=k // 2) for i, k in enumerate((3, 5) * 4)}
        return nn.Sequential(mnas.Choice(kernels), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    space = mnas.SearchSpace(build, name="eight kernels", input_shape=(16, 14, 14))
    net, weights = mnas.Supernet(space), torch.randn(8, requires_grad=True)
    layers, *rest = Modular(space).stages
    separate = nn.ModuleList(layers)

    for batch in (64,) if quick else (64, 256):
        x = images(space, batch)[0].requires_grad_()

        def mixed(x: Tensor = x) -> Tensor:
            return net(x, (weights.softmax(0),))

        def added(x: Tensor = x) -> Tensor:
            y = sum(
                w * layer(x) for w, layer in zip(weights.softmax(0).unbind(), separate, strict=True)
            )
            return nn.Sequential(*rest)(y)

        def both_ways(forward: Callable[[], Tensor], x: Tensor = x) -> None:
            for module in (net, separate):
                module.zero_grad()
            weights.grad = x.grad = None
            forward().sum().backward()

        forwards = {"one path, 5x5": lambda x=x: net(x, (1,)), "mixture": mixed, "separate": added}
        sides = {by: timed(partial(both_ways, forward)) for by, forward in forwards.items()}
        yield Case({"batch": batch}, sides, 4 if quick else 60)


def settings(quick: bool) -> Iterator[Case]:
    """A training step of the middle path of mil9 with one runtime setting changed at a time, in
    fresh processes: an allocator cannot be set back."""
    changes: dict[str, dict[str, Any]] = {
        "default": {},
        "allocator as it comes": {"keep_memory": False},
        "channels first": {"channels_last": False},
        "one thread": {"threads": 1},
        "bf16": {"precision": "bf16"},
        "none of them": {"keep_memory": False, "channels_last": False, "threads": 1},
    }
    for space, batch in (("mil4", 128), ("mil9", 128))[: 1 if quick else None]:
        chosen = dict(itertools.islice(changes.items(), 2)) if quick else changes
        steps = 5 if quick else 30
        sides = {
            by: partial(in_fresh_process, space, batch, steps, **change)
            for by, change in chosen.items()
        }
        yield Case({"space": space, "batch": batch}, sides, 2 if quick else 5, warm_up=0)


def in_fresh_process(space: str, batch: int, steps: int, **change: Any) -> list[float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.suites",
        space,
        str(batch),
        str(steps),
        *(f"{k}={v}" for k, v in change.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [float(done.stdout)]


def step_with(
    name: str, batch: int, steps: int, *, precision: str = "fp32", **settings: Any
) -> float:
    """Median seconds of a sliced training step under runtime settings."""
    channels_last = settings.pop("channels_last", True)
    runtime.configure_runtime(settings.pop("threads", runtime.default_threads()), **settings)
    torch.manual_seed(0)
    space = spaces.get(name)
    path = list(space.paths())[space.size // 2]
    net = mnas.Supernet(space)
    x, y = images(space, batch, channels_last)
    run = training_step(
        net, mnas.MaskedOptimizer(torch.optim.SGD, net, **SGD), x, y, path, precision=precision
    )
    times = sorted(sum(run()) for _ in range(steps + WARM_UP))
    return times[len(times) // 2]


def sweep(quick: bool) -> Iterator[Case]:
    """All networks of mil4 from scratch, one epoch each, as a user starts them: one after the other
    on all cores or on one, or two at a time on one core each."""
    length = (
        ["--epochs", 1, "--limit-train", 500, "--limit-test", 500] if quick else ["--epochs", 1]
    )

    def trained(*arguments: Any) -> None:
        with tempfile.TemporaryDirectory() as out:
            tool = ROOT / "tools" / "train.py"
            run = ["--mode", "scratch", "--arch", "all", "--out", out, *length, *arguments]
            subprocess.run(
                [sys.executable, str(tool), *map(str, run)], capture_output=True, check=True
            )

    sides = {
        "serial, all cores": ["--threads", runtime.default_threads()],
        "serial, one thread": ["--threads", 1],
        "two processes": ["--threads", 1, "--jobs", 2],
    }
    sides = {by: timed(partial(trained, *arguments)) for by, arguments in sides.items()}
    yield Case({"space": "mil4"}, sides, 1 if quick else 3, warm_up=0)


SUITES: dict[str, Callable[[bool], Iterator[Case]]] = {
    "step": step,
    "scaling": scaling,
    "evaluate": evaluate,
    "mixture": mixture,
    "settings": settings,
    "sweep": sweep,
}


if __name__ == "__main__":
    name, batch, steps, *change = sys.argv[1:]
    kinds = {"precision": str, "threads": int}
    given = {
        k: kinds.get(k, "True".__eq__)(v) for k, v in (setting.split("=") for setting in change)
    }
    print(step_with(name, int(batch), int(steps), **given))

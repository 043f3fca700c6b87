"""Measure merged networks against separate modules, and bring the tables of docs/benchmarks.md up to date.

    python tools/benchmark.py            about 6 minutes on 2 cores
    python tools/benchmark.py --quick    under a minute, into results/benchmarks-quick, the page stays as it is

step: a training step of every path, by implementation. scaling: the same as candidates become more. evaluate: all
paths with shared prefixes against one by one. mixture: all kernels of a layer in one convolution against each by
itself. What is compared runs in one interleaved run, in random order; ratios are taken within a round. Rows go to
OUT/*.jsonl.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import common
from common import Count, Seed
from cyclopts import App, Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from mnas import SearchSpace
    from mnas.space import Path as SpacePath

SUITES = ("step", "scaling", "evaluate", "mixture")
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
MACRO = ("00000000", "11111111", "22212220")
CANDIDATES = (2, 4, 8, 16, 32, 64)
PHASES = ("forward", "backward", "optimizer")
Row = dict[str, Any]
Step = Callable[[], list[float]]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    only: Literal["step", "scaling", "evaluate", "mixture"] | None = None
    "Measure one suite. [default: all]"
    quick: Annotated[bool, Parameter(negative=())] = False
    "Few rounds and cases, into results/benchmarks-quick; leaves the page alone."
    out: Path | None = None
    "Directory for the rows. [default: results/benchmarks]"
    page: Path = Path("docs/benchmarks.md")
    "The page whose tables are rewritten."
    seed: Seed = 0
    "Decides weights, pictures and the order of measuring."
    threads: Count | None = None
    "Threads. [default: all cores]"


app = App(help=__doc__, help_format="plaintext", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    suites = (options.only,) if options.only else SUITES
    if not options.quick:
        common.check_page(options.page, suites)

    import torch

    common.configure_runtime(options.threads or common.default_threads())
    out = options.out or Path("results/benchmarks-quick" if options.quick else "results/benchmarks")
    measure = {"step": step, "scaling": scaling, "evaluate": evaluate, "mixture": mixture}
    for suite in suites:
        torch.manual_seed(options.seed)
        rows = list(measure[suite](options.quick, random.Random(options.seed)))
        common.record(out, suite, rows, suite=suite, quick=options.quick, seed=options.seed, seconds_are="wall time")
        text = TABLES[suite](rows)
        print(f"\n{suite}\n{text}")
        if not options.quick:
            common.publish(options.page, suite, text)


def pictures(space: SearchSpace, number: int) -> tuple[Tensor, Tensor]:
    import torch

    x = torch.randn(number, *space.input_shape).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(10, (number,))


def implementations(space: SearchSpace, path: SpacePath, batch: int) -> dict[str, Step]:
    """A training step of one path, by implementation; each returns the seconds of its phases."""
    import torch
    from torch.nn import functional as F
    from yardsticks import Modular, NaiveMerged

    import mnas

    x, y = pictures(space, batch)

    def trained(module: Any, optimizer: Any, *arguments: Any) -> Step:
        module.train()

        def run() -> list[float]:
            optimizer.zero_grad()
            times = [time.perf_counter()]
            loss = F.cross_entropy(module(x, *arguments), y)
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            optimizer.step()
            times.append(time.perf_counter())
            return [after - before for before, after in itertools.pairwise(times)]

        return run

    def stock(module: Any, *arguments: Any) -> Step:
        return trained(module, torch.optim.SGD(module.parameters(), **SGD), *arguments)

    def ours(execution: str) -> Step:
        net = mnas.Supernet(space, execution)
        return trained(net, mnas.MaskedOptimizer(torch.optim.SGD, net, **SGD), path)

    made = {"standalone": stock(mnas.standalone(space, path)), "modular": stock(Modular(space), path)}
    made["sliced"] = ours("sliced")
    try:
        made["masked"] = ours("masked")
        made["naive"] = stock(NaiveMerged(space), path)
    except ValueError:  # no candidate encloses the others
        pass
    return made


def interleaved(sides: dict[str, Step], rounds: int, chooser: random.Random, **labels: Any) -> Iterator[Row]:
    """Every side once a round, in random order; the first rounds, which make state and warm up, are left out."""
    for number in range(-3, rounds):
        for by in chooser.sample(list(sides), len(sides)):
            seconds = sides[by]()
            if number >= 0:
                yield {**labels, "round": number, "by": by, "seconds": [round(s, 7) for s in seconds]}


def step(quick: bool, chooser: random.Random) -> Iterator[Row]:
    from tqdm import tqdm

    from mnas import spaces

    names = ("mil4",) if quick else ("mil4", "mil9", "nb_macro")
    cases = []
    for name in names:
        space = spaces.get(name)
        paths = [tuple(map(int, digits)) for digits in MACRO] if name == "nb_macro" else list(space.paths())
        cases += [(space, path, batch) for path in paths for batch in ((64,) if name != "mil4" or quick else (64, 256))]
    for space, path, batch in tqdm(cases, desc="step", unit="case", disable=None):
        rounds = 4 if quick else {"mil4": 60, "mil9": 20, "nb_macro": 8}[space.name]
        labels = {"space": space.name, "arch": space.format(path), "batch": batch}
        yield from interleaved(implementations(space, path, batch), rounds, chooser, **labels)


def scaling(quick: bool, chooser: random.Random) -> Iterator[Row]:
    """All sizes in one interleaved run: the path of the second candidates, 5x5, in spaces of more and more."""
    from mnas import spaces

    sides = {}
    for number in CANDIDATES[:: 5 if quick else 1]:
        made = implementations(spaces.plain(candidates=number), (1, 1), 64)
        sides |= {f"{by} {number}": made[by] for by in ("modular", "sliced", "masked", "naive")}
    yield from interleaved(sides, 3 if quick else 40, chooser, space="plain", batch=64)


def evaluate(quick: bool, chooser: random.Random) -> Iterator[Row]:
    """Scores of all paths; analytic: multiply-accumulates of the tree over those of the loop."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import mnas
    from mnas import prefix, spaces

    subspace = [(0, 0, 0, *rest) for rest in itertools.product(range(3), repeat=5)]
    cases = {
        "mil4": (spaces.mil4(), None, 1000),
        "mil9": (spaces.mil9(), None, 1000),
        "plain(8)": (spaces.plain(candidates=8), None, 1000),
        "nb_macro, 243 paths": (spaces.nb_macro(), subspace, 20),
    }
    for name, (space, paths, number) in cases.items():
        if quick and name != "mil9":
            continue
        paths = paths or list(space.paths())
        net = mnas.Supernet(space).eval()
        x, y = pictures(space, 100 if quick else number)
        tree = prefix.tree(net.model, paths, lambda choice, index: choice.candidate(index))

        def shared(net: Any = net, paths: Any = paths, x: Any = x, y: Any = y) -> list[float]:
            begun = time.perf_counter()
            mnas.evaluate_paths(net, paths, x, y)
            return [time.perf_counter() - begun]

        def loop(net: Any = net, paths: Any = paths, x: Any = x, y: Any = y) -> list[float]:
            begun = time.perf_counter()
            for path in paths:
                mnas.evaluate(mnas.export(net, path), x, y)
            return [time.perf_counter() - begun]

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for _ in prefix.walk(tree, x[:1]):
                pass
        analytic = counter.get_total_flops() / 2 / sum(mnas.cost(space, path).macs for path in paths)
        labels = {"space": name, "paths": len(paths), "images": len(x), "analytic": round(analytic, 4)}
        yield from interleaved({"shared": shared, "loop": loop}, 2 if quick else 7, chooser, **labels)


def mixture(quick: bool, chooser: random.Random) -> Iterator[Row]:
    """Eight kernels of a 16 to 32 layer on 14x14, forward and backward, with gradients for the coefficients."""
    import torch
    from torch import nn

    import mnas

    def build() -> nn.Module:
        kernels = {f"c{i}": nn.Conv2d(16, 32, k, padding=k // 2) for i, k in enumerate((3, 5) * 4)}
        return nn.Sequential(mnas.Choice(kernels), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    space = mnas.SearchSpace(build, name="eight kernels", input_shape=(16, 14, 14))
    net, weights = mnas.Supernet(space), torch.randn(8, requires_grad=True)
    separate = [mnas.standalone(space, path) for path in space.paths()]
    for batch in (64,) if quick else (64, 256):
        x = pictures(space, batch)[0].requires_grad_()

        def timed(forward: Callable[[], Tensor]) -> Step:
            def run() -> list[float]:
                net.zero_grad()
                begun = time.perf_counter()
                forward().sum().backward()
                return [time.perf_counter() - begun]

            return run

        sides = {
            "one path, 5x5": lambda x=x: net(x, (1,)),
            "mixture": lambda x=x: net(x, (weights.softmax(0),)),
            "separate": lambda x=x: sum(
                w * layer(x) for w, layer in zip(weights.softmax(0).unbind(), separate, strict=True)
            ),
        }
        sides = {by: timed(forward) for by, forward in sides.items()}
        yield from interleaved(sides, 4 if quick else 60, chooser, batch=batch)


def ratio(rows: list[Row], by: str, to: str) -> list[float]:
    """Seconds of one side over those of another, round by round and case by case."""

    def case(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in ("space", "arch", "batch", "round"))

    base = {case(row): sum(row["seconds"]) for row in rows if row["by"] == to}
    return [sum(row["seconds"]) / base[case(row)] for row in rows if row["by"] == by]


def spread(ratios: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def step_table(rows: list[Row]) -> str:
    body = []
    for space, batch in dict.fromkeys((row["space"], row["batch"]) for row in rows):
        here = [row for row in rows if (row["space"], row["batch"]) == (space, batch)]
        sliced = [row["seconds"] for row in here if row["by"] == "sliced"]
        shares = [statistics.median(100 * s[n] / sum(s) for s in sliced) for n in range(len(PHASES))]
        line = [space, str(batch), f"{1e3 * statistics.median(map(sum, sliced)):.1f}"]
        for by, to in (("sliced", "modular"), ("sliced", "standalone"), ("masked", "sliced"), ("naive", "sliced")):
            ratios = ratio(here, by, to)
            line.append(spread(ratios) if ratios else "–")
        body.append([*line, " / ".join(f"{share:.0f}" for share in shares)])
    headers = ["space", "batch", "sliced, ms", "sliced / modular", "sliced / standalone", "masked / sliced"]
    return common.markdown(body, [*headers, "naive / sliced", "forward / backward / optimizer, %"])


def scaling_table(rows: list[Row]) -> str:
    numbers = sorted({int(row["by"].split()[1]) for row in rows})
    kinds = list(dict.fromkeys(row["by"].split()[0] for row in rows))
    body = [
        [str(n), *(spread(ratio(rows, f"{by} {n}", f"{by} {numbers[0]}")) for by in sorted(kinds))] for n in numbers[1:]
    ]
    return common.markdown(body, ["candidates", *(f"{by}, to {numbers[0]}" for by in sorted(kinds))])


def evaluate_table(rows: list[Row]) -> str:
    body = []
    for space in dict.fromkeys(row["space"] for row in rows):
        here = [row for row in rows if row["space"] == space]
        measured = ratio(here, "shared", "loop")
        bound = f"{1.15 * here[0]['analytic']:.2f}"
        body.append([space, str(here[0]["paths"]), spread(measured), f"{here[0]['analytic']:.2f}", bound])
    return common.markdown(body, ["space", "paths", "shared / one by one", "analytic", "asked, at most"])


def mixture_table(rows: list[Row]) -> str:
    body = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        here = [row for row in rows if row["batch"] == batch]
        body.append([str(batch), *(spread(ratio(here, by, "one path, 5x5")) for by in ("mixture", "separate"))])
    return common.markdown(body, ["batch", "mixture / one path", "eight convolutions / one path"])


TABLES = {"step": step_table, "scaling": scaling_table, "evaluate": evaluate_table, "mixture": mixture_table}


if __name__ == "__main__":
    common.run(app)

"""Measure what freezing is worth and what it costs, and bring the tables of docs/freezing.md up to
date.

- `python tools/freezing.py`: about 4 minutes on 2 cores; mnas must print 0 in the drift table
- `python tools/freezing.py --quick`: about 40 seconds, into results/freezing-quick; the page stays

drift: how far frozen entries of a real network move in 100 steps on MNIST, under a hook that zeroes
their gradients and a stock optimizer, and under mnas. cost: seconds of a step against the stock
optimizer on as many entries, all in one interleaved run. memory: bytes of optimizer state by share
of active entries. Rows go to OUT/*.jsonl."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from mnas.commands.options import Count, Seed, UserPath
from mnas.studies.pages import check_page, markdown, publish, record
from mnas.training import runtime

if TYPE_CHECKING:
    from torch import Tensor, nn

PARTS = ("drift", "cost", "memory")
SIDE = 1024  # the measured layer has SIDE x SIDE weights, a million
Row = dict[str, Any]

# For each optimizer of torch.optim that works element by element: a usual rate, and weight decay
# where there is any.
DRIFTING: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "Adam": {"lr": 1e-3, "weight_decay": 5e-4},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
    "NAdam": {"lr": 1e-3, "weight_decay": 5e-4},
    "RAdam": {"lr": 1e-3, "weight_decay": 5e-4},
    "Adamax": {"lr": 1e-3, "weight_decay": 5e-4},
    "Adadelta": {"lr": 1.0, "weight_decay": 5e-4},
    "Adagrad": {"lr": 0.01, "weight_decay": 5e-4},
    "ASGD": {"lr": 0.05, "weight_decay": 5e-4},
    "RMSprop": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4},
    "Rprop": {"lr": 1e-4},
}
COSTING: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD, momentum, decay": (
        "SGD",
        {"lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    ),
    "AdamW": ("AdamW", {"lr": 1e-4}),
    "AdamW, fused": ("AdamW", {"lr": 1e-4, "fused": True}),
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    only: Literal["drift", "cost", "memory"] | None = None
    "Measure one part. [default: all]"
    quick: Annotated[bool, Parameter(negative=())] = False
    "Few steps and rounds, into results/freezing-quick; leaves the page alone."
    out: UserPath | None = None
    "Directory for the rows. [default: results/freezing]"
    page: UserPath = Path("docs/freezing.md")
    "The page whose tables are rewritten. [default: docs/freezing.md]"
    seed: Seed = 0
    "Decides weights, batches and masks."
    threads: Count | None = None
    "Threads. [default: all cores]"


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    parts = (options.only,) if options.only else PARTS
    if not options.quick:
        check_page(options.page, parts)

    runtime.configure_runtime(options.threads or runtime.default_threads())
    out = options.out or Path("results/freezing-quick" if options.quick else "results/freezing")
    measure = {"drift": drift, "cost": cost, "memory": memory}
    tables = {"drift": drift_table, "cost": cost_table, "memory": memory_table}
    for part in parts:
        rows = list(measure[part](options.quick, options.seed))
        record(
            out,
            part,
            rows,
            part=part,
            quick=options.quick,
            seed=options.seed,
            seconds_are="wall time",
        )
        text = tables[part](rows)
        print(f"\n{part}\n{text}")
        if not options.quick:
            publish(options.page, part, text)


def drift(quick: bool, seed: int) -> Iterator[Row]:
    """Half of the entries of every parameter of `mil4`'s conv5x5-conv5x5 are frozen, from the first
    step or after ten steps in which all trained."""
    import torch
    from tqdm import tqdm

    import mnas
    from mnas.training import data

    space = mnas.spaces.mil4()
    train = runtime.for_training(data.load("mnist").train)
    steps = 20 if quick else 100
    bar = tqdm(total=4 * len(DRIFTING), unit="run", desc="drift", disable=None)
    for name, settings in DRIFTING.items():
        for before in (0, 10):
            for by in ("hook", "mnas"):
                torch.manual_seed(seed)
                net = mnas.standalone(space, (1, 1))
                masks = {n: torch.rand(p.shape) < 0.5 for n, p in net.named_parameters()}
                optimizer_class = getattr(torch.optim, name)
                if by == "mnas":
                    optimizer = mnas.MaskedOptimizer(optimizer_class, net, **settings)
                else:
                    optimizer = optimizer_class(net.parameters(), **settings)
                order = torch.randperm(len(train))
                for number in range(before + steps):
                    if number == before:
                        start = {n: p.detach().clone() for n, p in net.named_parameters()}
                        if by == "mnas":
                            mnas.GradientMask(net, masks)
                        else:
                            for n, p in net.named_parameters():
                                p.register_hook(lambda grad, mask=masks[n]: grad * mask)
                    batch = order[64 * number : 64 * number + 64]
                    optimizer.zero_grad()
                    loss = torch.nn.functional.cross_entropy(
                        net(train.images[batch]), train.labels[batch]
                    )
                    loss.backward()
                    optimizer.step()
                moved = {n: (p.detach() - start[n]).abs() for n, p in net.named_parameters()}
                frozen = torch.cat([m[~masks[n]] for n, m in moved.items()])
                trained = torch.cat([m[masks[n]] for n, m in moved.items()])
                yield {
                    "optimizer": name,
                    "options": settings,
                    "steps_before": before,
                    "steps": steps,
                    "seed": seed,
                    "by": by,
                    "frozen_max": frozen.max().item(),
                    "frozen_rms": frozen.square().mean().sqrt().item(),
                    "trained_rms": trained.square().mean().sqrt().item(),
                    "loss": loss.item(),
                }
                bar.update()
    bar.close()


def drift_table(rows: list[Row]) -> str:
    def cell(name: str, before: int, by: str) -> str:
        (row,) = [
            r for r in rows if (r["optimizer"], r["steps_before"], r["by"]) == (name, before, by)
        ]
        if row["frozen_max"] == 0:
            return "0"
        return f"{row['frozen_max']:.1e} ({100 * row['frozen_rms'] / row['trained_rms']:.2g} %)"

    columns = [(0, "hook"), (10, "hook"), (0, "mnas"), (10, "mnas")]
    body = [[_title(name), *(cell(name, *column) for column in columns)] for name in DRIFTING]
    headers = [
        "optimizer",
        "hook, from step 1",
        "hook, after 10 steps",
        "mnas, from step 1",
        "mnas, after 10 steps",
    ]
    return markdown(body, headers)


def _title(name: str) -> str:
    settings = DRIFTING[name]
    extras = [key for key in ("momentum", "weight_decay") if key in settings]
    return f"{name} ({', '.join(f'{key} {settings[key]}' for key in extras)})" if extras else name


def masks_of(seed: int) -> dict[str, Tensor]:
    """Which of the layer's SIDE x SIDE weights are active."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    half = torch.arange(SIDE) < SIDE // 2
    shuffled = half[torch.randperm(SIDE, generator=generator)]
    uniform = torch.rand(SIDE, SIDE, generator=generator)
    return {
        "output channels, first half": half[:, None].expand(SIDE, SIDE).clone(),
        "output channels, random half": shuffled[:, None].expand(SIDE, SIDE).clone(),
        "input channels, first half": half[None].expand(SIDE, SIDE).clone(),
        "random entries, 10 %": uniform < 0.1,
        "random entries, 50 %": uniform < 0.5,
        "random entries, 90 %": uniform < 0.9,
    }


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: a training step on the layer, in two halves that are timed apart.
    between is not timed.

    The stock optimizer steps a layer of as many weights as are active, and `between` is that
    layer's own backward pass: memory that the cores have just read for a matrix product is several
    times slower to write than memory at rest, so both sides must step what was just used."""

    case: str
    optimizer: str
    by: str
    active: int
    backward: Callable[[], None]
    between: Callable[[], None]
    step: Callable[[], None]


def contenders(seed: int) -> list[Contender]:
    """For every case mnas, and beside it the unmasked layer with a stock optimizer on a layer of
    the active size."""
    import torch
    from torch import nn

    import mnas

    x = torch.randn(128, SIDE, generator=torch.Generator().manual_seed(seed))

    def layer(outputs: int = SIDE) -> nn.Module:
        return nn.Linear(SIDE, outputs, bias=False)

    def nothing() -> None:
        pass

    def backward(module: nn.Module, *path: tuple[int]) -> Callable[[], None]:
        def run() -> None:
            module.zero_grad()
            module(x, *path).square().mean().backward()

        return run

    def stock(case: str, title: str, active: int) -> Contender:
        name, settings = COSTING[title]
        small = layer(round(active / SIDE))
        optimizer = getattr(torch.optim, name)(small.parameters(), **settings)
        return Contender(
            case, title, "stock", active, backward(layer()), backward(small), optimizer.step
        )

    made: list[Contender] = []
    for title, (name, settings) in COSTING.items():
        optimizer_class = getattr(torch.optim, name)
        space = mnas.SearchSpace(
            lambda: mnas.Choice({"a": layer(), "b": layer()}), input_shape=(SIDE,)
        )
        net = mnas.Supernet(space)
        optimizer = mnas.MaskedOptimizer(optimizer_class, net, **settings)
        case = "one of two candidates"
        made.append(
            Contender(
                case, title, "mnas", SIDE * SIDE, backward(net, (1,)), nothing, optimizer.step
            )
        )
        made.append(stock(case, title, SIDE * SIDE))
        for case, mask in masks_of(seed).items():
            module, active = layer(), int(mask.sum())
            mnas.GradientMask(module, {"weight": mask})
            optimizer = mnas.MaskedOptimizer(optimizer_class, module, **settings)
            made.append(
                Contender(case, title, "mnas", active, backward(module), nothing, optimizer.step)
            )
            made.append(stock(case, title, active))
    return made


def cost(quick: bool, seed: int) -> Iterator[Row]:
    """Every contender once a round, in random order, so that what the machine does besides meets
    all alike."""
    from tqdm import tqdm

    sides = contenders(seed)
    chooser = random.Random(seed)
    for number in tqdm(range(-3, 10 if quick else 150), unit="round", desc="cost", disable=None):
        for side in chooser.sample(sides, len(sides)):
            begun = time.perf_counter()
            side.backward()
            backward_seconds = time.perf_counter() - begun
            side.between()
            begun = time.perf_counter()
            side.step()
            step_seconds = time.perf_counter() - begun
            if number >= 0:  # the first rounds make state and warm up
                yield {
                    "round": number,
                    "case": side.case,
                    "optimizer": side.optimizer,
                    "by": side.by,
                    "active": side.active,
                    "backward_seconds": round(backward_seconds, 7),
                    "step_seconds": round(step_seconds, 7),
                }


def cost_table(rows: list[Row]) -> str:
    def ratios(case: str, title: str, seconds: Callable[[Row], float]) -> str:
        sides = [
            {
                r["round"]: seconds(r)
                for r in rows
                if (r["case"], r["optimizer"], r["by"]) == (case, title, by)
            }
            for by in ("mnas", "stock")
        ]
        low, middle, high = statistics.quantiles([sides[0][n] / sides[1][n] for n in sides[0]], n=4)
        return f"{middle:.2f} ({low:.2f}–{high:.2f})"

    body = []
    for case in dict.fromkeys(row["case"] for row in rows):
        line = [case]
        for title in COSTING:
            line.append(
                ratios(case, title, lambda row: row["backward_seconds"] + row["step_seconds"])
            )
            line.append(ratios(case, title, lambda row: row["step_seconds"]))
        body.append(line)
    headers = ["active entries"]
    for title in COSTING:
        headers += [f"{title}: training step", "optimizer alone"]
    return markdown(body, headers)


def memory(quick: bool, seed: int) -> Iterator[Row]:
    """Bytes of Adam's state after two steps, and of the index that says where its entries are."""
    import torch
    from torch import nn

    import mnas

    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(SIDE, SIDE, generator=generator)
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        for kind, mask in {
            "random entries": uniform < share,
            "output channels": (torch.arange(SIDE) < share * SIDE)[:, None].expand(SIDE, SIDE),
        }.items():
            layer = nn.Linear(SIDE, SIDE, bias=False)
            mnas.GradientMask(layer, {"weight": mask})
            optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer)
            for _ in range(2):
                optimizer.zero_grad()
                layer(torch.randn(2, SIDE)).sum().backward()
                optimizer.step()
            state = optimizer.state_dict()["state"].get(0, {})
            pieces = state.get("pieces", [{"state": state}])
            tensors = {
                "state_bytes": [v for piece in pieces for v in piece["state"].values()],
                "index_bytes": [
                    v for piece in pieces for v in piece.values() if torch.is_tensor(v)
                ],
            }
            sizes = {
                key: sum(t.numel() * t.element_size() for t in value)
                for key, value in tensors.items()
            }
            yield {
                "kind": kind,
                "share": share,
                "active": int(mask.sum()),
                "weight_bytes": 4 * SIDE * SIDE,
                **sizes,
            }


def memory_table(rows: list[Row]) -> str:
    body = [
        [
            r["kind"],
            f"{100 * r['share']:g} %",
            *(f"{r[k] / 1e6:.2f}" for k in ("state_bytes", "index_bytes")),
        ]
        for r in sorted(rows, key=lambda r: r["kind"])
    ]
    return markdown(body, ["active", "share", "state, MB", "index, MB"])

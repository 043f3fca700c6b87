"""What the supernets of the named spaces hold in memory, and what `mil9` reached; brings
docs/spaces.md up to date.

- `python tools/spaces.py`: a few seconds

Bytes of weights, and of gradients and Adam's state after one step on one path and after steps on
ten, beside what the largest network needs alone; rows go to OUT/memory.jsonl. The accuracies are
those of the finished runs in RUNS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, Parameter

from mnas.commands.options import Seed, UserPath
from mnas.errors import Failure, user_input
from mnas.studies.pages import check_page, markdown, publish, record

if TYPE_CHECKING:
    from mnas import SearchSpace

MEMORY, ACCURACY = "memory of spaces", "accuracy of mil9"
SUMMARIES = "seed*-summary.json"
PATHS = (1, 10)
MEASURED = ("mil4", "mil4_nested", "mil9", "nb_macro", "plain")
"""Of few enough networks to find the largest."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    out: UserPath = Path("results/spaces")
    "Directory for the rows."
    runs: UserPath = Path("results/mil9")
    "Directory with the summaries of supernet runs, seedN-summary.json."
    page: UserPath = Path("docs/spaces.md")
    "The page whose table is rewritten."
    seed: Seed = 0
    "Decides which paths are stepped."


app = App(help=__doc__, help_format="markdown", version_flags=())


@app.default
def main(options: Options | None = None) -> None:
    options = options or Options()
    check_page(options.page, (MEMORY, ACCURACY))
    if not list(options.runs.glob(SUMMARIES)):
        raise Failure(
            f"--runs {options.runs} holds no {SUMMARIES}; give it runs of tools/train.py", status=2
        )

    from mnas import spaces

    rows = [row for name in MEASURED for row in measure(spaces.get(name), options.seed)]
    record(options.out, "memory", rows, seed=options.seed)
    for part, text in ((MEMORY, table(rows)), (ACCURACY, accuracies(options.runs))):
        print(f"{text}\n")
        publish(options.page, part, text)


def measure(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each number of paths: bytes after as many steps of Adam, each on a path of its
    own."""
    import torch

    import mnas

    net = mnas.Supernet(space)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net)
    largest = max(mnas.cost(space, path).params for path in space.paths())
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *space.input_shape, generator=generator)
    for number in range(1, max(PATHS) + 1):
        path = space.sample(generator)
        optimizer.zero_grad()
        net(x, path).square().mean().backward()
        optimizer.step()
        if number in PATHS:
            gradients = [p.grad for p in net.parameters() if p.grad is not None]
            state = [value for of_piece in optimizer.state.values() for value in of_piece.values()]
            yield {
                "space": space.name,
                "networks": len(space),
                "steps": number,
                "weight_bytes": _bytes(net.parameters()),
                "gradient_bytes": _bytes(gradients),
                "state_bytes": _bytes(state),
                "largest_network_bytes": 4 * largest,
            }


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def table(rows: list[dict[str, Any]]) -> str:
    body = []
    for name in dict.fromkeys(row["space"] for row in rows):
        one, ten = (
            next(r for r in rows if (r["space"], r["steps"]) == (name, steps)) for steps in PATHS
        )
        sizes = [one["largest_network_bytes"], one["weight_bytes"], one["gradient_bytes"]]
        sizes += [one["state_bytes"], ten["state_bytes"]]
        body.append([name, f"{one['networks']:,}", *(f"{size / 1e6:.2f}" for size in sizes)])
    headers = [
        "space",
        "networks",
        "largest network, MB",
        "supernet, MB",
        "gradients, MB",
        "Adam, 1 path",
        "10 paths",
    ]
    return markdown(body, headers)


def accuracies(runs: Path) -> str:
    """Test top-1 of every network, a column for each run."""
    from mnas.storage import files, strict_json
    from mnas.storage.schema import Summary

    summaries = []
    with user_input():
        for file in sorted(runs.glob(SUMMARIES)):
            summaries.append(strict_json.parse(files.read(file), dict, file))
            strict_json.checked(summaries[-1], Summary, file)
    scores = [[100 * path["test_top1"] for path in summary["paths"]] for summary in summaries]
    body = [
        [path["arch"], f"{path['params']:,}", *(f"{of_seed[number]:.2f}" for of_seed in scores)]
        for number, path in enumerate(summaries[0]["paths"])
    ]
    body.append(["lowest", "", *(f"{min(of_seed):.2f}" for of_seed in scores)])
    body.append(["mean", "", *(f"{sum(of_seed) / len(of_seed):.2f}" for of_seed in scores)])
    body.append(["training, s", "", *(f"{summary['train_seconds']:.0f}" for summary in summaries)])
    return markdown(body, ["network", "parameters", *(f"seed {s['seed']}, %" for s in summaries)])

"""What happens to the ring of a 5x5 kernel while its 3x3 centre is trained; brings the table of
nested kernels in docs/freezing.md up to date.

- `python -m benchmarks.nested`: about a minute on one thread; mnas must print 0

The usual way to nest kernels is one parameter of which a path takes a slice, under a stock
optimizer: the slice's gradient is zero in the ring, and to a stock optimizer a zero is a gradient.
Both sides are `mil4_nested`, from the same weights, on the same batches of MNIST: ten steps of
conv5x5-conv5x5, then a hundred of conv3x3-conv3x3, in which no step uses a ring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

BEFORE, STEPS, BATCH = 10, 100, 64
LARGE, SMALL = (1, 1), (0, 0)
PART = "nested"
OUT, PAGE = Path("results/freezing"), Path("docs/freezing.md")

# As in benchmarks/freezing.py: usual rates, weight decay.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "Adam": {"lr": 1e-3, "weight_decay": 5e-4},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
    "RMSprop": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4},
}
Row = dict[str, Any]


def sliced(network: nn.Sequential) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """The usual way: `network` is conv5x5-conv5x5 of the space, and a path with a 3x3 kernel takes
    the centre of the parameter."""
    from torch import nn

    def run(x: Tensor, path: tuple[int, int]) -> Tensor:
        large = list(path)
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                edge = 0 if large.pop(0) else 1
                weight = layer.weight[:, :, edge : 5 - edge, edge : 5 - edge]
                x = nn.functional.conv2d(x, weight, layer.bias, padding=2 - edge)
            else:
                x = layer(x)
        return x

    return run


def measure(
    name: str, by: str, seed: int = 0, before: int = BEFORE, steps: int = STEPS
) -> tuple[Row, list[Tensor]]:
    """A row, and how far the entries of each canvas have moved in the last `steps` steps, (O, I, 5,
    5). by: "slice" or "mnas"."""
    import torch

    import mnas
    from mnas.training import data

    space, train = mnas.spaces.mil4_nested(), data.load("mnist").train
    torch.manual_seed(seed)
    net = mnas.Supernet(space)
    plain = mnas.export(net, LARGE)
    if by == "mnas":
        optimizer = mnas.MaskedOptimizer(getattr(torch.optim, name), net, **OPTIMIZERS[name])
        forward: Callable[[Tensor, tuple[int, int]], Tensor] = net
    else:
        optimizer = getattr(torch.optim, name)(plain.parameters(), **OPTIMIZERS[name])
        forward = sliced(plain)

    def canvases() -> list[Tensor]:
        layers = mnas.export(net, LARGE) if by == "mnas" else plain
        kernels = (layer for layer in layers if isinstance(layer, torch.nn.Conv2d))
        return [layer.weight.detach().clone() for layer in kernels]

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    for number in range(before + steps):
        if number == before:
            start = canvases()
        batch = order[BATCH * number : BATCH * number + BATCH]
        path = LARGE if number < before else SMALL
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            forward(train.images[batch], path), train.labels[batch]
        )
        loss.backward()
        optimizer.step()
    moved = [end - begin for begin, end in zip(start, canvases(), strict=True)]
    inner = torch.zeros(5, 5, dtype=torch.bool)
    inner[1:4, 1:4] = True
    ring = torch.cat([m[..., ~inner].flatten() for m in moved])
    centre = torch.cat([m[..., inner].flatten() for m in moved])
    row = {
        "optimizer": name,
        "options": OPTIMIZERS[name],
        "steps_before": before,
        "steps": steps,
        "seed": seed,
        "by": by,
        "ring_max": ring.abs().max().item(),
        "ring_rms": ring.square().mean().sqrt().item(),
        "centre_rms": centre.square().mean().sqrt().item(),
        "loss": loss.item(),
    }
    return row, moved


def table(rows: list[Row]) -> str:
    from mnas.studies.pages import markdown

    body = []
    for name, options in OPTIMIZERS.items():
        found = {row["by"]: row for row in rows if row["optimizer"] == name}
        momentum = f"momentum {options['momentum']}, " if "momentum" in options else ""
        cells = [f"{name} ({momentum}weight_decay {options['weight_decay']})"]
        for by in ("slice", "mnas"):
            row = found[by]
            share = 100 * row["ring_rms"] / row["centre_rms"]
            cells.append(f"{row['ring_max']:.1e} ({share:.2g} %)" if row["ring_max"] else "0")
        body.append(cells)
    return markdown(body, ["optimizer", "a slice, stock optimizer", "mnas"])


def main() -> None:
    from mnas.studies.pages import check_page, publish, record
    from mnas.training import runtime

    check_page(PAGE, (PART,))
    runtime.configure_runtime(1)
    rows = [measure(name, by)[0] for name in OPTIMIZERS for by in ("slice", "mnas")]
    record(OUT, PART, rows, part=PART, seed=0)
    publish(PAGE, PART, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

"""Nested layers of other kits, as they are, under stock optimizers: how far what a step does not
use moves; brings a table of docs/freezing.md up to date.

- `pip install ofa==0.1.0.post202307202001 whittle==0.6.0 nni==3.0 lightning`, and after that
  `pip install 'filelock>=4'`, in an environment of its own beside mnas; then
  `python -m benchmarks.peers`: a minute

Each layer alone, on random inputs and targets: ten steps of the largest, then a hundred of the
smallest. The peers' own classes choose the weights; nothing of them is changed. mnas: the same
layers as nested candidates."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

BEFORE, STEPS = 10, 100
PART, OUT, PAGE = "peers", Path("results/freezing"), Path("docs/freezing.md")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "AdamW": {"lr": 1e-3, "weight_decay": 0.01},
}
Row = dict[str, Any]


class Peer(NamedTuple):
    """module: what trains. run: the outputs of the large (True) or small layer. weight: the nested
    weight, now. unused: which of its entries the small layer does not use."""

    title: str
    module: nn.Module
    run: Callable[[Tensor, bool], Tensor]
    weight: Callable[[], Tensor]
    unused: Tensor
    inputs: tuple[int, ...]


def ring() -> Tensor:
    import torch

    unused = torch.ones(5, 5, dtype=torch.bool)
    unused[1:4, 1:4] = False
    return unused


def once_for_all() -> Peer:
    """Its kernels of 3 and 5 with the learned matrices off, so that the small one is the centre."""
    from ofa.imagenet_classification.elastic_nn.modules.dynamic_op import DynamicSeparableConv2d

    DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = None
    layer = DynamicSeparableConv2d(8, [3, 5])
    return Peer(
        f"once-for-all {version('ofa').split('.post')[0]}: DynamicSeparableConv2d, 3 of 5",
        layer,
        lambda x, large: layer(x, 5 if large else 3),
        lambda: layer.conv.weight,
        ring().expand(8, 1, 5, 5),
        (16, 8, 12, 12),
    )


def nni() -> Peer:
    import nni as kit
    from nni.nas.nn.pytorch import ModelSpace, MutableConv2d
    from nni.nas.oneshot.pytorch.supermodule.operation import MixedConv2d
    from nni.nas.oneshot.pytorch.supermodule.sampling import MixedOpPathSamplingPolicy

    class Space(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            size = kit.choice("size", [3, 5])
            self.layer = MutableConv2d(8, 8, size, padding=size // 2)

    policy = {"mixed_op_sampling": MixedOpPathSamplingPolicy}
    layer = MixedConv2d.mutate(Space().layer, "layer", {}, policy)

    def run(x: Tensor, large: bool) -> Tensor:
        layer.resample({"size": 5 if large else 3})
        return layer(x)

    return Peer(
        f"NNI {version('nni')}: MixedConv2d, 3 of 5",
        layer,
        run,
        lambda: layer.weight,
        ring().expand(8, 8, 5, 5),
        (16, 8, 12, 12),
    )


def whittle() -> Peer:
    import torch
    from whittle.modules.linear import Linear

    layer = Linear(32, 16)

    def run(x: Tensor, large: bool) -> Tensor:
        layer.set_sub_network(32, 16 if large else 8)
        return layer(x)

    rows = (torch.arange(16) >= 8)[:, None].expand(16, 32)
    return Peer(
        f"whittle {version('whittle')}: Linear, 8 of 16 outputs",
        layer,
        run,
        lambda: layer.weight,
        rows,
        (16, 32),
    )


def own() -> Peer:
    from torch import nn

    import mnas

    kernels = {f"k{k}": nn.Conv2d(8, 8, k, padding=k // 2) for k in (3, 5)}
    net = mnas.Supernet(
        mnas.SearchSpace(
            lambda: nn.Sequential(mnas.Choice(kernels, nested=True)),
            name="one",
            input_shape=(8, 12, 12),
        )
    )
    return Peer(
        "mnas: Choice, 3 of 5",
        net,
        lambda x, large: net(x, (int(large),)),
        lambda: mnas.export(net, (1,))[0].weight,
        ring().expand(8, 8, 5, 5),
        (16, 8, 12, 12),
    )


def measure(make: Callable[[], Peer], name: str) -> Row:
    import torch

    import mnas

    torch.manual_seed(0)
    peer = make()
    if make is own:
        optimizer = mnas.MaskedOptimizer(
            getattr(torch.optim, name), peer.module, **OPTIMIZERS[name]
        )
    else:
        optimizer = getattr(torch.optim, name)(peer.module.parameters(), **OPTIMIZERS[name])
    for number in range(BEFORE + STEPS):
        if number == BEFORE:
            start = peer.weight().detach().clone()
        out = peer.run(torch.randn(peer.inputs), number < BEFORE)
        optimizer.zero_grad()
        (out - torch.randn(out.shape)).square().mean().backward()
        optimizer.step()
    moved = (peer.weight().detach() - start).abs()
    unused, used = moved[peer.unused], moved[~peer.unused]
    return {
        "layer": peer.title,
        "optimizer": name,
        "options": OPTIMIZERS[name],
        "unused_max": unused.max().item(),
        "unused_rms": unused.square().mean().sqrt().item(),
        "used_rms": used.square().mean().sqrt().item(),
    }


def table(rows: list[Row]) -> str:
    from mnas.studies.pages import markdown

    def cell(row: Row) -> str:
        share = 100 * row["unused_rms"] / row["used_rms"]
        return f"{row['unused_max']:.1e} ({share:.2g} %)" if row["unused_max"] else "0"

    titles = list(dict.fromkeys(row["layer"] for row in rows))
    body = [
        [title, *(cell(r) for name in OPTIMIZERS for r in rows
                  if (r["layer"], r["optimizer"]) == (title, name))]
        for title in titles
    ]  # fmt: skip
    return markdown(body, ["layer", *OPTIMIZERS])


def main() -> None:
    from mnas.studies.pages import check_page, publish, record

    check_page(PAGE, (PART,))
    makers = (once_for_all, nni, whittle, own)
    rows = [measure(make, name) for make in makers for name in OPTIMIZERS]
    record(OUT, PART, rows, part=PART, seed=0, steps_before=BEFORE, steps=STEPS)
    publish(PAGE, PART, table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

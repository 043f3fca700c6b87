"""Ranks that sample different paths, in real processes of torch.distributed: what separate modules
do under stock DistributedDataParallel."""

import pytest
import torch
from processes import together

WORKER = """
import contextlib
import copy
import random
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import mnas

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=world
)


def block(width):
    # Norms that begin at zero: at first the layers before them have gradients of zeros.
    layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4), nn.LayerNorm(4))
    nn.init.zeros_(layers[3].weight)
    return layers


def model(nested):
    torch.manual_seed(0)
    wide, narrow = block(6), block(3)
    return nn.Sequential(
        mnas.Choice({"narrow": narrow, "wide": wide}, nested=nested), nn.Linear(4, 4), nn.ReLU(),
        mnas.Choice({"a": nn.Linear(4, 4), "skip": nn.Identity()}), nn.Linear(4, 2),
    )


class Separate(nn.Module):
    def __init__(self, net):
        super().__init__()
        exported = [mnas.export(net, path) for path in ((0, 0), (1, 1))]
        self.first = nn.ModuleList([exported[0][0], exported[1][0]])
        self.second = nn.ModuleList([exported[0][3], nn.Identity()])
        self.others = nn.ModuleList([exported[0][n] for n in (1, 2, 4)])

    def forward(self, x, path):
        x = self.others[1](self.others[0](self.first[path[0]](x)))
        return self.others[2](self.second[path[1]](x))


def train(kind, nested, view):
    net = mnas.Supernet(mnas.SearchSpace(lambda: model(nested), input_shape=(4,)))
    options = dict(lr=0.1, momentum=0.9, weight_decay=0.05)
    if kind == "masked":
        optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, **options)
    else:
        optimizer = torch.optim.SGD(net.parameters(), **options)
    pairs = [(net, optimizer)]
    if not nested:
        separate = Separate(net)
        pairs.append((separate, torch.optim.SGD(separate.parameters(), **options)))
    wrapped = [
        DistributedDataParallel(m, find_unused_parameters=True, gradient_as_bucket_view=view)
        for m, _ in pairs
    ]
    draw, data = random.Random(rank), torch.Generator().manual_seed(rank)
    for step in range(12):
        batches = [
            ((draw.randrange(2), draw.randrange(2)), torch.randn(3, 4, generator=data))
            for _ in range(1 + step % 2)
        ]
        for parallel, (_, optimizer) in zip(wrapped, pairs):
            optimizer.zero_grad()
            for number, (path, x) in enumerate(batches):
                last = number == len(batches) - 1
                with contextlib.nullcontext() if last else parallel.no_sync():
                    parallel(x, path).square().mean().backward()
            optimizer.step()
    ours = {path: list(mnas.export(net, path).state_dict().values()) for path in net.space.paths()}
    momenta = [optimizer.state.get(p, {}).get("momentum_buffer") for p in net.parameters()]
    found = {"ours": ours, "momenta": momenta, "separate": None}
    if not nested:
        found["separate"] = {
            path: [
                p.detach()
                for m in (
                    separate.first[path[0]],
                    separate.others[0],
                    separate.second[path[1]],
                    separate.others[2],
                )
                for p in m.parameters()
            ]
            for path in net.space.paths()
        }
    return found


cases = [(k, n, v) for k in ("masked", "stock") for n in (False, True) for v in (False, True)]
torch.save({case: train(*case) for case in cases}, out)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_on_different_paths_stay_one_model(world, tmp_path):
    """Weights and momentum are equal on all ranks, and for disjoint candidates equal to separate
    modules under stock DistributedDataParallel; passes under no_sync are accumulated. Under a
    MaskedOptimizer and under stock SGD, with buckets as gradients and without."""
    outs = [tmp_path / f"{rank}.pt" for rank in range(world)]
    ranks = [(rank, world, tmp_path / "store", out) for rank, out in enumerate(outs)]
    assert together(WORKER, ranks) == [0] * world
    first, *others = (torch.load(out, weights_only=True) for out in outs)
    for case, found in first.items():
        for other in others:
            for path, tensors in found["ours"].items():
                same = zip(tensors, other[case]["ours"][path], strict=True)
                assert all(torch.equal(a, b) for a, b in same), (case, path)
            for a, b in zip(found["momenta"], other[case]["momenta"], strict=True):
                assert (a is None) == (b is None), case
                assert a is None or torch.equal(a, b), case
        for path, separate in (found["separate"] or {}).items():
            same = zip(found["ours"][path], separate, strict=True)
            assert all(torch.equal(a, b) for a, b in same), (case, path)

"""Two processes that share the work, over gloo, against separate tensors and modules under the
stock optimizer in the same processes."""

import pytest
import torch
from processes import together

WORKER = """
import sys, traceback, warnings
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
import mnas

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
warnings.simplefilter("ignore")
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
ROWS = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.bool)
ADAMW = {"lr": 0.1, "weight_decay": 0.1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


def batch(step, of_rank):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(2 * step + of_rank))


def sharded(how, order):
    torch.manual_seed(0)
    net = nn.Linear(4, 6)
    start = net.weight.detach().clone()
    active = [nn.Parameter(p.detach()[ROWS].clone()) for p in net.parameters()]
    frozen = [p.detach()[~ROWS].clone() for p in net.parameters()]
    masks = {"weight": ROWS[:, None], "bias": ROWS}
    mesh = init_device_mesh("cpu", (2,))
    if order == "mask first":
        mask = mnas.GradientMask(net, masks)
    if how == "FSDP2":
        wrapped = fully_shard(net, mesh=mesh)
    else:
        wrapped = FullyShardedDataParallel(
            net, use_orig_params=True, device_id=torch.device("cpu")
        )
    if order == "mask second":
        mask = mnas.GradientMask(net, masks)
    ours = mnas.MaskedOptimizer(torch.optim.AdamW, wrapped, **ADAMW)
    stock = torch.optim.AdamW(active, **ADAMW)
    for step in range(4):
        ours.zero_grad(), stock.zero_grad()
        wrapped(batch(step, rank)).square().mean().backward()
        for of_rank in (0, 1):
            x = batch(step, of_rank)
            y = [nn.functional.linear(x, *part) for part in (active, frozen)]
            (torch.cat(y, 1).square().mean() / 2).backward()
        ours.step(), stock.step()
    weight = net.weight.full_tensor().detach()
    return {
        "frozen": (weight - start)[~ROWS].abs().max().item(),
        "difference": (weight[ROWS] - active[0]).abs().max().item(),
        "moved": (weight - start)[ROWS].abs().min().item(),
        "said": repr(mask),
    }


def model():
    return nn.Sequential(
        mnas.Choice({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}), nn.ReLU(), nn.Linear(4, 2)
    )


class Separate(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.nets = nn.ModuleList([mnas.export(net, (i,)) for i in (0, 1)])
        self.nets[1][2] = self.nets[0][2]

    def forward(self, x, path):
        return self.nets[path[0]](x)


def difference(net, separate):
    return max(
        (a - b).abs().max().item()
        for i in (0, 1)
        for a, b in zip(
            mnas.export(net, (i,)).parameters(), separate.nets[i].parameters(), strict=True
        )
    )


def paths(view, own, accumulate):
    "Both paths in a step, or one a rank if own; under DistributedDataParallel."
    torch.manual_seed(0)
    net = mnas.Supernet(mnas.SearchSpace(model, input_shape=(4,)))
    separate = Separate(net)
    modules = [
        DistributedDataParallel(m, gradient_as_bucket_view=view, find_unused_parameters=True)
        for m in (net, separate)
    ]
    optimizers = [
        mnas.MaskedOptimizer(torch.optim.SGD, net, **SGD),
        torch.optim.SGD(separate.parameters(), **SGD),
    ]
    found = []
    for step in range(4):
        first = (step + rank) % 2 if own else step % 2
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            if accumulate:
                with module.no_sync():
                    module(batch(step, rank), (1 - first,)).square().mean().backward()
            module(batch(step, rank), (first,)).square().mean().backward()
            optimizer.step()
        found.append(difference(net, separate))
    return {"differences": found}


SCENARIOS = {
    **{(how, order): (sharded, how, order)
       for how in ("FSDP2", "FSDP1") for order in ("mask first", "mask second")},
    **{("paths", view, own, accumulate): (paths, view, own, accumulate)
       for view in (False, True) for own in (False, True) for accumulate in (False, True)},
}
found = {}
for name, (run, *arguments) in SCENARIOS.items():
    try:
        found[name] = run(*arguments)
    except Exception as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    distributed.barrier()
torch.save(found, out)
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes has found, by scenario."""
    folder = tmp_path_factory.mktemp("processes")
    ranks = [(rank, folder / "store", folder / f"{rank}.pt") for rank in (0, 1)]
    assert together(WORKER, ranks, timeout=240) == [0, 0]
    return [torch.load(out, weights_only=True) for *_, out in ranks]


@pytest.mark.parametrize("order", ["mask first", "mask second"])
def test_frozen_rows_of_a_sharded_module_stay_and_the_others_train(found, order):
    """LlamaFactory 10563, torchrec 4268: fully_shard."""
    for of_process in found:
        seen = of_process["FSDP2", order]
        assert "error" not in seen
        assert seen["frozen"] == 0
        assert seen["difference"] < 1e-5
        assert seen["moved"] > 0
        assert "in force" in seen["said"]
        assert "not in force" not in seen["said"]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("mask first", "RuntimeError: a GradientMask has lost its parameter: 'weight'"),
        ("mask second", "ValueError: the mask 'weight' for weight of shape"),
    ],
)
def test_the_older_sharding_flattens_parameters_and_is_refused_aloud(found, order, message):
    for of_process in found:
        assert of_process["FSDP1", order]["error"].startswith(message)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["same path", "a path a process"])
@pytest.mark.parametrize("view", [False, True], ids=["copies", "bucket views"])
def test_paths_under_distributed_data_parallel_equal_separate_modules(found, view, own, accumulate):
    """pytorch 44344, pytorch-accelerated 30: also where another path came before without
    synchronisation, and where each process has a path of its own."""
    for of_process in found:
        seen = of_process["paths", view, own, accumulate]
        assert "error" not in seen
        assert max(seen["differences"]) < 1e-6

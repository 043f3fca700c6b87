"""Masks and optimizer together with what people use beside them; each against the same training
without it."""

import copy

import pytest
import torch
from conftest import batches
from processes import together
from test_gradient_mask import filters, loss_of, small_net, snapshot, train
from torch import nn
from torch.nn import functional as F

import mnas


def masked(net, masks, **options):
    mnas.GradientMask(net, masks, **options)
    return mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.01, weight_decay=0.1)


def frozen_stay(net, optimizer, masks, steps):
    """Run the steps; every entry outside the masks is as before, and every masked parameter's
    trained part is not."""
    before = snapshot(net)
    steps()
    for name, mask in masks.items():
        parameter, entries = (
            net.get_parameter(name),
            torch.as_tensor(mask).expand_as(net.get_parameter(name)),
        )
        assert torch.equal(parameter[~entries], before[name][~entries]), name
        assert not entries.any() or parameter[entries].ne(before[name][entries]).any(), name
        state = optimizer.dense_state(parameter)
        assert all(value[~entries].eq(0).all() for value in state.values()), name


MASKS = {"0.weight": filters(1, 2), "4.weight": False}


def test_autocast():
    net = small_net()
    optimizer = masked(net, MASKS, statistics=True)

    def steps():
        for seed in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(net, seed)
            loss.backward()
            optimizer.step()

    frozen_stay(net, optimizer, MASKS, steps)


@pytest.mark.parametrize("order", ["masked first", "compiled first"])
def test_compile(order):
    """aot_eager runs the whole of torch.compile but for the generated kernels, which need a C++
    compiler."""
    nets = small_net(), small_net()
    torch.compiler.reset()
    if order == "compiled first":
        compiled = torch.compile(nets[0], backend="aot_eager")
        loss_of(compiled)
    # torch does not look for hooks that a compiled module got after its first call, so statistics
    # need them before.
    statistics = (
        {"1": torch.tensor([True, False, True, False])} if order == "masked first" else False
    )
    optimizers = [masked(net, MASKS, statistics=statistics) for net in nets]
    nets[0][1].load_state_dict(nets[1][1].state_dict())
    if order == "masked first":
        compiled = torch.compile(nets[0], backend="aot_eager")
    frozen_stay(nets[0], optimizers[0], MASKS, lambda: train(compiled, optimizers[0]))
    train(nets[1], optimizers[1])
    for name, tensor in nets[1].state_dict().items():
        torch.testing.assert_close(nets[0].state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert compiled.state_dict().keys() == {f"_orig_mod.{name}" for name in nets[1].state_dict()}


# torch before 2.14 warns where its tracer goes on without tracing; the results are what is tested.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's tracer looks at it
def test_compiled_supernet(small):
    torch.compiler.reset()
    torch.manual_seed(0)
    net = mnas.Supernet(small)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager")
    optimizers = [mnas.MaskedOptimizer(torch.optim.AdamW, n, lr=0.01) for n in (net, twin)]
    for path, (x, y) in zip(list(small.paths()) * 2, batches(8), strict=True):
        for forward, optimizer in ((compiled, optimizers[0]), (twin, optimizers[1])):
            optimizer.zero_grad()
            F.cross_entropy(forward(x, path), y).backward()
            optimizer.step()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        states = optimizers[0].dense_state(ours), optimizers[1].dense_state(theirs)
        assert torch.equal(states[0]["step"], states[1]["step"])


def test_multihead_attention():
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    head = torch.zeros(24, 1, dtype=torch.bool)
    head[[*range(0, 4), *range(8, 12), *range(16, 20)]] = (
        True  # rows of the first head in query, key and value
    )
    masks = {
        "in_proj_weight": head,
        "in_proj_bias": head[:, 0],
        "out_proj.weight": head[:8].T,
        "out_proj.bias": False,
    }
    optimizer = masked(net, masks)

    def steps():
        for seed in range(3):
            optimizer.zero_grad()
            x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
            net(x, x, x)[0].square().mean().backward()
            optimizer.step()

    frozen_stay(net, optimizer, masks, steps)


def test_lstm():
    torch.manual_seed(0)
    net = nn.LSTM(4, 6, num_layers=2, batch_first=True)
    unit = torch.zeros(24, 1, dtype=torch.bool)
    unit[[0, 6, 12, 18]] = True  # the four gates of the first unit
    masks = {
        "weight_ih_l0": unit,
        "weight_hh_l0": unit,
        "bias_ih_l0": unit[:, 0],
        "weight_hh_l1": False,
    }
    optimizer = masked(net, masks)

    def steps():
        for seed in range(3):
            optimizer.zero_grad()
            net(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)))[
                0
            ].square().mean().backward()
            optimizer.step()

    frozen_stay(net, optimizer, masks, steps)


def test_resnet18():
    """Only half of the last block's filters and the classifier train; nothing else moves, buffers
    neither."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18(num_classes=10)
    half = torch.arange(512) >= 256
    masks = {
        "*": False,
        "layer4.1.conv2.weight": half[:, None, None, None],
        "layer4.1.bn2.*": half,
        "fc.*": True,
    }
    optimizer = masked(net, masks, statistics=True)
    before = snapshot(net)
    for seed in range(2):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        net(x).square().mean().backward()
        optimizer.step()
    trained = {
        "layer4.1.conv2.weight",
        "layer4.1.bn2.weight",
        "layer4.1.bn2.bias",
        "fc.weight",
        "fc.bias",
    }
    moving = trained | {
        f"layer4.1.bn2.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")
    }
    for name, tensor in net.state_dict().items():
        if name not in moving:
            assert torch.equal(tensor, before[name]), name
        elif tensor.ndim and not name.startswith("fc"):
            assert torch.equal(tensor[~half], before[name][~half]), name
            assert tensor[half].ne(before[name][half]).all(), name
    assert net.state_dict().keys() == resnet18(num_classes=10).state_dict().keys()


def test_functional_call_trains_the_rest_under_its_masks():
    net = small_net()
    optimizer = masked(net, MASKS)

    def steps():
        for seed in range(3):
            optimizer.zero_grad()
            x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            given = {"4.bias": torch.zeros(3)}
            torch.func.functional_call(net, given, (x,)).square().mean().backward()
            optimizer.step()

    frozen_stay(net, optimizer, MASKS, steps)
    assert net[4].bias.grad is None


def test_parametrized_modules():
    """torch's own weight_norm keeps its parameters under other names; those are the ones that are
    masked."""
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    masks = {"parametrizations.weight.original1": torch.tensor([True, False, True])[:, None]}
    optimizer = masked(net, masks)

    def steps():
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()

    frozen_stay(net, optimizer, masks, steps)


def test_a_mask_on_a_supernet_cuts_every_path(small):
    torch.manual_seed(0)
    net = mnas.Supernet(small)
    weight = net.choices[0].conv5x5.weight
    mask = torch.tensor([True, False, True])[:, None, None, None]
    optimizer = masked(net, {"model.0.conv5x5.weight": mask, "model.7.*": False})
    before, head = weight.detach().clone(), net.model[7].weight.detach().clone()
    for path, (x, y) in zip([(1, 0), (0, 0), (1, 1)], batches(3), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(net(x, path), y).backward()
        optimizer.step()
    steps = optimizer.dense_state(weight)["step"]
    assert steps.amin((1, 2, 3)).tolist() == steps.amax((1, 2, 3)).tolist() == [2, 0, 2]
    assert torch.equal(weight[1], before[1])
    assert weight[0].ne(before[0]).all()
    assert torch.equal(net.model[7].weight, head)


WORKER = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
import mnas

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
mask = torch.rand(5, 6) < 0.5
mnas.GradientMask(net, {"0.weight": mask, "2.bias": False})
optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9, weight_decay=0.1)
start = {name: p.clone() for name, p in net.state_dict().items()}
forward, part = net, slice(None)
if rank >= 0:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    forward, part = DistributedDataParallel(net), slice(4 * rank, 4 * rank + 4)
for seed in range(5):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))[part]
    optimizer.zero_grad()
    forward(x).square().mean().backward()
    optimizer.step()
torch.save({"start": start, "end": net.state_dict(), "mask": mask}, out)
if rank >= 0:
    distributed.destroy_process_group()
"""


def test_two_processes_of_distributed_data_parallel(tmp_path):
    """Over gloo: frozen entries stay, the ranks agree to the bit, and with one process that sees
    the whole batch to rounding, because the mean of two means adds in another order."""
    outs = {rank: tmp_path / f"{rank}.pt" for rank in (0, 1, -1)}
    ranks = [(rank, tmp_path / "store", out) for rank, out in outs.items()]
    assert together(WORKER, ranks) == [0, 0, 0]
    first, second, alone = (torch.load(out, weights_only=True) for out in outs.values())
    frozen = ~first["mask"]
    assert torch.equal(first["start"]["0.weight"][frozen], first["end"]["0.weight"][frozen])
    assert first["start"]["0.weight"][~frozen].ne(first["end"]["0.weight"][~frozen]).all()
    assert torch.equal(first["start"]["2.bias"], first["end"]["2.bias"])
    for name, tensor in first["end"].items():
        assert torch.equal(tensor, second["end"][name])
        torch.testing.assert_close(tensor, alone["end"][name], rtol=1e-5, atol=1e-6)

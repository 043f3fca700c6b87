"""The state of a MaskedOptimizer: saved, loaded, moved to and from stock optimizers, and no larger
than it must be."""

import copy
import io
import pickle
import re
from collections import defaultdict

import pytest
import torch
from conftest import batches
from test_optim import FUSED, IRREGULAR, ROWS, linear, step, train, weights
from torch import nn

import mnas
from mnas.freeze.elementwise import ELEMENTWISE


@pytest.mark.parametrize("optimizer_class", ELEMENTWISE)
def test_state_dict_continues_bit_for_bit_in_a_new_process_of_the_same_net(small, optimizer_class):
    torch.manual_seed(0)
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(optimizer_class, net, lr=0.01)
    stream = list(batches(20))
    paths = list(small.paths()) * 5
    for path, batch in zip(paths[:9], stream[:9], strict=True):
        step(net, optimizer, path, batch)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    fresh = mnas.Supernet(small)
    resumed = mnas.MaskedOptimizer(optimizer_class, fresh, lr=0.5)
    stored = torch.load(file, weights_only=True)
    fresh.load_state_dict(stored[0])
    resumed.load_state_dict(stored[1])
    assert resumed.param_groups[0]["lr"] == 0.01
    for path, batch in zip(paths[9:], stream[9:], strict=True):
        step(net, optimizer, path, batch)
        step(fresh, resumed, path, batch)
    assert torch.equal(weights(net), weights(fresh))


def test_state_is_kept_only_for_what_was_active(small):
    net = mnas.Supernet(small)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net)
    step(net, optimizer, (0, 0), next(batches(1)))
    step(net, optimizer, (0, 1), next(batches(1)))
    held = sorted(state["exp_avg"].numel() for state in optimizer.state.values())
    used = [
        *mnas.export(net, (0, 0)).parameters(),
        *list(mnas.export(net, (0, 1)).parameters())[2:4],
    ]
    assert held == sorted(p.numel() for p in used)
    steps = [int(state["step"]) for state in optimizer.state.values()]
    assert sorted(steps) == [1] * 4 + [2] * 6


@pytest.mark.parametrize(
    ("optimizer_class", "form"),
    [(c, form) for c in ELEMENTWISE for form in ({}, {"foreach": True})]
    + [(c, {"fused": True}) for c in FUSED],
)
def test_masked_state_dict_continues_bit_for_bit_in_a_fresh_module(optimizer_class, form):
    options = {
        "lr": 0.01,
        **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}),
        **form,
    }
    nets = linear(), linear(1)
    optimizers = [mnas.MaskedOptimizer(optimizer_class, net, **options) for net in nets]
    with mnas.GradientMask(nets[0], ROWS):
        train(nets[0], optimizers[0], 3)
    mnas.GradientMask(nets[0], IRREGULAR)
    train(nets[0], optimizers[0], 2, first=3)
    file = io.BytesIO()
    torch.save([nets[0].state_dict(), optimizers[0].state_dict()], file)
    file.seek(0)
    for target, stored in zip(
        (nets[1], optimizers[1]), torch.load(file, weights_only=True), strict=True
    ):
        target.load_state_dict(stored)
    mnas.GradientMask(nets[1], IRREGULAR)
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 3, first=5)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        states = optimizers[0].dense_state(ours), optimizers[1].dense_state(theirs)
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    files = [io.BytesIO(), io.BytesIO()]
    for optimizer, file in zip(optimizers, files, strict=True):
        torch.save(optimizer.state_dict(), file)
    assert len(files[0].getvalue()) == len(files[1].getvalue())


def test_state_goes_from_stock_to_masked_and_back():
    nets = [linear() for _ in range(3)]
    stock = torch.optim.AdamW(nets[0].parameters(), lr=0.01)
    train(nets[0], stock, 3)
    masked = mnas.MaskedOptimizer(torch.optim.AdamW, nets[1], lr=0.5)
    nets[1].load_state_dict(nets[0].state_dict())
    masked.load_state_dict(copy.deepcopy(stock.state_dict()))
    again = torch.optim.AdamW(nets[2].parameters(), lr=0.5)
    nets[2].load_state_dict(nets[0].state_dict())
    again.load_state_dict(copy.deepcopy(masked.state_dict()))
    for net, optimizer in zip(nets, (stock, masked, again), strict=True):
        train(net, optimizer, 3, first=3)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert torch.equal(weights(nets[0]), weights(nets[2]))
    mnas.GradientMask(nets[1], ROWS)
    train(nets[1], masked, 1)
    assert masked.dense_state(nets[1][0].weight)["step"][:, 0].tolist() == [7, 6, 7, 6, 7]


def test_a_state_that_does_not_fit_is_refused_and_nothing_has_changed():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1)
    mnas.GradientMask(net, ROWS)
    train(net, optimizer, 2)
    before = [optimizer.dense_state(p) for p in net.parameters()]
    other = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    foreign = mnas.MaskedOptimizer(torch.optim.Adam, other, lr=0.1)
    mnas.GradientMask(other, {"0.weight": torch.tensor([True, False, True, False])[:, None]})
    train(other, foreign, 1)
    with pytest.raises(
        ValueError, match=re.escape("a parameter of shape (4, 6) does not fit (5, 6)")
    ):
        optimizer.load_state_dict(foreign.state_dict())
    shorter = mnas.MaskedOptimizer(torch.optim.Adam, net[0]).state_dict()
    with pytest.raises(
        ValueError, match=re.escape("the state has [2] parameters in its groups, the optimizer [4]")
    ):
        optimizer.load_state_dict(shorter)
    after = [optimizer.dense_state(p) for p in net.parameters()]
    for a, b in zip(before, after, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    train(net, optimizer, 1)


def test_state_grows_with_what_was_active_not_with_the_tensor():
    layer = nn.Linear(1000, 1000, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer)
    mask = torch.zeros(1000, 1000, dtype=torch.bool)
    mask[torch.randperm(1000)[:10]] = torch.rand(10, 1000) < 0.5
    mnas.GradientMask(layer, {"weight": mask})
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(2, 1000)).sum().backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    active = int(mask.sum())
    assert (
        sum(v.numel() for state in optimizer.state.values() for v in state.values())
        == 2 * active + 1
    )
    assert len(file.getvalue()) < 2 * active * 4 + active * 8 + 20_000  # two moments and an index


def test_state_of_a_part_is_not_a_view_of_something_larger():
    layer = nn.Linear(64, 64, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, layer)
    halves = torch.arange(64) < 32
    for mask in (True, halves[:, None], halves[None], torch.rand(64, 64) < 0.5):
        with mnas.GradientMask(layer, {"weight": mask}):
            optimizer.zero_grad()
            layer(torch.randn(2, 64)).sum().backward()
            optimizer.step()
        for state in optimizer.state.values():
            for value in state.values():
                assert value.is_contiguous()
                assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_a_fused_state_without_masks_is_the_stock_one():
    nets = linear(), linear()
    masked = mnas.MaskedOptimizer(torch.optim.Adam, nets[0], lr=0.1, fused=True)
    train(nets[0], masked, 2)
    stock = torch.optim.Adam(nets[1].parameters(), lr=0.1, fused=True)
    nets[1].load_state_dict(nets[0].state_dict())
    stock.load_state_dict(copy.deepcopy(masked.state_dict()))
    for net, optimizer in zip(nets, (masked, stock), strict=True):
        train(net, optimizer, 2, first=2)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert int(stock.state[nets[1][0].weight]["step"]) == 4


def test_a_state_in_pieces_is_refused_by_stock_torch_aloud():
    nets = linear(), linear()
    masked = mnas.MaskedOptimizer(torch.optim.Adam, nets[0], lr=0.1)
    mnas.GradientMask(nets[0], ROWS)
    train(nets[0], masked, 2)
    stock = torch.optim.Adam(nets[1].parameters(), lr=0.1)
    with pytest.raises(KeyError):
        stock.load_state_dict(copy.deepcopy(masked.state_dict()))


def test_saved_numbers_and_names_are_mapped_in_order():
    net, twin = linear(), linear()
    stock = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, stock, 2)
    for number in (lambda i: i + 10, "parameter {}".format):
        saved = copy.deepcopy(stock.state_dict())
        saved["state"] = {number(i): state for i, state in saved["state"].items()}
        saved["param_groups"][0]["params"] = [number(i) for i in saved["param_groups"][0]["params"]]
        masked = mnas.MaskedOptimizer(torch.optim.Adam, twin, lr=0.5)
        masked.load_state_dict(saved)
        for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
            assert torch.equal(masked.dense_state(ours)["exp_avg"], stock.state[theirs]["exp_avg"])


def damaged(state):
    """Ways in which a saved state in pieces can be wrong."""
    whole = state["state"][0]
    (piece,) = whole["pieces"]

    def strided(size, stride):
        del piece["rows"]
        piece.update(start=0, size=size, stride=stride)

    return {
        "no state": lambda: state.pop("state"),
        "no shape": lambda: whole.pop("shape"),
        "no order": lambda: whole.pop("order"),
        "no list of pieces": lambda: whole.update(pieces=3),
        "a piece without state": lambda: piece.pop("state"),
        "no entries": lambda: piece.update(rows=torch.zeros(0, dtype=torch.int64)),
        "too few entries": lambda: piece.update(rows=piece["rows"][:-1]),
        "in reverse": lambda: piece.update(rows=piece["rows"].flip(0)),
        "beyond the tensor": lambda: piece.update(rows=piece["rows"] + 25),
        "before the tensor": lambda: piece.update(rows=piece["rows"] - 9),
        "no tensor": lambda: piece.update(rows="all"),
        "another width": lambda: piece.update(width=2),
        "another format": lambda: whole.update(order=[1, 0]),
        "sizes without strides": lambda: strided([3, 5], [1]),
        "a huge stride": lambda: strided([2], [2**60]),
        "twice": lambda: whole["pieces"].append(piece),
        "short state": lambda: piece["state"].update(exp_avg=torch.zeros(2)),
        "a whole of another shape": lambda: state["state"].update(
            {1: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}
        ),
        "differentiable": lambda: state["param_groups"][0].update(differentiable=True),
    }


@pytest.mark.parametrize("case", damaged({"state": {0: {"pieces": [{}]}}}))
def test_a_damaged_state_is_refused_and_nothing_has_changed(case):
    net = linear()
    mnas.GradientMask(net, IRREGULAR)
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1)
    train(net, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    before = [optimizer.dense_state(p) for p in net.parameters()]
    damaged(state)[case]()
    with pytest.raises(
        ValueError,
        match=r"damaged|does not fit|something else|has shape|differentiable=True|format|older",
    ):
        optimizer.load_state_dict(state)
    for parameter, then in zip(net.parameters(), before, strict=True):
        now = optimizer.dense_state(parameter)
        assert now.keys() == then.keys()
        assert all(torch.equal(now[key], then[key]) for key in then)
    train(net, optimizer, 1)


def test_resetting_the_state_resets_it():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1)
    mnas.GradientMask(net, ROWS)
    train(net, optimizer, 3)
    optimizer.state = defaultdict(dict)
    train(net, optimizer, 1)
    for parameter in net.parameters():
        assert all(
            value.max() <= 1
            for key, value in optimizer.dense_state(parameter).items()
            if key == "step"
        )
    assert optimizer.dense_state(net[0].weight)["step"][:, 0].tolist() == [1, 0, 1, 0, 1]


def test_copies_of_an_optimizer_go_on_by_themselves():
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    train(net, optimizer, 2)
    for twin, its_optimizer in (
        copy.deepcopy((net, optimizer)),
        pickle.loads(pickle.dumps((net, optimizer))),
    ):
        reference, reference_optimizer = copy.deepcopy((net, optimizer))
        train(twin, its_optimizer, 2, first=2)
        train(reference, reference_optimizer, 2, first=2)
        assert torch.equal(weights(twin), weights(reference))
        assert not torch.equal(weights(twin), weights(net))
        assert "AdamW, policy 'frozen'" in repr(its_optimizer)


def test_states_of_different_precision_stay_apart():
    """Momentum that began in float32 stays so beside one that began in float64, as in separate
    tensors."""
    layer = nn.Linear(8, 8, bias=False)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, layer, lr=0.1, momentum=0.9)
    upper = (torch.arange(8) < 4)[:, None]
    for mask in (upper, ~upper, (torch.arange(8) % 2 == 0)[:, None]):
        with mnas.GradientMask(layer, {"weight": mask}):
            optimizer.zero_grad()
            layer(torch.ones(2, 8, dtype=layer.weight.dtype)).sum().backward()
            optimizer.step()
        layer.double()
    dtypes = {value.dtype for state in optimizer.state.values() for value in state.values()}
    assert dtypes == {torch.float32, torch.float64}


def test_torch_distributed_checkpoints_take_the_state_as_it_is():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net, twin = linear(), linear()
    optimizers = [mnas.MaskedOptimizer(torch.optim.Adam, n, lr=0.1) for n in (net, twin)]
    mnas.GradientMask(net, ROWS)
    train(net, optimizers[0], 2)
    saved = get_optimizer_state_dict(net, optimizers[0])
    assert set(saved["state"]) == {"0.weight", "0.bias", "2.weight"}


def test_a_whole_state_replaces_one_in_pieces():
    nets = linear(), linear()
    optimizers = [mnas.MaskedOptimizer(torch.optim.Adam, net, lr=0.1) for net in nets]
    with mnas.GradientMask(nets[0], IRREGULAR):
        train(nets[0], optimizers[0], 3)
    train(nets[1], optimizers[1], 2)
    nets[0].load_state_dict(nets[1].state_dict())
    optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        states = optimizers[0].dense_state(ours), optimizers[1].dense_state(theirs)
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 2, first=2)
    assert torch.equal(weights(nets[0]), weights(nets[1]))


@pytest.mark.parametrize("stride", [[5, 1], [0], [-1], "1", None])
def test_pieces_that_cannot_be_are_refused(stride):
    net = linear()
    optimizer = mnas.MaskedOptimizer(torch.optim.Adam, net[0], lr=0.1)
    for rows in (1, 2):
        with mnas.GradientMask(net, {"0.weight": torch.arange(5)[:, None] < rows}):
            net[0].weight.grad = torch.ones(5, 6)
            optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["pieces"][1]["stride"] = stride
    with pytest.raises(ValueError, match="damaged"):
        optimizer.load_state_dict(state)


class Eager(torch.optim.Optimizer):
    """Makes all of its state at once, and by options of the group."""

    def __init__(self, params, start=1.0):
        super().__init__(params, {"start": start})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"sum": torch.full_like(p, group["start"])}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["sum"])


def test_state_that_is_made_at_once_is_made_for_new_pieces_and_groups():
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    optimizer = mnas.MaskedOptimizer(Eager, net[0], elementwise=True)
    optimizer.add_param_group({"params": net[1].parameters(), "start": 2.0})
    for _ in range(2):
        optimizer.state.clear()
        net(torch.ones(5, 4)).sum().backward()
        optimizer.step()
        assert [optimizer.dense_state(layer.weight)["sum"].max() for layer in net] == [1.0, 2.0]
        rows = torch.tensor([True, False, True])[:, None]
        mnas.GradientMask(net, {"0.weight": rows, "1.weight": rows[:2]})

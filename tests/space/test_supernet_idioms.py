"""What is done to any module works on a supernet as on separate modules, bit for bit: initialising,
grouping, clipping, averaging, copying, converting."""

import copy
import io
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from conftest import randomise
from oracle import NaiveChoices, NaiveNested
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    vector_to_parameters,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mnas

KERNELS = (3, 5)


def build(nested):
    candidates = {
        f"k{k}": nn.Sequential(nn.Conv2d(2, 3, k, padding=k // 2, bias=False), nn.BatchNorm2d(3))
        for k in KERNELS
    }
    choice = mnas.Choice(candidates, nested=nested)
    return nn.Sequential(
        nn.Conv2d(1, 2, 1), choice, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6 * 6, 4)
    )


def pair(nested):
    torch.manual_seed(0)
    net = mnas.Supernet(mnas.SearchSpace(partial(build, nested), input_shape=(1, 6, 6)))
    randomise(net)
    for name, buffer in net.named_buffers():
        if "running_var" in name:
            buffer.abs_().add_(0.1)
    return net, NaiveNested(net) if nested else NaiveChoices(net.space, net)


def steps(number, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        path = (int(torch.randint(2, (), generator=generator)),)
        x = torch.randn(4, 1, 6, 6, generator=generator, dtype=dtype)
        yield path, x, torch.randint(4, (4,), generator=generator)


def sgd(model):
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    return torch.optim.SGD(model.parameters(), **options)


def train(model, optimizer, number=50, clip=None, penalty=None, after=None, dtype=torch.float32):
    losses = []
    for path, x, y in steps(number, dtype):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x, path), y))
        loss = losses[-1] if penalty is None else losses[-1] + penalty(model, path)
        loss.backward()
        if clip is not None:
            clip(model)
        optimizer.step()
        if after is not None:
            after(model)
    return torch.stack(losses)


def everything(net, path):
    """Of an exported network, in the order of the oracle's."""
    parts = mnas.export(net, path)
    return [t for part in parts for t in (*part.parameters(), *part.buffers())]


def assert_same(net, oracle):
    for index in range(len(KERNELS)):
        for ours, theirs in zip(everything(net, (index,)), oracle.used((index,)), strict=True):
            assert torch.equal(ours, theirs)


both = pytest.mark.parametrize("nested", [False, True], ids=["disjoint", "nested"])


def by_dimensions(model):
    """Decay for kernels and matrices, none for biases and affine parameters."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def by_unit(model, ratio=0.01):
    """Adaptive clipping (Brock et al., ICML 2021): gradients of an output channel by the norm of
    its weights."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dims = tuple(range(1, parameter.ndim))
            weight, grad = (
                torch.linalg.vector_norm(t, dim=dims, keepdim=True) if dims else t.abs()
                for t in (parameter.detach(), parameter.grad)
            )
            limit = weight.clamp(min=1e-3) * ratio
            parameter.grad.mul_((limit / grad.clamp(min=1e-6)).clamp(max=1))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)


def masked(model):
    return mnas.MaskedOptimizer(torch.optim.AdamW, model, lr=0.01, weight_decay=0.05)


TRAINING = {
    "stock SGD": (sgd, None),
    "stock AdamW": (adamw, None),
    "MaskedOptimizer": (masked, None),
    "decay by dimensions": (by_dimensions, None),
    "clipped by the total norm": (sgd, lambda m: clip_grad_norm_(m.parameters(), 0.5)),
    "clipped by the largest entry": (
        sgd,
        lambda m: clip_grad_norm_(m.parameters(), 0.1, norm_type=torch.inf),
    ),
    "clipped by value": (adamw, lambda m: clip_grad_value_(m.parameters(), 0.01)),
    # A unit of nested candidates is an output channel of an atom: of the centre, or of the ring.
    "clipped by unit": (sgd, by_unit),
}


@both
@pytest.mark.parametrize("case", TRAINING)
def test_interleaved_paths_train_as_separate_tensors_do(case, nested):
    net, oracle = pair(nested)
    make, clip = TRAINING[case]
    assert torch.equal(*(train(model, make(model), clip=clip) for model in (net, oracle)))
    assert_same(net, oracle)
    norms = [[p.norm() for p in m.parameters() if p.ndim > 1] for m in (net, oracle)]
    assert all(torch.equal(a, b) for a, b in zip(*norms, strict=True))


def test_clipping_by_unit_is_not_that_of_a_whole_nested_kernel():
    """Its centre and its ring have a norm each: what the two rules have in common is the path with
    the centre alone."""
    net, _ = pair(nested=True)
    _, x, y = next(steps(1))
    clipped = []
    for index in (0, 1):
        whole = mnas.export(net, (index,))
        net.zero_grad()
        F.cross_entropy(net(x, (index,)), y).backward()
        F.cross_entropy(whole(x), y).backward()
        by_unit(net)
        by_unit(whole)
        atoms = list(net.choices[0].parameters_of(index))[: index + 1]
        clipped.append((sum(float(p.grad.abs().sum()) for p in atoms), whole[1][0].weight.grad))
    assert clipped[0][0] == pytest.approx(float(clipped[0][1].abs().sum()), rel=1e-5)
    assert clipped[1][0] != pytest.approx(float(clipped[1][1].abs().sum()), rel=1e-3)


def initialise(layer):
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 0.5)
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)


@both
def test_initialisation_by_layer_type_finds_every_candidate(nested):
    net, _ = pair(nested)
    separate = NaiveChoices(net.space, net)  # what candidates share, too, in copies
    found = []
    for model in (net, separate):
        torch.manual_seed(1)
        assert model.apply(initialise) is model
        found.append(torch.rand(()))
    assert torch.equal(*found)  # as many random numbers
    large = separate.used((1,))
    assert all(torch.equal(a, b) for a, b in zip(everything(net, (1,)), large, strict=True))
    small = separate.used((0,))
    if nested:
        small[2] = large[2][:, :, 1:4, 1:4]
    assert all(torch.equal(a, b) for a, b in zip(everything(net, (0,)), small, strict=True))
    assert all(p.is_leaf for p in net.parameters())
    keys = [*net.state_dict()]
    assert keys == [*pair(nested)[0].state_dict()]


@both
def test_every_batchnorm_becomes_synchronised(nested):
    net, oracle = pair(nested)
    tensors = dict(net.state_dict(keep_vars=True))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    for index in range(len(KERNELS)):
        assert type(net.choices[0].module(index)[1]) is nn.SyncBatchNorm
        assert type(mnas.export(net, (index,))[1][1]) is nn.SyncBatchNorm
    now = net.state_dict(keep_vars=True)
    assert now.keys() == tensors.keys()
    assert all(now[key] is tensor for key, tensor in tensors.items() if tensor.requires_grad)
    for mode in (False, True):
        net.train(mode)
        oracle.train(mode)
        for path, x, _ in steps(4):
            assert torch.equal(net(x, path), oracle(x, path))
    assert torch.equal(*(train(model, sgd(model), 10) for model in (net, oracle)))
    assert_same(net, oracle)


@both
@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_moving_average_is_that_of_separate_tensors(nested, use_buffers):
    averages = []
    for model in pair(nested):
        options = {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": use_buffers}
        average = AveragedModel(model, **options)
        train(model, sgd(model), 20, after=average.update_parameters)
        averages.append(average.module)
        assert not any(
            torch.equal(a, b) for a, b in zip(model.parameters(), average.parameters(), strict=True)
        )
    assert_same(*averages)


def penalty_of(model, path):
    """On all parameters; for separate modules, on those of the path, for they have no rule that
    leaves out the others."""
    if isinstance(model, mnas.Supernet):
        parameters = model.parameters()
    elif isinstance(model, NaiveNested):
        rest = [*model.stem.parameters(), *model.tail.parameters()]
        ring = [model.choice.ring] if path == (1,) else []
        parameters = [*rest, model.choice.centre, *ring, *model.choice.norms.parameters()]
    else:
        parameters = [t for t in model.used(path) if t.requires_grad]
    return 0.01 * sum(p.square().sum() for p in parameters)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def assigned(net):
    net.load_state_dict({k: t.clone() for k, t in net.state_dict().items()}, assign=True)
    return net


def assigned_after_a_pass(net):
    _, x, _ = next(steps(1))
    net.eval()(x, (0,)).sum().backward()
    return assigned(net.train())


@contextmanager
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def swapped(net):
    with swapping():
        return net.double()


def loaded_by_swapping(net):
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.eval()(torch.zeros(1, 1, 6, 6), (0,)).sum().backward()
    net.zero_grad()
    with swapping():
        net.train().load_state_dict(state)
    return net


def emptied(net):
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.to("meta").to_empty(device="cpu").load_state_dict(state)
    return net


def from_a_vector(net):
    vector_to_parameters(parameters_to_vector(net.parameters()), net.parameters())
    return net


def frozen_for_a_while(net):
    _, x, _ = next(steps(1))
    net.requires_grad_(False).eval()(x, (1,))
    return net.requires_grad_(True).train()


CONVERSIONS = {
    "deepcopy": copy.deepcopy,
    "saved": saved,
    "shared memory": lambda net: net.share_memory(),
    "assigned": assigned,
    "assigned after a pass": assigned_after_a_pass,
    "double": lambda net: net.double(),
    "swapped": swapped,
    "loaded by swapping": loaded_by_swapping,
    "emptied": emptied,
    "from a vector": from_a_vector,
    "frozen for a while": frozen_for_a_while,
}


@both
@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_converted_supernet_trains_on_with_a_penalty_on_everything(case, nested):
    net, oracle = pair(nested)
    net = CONVERSIONS[case](net)
    dtype = next(net.parameters()).dtype
    oracle.to(dtype)
    losses = [
        train(model, sgd(model), 20, penalty=penalty_of, dtype=dtype) for model in (net, oracle)
    ]
    assert torch.equal(*losses)
    assert_same(net, oracle)
    (choice,) = net.choices
    assert choice is net.model[1]
    for name, tensor in choice.merged.items():
        assert tensor.dtype == dtype
        addresses = {p.untyped_storage().data_ptr() for p in choice.parameters()}
        assert tensor.data_ptr() in addresses, name
    if case == "shared memory":
        assert all(tensor.is_shared() for tensor in net.state_dict().values())


@both
def test_a_copy_and_its_original_train_apart(nested):
    net, oracle = pair(nested)
    first, second = copy.deepcopy(net), copy.deepcopy(oracle)
    for ours, theirs in ((net, oracle), (first, second)):
        assert torch.equal(*(train(model, sgd(model), 20) for model in (ours, theirs)))
    assert_same(net, oracle)
    assert_same(first, second)
    train(first, sgd(first), 5)
    assert_same(net, oracle)


@both
@pytest.mark.parametrize(
    ("pattern", "layers"), [("*.weight", (0, 1, 4)), ("model.1*.0.weight", (1,)), ("*bias", ())]
)
def test_patterns_of_names_find_what_candidates_share(pattern, layers, nested):
    """As of separate modules: the layer's name is behind the candidate's."""
    net, _ = pair(nested)
    with mnas.GradientMask(net, {pattern: False}):
        for path in net.space.paths():
            net.zero_grad()
            net(torch.randn(2, 1, 6, 6), path).sum().backward()
            for name, parameter in net.named_parameters():
                last = name.replace(":", ".").replace("/", ".").rpartition(".")[2]
                frozen = (last == "weight" and layers) or (last == "bias" and not layers)
                if pattern.startswith("model"):
                    frozen = parameter.ndim == 4 and name.startswith("model.1")
                if parameter.grad is not None:
                    assert bool(parameter.grad.any()) != bool(frozen), name

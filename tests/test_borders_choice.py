"""Borders of choices and masks: what writes, spreads or loads into the wrong place is refused or kept out."""

import copy
import io
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import ROOT, batches
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import mnas
from mnas.choice import Choice
from mnas.masking import Region

WIDTHS = {"channels": (3, 5), "hidden": 7}


def ours(net):
    return mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.05, momentum=0.9, weight_decay=0.01)


def outside(net, path):
    """For each merged tensor, True where the path does not go."""
    choices = zip([m for m in net.modules() if isinstance(m, Choice)], path, strict=True)
    return [(t, ~c.regions[key][i].mask(t)) for c, i in choices for key, t in c.named_parameters()]


@pytest.mark.parametrize("execution", ["masked", "sliced"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "path"), [("mil4", (0, 1)), ("mil4", (1, 0)), ("mil4_nested", (0, 0))])
def test_nothing_inactive_reaches_a_path(name, path, value, execution):
    space = getattr(mnas.spaces, name)(**WIDTHS)
    torch.manual_seed(0)
    net = mnas.Supernet(space, execution)
    twin, stock = copy.deepcopy(net), mnas.export(net, path)
    poisoned = 0
    for tensor, unused in outside(net, path):
        tensor.data[unused] = value
        poisoned += int(unused.sum())
    assert poisoned
    optimizers = ours(net), ours(twin), torch.optim.SGD(stock.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for x, y in batches(5):
        losses = []
        for model, optimizer in zip((net, twin, stock), optimizers, strict=True):
            optimizer.zero_grad()
            logits = model(x) if model is stock else model(x, path)
            losses.append((logits, F.cross_entropy(logits, y)))
            losses[-1][1].backward()
            optimizer.step()
        assert torch.equal(losses[0][0], losses[1][0])
        assert torch.equal(losses[0][1], losses[1][1])
        torch.testing.assert_close(losses[0][0], losses[2][0], rtol=1e-4, atol=1e-5)
    for (tensor, unused), (clean, _) in zip(outside(net, path), outside(twin, path), strict=True):
        assert torch.equal(tensor[~unused], clean[~unused])
        assert not tensor.grad[unused].any()
        assert torch.equal(torch.isnan(tensor[unused]), torch.full_like(tensor[unused], math.isnan(value)).bool())
        assert not torch.isfinite(tensor[unused]).any()
    a, b = (mnas.export(model, path).state_dict() for model in (net, twin))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kept", ["net = kept", "torch.kept = kept", "collections.kept = kept", "kept.append(kept)"])
def test_nothing_is_printed_when_the_interpreter_ends(kept):
    """Whatever goes last: some of these modules are torn down after those of mnas."""
    script = f"""
        import collections, torch, mnas
        net = mnas.Supernet(mnas.spaces.mil4(channels=(2, 2), hidden=2))
        layer = torch.nn.Linear(3, 3)
        mask = mnas.GradientMask(layer, {{"weight": torch.eye(3) > 0}})
        net(torch.zeros(1, 1, 28, 28), (0, 1)).sum().backward()
        kept = [net, layer, mask]
        {kept}
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_a_forward_pass_rescales_are_not_masked(kind):
    rows = (torch.arange(8) >= 6)[:, None]
    layer = kind(8, 4, max_norm=1.0)
    with pytest.raises(ValueError, match=rf"^layer 'given', {kind.__name__} with max_norm=1.0, .*drop max_norm, or"):
        mnas.GradientMask(layer, {"weight": rows})
    mnas.GradientMask(layer, {"weight": torch.ones(8, 1, dtype=torch.bool)})  # all of it trains
    mnas.GradientMask(kind(8, 4), {"weight": rows})
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sequential(layer))
    for masks in ({"*": False}, {"1.0.weight": rows}, {"1.*": True, "1.0.weight": False}):
        with pytest.raises(ValueError, match=r"^layer '1\.0', "):
            mnas.GradientMask(net, masks)
    mnas.GradientMask(net, {"0.weight": False})
    net[0].weight = layer.weight  # tied
    with pytest.raises(ValueError, match=r"^layer '1\.0', "):
        mnas.GradientMask(net, {"0.weight": rows})
    layer.weight.requires_grad_(False)  # rescaled all the same
    with pytest.raises(ValueError, match=r"^layer '1\.0', "):
        mnas.GradientMask(net, {"0.weight": rows})
    for nested in (False, True):
        with pytest.raises(
            ValueError, match=rf"^candidate 'b' has a {kind.__name__} with max_norm=2, .*without max_no"
        ):
            Choice({"a": kind(8, 4), "b": nn.Sequential(kind(8, 4, max_norm=2))}, nested=nested)


def test_looking_for_such_layers_is_no_forward_pass():
    layer = parametrizations.spectral_norm(nn.Embedding(6, 4, max_norm=1.0))
    before = snapshot(layer)
    mnas.GradientMask(layer, {"*": False})  # what is rescaled is computed anew each time, not the parameter
    assert same(snapshot(layer), before)
    layer(torch.arange(6))
    assert torch.equal(layer.parametrizations.weight.original, before["parametrizations.weight.original"])


def with_attribute(value):
    layer = nn.Conv2d(1, 2, 3)
    layer.thing = value
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: weight_norm(nn.Linear(2, 2)), r"old torch.nn.utils.weight_norm, .*parametrizations.weight_norm$"),
        (
            lambda: with_attribute(torch.ones(2, requires_grad=True) * 2),
            r"cannot be copied \(Only Tensors created expl",
        ),
        (lambda: with_attribute(threading.Lock()), r"cannot be copied \(cannot pickle '_thread.lock' object\); keep"),
        (lambda: with_attribute((ROOT / "README.md").open()), r"cannot be copied \(cannot pickle '_io.TextIO"),
        (lambda: with_attribute(x for x in [1]), r"cannot be copied \(cannot pickle 'generator' object\)"),
        (lambda: nn.LazyConv2d(2, 3), r"has 'weight' lazy, sparse or quantized; expected a dense tensor"),
        (lambda: nn.LazyBatchNorm2d(), r"lazy, sparse or quantized"),
        (lambda: with_buffer(torch.eye(2).to_sparse()), r"has 'thing' lazy, sparse or quantized"),
        (lambda: with_buffer(torch.eye(2), "_extra_state"), None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_candidates_that_cannot_be_merged_are_named(make, reason):
    match = f"^candidate 'bad' .*{reason}" if reason else "^'_extra_state' of a candidate is already a name in Choice"
    with pytest.raises(ValueError, match=match) as caught:
        Choice({"good": nn.Identity(), "bad": nn.Sequential(make()) if "old" in match else make()})
    assert "\n" not in str(caught.value)


def with_buffer(tensor, name="thing"):
    layer = nn.Identity()
    layer.register_buffer(name, tensor)
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalised", [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm])
def test_normalised_candidates_are_as_separate_modules(normalised):
    def build():
        torch.manual_seed(0)
        return {"a": normalised(nn.Linear(5, 4)), "b": nn.Linear(5, 4)}

    net = mnas.Supernet(mnas.SearchSpace(lambda: nn.Sequential(Choice(build())), input_shape=(5,)))
    modules = list(build().values())
    optimizer = ours(net)
    stock = torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.05, momentum=0.9, weight_decay=0.01)
    for seed, index in enumerate([0, 1, 1, 0, 1, 0]):
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        stock.zero_grad()
        logits, expected = net(x, (index,)), modules[index](x)
        assert torch.equal(logits, expected)
        logits.square().mean().backward()
        expected.square().mean().backward()
        optimizer.step()
        stock.step()


def model(names=("a", "b"), nested=False, kernels=(3, 5), widths=(2, 2)):
    layers = [nn.Conv2d(1, width, k, padding=k // 2) for k, width in zip(kernels, widths, strict=True)]
    choice = Choice(dict(zip(names, layers, strict=True)), nested=nested)
    return nn.Sequential(Choice({"x": nn.Conv2d(1, 1, 1)}), nn.ReLU(), choice)


def supernet(seed=0, **options):
    torch.manual_seed(seed)
    return mnas.Supernet(mnas.SearchSpace(lambda: model(**options), input_shape=(1, 9, 9)))


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("loading", [{}, {"strict": False}, {"assign": True}])
@pytest.mark.parametrize(
    ("net", "state", "reason"),
    [
        ({}, {"names": ("b", "a"), "kernels": (5, 3)}, "has candidates b, a; expected a, b"),
        ({"kernels": (3, 3)}, {"names": ("b", "a"), "kernels": (3, 3)}, "has candidates b, a; expected a, b"),
        ({}, {"names": ("a", "c")}, "has candidates a, c; expected a, b"),
        ({"nested": True}, {"nested": True, "names": ("свёртка", "b")}, "has candidates свёртка, b; expected a, b"),
        ({"widths": (1, 1), "kernels": (1, 1)}, {"widths": (1, 1), "kernels": (1, 1), "nested": True}, "nested True"),
        ({}, {"kernels": (5, 3)}, "with shapes {'weight': [[2, 1, 5, 5], [2, 1, 3, 3]]"),
    ],
)
def test_weights_of_other_candidates_are_not_loaded(net, state, reason, loading):
    net, state = supernet(**net), snapshot(supernet(seed=1, **state))
    before = snapshot(net)
    with pytest.raises(
        RuntimeError, match=r"^Error\(s\) in loading state_dict for Supernet:\n\tchoice model.2"
    ) as caught:
        net.load_state_dict(state, **loading)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert same(snapshot(net), before)
    # Where the whole is no supernet the choice itself is left as it was.
    inner = {key.removeprefix("model."): value for key, value in state.items()}
    with pytest.raises(RuntimeError, match="choice 2 of the state has candidates"):
        net.model.load_state_dict(inner, **loading)
    assert same(snapshot(net.model[2]), {k[8:]: v for k, v in before.items() if k.startswith("model.2.")})
    with pytest.raises(RuntimeError, match="choice of the state has candidates"):
        net.model[2].load_state_dict({k[2:]: v for k, v in inner.items() if k.startswith("2.")}, **loading)


def test_a_state_that_does_not_name_its_candidates():
    net, state = supernet(), snapshot(supernet(seed=1))
    older = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
    before = snapshot(net)
    with pytest.raises(
        RuntimeError, match=r"does not name the candidates of model.0, model.2, .*strict=False$"
    ) as caught:
        net.load_state_dict(older)
    assert "Missing key" not in str(caught.value)
    assert same(snapshot(net), before)
    with pytest.raises(RuntimeError, match=r"Missing key.*model\.2\._extra_state"):
        nn.ModuleDict({"model": net.model}).load_state_dict(older)
    assert sorted(net.load_state_dict(older, strict=False).missing_keys) == [
        "model.0._extra_state",
        "model.2._extra_state",
    ]
    assert same(snapshot(net), state)
    for unreadable in (torch.zeros(3), torch.tensor([]), torch.full((3,), math.nan), "a, b", None, torch.tensor(91)):
        with pytest.raises(RuntimeError, match=r"choice model.2 of the state does not say in 'model.2._extra_state'"):
            net.load_state_dict({**state, "model.2._extra_state": unreadable})
    with pytest.raises(TypeError, match="dict-like"):
        net.load_state_dict([1])


def test_what_maps_over_a_state_dict_goes_on_working():
    net, other = supernet(), supernet(seed=1)
    state, name = snapshot(net), "model.2._extra_state"
    assert name in state
    assert not any("_extra_state" in key for module in (net, net.model[2]) for key, _ in module.named_buffers())
    assert "_extra_state" not in "".join(mnas.export(net, (0, 0)).state_dict())

    def stored(values):
        file = io.BytesIO()
        torch.save(values, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    moving = {key: tensor.clone() for key, tensor in state.items()}
    for _ in range(100):
        for key, tensor in moving.items():
            tensor.mul_(0.9).add_(state[key], alpha=0.1)
    lerp = {key: tensor.clone() for key, tensor in state.items()}
    for _ in range(100):
        for key, tensor in lerp.items():
            tensor.copy_(tensor * 0.9999 + state[key] * 0.0001)
    for mapped in (
        stored(state),
        {key: tensor.to("cpu", torch.float64) for key, tensor in state.items()},
        {key: tensor.bfloat16() for key, tensor in state.items()},
        {key: tensor.half() for key, tensor in state.items()},
        {key: sum([tensor] * 7) / 7 for key, tensor in state.items()},
        {key: torch.stack([tensor] * 3).mean(0) for key, tensor in state.items()},
        pickle.loads(pickle.dumps(state)),
        moving,
        lerp,
    ):
        other.load_state_dict(mapped)
        for key in ("model.0.weight", "model.2.weight"):
            torch.testing.assert_close(other.state_dict()[key], state[key], rtol=1e-2, atol=1e-2)
    other.to(torch.float64).load_state_dict(state)
    assert same(snapshot(copy.deepcopy(net)), state)
    assert same(snapshot(pickle.loads(pickle.dumps(net.model))), snapshot(net.model))
    with torch.device("meta"):
        empty = supernet()
    assert empty.state_dict()[name].device.type == "cpu"
    empty.load_state_dict(state, assign=True)
    assert same(snapshot(empty), state)


def test_other_ways_to_call_and_to_keep_a_supernet():
    net, path = supernet(), (0, 1)
    x = torch.randn(2, 1, 9, 9)
    expected = net(x, path)
    for tensors in (dict(net.state_dict()), dict(net.named_parameters())):
        assert torch.equal(functional_call(net, tensors, (x, path)), expected)
    assert torch.equal(net(x, path), expected)
    assert same(snapshot(net), snapshot(copy.deepcopy(net)))
    average = AveragedModel(net)
    average.update_parameters(net)
    assert torch.equal(average(x, path), expected)
    fresh = AveragedModel(supernet(seed=2))
    fresh.load_state_dict(average.state_dict())
    assert torch.equal(fresh(x, path), expected)
    with pytest.raises(RuntimeError, match=r"choice module\.model\.2 of the state has candidates"):
        AveragedModel(supernet(names=("c", "b"))).load_state_dict(average.state_dict())
    other = supernet(seed=3)
    set_model_state_dict(other, get_model_state_dict(net))
    assert torch.equal(other(x, path), expected)
    parameters, buffers = stack_module_state([net, other])
    base = copy.deepcopy(net)
    both = vmap(lambda p, b: functional_call(base, (p, b), (x, path)))(parameters, buffers)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


def test_a_merged_tensor_with_gaps_is_not_read():
    net, x = supernet(), torch.zeros(1, 1, 9, 9)
    weight = net.model[2].weight
    values = weight.detach().clone()
    weight.data = values[:, None].expand(-1, 2).contiguous()[:, 0]  # the same values, two apart
    assert torch.equal(weight, values)
    message = r"has strides \(2,\); expected it to be contiguous, as from tensor\.contiguous\(\)"
    for run in (lambda: net(x, (0, 0)), lambda: net.forward_paths(x, [(0, 1)]), lambda: mnas.export(net, (0, 1))):
        with pytest.raises(ValueError, match=message):
            run()
    weight.data = weight.data.contiguous()
    assert torch.equal(net(x, (0, 0)), mnas.export(net, (0, 0))(x))
    with pytest.raises(ValueError, match="contiguous"):
        Region(0, (2,), (1,)).view(torch.zeros(6)[::2])


def test_candidates_are_on_one_device():
    meta = {"device": "meta"}
    for other in (nn.Conv2d(1, 2, 3, **meta), nn.Sequential(nn.Conv2d(1, 2, 3, **meta)), nn.BatchNorm2d(2, **meta)):
        with pytest.raises(ValueError, match=r"different devices: \{'a': \['cpu'\], 'b': \['meta'\].*module\.to"):
            Choice({"a": nn.Conv2d(1, 2, 3), "b": other})
    Choice({"a": nn.Identity(), "b": nn.Conv2d(1, 2, 3, **meta)})


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_masks_are_refused():
    layer = nn.Linear(3, 3)
    for sparse in (torch.eye(3).bool().to_sparse_csr(), torch.eye(3).bool().to_sparse()):
        with pytest.raises(ValueError, match=r"is sparse \(torch\.sparse_c.*as from mask\.to_dense\(\)"):
            mnas.GradientMask(layer, {"weight": sparse})
    assert mnas.GradientMask(layer, {"weight": sparse.to_dense()})


def test_wrong_calls_of_choices_and_supernets():
    net, conv = supernet(), nn.Conv2d(1, 2, 3)
    for call, message in [
        (lambda: Choice({"a": conv}, nested="no"), r"^nested='no'; expected True or False$"),
        (lambda: Choice({"a": conv}, nested=1), r"^nested=1; expected True or False$"),
        (lambda: Choice({"a": conv}, nested=True, separate=3), r"^separate=3; expected several patterns"),
        (lambda: Choice({"a": conv}, nested=True, separate=[3]), r"^separate=\[3\]; expected several patterns"),
        (lambda: Choice({"a": conv}, nested=True, separate="*"), r"^separate='\*'; expected several patterns"),
        (lambda: mnas.Supernet(model()), r"^space is a Sequential; expected a mnas\.SearchSpace"),
        (lambda: mnas.Supernet(mnas.spaces.mil4), r"^space is a function"),
        (lambda: net.subnet((0, 0), "x"), r"^candidate 0, execution 'x'; expected an index below 1"),
        (lambda: net.model[2].candidate(2), r"^candidate 2, execution 'sliced'; expected an index below 2"),
        (lambda: net.model[2].candidate(-1), r"^candidate -1, "),
        (lambda: mnas.SearchSpace(model()), r"^build is a Sequential; expected a function that returns a new model$"),
        (lambda: mnas.SearchSpace(None), r"^build is a NoneType"),
        (lambda: mnas.SearchSpace(model, about="a\nb"), r"^about='a\\nb'; expected a sentence of one line$"),
        (lambda: mnas.SearchSpace(model, about=None), r"^about=None"),
        (lambda: mnas.spaces.get([]), r"^space \[\] is unknown"),
        (lambda: mnas.spaces.mil4(channels=3), r"^mil4: channels=3, hidden=128; expected two and one whole numbers"),
        (lambda: mnas.spaces.mil4(channels=(3, 4, 5)), r"^mil4: channels=\(3, 4, 5\)"),
        (lambda: mnas.spaces.mil4_nested(hidden=-1), r"^mil4_nested: .*hidden=-1"),
        (lambda: mnas.spaces.mil9(channels=(3, True)), r"^mil9: channels=\(3, True\)"),
        (lambda: mnas.UniformSampler(net.space, 1.5), r"^seed=1\.5; expected a whole number$"),
        (lambda: mnas.FairSampler(net.space, True), r"^seed=True"),
        (lambda: mnas.evaluate(net, torch.zeros(1), torch.zeros(1)), r"^evaluate got a Supernet; expected one network"),
        (lambda: mnas.recalibrate(net, torch.zeros(1)), r"^recalibrate got a Supernet; expected one network"),
        (
            lambda: mnas.evaluate_paths(conv, [], None, None),
            r"^evaluate_paths got a Conv2d; expected a mnas\.Supernet$",
        ),
        (lambda: mnas.evaluate_paths(net, [], None, None), r"^images are a NoneType; expected a torch\.Tensor$"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

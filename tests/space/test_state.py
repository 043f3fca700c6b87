"""States of supernets: by the names of candidates, as torch loads them; other ways to keep them."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

import mnas
from mnas.space.choice import Choice


def model(names=("a", "b"), nested=False, kernels=(3, 5), widths=(2, 2)):
    layers = [
        nn.Conv2d(1, width, k, padding=k // 2) for k, width in zip(kernels, widths, strict=True)
    ]
    choice = Choice(dict(zip(names, layers, strict=True)), nested=nested)
    return nn.Sequential(Choice({"x": nn.Conv2d(1, 1, 1)}), nn.ReLU(), choice)


def supernet(seed=0, **options):
    torch.manual_seed(seed)
    return mnas.Supernet(mnas.SearchSpace(lambda: model(**options), input_shape=(1, 9, 9)))


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_keys_of_a_state_name_the_candidates():
    shared = ["model.2.a:weight", "model.2.b:weight", "model.2.a:bias"]
    own = [f"model.2.{name}.{key}" for name in "ab" for key in ("weight", "bias")]
    for nested, expected in ((False, own), (True, shared)):
        keys = ["model.0.x.weight", "model.0.x.bias", *expected]
        assert list(supernet(nested=nested).state_dict()) == keys


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_candidates_in_another_order_are_loaded_by_name(assign, nested):
    net = supernet(nested=nested)
    other = supernet(seed=1, names=("b", "a"), kernels=(5, 3), nested=nested)
    net.load_state_dict(other.state_dict(), assign=assign)
    x = torch.randn(2, 1, 9, 9)
    for path in ((0, 0), (0, 1)):
        assert torch.equal(net(x, path), other(x, (0, 1 - path[1])))


@pytest.mark.parametrize("loading", [{}, {"assign": True}])
@pytest.mark.parametrize(
    ("net", "state", "reasons"),
    [
        ({}, {"names": ("a", "c")}, ["Missing .*model.2.b.weight", "Unexpected .*model.2.c.weigh"]),
        (
            {"nested": True},
            {"nested": True, "names": ("свёртка", "b")},
            ["Missing .*model.2.a:weight", "Unexpected .*model.2.свёртка:weight"],
        ),
        (
            {"widths": (1, 1), "kernels": (1, 1)},
            {"widths": (1, 1), "kernels": (1, 1), "nested": True},
            ["Missing .*model.2.a.weight", "Unexpected .*model.2.a:weight"],
        ),
        ({}, {"kernels": (5, 3)}, ["size mismatch for model.2.a.w", "size mismatch for model.2.b"]),
    ],
)
def test_weights_of_other_candidates_are_torchs_own_error(net, state, reasons, loading):
    net, state = supernet(**net), snapshot(supernet(seed=1, **state))
    with pytest.raises(
        RuntimeError, match=r"^Error\(s\) in loading state_dict for Supernet:"
    ) as caught:
        net.load_state_dict(state, **loading)
    for reason in reasons:
        assert re.search(reason, str(caught.value))
    inner = {key.removeprefix("model.2."): v for key, v in state.items() if "model.2." in key}
    with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading state_dict for Choice:"):
        net.model[2].load_state_dict(inner, **loading)


def test_a_state_of_an_older_mnas_is_named():
    older = {f"model.{n}.{key}": torch.zeros(3) for n in (0, 2) for key in ("weight", "bias")}
    older["model.2._extra_state"] = torch.zeros(9)
    with pytest.raises(RuntimeError, match=r"the state of choice model\.2 is of an older mnas"):
        supernet().load_state_dict(older)


@pytest.mark.parametrize("nested", [False, True])
def test_what_maps_over_a_state_dict_goes_on_working(nested):
    net, other = supernet(nested=nested), supernet(seed=1, nested=nested)
    state = snapshot(net)

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
        for key, loaded in other.state_dict().items():
            torch.testing.assert_close(loaded, state[key], rtol=1e-2, atol=1e-2)
    other.to(torch.float64).load_state_dict(state)
    assert same(snapshot(copy.deepcopy(net)), state)
    assert same(snapshot(pickle.loads(pickle.dumps(net.model))), snapshot(net.model))
    with torch.device("meta"):
        empty = supernet(nested=nested)
    empty.load_state_dict(state, assign=True)
    assert same(snapshot(empty), state)


@pytest.mark.parametrize("nested", [False, True])
def test_other_ways_to_call_and_to_keep_a_supernet(nested):
    net, path = supernet(nested=nested), (0, 1)
    x = torch.randn(2, 1, 9, 9)
    expected = net(x, path)
    for tensors in (dict(net.state_dict()), dict(net.named_parameters())):
        assert torch.equal(functional_call(net, tensors, (x, path)), expected)
    assert torch.equal(net(x, path), expected)
    assert same(snapshot(net), snapshot(copy.deepcopy(net)))
    average = AveragedModel(net)
    average.update_parameters(net)
    assert torch.equal(average(x, path), expected)
    fresh = AveragedModel(supernet(seed=2, nested=nested))
    fresh.load_state_dict(average.state_dict())
    assert torch.equal(fresh(x, path), expected)
    others = AveragedModel(supernet(names=("c", "b"), nested=nested))
    with pytest.raises(RuntimeError, match=r"Missing key.*module\.model\.2\..*c"):
        others.load_state_dict(average.state_dict())
    other = supernet(seed=3, nested=nested)
    set_model_state_dict(other, get_model_state_dict(net))
    assert torch.equal(other(x, path), expected)
    parameters, buffers = stack_module_state([net, other])
    base = copy.deepcopy(net)
    both = vmap(lambda p, b: functional_call(base, (p, b), (x, path)))(parameters, buffers)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


@pytest.mark.parametrize("nested", [False, True])
def test_a_parameter_may_lie_in_memory_in_any_way(nested):
    net, x = supernet(nested=nested), torch.randn(2, 1, 9, 9)
    paths = [(0, 0), (0, 1)]
    expected = [net(x, path) for path in paths]
    for parameter in net.model[2].parameters():
        gaps = torch.zeros(*parameter.shape, 2)[..., 0]
        parameter.data = gaps.copy_(parameter.detach())  # the same values, two apart
    for path, logits in zip(paths, expected, strict=True):
        torch.testing.assert_close(net(x, path), logits)
        exported = mnas.export(net, path)
        torch.testing.assert_close(exported(x), logits)
        torch.testing.assert_close(net.forward_paths(x, [path])[0], logits)
    for name, tensor in net.model[2].merged.items():  # which brings them together again
        assert tensor.is_contiguous()
        addresses = {
            p.untyped_storage().data_ptr()
            for key, p in net.model[2].named_parameters()
            if name in key
        }
        assert addresses == {tensor.data_ptr()}
    for path, logits in zip(paths, expected, strict=True):
        assert torch.equal(net(x, path), logits)


def test_nothing_of_the_memory_before_is_between_the_parameters():
    # A checkpoint holds whole storages: what lay there before would be in it, other at each time.
    torch.use_deterministic_algorithms(True)  # torch.empty is full of NaN
    try:
        net = supernet()
    finally:
        torch.use_deterministic_algorithms(False)
    held = [torch.empty(0).set_(p.untyped_storage()) for p in net.parameters()]
    assert any(len(all_) > p.numel() for all_, p in zip(held, net.parameters(), strict=True))
    assert all(all_.isfinite().all() for all_ in held)


def test_candidates_are_on_one_device():
    meta = {"device": "meta"}
    for other in (
        nn.Conv2d(1, 2, 3, **meta),
        nn.Sequential(nn.Conv2d(1, 2, 3, **meta)),
        nn.BatchNorm2d(2, **meta),
    ):
        with pytest.raises(
            ValueError, match=r"different devices: \{'a': \['cpu'\], 'b': \['meta'\].*module\.to"
        ):
            Choice({"a": nn.Conv2d(1, 2, 3), "b": other})
    Choice({"a": nn.Identity(), "b": nn.Conv2d(1, 2, 3, **meta)})


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_masks_are_refused():
    layer = nn.Linear(3, 3)
    for sparse in (torch.eye(3).bool().to_sparse_csr(), torch.eye(3).bool().to_sparse()):
        with pytest.raises(
            ValueError, match=r"is sparse \(torch\.sparse_c.*as from mask\.to_dense\(\)"
        ):
            mnas.GradientMask(layer, {"weight": sparse})
    assert mnas.GradientMask(layer, {"weight": sparse.to_dense()})


def test_wrong_calls_of_choices_and_supernets():
    net, conv = supernet(), nn.Conv2d(1, 2, 3)
    for call, message in [
        (lambda: Choice({"a": conv}, nested="no"), r"^nested='no'; expected True or False$"),
        (lambda: Choice({"a": conv}, nested=1), r"^nested=1; expected True or False$"),
        (
            lambda: Choice({"a": conv}, nested=True, separate=3),
            r"^separate=3; expected several patterns",
        ),
        (
            lambda: Choice({"a": conv}, nested=True, separate=[3]),
            r"^separate=\[3\]; expected several patterns",
        ),
        (
            lambda: Choice({"a": conv}, nested=True, separate="*"),
            r"^separate='\*'; expected several patterns",
        ),
        (lambda: mnas.Supernet(model()), r"^space is a Sequential; expected a mnas\.SearchSpace"),
        (lambda: mnas.Supernet(mnas.spaces.mil4), r"^space is a function"),
        (
            lambda: net.subnet((0, 0), "x"),
            r"^candidate 0, execution 'x'; expected an index below 1",
        ),
        (
            lambda: net.model[2].candidate(2),
            r"^candidate 2, execution 'sliced'; expected an index below 2",
        ),
        (lambda: net.model[2].candidate(-1), r"^candidate -1, "),
        (
            lambda: mnas.SearchSpace(model()),
            r"^build is a Sequential; expected a function that returns a new model$",
        ),
        (lambda: mnas.SearchSpace(None), r"^build is a NoneType"),
        (
            lambda: mnas.SearchSpace(model, about="a\nb"),
            r"^about='a\\nb'; expected a sentence of one line$",
        ),
        (lambda: mnas.SearchSpace(model, about=None), r"^about=None"),
        (lambda: mnas.spaces.get([]), r"^space \[\] is unknown"),
        (
            lambda: mnas.spaces.mil4(channels=3),
            r"^mil4: channels=3, hidden=128; expected two and one whole numbers",
        ),
        (lambda: mnas.spaces.mil4(channels=(3, 4, 5)), r"^mil4: channels=\(3, 4, 5\)"),
        (lambda: mnas.spaces.mil4_nested(hidden=-1), r"^mil4_nested: .*hidden=-1"),
        (lambda: mnas.spaces.mil9(channels=(3, True)), r"^mil9: channels=\(3, True\)"),
        (lambda: mnas.UniformSampler(net.space, 1.5), r"^seed=1\.5; expected a whole number$"),
        (lambda: mnas.FairSampler(net.space, True), r"^seed=True"),
        (
            lambda: mnas.evaluate(net, torch.zeros(1), torch.zeros(1)),
            r"^evaluate got a Supernet; expected one network",
        ),
        (
            lambda: mnas.recalibrate(net, torch.zeros(1)),
            r"^recalibrate got a Supernet; expected one network",
        ),
        (
            lambda: mnas.evaluate_paths(conv, [], None, None),
            r"^evaluate_paths got a Conv2d; expected a mnas\.Supernet$",
        ),
        (
            lambda: mnas.evaluate_paths(net, [], None, None),
            r"^images are a NoneType; expected a torch\.Tensor, or a tuple or dict of what",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

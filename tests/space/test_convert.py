"""mnas.convert: existing models become spaces that begin as they are. The naive counterpart is the
given model itself, or the same surgery by hand."""

import copy
import pickle
import re

import pytest
import torch
import torchvision
from conftest import ROOT
from torch import nn

import mnas
from mnas.space.rules import Rule

IMAGES = (3, 64, 64)


def resnet():
    torch.manual_seed(1)
    return _used(torchvision.models.resnet18(num_classes=10))


def mobilenet():
    torch.manual_seed(1)
    return _used(torchvision.models.mobilenet_v3_small(num_classes=10))


def vit():
    torch.manual_seed(1)
    model = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    nn.init.normal_(model.heads.head.weight)  # zeros else
    return model


def convnext():
    torch.manual_seed(1)
    blocks = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([blocks(8, 16, 2), blocks(16, None, 2)], num_classes=10)


def timm_mobilenet():
    timm = pytest.importorskip("timm", reason="pip install timm")
    torch.manual_seed(1)
    return _used(timm.create_model("mobilenetv3_small_050", num_classes=10))


def _used(model):
    """With running statistics other than those of the start."""
    model.train()
    with torch.no_grad():
        model(torch.randn(8, *IMAGES))
    return model.eval()


KERNELS = mnas.rules.kernels(nn.Conv2d, (3, 5))
DEPTHWISE = mnas.rules.kernels(nn.Conv2d, (3, 5), nested=True, depthwise=True)
MODELS = {
    "resnet18": (resnet, [mnas.rules.kernels("layer*.conv*", (3, 5))], 2**16),
    "resnet18 nested": (resnet, [mnas.rules.kernels("*.conv2", (3, 5), nested=True)], 2**8),
    "resnet18 depth": (
        resnet,
        [mnas.rules.repeats("layer?.1", (1, 0, 2)), mnas.rules.kernels("layer?.0.conv2", (3, 5))],
        3**4 * 2**4,
    ),
    "mobilenetv3": (mobilenet, [DEPTHWISE], 2**11),
    "mobilenetv3 depth": (
        mobilenet,
        [mnas.rules.repeats("features.[3568]", (1, 0)), DEPTHWISE],
        None,
    ),
    "mobilenetv3 of timm": (timm_mobilenet, [DEPTHWISE], 2**11),
    "vit": (vit, [mnas.rules.repeats("encoder.layers.encoder_layer_[012]", (0, 1, 2))], 3**3),
    "convnext": (convnext, [mnas.rules.kernels("*.block.0", (7, 5, 3), nested=True)], 3**4),
}


def space_of(make, rules):
    return mnas.convert(make(), rules, input_shape=IMAGES)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_path_is_the_given_model_to_the_bit(name):
    make, rules, size = MODELS[name]
    if name == "mobilenetv3 depth":  # no choice may be inside of another
        with pytest.raises(ValueError, match=r"becomes a choice inside of 'features.3'"):
            space_of(make, rules)
        rules = rules[:1]
        size = None
    model = make()
    before = copy.deepcopy(model.state_dict())
    space = mnas.convert(model, rules, input_shape=IMAGES)
    assert size is None or space.size == size
    net = mnas.Supernet(space)
    x = torch.randn(4, *IMAGES)
    for mode in (True, False):
        theirs = copy.deepcopy(model).train(mode)
        ours = copy.deepcopy(net).train(mode)
        torch.manual_seed(2)
        expected = theirs(x)
        torch.manual_seed(2)
        assert torch.equal(ours(x, space.path()), expected)
    exported = mnas.export(net, space.path()).eval()
    assert torch.equal(exported(x), model.eval()(x))
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    # Training the supernet, or the model, later changes neither the other nor the space.
    with torch.no_grad():
        for parameter in (*net.parameters(), *model.parameters()):
            parameter.add_(1)
    again = mnas.Supernet(space).eval()
    assert torch.equal(again(x, space.path()), exported(x))


def test_resnet18_takes_three_lines():
    given = torchvision.models.resnet18()
    space = mnas.convert(given, mnas.rules.kernels("layer*.conv*", (3, 5)))
    assert space.size == 65_536


def test_the_page_is_true(capsys):
    page = (ROOT / "docs" / "convert.md").read_text()
    names = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(example, names)
        for line in capsys.readouterr().out.splitlines():
            assert f"# {line}\n" in example


def by_hand(layer, size):
    """The same convolution with another kernel, the given weights in its middle."""
    more = (size - layer.kernel_size[0]) // 2
    padding = layer.padding[0] + more
    made = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        size,
        layer.stride,
        padding,
        groups=layer.groups,
        bias=False,
    )
    with torch.no_grad():
        if more > 0:
            made.weight.zero_()
            made.weight[:, :, more:-more, more:-more] = layer.weight
        else:
            made.weight.copy_(layer.weight[:, :, -more:more, -more:more])
    return made


@pytest.mark.parametrize("nested", [False, True])
def test_other_kernels_begin_as_surgery_by_hand_has_them(nested):
    model = mobilenet()
    rule = mnas.rules.kernels("features.*.block.1.0", (5, 3, 7), nested=nested)
    space = mnas.convert(model, rule, input_shape=IMAGES)
    net = mnas.Supernet(space).eval()
    x = torch.randn(2, *IMAGES)
    torch.manual_seed(4)
    for _ in range(3):
        path = space.sample()
        surgery = copy.deepcopy(model)
        for name, value in space.values(path).items():
            layers = {n.replace(".", "_"): n for n, _ in surgery.named_modules()}
            parent, _, child = layers[name].rpartition(".")
            layer = surgery.get_submodule(layers[name])
            if layer.kernel_size[0] != int(value[1:]):
                surgery.get_submodule(parent)[int(child)] = by_hand(layer, int(value[1:]))
        assert torch.equal(net(x, path), surgery(x))


def test_repeats_share_the_first_block_and_copy_it():
    model = resnet()
    space = mnas.convert(model, mnas.rules.repeats("layer2.1", (0, 1, 2)), input_shape=IMAGES)
    net = mnas.Supernet(space).eval()
    x = torch.randn(2, *IMAGES)
    block = model.layer2[1]
    for times in (0, 1, 2):
        naive = copy.deepcopy(model)
        naive.layer2[1] = nn.Sequential(*[copy.deepcopy(block) for _ in range(times)])
        assert torch.equal(net(x, space.path(layer2_1=f"x{times}")), naive(x))
    choice = net.choices[0]
    shared = dict(choice.shared_parameters(choice.names.index("x1")))
    deep = dict(choice.shared_parameters(choice.names.index("x2")))
    assert all(shared[name][1] == deep[name][1] for name in shared)  # the same parameters


def narrowed(mlp):
    """Half of the hidden units of torchvision's MLP: what a user writes for widths."""
    half = mlp[0].out_features // 2
    made = copy.deepcopy(mlp)
    made[0] = nn.Linear(mlp[0].in_features, half)
    made[3] = nn.Linear(half, mlp[3].out_features)
    return {"narrow": made}


def test_widths_of_hidden_layers_by_candidates_of_ones_own():
    model = vit()
    rule = mnas.rules.candidates("*.mlp", narrowed, nested=True)
    space = mnas.convert(model, rule, input_shape=IMAGES)
    net = mnas.Supernet(space).eval()
    x = torch.randn(2, *IMAGES)
    assert torch.equal(net(x, space.path()), model.eval()(x))
    name = "encoder_layers_encoder_layer_0_mlp"
    naive = copy.deepcopy(model)
    mlp = naive.encoder.layers.encoder_layer_0.mlp
    for layer, weight in ((0, mlp[0].weight[:16]), (3, mlp[3].weight[:, :16])):
        mlp[layer].weight = nn.Parameter(weight.detach().clone())
    mlp[0].bias = nn.Parameter(mlp[0].bias[:16].detach().clone())
    torch.testing.assert_close(net(x, space.path({name: "narrow"})), naive(x))


def test_training_moves_the_path_alone():
    space = space_of(*MODELS["resnet18 nested"][:2])
    net = mnas.Supernet(space)
    optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(torch.randn(2, *IMAGES), space.path()).sum().backward()
    optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(before[key], value)}
    assert not any("k5:" in key and "k3" not in key for key in moved)
    assert any(":weight" in key for key in moved)


def test_standalone_begins_at_random_or_asks():
    rules = MODELS["resnet18"][1]
    given = resnet()
    space = mnas.convert(given, rules, input_shape=IMAGES)
    with pytest.raises(ValueError, match=r"no random start; give convert\(..., fresh=FUNCTION\)"):
        mnas.standalone(space, space.path())

    def fresh():
        return torchvision.models.resnet18(num_classes=10)

    space = mnas.convert(given, rules, input_shape=IMAGES, fresh=fresh)
    path = space.path(layer1_0_conv1="k5")
    torch.manual_seed(3)
    network = mnas.standalone(space, path)
    torch.manual_seed(3)
    again = mnas.standalone(space, path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert network.layer1[0].conv1.weight.count_nonzero() == 64 * 64 * 25  # no zeros around
    assert not torch.equal(network.layer1[0].conv2.weight, given.layer1[0].conv2.weight)
    other = mnas.convert(given, rules, input_shape=IMAGES, fresh=torchvision.models.resnet18)
    with pytest.raises(ValueError, match=r"fresh\(\) returns another model .* fc.bias, fc.weight"):
        mnas.standalone(other, path)


def test_nested_kernels_larger_than_given_ones_begin_at_random():
    def fresh():
        return torchvision.models.mobilenet_v3_small(num_classes=10)

    given = mobilenet()
    space = mnas.convert(given, DEPTHWISE, input_shape=IMAGES, fresh=fresh)
    path = tuple(len(decision) - 1 for decision in space.decisions)
    torch.manual_seed(3)
    network = mnas.standalone(space, path)
    torch.manual_seed(3)
    supernet = mnas.Supernet(space.fresh())
    small = mnas.export(supernet, space.path())
    assert network.features[1].block[0][0].weight.count_nonzero() == 16 * 25
    for key, value in mnas.export(supernet, path).state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
    grown = network.features[1].block[0][0].weight[:, :, 1:-1, 1:-1]
    assert torch.equal(small.features[1].block[0][0].weight, grown)
    assert not torch.equal(grown, given.features[1].block[0][0].weight)


def test_frozen_layers_devices_types_and_pickles():
    model = resnet().double()
    model.layer1.requires_grad_(False)
    space = mnas.convert(
        model,
        mnas.rules.kernels("layer1.*.conv1", (3, 5)),
        example=torch.randn(2, *IMAGES).double(),
    )
    net = mnas.Supernet(space).eval()
    assert not any(p.requires_grad for choice in net.choices for p in choice.parameters())
    assert not net.choices[0].module(0).training
    x = torch.randn(2, *IMAGES, dtype=torch.float64)
    assert torch.equal(net(x, space.path()), model(x))
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(x, space.path()), model(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        mnas.rules.repeats("1", (0, 1, 2)),
        mnas.rules.repeats("1", (1, 0)),
        mnas.rules.candidates("1", lambda layer: {"other": copy.deepcopy(layer)}),
    ],
)
def test_a_layer_in_a_mode_of_its_own_stays_in_it(rule, training):
    # As a BatchNorm in evaluation mode while the others are trained.
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout())
    model = nn.Sequential(nn.Conv2d(3, 3, 1), block).train(training)
    block[1].train(not training)
    space = mnas.convert(model, rule, input_shape=(3, 8, 8))
    net, x = mnas.Supernet(space), torch.randn(4, 3, 8, 8)
    found = []
    for of_given in (lambda: net(x, space.path()), lambda: model(x)):
        torch.manual_seed(0)
        found.append(of_given())
    assert torch.equal(*found)
    modes = {type(m): set() for m in block}
    for module in net.modules():
        modes.get(type(module), set()).add(module.training)
    assert modes == {m.__class__: {m.training} for m in block}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.alias = self.conv

    def forward(self, x):
        return self.alias(self.conv(x))


def test_a_layer_under_two_names_is_one_choice():
    model = Twice()
    space = mnas.convert(model, KERNELS, input_shape=IMAGES)
    x = torch.randn(2, *IMAGES)
    assert space.size == 2
    assert torch.equal(mnas.Supernet(space)(x, (0,)), model(x))


def wider(layer):
    return {"wide": nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2)}


@pytest.mark.parametrize(
    ("model", "rules", "message"),
    [
        (Tied, KERNELS, "'first' shares weights with 'second'"),
        (Twice, mnas.rules.kernels("cov", (3, 5)), "selects no layer"),
        (Twice, mnas.rules.kernels("conv", (5, 7)), "with a kernel of 5 or 7, and selects conv"),
        (Twice, mnas.rules.kernels("conv", (3, 4)), "sizes that differ by even numbers"),
        *(  # outputs would keep their size, kernels not their centre
            (
                lambda how=how: nn.Sequential(nn.Conv2d(3, 3, 3, **how)),
                mnas.rules.kernels("0", (3, other)),
                "differ by even",
            )
            for how in ({"padding": 2, "dilation": 2}, {"padding": "same"})
            for other in (2, 4)
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 3)),
            mnas.rules.kernels("0", (3, 1)),
            "not below what its padding allows",
        ),
        (Twice, [KERNELS, KERNELS], "no other rule before it may take the same"),
        (Twice, ["conv"], "a rule is a str"),
        (Twice, [], "has no Choice"),
        (Twice, mnas.rules.candidates("conv", wider, nested=True), "would not begin as it is"),
        (Twice, mnas.rules.candidates("conv", lambda layer: layer), "expected a dict of the other"),
        (resnet, mnas.rules.repeats("layer2.0", (1, 0)), "does not fit"),
        (Twice, Rule("conv", lambda match: {"given": match.layer, "b-": nn.ReLU()}), "cannot beco"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, rules, message):
    with pytest.raises(ValueError, match=message) as refused:
        mnas.convert(model(), rules, input_shape=IMAGES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mnas.rules.kernels(3, (3, 5)), "a rule selects 3"),
        (lambda: mnas.rules.kernels("a", 3), "sizes=3; expected two or more"),
        (lambda: mnas.rules.kernels("a", (3, 3)), "two or more different whole numbers"),
        (lambda: mnas.rules.repeats("a", (0, 2)), "expected 1 among them"),
        (lambda: mnas.convert(nn.Linear, KERNELS), "model is a type"),
        (lambda: mnas.convert(Twice(), KERNELS, fresh=Twice()), "fresh is a Twice"),
    ],
)
def test_rules_say_what_they_expect(call, message):
    with pytest.raises(ValueError, match=message):
        call()

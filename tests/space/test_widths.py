"""Hidden widths by mnas.convert. The naive counterpart: layers cut by hand."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import mnas
from mnas.space.hidden import Hidden, hidden


class MLP(nn.Module):
    def __init__(self, gate=False):
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gate = nn.Linear(6, 12) if gate else None

    def forward(self, x):
        inner = F.gelu(self.first(x))
        return x + self.second(inner if self.gate is None else inner * self.gate(x))


class Branching(MLP):
    def forward(self, x):
        return self.second(self.first(x)) if x.sum() > 0 else x


class Activated(nn.BatchNorm2d):
    """As those of timm, whose layer and activation are one."""

    def forward(self, x):
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias))


class Leaking(MLP):
    def forward(self, x):
        inner = self.first(x)
        return self.second(inner), inner


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        return self.last(self.layer(self.layer(x)))


def vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight)  # zeros else
    return model


def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # running statistics other than those of the start
    return model.eval()


CASES = {
    "resnet18": (resnet, torchvision.models.resnet.BasicBlock, 8, (3, 32, 32)),
    "vit": (vit, "*.mlp", 2, (3, 32, 32)),
    "mlp": (lambda: nn.Sequential(MLP(), nn.Linear(6, 4)), MLP, 1, (6,)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_path_is_the_given_model_and_narrow_ones_are_cut_by_hand(name):
    make, select, blocks, shape = CASES[name]
    model, x = make(), torch.randn(3, *shape)
    rule = mnas.rules.widths(select, (0.5, 0.25))
    space = mnas.convert(model, rule, input_shape=shape)
    net = mnas.Supernet(space).eval()
    assert space.size == 3**blocks
    with torch.no_grad():
        assert torch.equal(net(x, space.path()), model(x))
        half = (1,) * blocks
        by_hand = cut_by_hand(copy.deepcopy(model), name)
        assert not torch.equal(by_hand(x), model(x))
        exported = mnas.export(net, half)
        assert torch.equal(exported(x), by_hand(x))
        assert torch.equal(net(x, half), by_hand(x))
    expected = {key: tensor.shape for key, tensor in by_hand.state_dict().items()}
    assert {key: tensor.shape for key, tensor in exported.state_dict().items()} == expected
    assert mnas.cost(space, half).params == sum(p.numel() for p in by_hand.parameters())


def cut_by_hand(model, name):
    if name == "resnet18":
        for block in model.modules():
            if isinstance(block, torchvision.models.resnet.BasicBlock):
                half = block.conv1.out_channels // 2
                old = block.conv1, block.bn1, block.conv2
                block.conv1 = nn.Conv2d(old[0].in_channels, half, 3, old[0].stride, 1, bias=False)
                block.bn1 = nn.BatchNorm2d(half)
                block.conv2 = nn.Conv2d(half, old[2].out_channels, 3, 1, 1, bias=False)
                block.conv1.weight.data = old[0].weight.data[:half].clone()
                block.conv2.weight.data = old[2].weight.data[:, :half].clone()
                for key, tensor in old[1].state_dict().items():
                    block.bn1.state_dict()[key].copy_(tensor[:half] if tensor.ndim else tensor)
        return model.eval()
    if name == "mlp":
        pairs = [(model[0], "first", "second")]
    else:
        pairs = [(block.mlp, "0", "3") for block in model.encoder.layers]
    for parent, first, second in pairs:
        one, two = getattr(parent, first), getattr(parent, second)
        half = one.out_features // 2
        narrow = nn.Linear(one.in_features, half), nn.Linear(half, two.out_features)
        narrow[0].weight.data = one.weight.data[:half].clone()
        narrow[0].bias.data = one.bias.data[:half].clone()
        narrow[1].weight.data = two.weight.data[:, :half].clone()
        narrow[1].bias.data = two.bias.data
        setattr(parent, first, narrow[0])
        setattr(parent, second, narrow[1])
    return model.eval()


def test_training_a_narrow_path_leaves_the_other_channels_as_they_were():
    make, select, _, shape = CASES["mlp"]
    model = make()
    space = mnas.convert(model, mnas.rules.widths(select, (0.5,)), input_shape=shape)
    net = mnas.Supernet(space)
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1)
    net(torch.randn(3, *shape), (1,)).sum().backward()
    optimizer.step()
    after = mnas.export(net, (0,)).state_dict()
    assert torch.equal(after["0.first.weight"][6:], model[0].first.weight[6:])
    assert torch.equal(after["0.second.weight"][:, 6:], model[0].second.weight[:, 6:])
    assert not torch.equal(after["0.first.weight"][:6], model[0].first.weight[:6])


def test_hidden_widths_of_depthwise_and_bottleneck_blocks():
    block = torchvision.models.mobilenetv2.InvertedResidual(8, 8, 1, 6)
    assert hidden(block) == [Hidden("conv.0.0", ("conv.0.1", "conv.1.0", "conv.1.1"), ("conv.2",))]
    block = torchvision.models.resnet.Bottleneck(32, 8)
    assert [(h.maker, h.readers) for h in hidden(block)] == [
        ("conv1", ("conv2",)),
        ("conv2", ("conv3",)),
    ]
    model = nn.Sequential(block, torchvision.models.mobilenetv2.InvertedResidual(32, 8, 1, 6))
    space = mnas.convert(model, mnas.rules.widths("[01]", (0.5,)), input_shape=(32, 8, 8))
    net, x = mnas.Supernet(space).eval(), torch.randn(2, 32, 8, 8)
    narrow = mnas.export(net, (1, 1))
    assert (narrow[0].conv2.in_channels, narrow[0].conv2.out_channels) == (4, 4)
    assert narrow[1].conv[1][0].groups == 96
    assert torch.equal(net(x, (1, 1)), narrow(x))
    assert torch.equal(net(x, (0, 0)), model.eval()(x))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Branching(), "'0' cannot become a choice: torch.fx cannot follow Branching"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 1), Activated(8), nn.Conv2d(8, 4, 1)),
            r"0: 1 \(Activated\) may mix its channels",
        ),
        (MLP(gate=True), "first: mul may mix its channels with others"),
        (Leaking(), "first: its channels leave the block"),
        (Twice(), "layer: layer is used more than once"),
        (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)), r"1 \(LayerNorm\)"),
        (nn.Linear(6, 6), "applies to nothing: it takes blocks with two or more linear layers"),
    ],
)
def test_what_cannot_be_followed_is_refused(block, message):
    with pytest.raises(ValueError, match=message) as refused:
        mnas.convert(nn.Sequential(block), mnas.rules.widths("0", (0.5,)), input_shape=(6,))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shares", [(), (1.0,), (0.5, 0), 0.5, ("half",)])
def test_shares_are_between_0_and_1(shares):
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        mnas.rules.widths("*", shares)


def test_shares_that_round_to_the_same_width_are_refused():
    rule = mnas.rules.widths(MLP, (0.5, 0.51))
    with pytest.raises(ValueError, match=r"a share of 0\.51 of 12 channels is 6"):
        mnas.convert(nn.Sequential(MLP()), rule, input_shape=(6,))

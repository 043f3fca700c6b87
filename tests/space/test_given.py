"""Paths in the forms in which users have them, and models as they come: several inputs, numbers as
inputs, outputs that are no logits."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnas
from mnas import Choice


class Encoder(nn.Module):
    """Called as those of Hugging Face: tokens, a mask, labels; a dict of tensors and tuples."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        wide = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
        self.layer = Choice({"small": nn.Linear(6, 6), "big": wide})
        self.activation = Choice({"relu": nn.ReLU(), "gelu": nn.GELU()})
        self.head = nn.Linear(6, 3)

    def forward(self, ids, attention_mask=None, labels=None):
        hidden = self.activation(self.layer(self.embedding(ids)))
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(hidden.mean(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "hidden": (hidden,)}


IDS, MASK = torch.arange(28).reshape(4, 7) % 11, torch.tensor([[1.0] * 4 + [0.0] * 3] * 4)
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def net():
    example = {"ids": IDS, "attention_mask": MASK}
    return mnas.Supernet(mnas.SearchSpace(Encoder, name="encoder", example=example))


FORMS = {
    "list": [1, 0],
    "numbers of numpy": (np.int64(1), np.uint8(0)),
    "array": np.array([1, 0]),
    "index tensor": torch.tensor([1, 0]),
    "small index tensor": torch.tensor([1, 0], dtype=torch.uint8),
    "argmax of each": [torch.tensor([0.1, 0.9]).argmax(), torch.tensor([0.8, 0.2]).argmax()],
    "argmax of numpy": (np.array([0.1, 0.9]).argmax(), 0),
    "some of each": (torch.tensor(1), 0),
    "name": "big-relu",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_path_is_the_same_however_it_is_given(form, net):
    given, space = FORMS[form], net.space
    assert space.check(given) == (1, 0)
    assert {type(index) for index in space.check(given)} == {int}
    assert space.key(given) == space.canonical(given) == (1, 0)
    assert space.format(given) == "big-relu"
    assert list(space.values(given).values()) == ["big", "relu"]
    assert mnas.cost(space, given) == mnas.cost(space, (1, 0))
    expected = mnas.export(net, (1, 0))(IDS)["logits"]
    for output in (
        net(IDS, given),
        net(IDS, path=given),
        net.subnet(given)(IDS),
        mnas.export(net, given)(IDS),
        net.forward_paths(IDS, [(0, 1), given])[1],
    ):
        assert torch.equal(output["logits"], expected)
    torch.manual_seed(0)
    alone = mnas.standalone(space, given)
    torch.manual_seed(0)
    again = mnas.standalone(space, (1, 0))
    for a, b in zip(alone.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_index_may_be_a_tensor_beside_the_weights_of_a_mixture(net):
    weights = torch.tensor([0.3, 0.7])
    for index in (torch.tensor(1), np.int64(1), np.array(1)):
        output = net(IDS, (weights, index))["logits"]
        assert torch.equal(output, net(IDS, (weights, 1))["logits"])


def test_what_is_no_path_is_one_line(net):
    for wrong, message in [
        (torch.tensor([5, 0]), r"path \(5, 0\) has 5 at position 0; expected an index below 2"),
        (torch.tensor([0.5, 1.0]), r"path torch\.float32 of shape \(2,\) must have 2 indices"),
        (np.zeros((2, 2), int), r"path int64 of shape \(2, 2\) must have 2 indices"),
        (torch.tensor([True, False]), r"path torch\.bool of shape \(2,\) must have 2 indices"),
        ("big", "architecture 'big' is not in space encoder; expected one of small-relu, small-g"),
        (np.array([0.0, 1.0]), r"path float64 of shape \(2,\) must have 2 indices"),
        ({"layer": 1}, r"path \{'layer': 1\} must have 2 indices"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            net(IDS, path=wrong)
        assert "\n" not in str(caught.value)


def test_an_encoder_with_a_mask_trains_as_that_network_alone(net):
    alone = mnas.export(net, (1, 1))
    ours = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.01)
    stock = torch.optim.AdamW(alone.parameters(), lr=0.01)
    batch = {"ids": IDS, "attention_mask": MASK, "labels": LABELS}
    for _ in range(3):
        ours.zero_grad()
        stock.zero_grad()
        one, other = net(**batch, path="big-gelu"), alone(**batch)
        assert torch.equal(one["loss"], other["loss"])
        one["loss"].backward()
        other["loss"].backward()
        ours.step()
        stock.step()
    trained = mnas.export(net, (1, 1))
    for a, b in zip(trained.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)
    for call in (lambda: net(IDS, (1, 1), attention_mask=MASK), lambda: net(IDS, MASK, (1, 1))):
        assert torch.equal(call()["hidden"][0], alone(IDS, MASK)["hidden"][0])


class Detector(nn.Module):
    """Called as those of torchvision: a list of images; losses in training, boxes afterwards."""

    def __init__(self):
        super().__init__()
        convolutions = {f"conv{k}": nn.Conv2d(1, 4, k, padding=k // 2) for k in (3, 5)}
        self.body = Choice(convolutions, nested=True)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)

    def forward(self, images, targets=None):
        found = self.head(self.norm(self.body(torch.stack(images))))
        if self.training:
            return {"box": F.mse_loss(found[:, :4], targets[0]["boxes"]), "cls": found[:, 4].mean()}
        return [{"boxes": one[:4], "scores": one[4]} for one in found]


def test_a_detector_trains_as_that_network_alone():
    images = [torch.randn(1, 8, 8) for _ in range(2)]
    targets = [{"boxes": torch.zeros(2, 4, 8, 8)}]
    space = mnas.SearchSpace(Detector, example=(images,))
    net = mnas.Supernet(space)
    alone = mnas.export(net, "conv3")
    ours = mnas.MaskedOptimizer(torch.optim.SGD, net, lr=0.1, momentum=0.9)
    stock = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        ours.zero_grad()
        stock.zero_grad()
        sum(net(images, targets=targets, path="conv3").values()).backward()
        sum(alone(images, targets).values()).backward()
        ours.step()
        stock.step()
    for one, other in zip(net.eval()(images, "conv3"), alone.eval()(images), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])
    assert mnas.cost(space, "conv3").macs == 2 * 64 * (9 * 4 + 4 * 5)


def test_a_tuple_may_come_out_where_an_example_is_given():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 4, batch_first=True)
            self.head = Choice({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})

        def forward(self, x):
            outputs, state = self.layer(x)
            return self.head(outputs), state

    x = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match="or say example= for a model of other outputs"):
        mnas.SearchSpace(Last, input_shape=(5, 3))
    net = mnas.Supernet(mnas.SearchSpace(Last, example=x))
    expected = mnas.export(net, "b")(x)
    for output in (net(x, "b"), net.forward_paths(x, ["a", "b"])[1]):
        assert torch.equal(output[0], expected[0])
        assert torch.equal(output[1][1], expected[1][1])

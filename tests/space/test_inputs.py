"""Networks that take something else than one image, and what they cost."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnas
from mnas import Choice, Decision


class Head(nn.Module):
    """Attention by a fused kernel, or by the products that it stands for."""

    def __init__(self, width, fused):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.fused = fused

    def forward(self, x):
        q, k, v = self.q(x)[:, None], self.k(x)[:, None], self.v(x)[:, None]
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)[:, 0]


def language_model():
    width = Decision("width", (4, 6))
    return nn.Sequential(
        Choice(nn.Embedding, 11, width, nested=True),
        Choice({"a": nn.Identity(), "b": nn.Identity()}),
        Choice(lambda w: Head(w, True), width, nested=True),
        Choice(nn.Linear, width, 11, nested=True),
    )


def test_tokens_are_what_a_language_model_takes():
    tokens = torch.randint(11, (1, 7))
    space = mnas.SearchSpace(language_model, example=tokens)
    assert space.input_shape == (7,)
    torch.manual_seed(0)
    net = mnas.Supernet(space)
    for path in space.paths():
        assert torch.equal(net(tokens, path), mnas.export(net, path)(tokens))
        w = space.values(path)["width"]
        params = 11 * w + 3 * (w * w + w) + 11 * w + 11
        assert mnas.cost(space, path) == (params, 7 * 3 * w * w + 2 * 7 * 7 * w + 7 * 11 * w)
    longer = torch.randint(11, (1, 9))
    assert mnas.cost(space, (0, 0), longer).macs == 9 * 3 * 16 + 2 * 9 * 9 * 4 + 9 * 11 * 4
    with pytest.raises(ValueError, match=r"width=4, .* does not compute the same behind a mask"):
        mnas.Supernet(space, "masked")  # attention is scaled by the width
    with pytest.raises(ValueError, match="does not fit into the network for inputs of 7, at"):
        mnas.SearchSpace(language_model, input_shape=(7,))  # of floating numbers


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_counted_whatever_computes_it(fused):
    space = mnas.SearchSpace(
        lambda: nn.Sequential(Choice({"head": Head(6, fused)})), input_shape=(5, 6)
    )
    assert mnas.cost(space, (0,)).macs == 3 * 5 * 36 + 2 * 25 * 6


def test_torchs_own_attention_is_counted():
    """In evaluation it takes a fused way of its own."""

    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0]

    def space(layer):
        return mnas.SearchSpace(lambda: nn.Sequential(Choice({"a": layer()})), input_shape=(7, 8))

    attention = 4 * 7 * 64 + 2 * 49 * 8
    assert mnas.cost(space(Itself), (0,)).macs == attention
    encoder = functools.partial(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True)
    assert mnas.cost(space(encoder), (0,)).macs == attention + 2 * 7 * 8 * 16


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_layers_are_counted(kind, options):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(4, 3, batch_first=True, **options)

        def forward(self, x):
            return self.layer(x)[0][:, -1]

    space = mnas.SearchSpace(lambda: nn.Sequential(Choice({"a": Last()})), input_shape=(5, 4))
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    weights = gates * 3 * (4 + 3)
    if options:
        weights = 2 * weights + 2 * gates * 3 * (6 + 3)
    assert mnas.cost(space, (0,)).macs == 5 * weights


class Two(nn.Module):
    """Two inputs, of which one is named, and two outputs."""

    def __init__(self):
        super().__init__()
        self.layer = Choice({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})

    def forward(self, x, mask=None):
        y = self.layer(x)
        return {"y": y if mask is None else y * mask, "n": len(x)}


def test_several_inputs_and_outputs():
    example = {"x": torch.zeros(2, 3), "mask": torch.ones(2, 1)}
    space = mnas.SearchSpace(Two, example=example)
    net = mnas.Supernet(space)
    x, mask = torch.randn(4, 3), torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    exported = mnas.export(net, (1,))
    for y in (net(x, mask, (1,)), net(x, mask=mask, path=(1,)), net(x=x, mask=mask, path=(1,))):
        assert torch.equal(y["y"], exported(x, mask)["y"])
    assert mnas.cost(space, (1,)) == (8, 12)
    assert torch.equal(net(x, path=[1])["y"], exported(x)["y"])
    mnas.Supernet(space, "masked")
    with pytest.raises(ValueError, match=r"net\(\) got no path; call net\(x, path\)"):
        net(x=x)


def test_images_are_called_x_whatever_the_model_calls_them():
    space = mnas.SearchSpace(
        lambda: nn.Sequential(Choice({"a": nn.Linear(3, 2)})), input_shape=(3,)
    )
    net, x = mnas.Supernet(space), torch.randn(4, 3)
    assert torch.equal(net(x=x, path=(0,)), net(x, (0,)))


def test_a_size_for_costs():
    space = mnas.spaces.get("mil9")
    twice = mnas.cost(space, (0, 0), torch.zeros(1, 1, 56, 56))
    assert twice.params == mnas.cost(space, (0, 0)).params
    head = 32 * 10
    assert twice.macs - head == 4 * (mnas.cost(space, (0, 0)).macs - head)


class Computed(nn.Conv2d):
    """A kernel that is computed of what is learned."""

    def __init__(self, width):
        super().__init__(2, width, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, padding=1)

    def bake(self):
        plain = nn.Conv2d(2, self.out_channels, 3, padding=1, bias=False)
        plain.weight.copy_(self.weight * self.scale)
        return plain


def test_what_is_computed_of_weights_is_baked_at_export():
    def build():
        return nn.Sequential(
            Choice(Computed, Decision("width", (2, 3)), nested=True), nn.AdaptiveAvgPool2d(1)
        )

    space = mnas.SearchSpace(
        lambda: nn.Sequential(build(), nn.Flatten(), nn.AdaptiveMaxPool1d(1)), input_shape=(2, 4, 4)
    )
    net, x = mnas.Supernet(space), torch.randn(3, 2, 4, 4)
    for path in space.paths():
        exported = mnas.export(net, path)
        assert type(exported[0][0]) is nn.Conv2d
        assert torch.equal(exported(x), net(x, path))
        assert mnas.cost(space, path).params == sum(p.numel() for p in exported.parameters())


class Masked(nn.Module):
    """As models of Hugging Face are called, and what they return; with a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first = Choice({"a": nn.Linear(4, 4), "b": nn.Identity()})
        self.norm = nn.BatchNorm1d(4)
        self.second = Choice({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3, bias=False)})

    def forward(self, input_ids, attention_mask=None, scale=None):
        x = self.first(self.embed(input_ids))
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        return {"logits": self.second(self.norm(x.mean(1))) * (scale or 1.0), "n": None}


def words(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, (number, 5), generator=generator)
    mask = torch.randint(2, (number, 5), generator=generator).float()
    return ids, mask, torch.randint(3, (number,), generator=generator)


def masked_net():
    ids, mask, _ = words(2)
    example = {"input_ids": ids, "attention_mask": mask}
    torch.manual_seed(0)
    return mnas.Supernet(mnas.SearchSpace(Masked, example=example))


def test_many_paths_take_several_inputs():
    net, (ids, mask, _) = masked_net(), words(6)
    paths = list(net.space.paths())
    alone = [net(ids, mask, path, scale=2.0)["logits"] for path in paths]
    for found in (
        net.forward_paths(ids, mask, paths, scale=2.0),
        net.forward_paths(ids, attention_mask=mask, scale=2.0, paths=paths),
        net.forward_paths(input_ids=ids, attention_mask=mask, scale=2.0, paths=paths),
    ):
        for output, expected in zip(found, alone, strict=True):
            assert torch.equal(output["logits"], expected)
    without = net.forward_paths(ids, paths)
    assert torch.equal(without[1]["logits"], net(ids, paths[1])["logits"])
    for call in (lambda: net.forward_paths(ids, attention_mask=mask), net.forward_paths):
        with pytest.raises(ValueError, match="got no paths; call net"):
            call()


@pytest.mark.parametrize("bn", [False, True])
def test_scores_of_networks_with_several_inputs(bn):
    """1,100 examples are three batches of at most 500."""
    net, (ids, mask, labels) = masked_net(), words(1100)
    paths = list(net.space.paths())
    calls = ((ids, mask), {"input_ids": ids, "attention_mask": mask, "scale": 1.5})
    for number, given in enumerate(calls):
        training = (ids[:700], mask[:700]) if bn else None
        scores = mnas.evaluate_paths(net, paths, given, labels, bn_images=training)
        for path, score in zip(paths, scores, strict=True):
            network = mnas.export(net, path)
            if bn:
                network = mnas.recalibrate(network, training)
            assert mnas.evaluate(network, given, labels) == score
            network.eval()
            with torch.no_grad():
                logits = torch.cat(
                    [
                        network(i, m, (None, 1.5)[number])["logits"]
                        for i, m in zip(ids.split(500), mask.split(500), strict=True)
                    ]
                )
            assert torch.equal(score.correct, logits.argmax(1) == labels)
            assert score.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_latency_is_measured_with_several_inputs():
    net, (ids, mask, _) = masked_net(), words(3)
    latency = mnas.networks.Latency(net, {"input_ids": ids, "attention_mask": mask}, repeats=2)
    assert all(ms > 0 for ms in latency([(0, 0), (1, 1)]))


def test_examples_that_do_not_fit_together_are_refused():
    net, (ids, mask, labels) = masked_net(), words(6)
    for given, message in (
        ((ids, mask[:5]), r"images have tensors of \[6, 5\] rows; expected as many in each"),
        ({"input_ids": [1, 2]}, r"images have tensors of \[\] rows"),
        ([ids, mask], "images are a list; expected a torch.Tensor, or a tuple or dict of what"),
    ):
        with pytest.raises(ValueError, match=message):
            mnas.evaluate_paths(net, [(0, 0)], given, labels)
    space = mnas.SearchSpace(Two, example={"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r'returned a dict; expected logits .* as "logits"'):
        mnas.evaluate_paths(mnas.Supernet(space), [(0,)], (torch.zeros(4, 3),), labels[:4])

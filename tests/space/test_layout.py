"""Layers whose rows are blocks of several things, and layers that the rule of regions does not
know of."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mnas
from mnas import Choice, Decision

WIDTH, HEAD = 6, 4


class Attention(nn.Module):
    """Queries, keys and values in one layer; all heads in as many rows each."""

    def __init__(self, heads, divide="view"):
        super().__init__()
        self.heads, self.divide = heads, divide
        self.qkv = nn.Linear(WIDTH, 3 * heads * HEAD)
        self.out = nn.Linear(heads * HEAD, WIDTH)

    def forward(self, x):
        y = self.qkv(x)
        if self.divide == "view":
            q, k, v = y.view(*x.shape[:2], 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        else:
            parts = y.chunk(3, -1) if self.divide == "chunk" else y.split(self.heads * HEAD, dim=-1)
            q, k, v = (p.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for p in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Separate(nn.Module):
    """One layer for each head's queries, keys and values, from the weights of the widest."""

    def __init__(self, wide):
        super().__init__()
        rows = zip(wide.qkv.weight.view(3, 2, HEAD, WIDTH).unbind(1), strict=True)
        self.weights = nn.ParameterList(nn.Parameter(w.detach().clone()) for (w,) in rows)
        biases = wide.qkv.bias.view(3, 2, HEAD).unbind(1)
        self.biases = nn.ParameterList(nn.Parameter(b.detach().clone()) for b in biases)
        outs = wide.out.weight.view(WIDTH, 2, HEAD).unbind(1)
        self.outs = nn.ParameterList(nn.Parameter(w.detach().clone()) for w in outs)
        self.bias = nn.Parameter(wide.out.bias.detach().clone())

    def forward(self, x, heads):
        weight = torch.stack(list(self.weights)[:heads], 1).reshape(-1, WIDTH)
        bias = torch.stack(list(self.biases)[:heads], 1).flatten()
        y = F.linear(x, weight, bias).view(*x.shape[:2], 3, heads, HEAD).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*y).transpose(1, 2).flatten(2)
        return F.linear(y, torch.stack(list(self.outs)[:heads], 1).reshape(WIDTH, -1), self.bias)


LAYOUT = {"qkv.weight": "(3 width) inputs", "qkv.bias": "(3 width)"}


def space(make=Attention, layout=LAYOUT, **options):
    return mnas.SearchSpace(
        lambda: nn.Sequential(
            Choice(make, Decision("heads", (1, 2)), nested=True, layout=layout, **options)
        ),
        name="s",
        input_shape=(5, WIDTH),
    )


@pytest.mark.parametrize("layout", [LAYOUT, {"q*bias": "(3 heads 4)", "qkv.*": "(3 heads 4) i"}])
def test_heads_of_one_layer_equal_separate_heads(layout):
    torch.manual_seed(0)
    net = mnas.Supernet(space(layout=layout))
    oracle = Separate(mnas.export(net, (1,))[0])
    options = {"lr": 0.01, "weight_decay": 0.1}
    ours = mnas.MaskedOptimizer(torch.optim.AdamW, net, **options)
    stock = torch.optim.AdamW(oracle.parameters(), **options)
    for step in range(30):
        heads, x = 1 + step % 3 // 2, torch.randn(2, 5, WIDTH)
        losses = []
        for model, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            y = net(x, (heads - 1,)) if model is net else oracle(x, heads)
            losses.append(y.square().mean())
            losses[-1].backward()
            optimizer.step()
        assert torch.equal(*losses)
    trained = Separate(mnas.export(net, (1,))[0])
    for mine, theirs in zip(trained.parameters(), oracle.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    masked = mnas.Supernet(net.space, "masked").double()
    masked.load_state_dict(net.state_dict())
    assert masked.choices[0].enclosing(0) == 1
    for path in net.space.paths():
        x = torch.randn(2, 5, WIDTH).double()
        torch.testing.assert_close(masked(x, path), net.double()(x, path))


class GEGLU(nn.Module):
    def __init__(self, width, glu):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * width), nn.Linear(width, WIDTH)
        self.glu = glu

    def forward(self, x):
        y = self.up(x)
        if self.glu:
            return self.down(F.glu(y))
        a, b = y.chunk(2, dim=-1)
        return self.down(a * F.gelu(b))


class GatedConv(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Conv1d(5, 2 * width, 3, padding=1), nn.Conv1d(width, 5, 1)

    def forward(self, x):
        a, b = self.up(x).chunk(2, 1)
        return self.down(a * b.sigmoid())


@pytest.mark.parametrize(
    ("make", "options", "tensor"),
    [
        (Attention, {"divide": "view"}, "qkv.weight"),
        (Attention, {"divide": "chunk"}, "qkv.weight"),
        (Attention, {"divide": "split"}, "qkv.weight"),
        (GEGLU, {"glu": False}, "up.weight"),
        (GEGLU, {"glu": True}, "up.weight"),
        (GatedConv, {}, "up.weight"),
    ],
)
def test_packed_rows_without_a_layout_are_refused(make, options, tensor):
    with pytest.raises(ValueError, match=f"divide the output of '{tensor}' into .*layout="):
        space(make, None, **options)
    with_layout = {"qkv" if make is Attention else "up": 3 if make is Attention else 2}
    (name, number), *_ = with_layout.items()
    inputs = "inputs k" if make is GatedConv else "inputs"
    layout = {f"{name}.weight": f"({number} width) {inputs}", f"{name}.bias": f"({number} width)"}
    mnas.Supernet(space(make, layout, **options))


class ConvAttention(nn.Module):
    """Queries, keys and values as channels."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Conv1d(5, 3 * width, 1), nn.Conv1d(width, 5, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(1, (3, -1)).unbind(1)
        return self.out((q @ k.mT).softmax(-1) @ v)


class Halves(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * width), nn.Linear(width, WIDTH)

    def forward(self, x):
        y = self.up(x)
        width = y.shape[-1] // 2
        return self.down(y[..., :width] * y[..., width:].sigmoid())


@pytest.mark.parametrize(("make", "name"), [(ConvAttention, "qkv"), (Halves, "up")])
def test_other_ways_to_divide_are_seen(make, name):
    with pytest.raises(ValueError, match=f"divide the output of '{name}.weight' into .*layout="):
        space(make, None)
    net = mnas.Supernet(space(make, {f"{name}.weight": PACKED[name]}))
    # The bias has the rows of its weight.
    assert net.choices[0].layouts[f"{name}.bias"] == net.choices[0].layouts[f"{name}.weight"][:1]


PACKED = {"qkv": "(3 width) inputs taps", "up": "(2 width) inputs"}


class Film(nn.Module):
    """Of a vector a row for each image, which divides nothing."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x):
        y = self.up(x.mean(1)).view(len(x), 1, -1)
        return x * self.down(y)


def test_what_only_looks_like_dividing_is_right():
    assert len(space(Film, None)) == 2


class Heads(nn.Module):
    """Heads one behind the other, whose first rows are right."""

    def __init__(self, heads):
        super().__init__()
        self.query = nn.Linear(WIDTH, heads * HEAD)
        self.heads = heads

    def forward(self, x):
        return self.query(x).view(*x.shape[:2], self.heads, HEAD).mean(2)


def test_heads_one_behind_the_other_need_no_layout():
    assert len(space(Heads, None)) == 2


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"qkv": "(3 w) i"}, "layout of 'qkv' fits no tensor; expected some of ['out.bias'"),
        ({"qkv.weight": "(3 w i"}, "layout '(3 w i' of 'qkv.weight'; expected the dimensions"),
        ({"qkv.weight": "(a b) i"}, "layout '(a b) i' of 'qkv.weight'; expected the dimensions"),
        ({"qkv.weight": "(5 w) i"}, "layout (5 _) (_) does not fit 'qkv.weight' of shape (12, 6)"),
        ({"qkv.weight": "(3 w)"}, "layout (3 _) does not fit 'qkv.weight' of shape (12, 6)"),
        ("(3 w) i", "layout='(3 w) i'; expected a dict"),
    ],
)
def test_layouts_that_do_not_fit(layout, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        space(layout=layout)


class Slicing(nn.Module):
    """A layer that takes as much of its weight as its input is wide."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return F.linear(x.mean((2, 3)), self.weight[:, : x.shape[1]])


def test_a_layer_that_slices_by_its_input_is_refused():
    def build():
        return nn.Sequential(
            Choice(nn.Conv2d, 1, Decision("width", (2, 4)), 3, nested=True), Slicing()
        )

    with pytest.raises(ValueError, match=r"layer of '1.weight' takes parts .* depend on its input"):
        mnas.SearchSpace(build, input_shape=(1, 6, 6))


class InChoice(nn.Module):
    """The same within a choice of its own."""

    def __init__(self, activation):
        super().__init__()
        self.weight, self.activation = nn.Parameter(torch.randn(4)), activation

    def forward(self, x):
        return self.activation(x.mean((2, 3)) * self.weight[: x.shape[1]]).sum(1, keepdim=True)


def test_a_candidate_that_slices_by_its_input_is_refused():
    def build():
        widths = Choice(nn.Conv2d, 1, Decision("width", (2, 4)), 3, nested=True)
        return nn.Sequential(widths, Choice({"a": InChoice(nn.ReLU()), "b": InChoice(nn.Tanh())}))

    with pytest.raises(ValueError, match=r"layer of '1.a.weight' takes parts .* on its input"):
        mnas.SearchSpace(build, input_shape=(1, 6, 6))


class Parts(nn.Module):
    """Two unequal parts of one table, on every path."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x):
        return x * self.table[0] + self.table[1:].sum(0)


def test_parts_that_are_always_taken_are_right():
    def build():
        return nn.Sequential(Parts(), Choice(Heads, Decision("heads", (1, 2)), nested=True))

    assert len(mnas.SearchSpace(build, input_shape=(5, WIDTH))) == 2


class Positions(nn.Module):
    """Part of a table, the same for all paths."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, WIDTH))

    def forward(self, x):
        return x + self.table[: x.shape[1]]


def test_a_part_that_no_path_changes_is_right():
    def build():
        return nn.Sequential(Positions(), Choice(Heads, Decision("heads", (1, 2)), nested=True))

    assert len(mnas.SearchSpace(build, input_shape=(5, WIDTH))) == 2

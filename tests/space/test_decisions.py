"""Decisions that many places read, against separate tensors under stock optimizers."""

import itertools
import random

import pytest
import torch
from oracle import OPTIMIZERS
from torch import nn
from torch.nn import functional as F

import mnas
from mnas import Choice, Decision

OUT, IN, KERNELS = (4, 6), (3, 5), (1, 3, 5)


class ConvBN(nn.Sequential):
    def __init__(self, inputs, outputs, kernel=3, stride=1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class Res(nn.Module):
    def __init__(self, width, kernel):
        super().__init__()
        self.body = ConvBN(width, width, kernel)

    def forward(self, x):
        return x + self.body(x).relu()


def coupled():
    """Two widths, one kernel that two places read, and a depth."""
    a, b = Decision("a", (3, 5)), Decision("b", (4, 6))
    kernel, depth = Decision("kernel", (1, 3, 5)), Decision("depth", (1, 2))
    return nn.Sequential(
        Choice(ConvBN, 2, a, stride=2, nested=True),
        Choice(Res, a, kernel, nested=True),
        Choice(lambda w, k, d: Res(w, k) if d == 2 else None, a, kernel, depth, nested=True),
        Choice(ConvBN, a, b, kernel, nested=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Choice(nn.Linear, b, 3, nested=True),
    )


def space():
    return mnas.SearchSpace(coupled, name="coupled", input_shape=(2, 8, 8))


class Cells:
    """A nested tensor as separate ones: a cell for each range of rows, of columns and ring of a
    kernel, put together where they are used."""

    def __init__(self, whole, rows, columns, kernels):
        self.rows, self.columns, self.kernels = rows, columns, kernels
        self.cells = {}
        for key in itertools.product(range(len(rows)), range(len(columns)), range(len(kernels))):
            values = whole.detach()[self.mask(whole.shape, key)].clone()
            self.cells[key] = nn.Parameter(values)

    def mask(self, shape, key):
        """Where a cell is in a tensor of this shape."""
        mask = torch.zeros(shape, dtype=torch.bool)
        row, column, ring = key
        start = self.rows[row - 1] if row else 0
        left = self.columns[column - 1] if column else 0
        part = mask[start : self.rows[row], left : self.columns[column]]
        part[self._centre(part, ring)] = True
        if ring:
            part[self._centre(part, ring - 1)] = False
        return mask

    def _centre(self, part, ring):
        if part.ndim == 2:
            return ...
        margin = (part.shape[-1] - self.kernels[ring]) // 2
        centre = slice(margin, part.shape[-1] - margin)
        return ..., centre, centre

    def tensor(self, rows, columns=None, kernel=None):
        shape = (rows,) if columns is None else (rows, columns)
        shape += (kernel, kernel) if kernel else ()
        made = torch.zeros(shape if columns is not None else (rows, 1))
        for key, cell in self.cells.items():
            row, column, ring = key
            fits = self.rows[row] <= rows and (columns is None or self.columns[column] <= columns)
            if fits and (kernel is None or self.kernels[ring] <= kernel):
                made = made.masked_scatter(self.mask(made.shape, key), cell)
        return made if columns is not None else made[:, 0]


class Separate:
    """`coupled` on cells, with BatchNorm's statistics for each combination of a place's values."""

    def __init__(self, net):
        shared = {}
        for choice in net.choices:
            shared[choice] = {name: region_of(choice, name) for name in choice.shared}
        widths = ((2,), IN, (1,)), (IN, IN, KERNELS), (IN, IN, KERNELS), (IN, OUT, KERNELS)
        self.places = []
        for choice, (inputs, outputs, kernels) in zip(net.choices, widths, strict=False):
            kernels = (3,) if inputs == (2,) else kernels
            prefix = "body." if len(inputs) == len(outputs) == 2 and inputs == outputs else ""
            tensors = shared[choice]
            self.places.append(
                {
                    "conv": Cells(tensors[f"{prefix}0.weight"], outputs, inputs, kernels),
                    "weight": Cells(tensors[f"{prefix}1.weight"][:, None], outputs, (1,), (1,)),
                    "bias": Cells(tensors[f"{prefix}1.bias"][:, None], outputs, (1,), (1,)),
                    "statistics": {},
                }
            )
        self.weight = Cells(shared[net.choices[-1]]["weight"], (3,), OUT, (1,))
        self.bias = Cells(shared[net.choices[-1]]["bias"][:, None], (3,), (1,), (1,))

    def parameters(self):
        for place in self.places:
            for name in ("conv", "weight", "bias"):
                yield from place[name].cells.values()
        yield from self.weight.cells.values()
        yield from self.bias.cells.values()

    def conv(self, number, x, outputs, kernel, values, stride=1):
        place = self.places[number]
        weight = place["conv"].tensor(outputs, x.shape[1], kernel)
        x = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
        mean, var = place["statistics"].setdefault(
            values, (torch.zeros(outputs), torch.ones(outputs))
        )
        affine = place["weight"].tensor(outputs), place["bias"].tensor(outputs)
        return F.batch_norm(x, mean, var, *affine, training=True)

    def __call__(self, x, a, kernel, depth, b):
        x = self.conv(0, x, a, 3, a, stride=2)
        x = x + self.conv(1, x, a, kernel, (a, kernel)).relu()
        if depth == 2:
            x = x + self.conv(2, x, a, kernel, (a, kernel)).relu()
        x = self.conv(3, x, b, kernel, (a, b, kernel))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return F.linear(x, self.weight.tensor(3, b), self.bias.tensor(3))


def region_of(choice, name):
    """All that candidates share of a tensor."""
    canvas = choice.canvases[name]
    whole = torch.zeros(canvas.size)
    for atom, key in zip(canvas.atoms, choice.shared[name], strict=True):
        atom.put(choice._parameters[key].detach(), whole)
    return whole


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_nested_weights_equal_separate_cells_under_stock_optimizers(name):
    torch.manual_seed(0)
    net = mnas.Supernet(space())
    oracle = Separate(net)
    optimizer_class, options = OPTIMIZERS[name]
    ours = mnas.MaskedOptimizer(optimizer_class, net, **options)
    stock = optimizer_class(oracle.parameters(), **options)
    generator, chooser = torch.Generator().manual_seed(1), random.Random(1)
    for _ in range(60):
        values = {d.name: chooser.choice(d.values) for d in net.space.decisions}
        x = torch.randn(4, 2, 8, 8, generator=generator)
        losses = []
        for model, optimizer in ((net, ours), (oracle, stock)):
            optimizer.zero_grad()
            y = net(x, net.space.path(values)) if model is net else oracle(x, **values)
            losses.append(y.square().mean())
            losses[-1].backward()
            optimizer.step()
        assert torch.equal(*losses)
    for number, choice in enumerate(net.choices[:-1]):
        prefix = "body." if number in (1, 2) else ""
        for mine, theirs in (("0.weight", "conv"), ("1.weight", "weight"), ("1.bias", "bias")):
            whole = region_of(choice, prefix + mine)
            cells = oracle.places[number][theirs]
            expected = cells.tensor(
                *(whole.shape[:2] if whole.ndim > 1 else whole.shape),
                *(whole.shape[3:] if whole.ndim > 1 else ()),
            )
            assert torch.equal(whole, expected)


def test_what_a_path_does_not_use_does_not_move():
    torch.manual_seed(0)
    net = mnas.Supernet(space())
    optimizer = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.1, weight_decay=0.1)
    paths = list(net.space.paths())
    for path in [*paths, *reversed(paths)]:
        key = net.space.key(path)
        used = {
            id(p)
            for choice, index in zip(net.choices, key, strict=True)
            for p in choice.parameters_of(index)
        }
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        states = {n: optimizer.dense_state(p) for n, p in net.named_parameters()}
        buffers = {n: b.clone() for n, b in net.named_buffers()}
        penalty = 1e-3 * sum(p.square().sum() for p in net.parameters())
        optimizer.zero_grad()
        (net(torch.randn(4, 2, 8, 8), path).square().mean() + penalty).backward()
        optimizer.step()
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, before[name]) == (id(parameter) not in used)
            if id(parameter) not in used:
                after = optimizer.dense_state(parameter)
                assert after.keys() == states[name].keys()
                assert all(torch.equal(after[k], v) for k, v in states[name].items())
        own = {
            f"model.{name}.{choice.names[index]}."
            for (name, choice), index in zip(
                ((n, m) for n, m in net.model.named_modules() if isinstance(m, Choice)),
                key,
                strict=True,
            )
        }
        for name, buffer in net.named_buffers():
            if not name.startswith(tuple(own)):
                assert torch.equal(buffer, buffers[name])


def test_a_path_is_its_export_and_itself_alone():
    torch.manual_seed(3)
    trained = mnas.Supernet(space())
    for path in list(trained.space.paths())[::5]:
        torch.manual_seed(3)
        net = mnas.Supernet(trained.space)
        torch.manual_seed(3)
        alone = mnas.standalone(net.space, path)
        ours = mnas.MaskedOptimizer(torch.optim.AdamW, net, lr=0.01, weight_decay=0.1)
        stock = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(5):
            x = torch.randn(4, 2, 8, 8)
            for model, optimizer in ((net, ours), (alone, stock)):
                optimizer.zero_grad()
                (net(x, path) if model is net else alone(x)).square().mean().backward()
                optimizer.step()
        exported = mnas.export(net, path)
        for a, b in zip(exported.state_dict().items(), alone.state_dict().items(), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1])
        for training in (True, False):
            net.train(training)
            exported.train(training)
            assert torch.equal(net(x, path), exported(x))


def test_networks_that_share_a_prefix_are_what_they_are_one_by_one():
    torch.manual_seed(0)
    net = mnas.Supernet(space()).eval()
    paths = list(itertools.product(*(range(len(d)) for d in net.space.decisions)))
    x = torch.randn(3, 2, 8, 8)
    for path, y in zip(paths, net.forward_paths(x, paths), strict=True):
        assert torch.equal(y, net(x, path))


def test_coupled_widths_run_behind_masks():
    torch.manual_seed(0)
    sliced = mnas.Supernet(space()).double()
    masked = mnas.Supernet(space(), "masked").double()
    masked.load_state_dict(sliced.state_dict())
    # All on the widest one, but for the absent block, which nothing encloses.
    assert [len({c.enclosing(i) for i in range(len(c))}) for c in masked.choices] == [1, 1, 2, 1, 1]
    for training in (True, False):
        for path in sliced.space.paths():
            x = torch.randn(4, 2, 8, 8).double()
            torch.testing.assert_close(
                masked.train(training)(x, path), sliced.train(training)(x, path)
            )
    for ours, theirs in zip(masked.buffers(), sliced.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_of_a_decision_serve_every_place_that_reads_it():
    torch.manual_seed(0)
    op = Decision("op", ("conv", "skip", "none"))

    class Zero(nn.Module):
        def forward(self, x):
            return x * 0

    def build():
        def choice():
            conv = nn.Conv2d(2, 2, 3, padding=1)
            return Choice({"conv": conv, "skip": nn.Identity(), "none": Zero()}, op)

        return nn.Sequential(choice(), choice(), nn.Flatten())

    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(2, 4, 4))).double()
    assert net.space.size == 3
    weights = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, 4, 4).double()
    expected = x
    for choice in net.choices:
        expected = sum(w * choice.candidate(i)(expected) for i, w in enumerate(weights))
    y = net(x, (weights,))
    torch.testing.assert_close(y, expected.flatten(1), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), weights)
    (theirs,) = torch.autograd.grad(expected.sum(), weights)
    torch.testing.assert_close(gradient, theirs, rtol=1e-12, atol=1e-12)


def test_a_weighted_width_is_the_sum_over_the_candidates_that_it_gives():
    """Two decisions behind one place: the other one chosen, or weighted as well."""
    torch.manual_seed(0)
    d, k = Decision("d", (1, 2)), Decision("k", (1, 3))

    def build():
        def make(d, k):
            return nn.Conv2d(2, 2, k, padding=k // 2) if d == 2 else None

        return nn.Sequential(Choice(make, d, k, nested=True), nn.Flatten())

    net = mnas.Supernet(mnas.SearchSpace(build, input_shape=(2, 4, 4))).double()
    x = torch.randn(2, 2, 4, 4).double()
    skip, k1, k3 = (net(x, p) for p in ((0, 0), (1, 0), (1, 1)))
    a, b = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 2.0]).double()
    torch.testing.assert_close(net(x, (a, 1)), 0.3 * skip + 0.7 * k3)
    torch.testing.assert_close(net(x, (1, b)), -k1 + 2 * k3)
    torch.testing.assert_close(net(x, (a, b)), 0.3 * (-1 + 2) * skip + 0.7 * (-k1 + 2 * k3))

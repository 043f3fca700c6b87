"""The reference implementation: separate modules, stock optimizers, nothing shared or masked."""

import copy
import random

import torch
from torch import nn
from torch.nn import functional as F

import mnas

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.003, "weight_decay": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.003, "weight_decay": 0.05}),
    "rmsprop": (
        torch.optim.RMSprop,
        {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.01, "centered": True},
    ),
}


class ModularMil4(nn.Module):
    """`mil4` with one module per candidate, constructed in the order in which the space constructs
    them."""

    def __init__(self, channels=(16, 32), hidden=128):
        super().__init__()
        c0, c1 = channels
        self.first = nn.ModuleList([nn.Conv2d(1, c0, 3, padding=1), nn.Conv2d(1, c0, 5, padding=2)])
        self.second = nn.ModuleList(
            [nn.Conv2d(c0, c1, 3, padding=1), nn.Conv2d(c0, c1, 5, padding=2)]
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(c1 * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x, path):
        x = self.pool(self.relu(self.first[path[0]](x)))
        x = self.pool(self.relu(self.second[path[1]](x)))
        return self.head(x)

    def used(self, path):
        """The parameters of a path, in the order of the standalone network."""
        return [
            *self.first[path[0]].parameters(),
            *self.second[path[1]].parameters(),
            *self.head.parameters(),
        ]

    def candidates(self):
        """The parameters of all candidates, in the order of the merged tensors: by choice, by name,
        by candidate."""
        for choice in (self.first, self.second):
            for name in ("weight", "bias"):
                yield [getattr(candidate, name) for candidate in choice]


class SplitModel:
    """A module whose parameters are cut into separate tensors, one for the entries that share a
    history of masks.

    history[name]: (passes, *shape) boolean, what may train in each backward pass. Tensors that may
    not train get no gradient: their grad stays None, and a stock optimizer leaves them alone."""

    def __init__(self, module, history):
        self.module = copy.deepcopy(module)
        self.atoms = {}  # name: [(entries, tensor, passes in which it trains)]
        for name, parameter in self.module.named_parameters():
            columns, which = history[name].flatten(1).unique(dim=1, return_inverse=True)
            self.atoms[name] = []
            for number, trains in enumerate(columns.T):
                entries = (which == number).nonzero().squeeze(1)
                values = parameter.detach().flatten()[entries].clone()
                self.atoms[name].append((entries, nn.Parameter(values), trains))

    def parameters(self):
        return [tensor for atoms in self.atoms.values() for _, tensor, _ in atoms]

    def backward(self, number, loss):
        """Backward pass `number`: its gradients are added to those of the tensors that may train in
        it."""
        self.module.zero_grad()
        loss.backward()
        for name, atoms in self.atoms.items():
            grad = self.module.get_parameter(name).grad.flatten()
            for entries, tensor, trains in atoms:
                if trains[number]:
                    tensor.grad = (
                        grad[entries] if tensor.grad is None else tensor.grad + grad[entries]
                    )

    def assemble(self):
        """After a step: the module's parameters from the separate tensors."""
        with torch.no_grad():
            for name, atoms in self.atoms.items():
                flat = self.module.get_parameter(name).flatten()
                for entries, tensor, _ in atoms:
                    flat[entries] = tensor
                self.module.get_parameter(name).copy_(flat.view_as(self.module.get_parameter(name)))

    @torch.no_grad()
    def take(self, net):
        """Goes on from the parameters of another module of the same kind."""
        for name, atoms in self.atoms.items():
            for entries, tensor, _ in atoms:
                tensor.copy_(net.get_parameter(name).flatten()[entries])
        self.assemble()


class NaiveMil9(nn.Module):
    """`mil9` with three convolutions a block, of which a depth uses the first ones, and statistics
    for each depth."""

    def __init__(self, channels):
        super().__init__()
        c0, c1 = channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, c0, 3, padding=1, bias=False), nn.BatchNorm2d(c0), nn.ReLU()
        )
        self.first = self.block(c0)
        self.middle = nn.Sequential(
            nn.Conv2d(c0, c1, 3, 2, padding=1, bias=False), nn.BatchNorm2d(c1), nn.ReLU()
        )
        self.second = self.block(c1)
        self.head = nn.Linear(c1, 10)

    @staticmethod
    def block(width):
        shallow = [
            nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(n)])
            for n in (1, 2, 3)
        ]
        block = nn.Module()
        block.convs = shallow[
            -1
        ]  # the space makes the shallow ones, too; the deepest gives the start
        block.weight = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in range(3)])
        block.bias = nn.ParameterList([nn.Parameter(torch.zeros(width)) for _ in range(3)])
        block.mean = [[torch.zeros(width) for _ in range(depth)] for depth in (1, 2, 3)]
        block.var = [[torch.ones(width) for _ in range(depth)] for depth in (1, 2, 3)]
        return block

    def run(self, block, x, depth):
        for layer in range(depth + 1):
            statistics = block.mean[depth][layer], block.var[depth][layer]
            affine = block.weight[layer], block.bias[layer]
            x = F.relu(
                F.batch_norm(block.convs[layer](x), *statistics, *affine, training=self.training)
            )
        return x

    def forward(self, x, path):
        x = self.run(self.first, self.stem(x), path[0])
        x = self.run(self.second, self.middle(x), path[1])
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class NaiveChoices(nn.Module):
    """Any space whose model is a sequence, with one module per candidate: each `Choice` becomes a
    ModuleList."""

    def __init__(self, space, net):
        super().__init__()
        self.parts = nn.ModuleList()
        for number, part in enumerate(net.model):
            if isinstance(part, mnas.Choice):
                position = net.choices.index(part)
                base = [0] * len(space.choices)
                paths = [
                    [*base[:position], index, *base[position + 1 :]] for index in range(len(part))
                ]
                self.parts.append(nn.ModuleList([mnas.export(net, path)[number] for path in paths]))
            else:
                self.parts.append(copy.deepcopy(part))

    def forward(self, x, path):
        indices = iter(path)
        for part in self.parts:
            x = (part[next(indices)] if isinstance(part, nn.ModuleList) else part)(x)
        return x

    def used(self, path):
        indices = iter(path)
        chosen = [
            part[next(indices)] if isinstance(part, nn.ModuleList) else part for part in self.parts
        ]
        return [tensor for part in chosen for tensor in [*part.parameters(), *part.buffers()]]


class CentreAndRing(nn.Module):
    """Two nested candidates, convolutions of 3x3 and 5x5 with BatchNorm, with a tensor for each
    part: the centre of the kernel, the ring around it, scale and shift of both, and statistics for
    each."""

    def __init__(self, choice):
        super().__init__()
        canvas = choice.canvases["0.weight"]
        values = [p.detach().clone() for p in choice.parameters()]
        self.centre, self.ring = map(nn.Parameter, values[:2])
        assert self.centre.shape[2:] == (3, 3)
        # Where the entries of the ring are on the canvas: in the order of the atom, so that a norm
        # is the same sum.
        self.place = torch.full(canvas.size, -1)
        canvas.atoms[1].put(torch.arange(self.ring.numel()).view(self.ring.shape), self.place)
        self.around = self.place >= 0
        self.norms = nn.ModuleList([nn.BatchNorm2d(canvas.size[0]) for _ in range(2)])
        for index, norm in enumerate(self.norms):
            norm.load_state_dict(choice.candidate(index)[1].state_dict())
        self.norms[1].weight, self.norms[1].bias = self.norms[0].weight, self.norms[0].bias

    def kernel(self, index):
        if index == 0:
            return self.centre
        flat = torch.zeros(self.around.numel(), dtype=self.ring.dtype)
        places = self.around.flatten().nonzero().squeeze(1)
        entries = self.ring.flatten()[self.place[self.around]]
        return F.pad(self.centre, (1, 1, 1, 1)) + flat.index_put((places,), entries).view(
            self.around.shape
        )

    def forward(self, x, index):
        return self.norms[index](F.conv2d(x, self.kernel(index), padding=index + 1))

    def used(self, index):
        norm = self.norms[index]
        return [self.kernel(index), *norm.parameters(), *norm.buffers()]


class NaiveNested(nn.Module):
    """A stem, such a choice, and what comes after it."""

    def __init__(self, net):
        super().__init__()
        stem, choice, *tail = net.model
        self.stem, self.choice = copy.deepcopy(stem), CentreAndRing(choice)
        self.tail = copy.deepcopy(nn.Sequential(*tail))

    def forward(self, x, path):
        return self.tail(self.choice(self.stem(x), path[0]))

    def used(self, path):
        return [*self.stem.parameters(), *self.choice.used(path[0]), *self.tail.parameters()]


def random_paths(space, n):
    chooser = random.Random(3)
    return [chooser.choice(list(space.paths())) for _ in range(n)]


def assert_same_state(dense, reference):
    """dense: state with one number an entry; reference: that of a separate tensor, empty if it was
    never stepped."""
    if not reference:
        assert all(value.eq(0).all() for value in dense.values())
    for key, value in reference.items():
        assert torch.equal(dense[key], torch.as_tensor(value).expand(dense[key].shape)), key

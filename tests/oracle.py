"""The naive thing that mnas must equal: separate modules, stock optimizers, nothing shared and nothing clever."""

from torch import nn


class ModularMil4(nn.Module):
    """`mil4` with one module per candidate, constructed in the order in which the space constructs them."""

    def __init__(self, channels=(16, 32), hidden=128):
        super().__init__()
        c0, c1 = channels
        self.first = nn.ModuleList([nn.Conv2d(1, c0, 3, padding=1), nn.Conv2d(1, c0, 5, padding=2)])
        self.second = nn.ModuleList([nn.Conv2d(c0, c1, 3, padding=1), nn.Conv2d(c0, c1, 5, padding=2)])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(c1 * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x, path):
        x = self.pool(self.relu(self.first[path[0]](x)))
        x = self.pool(self.relu(self.second[path[1]](x)))
        return self.head(x)

    def used(self, path):
        """The parameters of a path, in the order of the standalone network."""
        return [*self.first[path[0]].parameters(), *self.second[path[1]].parameters(), *self.head.parameters()]

    def pieces(self):
        """All parameters in the order in which a MaskedOptimizer holds its pieces: by merged parameter."""
        for choice in (self.first, self.second):
            for name in ("weight", "bias"):
                for candidate in choice:
                    yield getattr(candidate, name)
        yield from self.head.parameters()

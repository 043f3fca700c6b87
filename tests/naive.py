"""The naive loop of training: one module a candidate, one pass after the other, stock SGD."""

import copy

import torch
from oracle import NaiveChoices
from torch import nn

import mnas
from mnas.training.data import Split
from mnas.training.trainer import Recipe, _options, supernet_trainer

STEPS = 6


def conv(kernel):
    return nn.Sequential(nn.Conv2d(3, 3, kernel, padding=kernel // 2), nn.BatchNorm2d(3))


def uneven():
    """A choice of three and one of two, with BatchNorm, behind a stem that all paths share."""

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            mnas.Choice({"k1": conv(1), "k3": conv(3), "k5": conv(5)}),
            nn.ReLU(),
            mnas.Choice({"k3": conv(3), "k5": conv(5)}),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 10),
        )

    return mnas.SearchSpace(build, name="uneven", input_shape=(1, 12, 12))


def split(space, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, *space.input_shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (n,), generator=generator)
    return Split(images.to(torch.get_default_dtype()), labels)


def make(space, rule="single_path", sampler=None, epochs=1, lr=0.05, policy="frozen", **options):
    recipe = Recipe(epochs, batch_size=8, lr=lr)
    splits = split(space, 8 * STEPS), split(space, 6, seed=1)
    by = {"sampler": sampler, "policy": policy, "rule": rule, "rule_options": options}
    return supernet_trainer(space, *splits, recipe, 3, **by)


class Naive:
    """The network of before, one module a candidate, and stock SGD."""

    def __init__(self, trainer):
        self.trainer, self.space = trainer, trainer.space
        self.model = NaiveChoices(self.space, trainer.module).train()
        self.sampler = copy.deepcopy(trainer.sampler)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **_options(trainer.recipe))

    def batch(self):
        """Of the step that comes next."""
        if self.trainer.step % self.trainer.steps_per_epoch == 0:
            generator = copy.deepcopy(self.trainer.batches.generator)
            self.order = torch.randperm(len(self.trainer.train), generator=generator)
        at = self.trainer.step % self.trainer.steps_per_epoch
        batch = self.order[at * 8 : (at + 1) * 8]
        return self.trainer.train.images[batch], self.trainer.train.labels[batch]

    def step(self, factor=1.0):
        (rate,) = self.trainer.scheduler.get_last_lr()
        self.optimizer.param_groups[0]["lr"] = rate * factor
        self.optimizer.step()

    def choices(self):
        return [part for part in self.model.parts if isinstance(part, nn.ModuleList)]

    def chosen(self, path):
        indices = iter(path)
        return [
            part[next(indices)] if isinstance(part, nn.ModuleList) else part
            for part in self.model.parts
        ]

    def compare(self, equal=None, statistics=True):
        """All candidates, their statistics included, with those of the supernet."""
        equal = equal or (lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0))
        for path in self.space.paths():
            exported = mnas.export(self.trainer.module, path)
            for ours, layer in zip(self.chosen(path), exported, strict=True):
                ours, theirs = (
                    m.state_dict() if statistics else dict(m.named_parameters())
                    for m in (ours, layer)
                )
                assert ours.keys() == theirs.keys()
                for name, value in ours.items():
                    equal(theirs[name], value)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def soft(logits, of_teacher, temperature=1.0):
    """The divergence of one softmax from another, written out."""
    p, q = (y.div(temperature).softmax(1) for y in (of_teacher, logits))
    return (p * (p.log() - q.log())).sum(1).mean()


class Summed(nn.Module):
    """A naive network that sums the outputs of those candidates that are kept."""

    def __init__(self, model):
        super().__init__()
        self.parts = model.parts

    def forward(self, x, kept):
        entries = iter(kept)
        for part in self.parts:
            if isinstance(part, nn.ModuleList):
                stay = next(entries).tolist()
                x = sum(layer(x) for layer, stays in zip(part, stay, strict=True) if stays)
            else:
                x = part(x)
        return x

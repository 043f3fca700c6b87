"""Path dropout against separate modules whose outputs are summed."""

import pytest
import torch
from naive import Naive, Summed, close, make, split, uneven
from torch import nn
from torch.nn import functional as F

import mnas
from mnas.space.sampler import UniformSampler
from mnas.training import rules
from mnas.training.rules import Step
from mnas.training.trainer import Recipe, supernet_trainer


def drawn(generator, lengths, rate):
    """Which values stay, written out."""
    found = []
    for k in lengths:
        stays = torch.rand(k, generator=generator) >= rate ** (1 / k)
        if not stays.any():
            stays[torch.randint(k, (), generator=generator)] = True
        found.append(stays)
    return found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("ghost", [32, 3])
def test_path_dropout_trains_what_is_kept_and_nothing_else(ghost):
    """Each part of the batch by itself, with the mean over the batch: 8 images in parts of 3, 3 and
    2. What is dropped has neither a step nor statistics; momentum and decay move nothing of it."""
    trainer = make(uneven(), "path_dropout", epochs=2, drop=0.9, ghost=ghost)
    naive = Naive(trainer)
    model = Summed(naive.model)
    dropped = 0
    while not trainer.finished:
        images, labels = naive.batch()
        naive.optimizer.zero_grad()
        total, parts = 0.0, [8] if ghost > 8 else [3, 3, 2]
        for x, y in zip(images.split(parts), labels.split(parts), strict=True):
            rate = 0.9 * trainer.step / trainer.total_steps
            kept = drawn(naive.sampler.generator, (3, 2), rate)
            dropped += sum(int((~stays).sum()) for stays in kept)
            loss = F.cross_entropy(model(x, kept), y, reduction="sum") / 8
            loss.backward()
            total += loss.item()
        naive.step()
        assert trainer.advance() == pytest.approx(total, rel=1e-12)
        naive.compare(close)
        for choice, part in zip(trainer.module.choices, naive.choices(), strict=True):
            for index, layer in enumerate(part):
                moved = any(p.grad is not None for p in layer.parameters())
                ours = [p.grad is not None for p in choice.parameters_of(index)]
                assert set(ours) == {moved}
    assert dropped > 10
    assert trainer._updates == {}


def test_dropout_rises_from_nothing():
    space = uneven()
    net, sampler = mnas.Supernet(space), UniformSampler(space, 0)
    step = Step(net, None, None, sampler, F.cross_entropy, 0.0, net)
    assert all(stays.all() for stays in rules.kept(step, 0.0))
    shares = torch.stack([torch.cat(rules.kept(step, 0.5)) for _ in range(2000)]).mean(0)
    # With probability 0.5 all of a decision would go, and one of them stays at random.
    expected = [1 - 0.5 ** (1 / k) + 0.5 / k for k in (3, 3, 3, 2, 2)]
    torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.04)
    for _ in range(100):
        assert all(stays.any() for stays in rules.kept(step, 0.99))


def test_path_dropout_needs_outputs_that_can_be_added():
    def build():
        width = mnas.Decision("width", (2, 3))
        return nn.Sequential(
            mnas.Choice(lambda w: nn.Conv2d(1, w, 3), width),
            mnas.Choice(lambda w: nn.Conv2d(w, 10, 2), width),
            nn.Flatten(),
        )

    space = mnas.SearchSpace(build, name="widths", input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="space widths cannot run all candidates at once"):
        supernet_trainer(space, split(space, 8), split(space, 8), Recipe(1), 0, rule="path_dropout")

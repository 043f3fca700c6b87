"""Few-shot supernets: copies of a supernet, each trained on the paths with one value of a
decision."""

import copy

import pytest
import torch
from naive import Naive, make, uneven
from torch.nn import functional as F

import mnas
from mnas.space.sampler import GroupSampler, UniformSampler
from mnas.training.trainer import _options


def test_a_copy_trains_as_separate_modules_that_start_from_the_supernet():
    """Bit for bit, one copy for each value of the first decision; the supernet stays as it was."""
    trainer = make(uneven())
    while not trainer.finished:
        trainer.advance()
    whole = trainer.module
    before = copy.deepcopy(whole.state_dict())
    for value in range(3):
        trainer.module = whole
        naive = Naive(trainer)
        trainer.module = net = copy.deepcopy(whole).train()
        optimizer = mnas.MaskedOptimizer(torch.optim.SGD, net, **_options(trainer.recipe))
        sampler = GroupSampler(net.space, UniformSampler(net.space, value), {0: value})
        used = set()
        for number in range(6):
            x, y = (t[8 * number : 8 * number + 8] for t in vars(trainer.train).values())
            path = next(sampler)
            used.add(path)
            for model, stepped in ((net, optimizer), (naive.model, naive.optimizer)):
                stepped.zero_grad()
                F.cross_entropy(model(x, path), y).backward()
                stepped.step()
            naive.compare()
        assert used <= {(value, 0), (value, 1)}
        assert all(torch.equal(v, before[name]) for name, v in whole.state_dict().items())


@pytest.mark.parametrize("fixed", [{2: 0}, {0: 3}, {-1: 0}])
def test_values_that_the_space_has_not_are_refused(fixed):
    space = uneven()
    with pytest.raises(ValueError, match=r"expected one of decisions with \[3, 2\] values$"):
        GroupSampler(space, UniformSampler(space, 0), fixed)
